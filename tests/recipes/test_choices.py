"""Multiple choice, from SWAG's file and an exported model to decisions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import published
import pytest

from coe.cascade import InputError, ModelError
from coe.config.manifest import read_manifest
from coe.models import InputDecoder, load
from coe.models.text import ChoicesInputSpec, TextInputSpec
from recipes.readers.__main__ import main
from recipes.readers.datasets import read_swag

pytest.importorskip("onnxruntime")


@pytest.fixture
def manifest(tmp_path: Path):
    folder = published.swag_folder(tmp_path / "bert")
    assert main([str(folder), "--task", "swag"]) == 0
    return read_manifest(folder)


def example(*endings: str, context: str = "good") -> bytes:
    return json.dumps({"context": context, "endings": list(endings)}).encode()


def test_swag_rows_are_decided_by_an_exported_model(manifest, tmp_path: Path):
    labels = published.swag_file(tmp_path / "val.csv")
    rows = read_swag(tmp_path / "val.csv")
    assert manifest.task.labels == ("0", "1", "2", "3")
    batch = InputDecoder(manifest.task.input_spec).batch(rows.ids, rows.values)
    assert list(batch.captured) == list(rows.values)  # what a tier behind the network is sent
    member = load(manifest.models["model.onnx"])
    together = member.predict(member.prepare(batch.x))
    assert together.argmax(axis=1).tolist() == labels == list(rows.labels)
    assert together.sum(axis=1) == pytest.approx(1, abs=1e-5)
    alone = np.concatenate([member.predict(member.prepare(batch.x[row : row + 1])) for row in range(len(batch))])
    assert np.allclose(alone, together, atol=1e-6)
    member.close()


def test_each_ending_is_a_pair_with_the_context(manifest):
    input_spec = manifest.models["model.onnx"].input_spec
    x = InputDecoder(manifest.task.input_spec).batch(["a"], [example("good", "bad bad", "bad", "bad")]).x
    prepared = input_spec.prepare(x)
    assert prepared.shape == (1, 4, 3, 6)
    assert prepared[0, 0].tolist() == [[2, 4, 3, 4, 3, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0]]
    assert prepared[0, 1, 0].tolist() == [2, 4, 3, 5, 5, 3]


@pytest.mark.parametrize(
    "text",
    [
        b"no json", b"[1]", b'{"context": "a"}', example("a", "b"), example("a", "b", "c", "d", "e"),
        b'{"context": 3, "endings": ["a", "b", "c", "d"]}', b'{"context": "a", "endings": "abcd"}', b"[" * 30_000,
    ],
)  # fmt: skip
def test_a_text_that_is_no_example_fails_alone_at_the_door(manifest, text: bytes):
    with pytest.raises(InputError, match=r'example b: expected {"context": "..", "endings": \[..\]} with 4 endings'):
        InputDecoder(manifest.task.input_spec).batch(["a", "b"], [example("a", "b", "c", "d"), text])


def test_a_model_of_texts_and_one_of_choices_do_not_stand_in_for_each_other():
    texts, four, two = TextInputSpec(), ChoicesInputSpec(), ChoicesInputSpec(shape=(2,))
    assert four.takes(four)
    assert not any((four.takes(texts), texts.takes(four), two.takes(four)))


def test_another_number_of_endings_than_the_model_has_is_refused(manifest, tmp_path: Path):
    spec = manifest.models["model.onnx"]
    wrong = replace(spec, labels=("0", "1"), input_spec=replace(spec.input_spec, shape=(2,)), sha256=None)
    with pytest.raises(ModelError, match=r"expected input_ids as \[batch, 2, tokens\]"):
        load(wrong)
    published.write_choices_model(tmp_path / "free.onnx", "choices")
    load(replace(wrong, path=tmp_path / "free.onnx")).close()


def test_the_fingerprint_tells_choices_from_texts(manifest):
    other = replace(manifest.task, input_spec=TextInputSpec())
    assert manifest.task.fingerprint != other.fingerprint


CONFIG = """
task: swag
labels: ['0', '1', '2', '3']
input: {kind: text, choices: 4}
tiers:
  - name: all
    members:
      - file: model/model.onnx
        output: logits
        input: {kind: text, choices: 4, tokenizer: tokenizer.json, max_length: 32}
"""


def test_swag_and_imagenet_are_recorded_as_they_are_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("pyarrow")
    from sim.main import main as coe_sim
    from sim.traces import read_trace

    published.swag_folder(tmp_path / "model")
    labels = published.swag_file(tmp_path / "val.csv", 150)  # more than one piece
    (tmp_path / "swag.yaml").write_text(CONFIG)
    record = ["record", str(tmp_path / "t.parquet"), "--models", str(tmp_path / "swag.yaml"), "--data"]
    assert coe_sim([*record, f"swag:{tmp_path / 'val.csv'}", "--latencies"]) == 0
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.labels.tolist() == labels
    assert trace.accuracy("model.onnx") == 1.0
    assert (len(trace), trace.ids[149]) == (150, "v149-149")
    assert 0 < trace.latency_s("model.onnx") < 1
    (tmp_path / "images/val/n01440764").mkdir(parents=True)
    (tmp_path / "images/val/n01440764/ILSVRC2012_val_00000293.JPEG").write_bytes(b"")
    assert coe_sim([*record, f"imagenet:{tmp_path / 'images'}"]) == 2
    assert "expected 4 labels as the task, got 1" in capsys.readouterr().err
