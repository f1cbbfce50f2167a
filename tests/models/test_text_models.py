"""Models of texts: what a manifest says of them, and ONNX files with one input or several."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import yaml
from text_models import LABELS, NAMES, digest, onnx_model, tokenizer, write_task

from coe.cascade import Agreement, Batch, ConfigError, LocalTier, ModelError
from coe.config.manifest import Task, read_manifest
from coe.models import InputDecoder, ModelSpec, TextInputSpec, load

TEXTS = ["a good film", "bad bad film", "good", "a film , a film , a film , bad"]


@pytest.fixture
def put(tmp_path):
    """Writes a model and its tokenizer; declares it."""

    def write(data: bytes, **input_spec: object) -> ModelSpec:
        (tmp_path / "a.onnx").write_bytes(data)
        (tmp_path / "t.json").write_bytes(tokenizer())
        text = TextInputSpec(tokenizer=tmp_path / "t.json", max_length=16)
        return ModelSpec("a.onnx", tmp_path / "a.onnx", "onnx", LABELS, replace(text, **input_spec))

    return write


def batch_of(values=TEXTS) -> Batch:
    return InputDecoder(TextInputSpec()).batch([f"x{row}" for row in range(len(values))], values)


def expected(values=TEXTS) -> np.ndarray:
    counts = np.array([[value.split().count(word) for word in ("bad", "good")] for value in values], dtype=np.float64)
    powers = np.exp(counts)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", ["INT64", "INT32"])
@pytest.mark.parametrize("names", [("x",), NAMES[:1], NAMES[:2], NAMES, NAMES[::-1], (NAMES[0], NAMES[2])])
def test_a_models_inputs_are_fed_by_their_names(put, names, dtype):
    first = [name for name in names if name in ("x", "input_ids")]
    ordered = [*first, *(name for name in names if name not in first)]
    member = load(put(onnx_model(ordered, dtype)))
    batch = batch_of()
    for row in range(len(batch)):  # alone, so that a model without a mask meets no padding
        output = member.predict(member.prepare(batch.x[row : row + 1]))
        assert output == pytest.approx(expected()[row : row + 1], abs=1e-5)


def test_a_mask_hides_the_padding_of_a_batch(put):
    member = load(put(onnx_model()))
    assert member.predict(member.prepare(batch_of().x)) == pytest.approx(expected(), abs=1e-5)


@pytest.mark.parametrize("rows", [1, None])
def test_a_model_of_fixed_length_is_always_given_so_many_tokens(put, rows):
    member = load(put(onnx_model(rows=rows, tokens=16), padding="max_length"))
    assert member.predict(member.prepare(batch_of().x)) == pytest.approx(expected(), abs=1e-5)


def test_a_fixed_length_that_is_not_declared_is_refused_with_what_to_write(put):
    for input_spec in ({}, {"padding": "max_length", "max_length": 12}):
        with pytest.raises(ModelError, match="write `max_length: 16` and `padding: max_length`"):
            load(put(onnx_model(tokens=16), **input_spec))


def test_a_fixed_batch_of_several_is_refused(put):
    with pytest.raises(ModelError, match="expected a batch dimension that is free or 1"):
        load(put(onnx_model(rows=3)))


def test_an_input_of_an_unknown_name_is_refused(put):
    with pytest.raises(ModelError, match=r"expected inputs of the names input_ids, .* got mask"):
        load(put(onnx_model(("input_ids", "mask"))))


def test_an_input_that_takes_no_whole_numbers_is_refused(put):
    with pytest.raises(ModelError, match=r"expected whole numbers \(int64, int32\) as token_type_ids, got tensor"):
        load(put(with_float_segments()))


def with_float_segments() -> bytes:
    import onnx

    model = onnx.load_from_string(onnx_model(NAMES))
    model.graph.input[2].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model.SerializeToString()


def test_several_threads_get_the_answers_of_one(put):
    member = load(put(onnx_model()))
    batch = batch_of()
    alone = [member.predict(member.prepare(batch.x[row : row + 1])).tobytes() for row in range(len(batch))]

    def ask(thread: int) -> list[tuple[int, bytes]]:
        rows = [(thread + turn) % len(batch) for turn in range(20)]
        return [(row, member.predict(member.prepare(batch.x[row : row + 1])).tobytes()) for row in rows]

    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(ask, range(4)):
            assert all(answer == alone[row] for row, answer in answers)


def test_members_of_texts_sit_in_a_tier_and_rows_leave_as_they_are_settled(put):
    spec = put(onnx_model())
    rule = Agreement(Fraction(2, 3))
    tier = LocalTier("tier", [load(spec), load(spec), load(spec)], rule)
    vote = tier.vote(batch_of(), rule)
    assert vote.labels.tolist() == expected().argmax(axis=1).tolist()
    assert vote.asked.tolist() == [2, 2, 2, 2]
    one = tier.vote(batch_of(TEXTS[:1]), rule)
    assert (one.labels.tolist(), one.asked.tolist()) == ([1], [2])
    tier.close()


def test_a_model_without_its_tokenizer_does_not_load(put):
    spec = put(onnx_model())
    spec.input_spec.tokenizer.unlink()
    with pytest.raises(ModelError, match="the tokenizer file cannot be read"):
        load(spec)


# The manifest


def manifest_of(folder, **changes) -> None:
    """Rewrites the one model's `input:` with changes; None takes a key away."""
    write_task(folder, {"a.onnx": onnx_model()})
    content = yaml.safe_load((folder / "manifest.yaml").read_text())
    own = content["models"]["a.onnx"]["input"]
    own.update(changes)
    content["models"]["a.onnx"]["input"] = {key: value for key, value in own.items() if value is not None}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(content))


def test_a_manifest_names_each_models_tokenizer_and_its_checksum(tmp_path):
    manifest = read_manifest(write_task(tmp_path, {"a.onnx": onnx_model(), "b.onnx": onnx_model()}))
    assert manifest.task.input_spec == TextInputSpec()
    for name in ("a", "b"):
        input_spec = manifest.models[f"{name}.onnx"].input_spec
        assert isinstance(input_spec, TextInputSpec)
        assert input_spec.tokenizer == tmp_path / f"{name}.tokenizer.json"
        assert input_spec.tokenizer_sha256 == digest(tokenizer())
        assert (input_spec.max_length, input_spec.padding) == (16, "longest")
        member = load(manifest.models[f"{name}.onnx"])
        assert member.predict(member.prepare(batch_of().x)) == pytest.approx(expected(), abs=1e-5)


def test_a_changed_tokenizer_keeps_a_model_from_loading(tmp_path):
    write_task(tmp_path, {"a.onnx": onnx_model()})
    (tmp_path / "a.tokenizer.json").write_bytes(tokenizer("<pad>"))
    with pytest.raises(ModelError, match=r"a.tokenizer.json: expected sha256 .* \(the file changed"):
        load(read_manifest(tmp_path).models["a.onnx"])


def test_a_model_of_tokens_without_a_tokenizer_says_what_to_add(tmp_path):
    manifest_of(tmp_path, tokenizer=None)
    with pytest.raises(
        ModelError, match=r"expected one input of strings \[batch, 1\], .*a model of tokens needs `tokenizer:`"
    ):
        load(read_manifest(tmp_path).models["a.onnx"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": 3}, "models.a.onnx.input.tokenizer: expected a text, got 3"),
        ({"tokenizer_sha256": "abc"}, 'expected 64 hex digits, got "abc" (sha256sum a.tokenizer.json)'),
        ({"max_length": 0}, "models.a.onnx.input.max_length: expected 1 to 65536, got 0"),
        ({"padding": "longer"}, 'expected one of longest, max_length, got "longer"; did you mean "longest"?'),
        ({"tokeniser": "a"}, 'tokeniser: unknown setting (did you mean "tokenizer"?)'),
    ],
)
def test_every_wrong_setting_of_a_text_is_named(tmp_path, changes, words):
    manifest_of(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        read_manifest(tmp_path)
    assert words in str(caught.value)


def test_a_model_of_texts_is_onnx(tmp_path):
    write_task(tmp_path, {"a.tflite": b"whatever"})
    with pytest.raises(ConfigError, match="format: expected onnx for a model of texts, got tflite"):
        read_manifest(tmp_path)


def test_tasks_of_texts_are_told_apart_by_their_labels_alone():
    tasks = [Task("a", ("no", "yes"), TextInputSpec()), Task("b", ("no", "yes"), TextInputSpec(max_length=7))]
    assert tasks[0].fingerprint == tasks[1].fingerprint
    assert Task("a", ("yes", "no"), TextInputSpec()).fingerprint != tasks[0].fingerprint


def test_a_file_that_is_not_bundled_says_how_it_is_made(tmp_path):
    write_task(tmp_path, {"a.onnx": onnx_model()})
    content = yaml.safe_load((tmp_path / "manifest.yaml").read_text())
    content["models"]["a.onnx"]["made_by"] = "python -m films"
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "a.onnx").unlink()
    with pytest.raises(ModelError, match=r"No such file or directory \(it is not bundled; python -m films makes it\)"):
        load(read_manifest(tmp_path).models["a.onnx"])
