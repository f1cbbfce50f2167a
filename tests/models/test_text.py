"""Texts: through the door as UTF-8, to token ids by a member's own tokenizer."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_models import WORDS, digest, tokenizer

from coe.cascade import InputError, ModelError, RuntimeMissing
from coe.models import InputDecoder, InputSpec, TextInputSpec
from coe.models.text import IDS, MASK, TYPES, Tokens

START, END = WORDS.index("[START]"), WORDS.index("[END]")


def texts(*values: str) -> np.ndarray:
    x = np.empty(len(values), dtype=object)
    x[:] = values
    return x


def in_bytes(*values: str) -> np.ndarray:
    x = np.empty(len(values), dtype=object)
    x[:] = [value.encode() for value in values]
    return x


@pytest.fixture
def input_spec(tmp_path: Path) -> TextInputSpec:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer())
    return TextInputSpec(tokenizer=path, max_length=6)


# The door


@pytest.mark.parametrize("values", [[b"a good film", "caf\u00e9".encode()], ["a good film", "caf\u00e9"]])
def test_a_text_comes_in_as_utf_8_or_str_and_keeps_its_bytes(values):
    batch = InputDecoder(TextInputSpec()).batch(["a", "b"], values, 3.0)
    assert batch.x.tolist() == ["a good film", "café"]
    assert batch.captured.tolist() == [b"a good film", b"caf\xc3\xa9"]
    assert (batch.ids, batch.deadline) == (("a", "b"), 3.0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"caf\xe9", "example b: expected UTF-8 text"),
        ("\ud800", "example b: expected UTF-8 text"),
        (b"", "example b: expected a text, got an empty one"),
        (b" \n\t", "example b: expected a text, got an empty one"),
        (b"x" * 11, "example b: expected a text of at most 10 bytes, got 11"),
        ("\u00e9" * 6, "example b: expected a text of at most 10 bytes, got 12"),
        (np.zeros(3, np.float32), "example b: expected a text, got float32"),
        (7, "example b: expected a text, got int"),
    ],
)
def test_what_is_no_text_is_refused_by_the_name_of_its_example(value, words):
    with pytest.raises(InputError, match=words):
        InputDecoder(TextInputSpec(), max_text_bytes=10).batch(["a", "b"], [b"film", value])


def test_a_text_of_the_largest_size_comes_in():
    assert InputDecoder(TextInputSpec(), max_text_bytes=4).batch(["a"], [b"film"]).x[0] == "film"


@pytest.mark.parametrize("values", [np.zeros((2, 3), np.float32), np.array([[b"a"], [b"b"]], dtype=object)])
def test_a_tensor_is_no_batch_of_texts(values):
    with pytest.raises(InputError, match="expected one text"):
        InputDecoder(TextInputSpec()).batch(["a", "b"], values)


def test_rows_of_a_batch_can_be_taken():
    batch = InputDecoder(TextInputSpec()).batch(["a", "b", "c"], in_bytes("one", "two", "three")).take(np.array([2, 0]))
    assert (batch.x.tolist(), batch.captured.tolist()) == (["three", "one"], [b"three", b"one"])


# The tokens


def test_a_text_becomes_ids_mask_and_segments_filled_up_to_the_longest(input_spec):
    ready = input_spec.prepare(texts("A good film", "bad"))
    good, film, a, bad = (WORDS.index(word) for word in ("good", "film", "a", "bad"))
    assert ready.dtype == np.int64
    assert ready[:, IDS].tolist() == [[START, a, good, film, END], [START, bad, END, 0, 0]]
    assert ready[:, MASK].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert ready[:, TYPES].tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]


def test_a_long_text_is_cut_and_keeps_its_end(input_spec):
    ready = input_spec.prepare(texts("film " * 50))
    assert ready.shape == (1, 3, 6)
    assert (ready[0, IDS, 0], ready[0, IDS, 5]) == (START, END)


def test_a_fixed_length_is_always_that_long(input_spec):
    fixed = replace(input_spec, padding="max_length")
    assert fixed.prepare(texts("film")).shape == fixed.prepare(texts("film " * 9)).shape == (1, 3, 6)


def test_a_text_without_tokens_has_one_of_padding(tmp_path):
    bare = tokenizer().replace(b'{"SpecialToken": {"id": "[START]", "type_id": 0}}, ', b"")
    bare = bare.replace(b', {"SpecialToken": {"id": "[END]", "type_id": 1}}', b"")
    ready = Tokens(bare, tmp_path, 6).of(["  ", "film"])
    assert ready[:, IDS].tolist() == [[0], [WORDS.index("film")]]
    assert ready[:, MASK].tolist() == [[1], [1]]


@pytest.mark.parametrize(("token", "pad"), [("[PAD]", 0), ("<pad>", 0), ("[NOPAD]", 0)])
def test_it_pads_with_the_tokenizers_own_token(tmp_path, token, pad):
    assert Tokens(tokenizer(token), tmp_path, 6).pad == pad


def test_what_the_tokenizers_file_says_of_padding_names_the_token(tmp_path):
    padding = b'"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null, '
    padding += b'"pad_id": 7, "pad_type_id": 0, "pad_token": "a"}'
    ready = Tokens(tokenizer().replace(b'"padding": null', padding), tmp_path, 6).of(["film", "a film"])
    assert ready[0, IDS].tolist() == [START, WORDS.index("film"), END, 7]


def test_no_texts_are_no_rows(input_spec):
    assert input_spec.prepare(texts()).shape[:2] == (0, 3)


@given(st.lists(st.text(st.sampled_from("abc film good é\n\u0301"), max_size=40), min_size=1, max_size=5))
def test_a_batch_is_its_texts_one_by_one_with_padding(values):
    tokens = Tokens(tokenizer(), Path("tokenizer.json"), 6)
    together = tokens.of(values)
    for row, value in enumerate(values):
        alone = tokens.of([value])[0]
        size = alone.shape[1]
        assert (together[row, :, :size] == alone).all()
        assert not together[row, MASK, size:].any()


def test_numbers_are_no_texts(input_spec):
    with pytest.raises(InputError, match="expected texts, got float32"):
        input_spec.prepare(np.zeros((2, 3), np.float32))


def test_a_blank_example_can_be_prepared(input_spec):
    assert input_spec.prepare(input_spec.blank()).shape == (1, 3, 3)
    assert input_spec.trial(2).shape == (2, 3, 3)


# The tokenizer's file


def test_a_changed_tokenizer_is_refused_with_both_checksums(input_spec):
    good = replace(input_spec, tokenizer_sha256=digest(tokenizer()))
    assert good.prepare(texts("film")).shape == (1, 3, 3)
    input_spec.tokenizer.write_bytes(tokenizer() + b" ")
    with pytest.raises(ModelError, match=f"expected sha256 {digest(tokenizer())[:16]}.., got"):
        replace(good).prepare(texts("film"))


def test_it_is_read_once(input_spec):
    input_spec.prepare(texts("film"))
    input_spec.tokenizer.unlink()
    assert input_spec.prepare(texts("film")).shape == (1, 3, 3)


def test_a_missing_tokenizer_is_named(input_spec):
    input_spec.tokenizer.unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json: the tokenizer file cannot be read: No such file"):
        input_spec.prepare(texts("film"))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[1, 2]"])
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(input_spec, data):
    input_spec.tokenizer.write_bytes(data)
    with pytest.raises(ModelError, match=f"expected a tokenizer.json, got {len(data)} bytes") as caught:
        input_spec.prepare(texts("film"))
    assert "\n" not in str(caught.value)


def test_a_length_with_no_room_for_its_special_tokens_is_refused(input_spec):
    with pytest.raises(ModelError, match="expected max_length above its 2 special tokens, got 2"):
        replace(input_spec, max_length=2).prepare(texts("film"))
    assert replace(input_spec, max_length=3).prepare(texts("film film")).shape == (1, 3, 3)


def test_without_a_tokenizer_the_texts_themselves_are_prepared():
    assert TextInputSpec().prepare(texts("film")).tolist() == ["film"]


def test_without_the_library_the_error_names_its_install(input_spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'coe-cascade\[text\]'"):
        input_spec.prepare(texts("film"))


def test_texts_go_to_models_of_texts_alone(input_spec):
    image, text = InputSpec("image", (4, 4, 1)), TextInputSpec()
    assert input_spec.takes(text)
    assert not input_spec.takes(image)
    assert not image.takes(text)


def test_a_device_without_texts_does_not_load_the_tokenizers(tmp_path):
    code = (
        "import sys\n"
        "from edge.main import main\n"
        "from coe.config.manifest import read_manifest\n"
        "from coe.models import InputDecoder, load\n"
        "from coe.zoo import digits\n"
        "member = load(read_manifest(digits.FOLDER).models['stroke.onnx'])\n"
        "task = read_manifest(digits.FOLDER).task\n"
        "batch = InputDecoder(task.input_spec).batch(['a'], [digits.test_examples(1)[0][1]])\n"
        "member.predict(member.prepare(batch.x))\n"
        "print([name for name in ('tokenizers', 'huggingface_hub') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert (told.stderr, told.stdout.strip()) == ("", "[]")


def test_tokenizing_takes_no_threads_of_its_own(input_spec):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from coe.models.text import Tokens\n"
        "path = Path(sys.argv[1])\n"
        "tokens = Tokens(path.read_bytes(), path, 6)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "tokens.of(['a good film'] * 500)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    run = [sys.executable, "-c", code, str(input_spec.tokenizer)]
    told = subprocess.run(run, capture_output=True, text=True, timeout=240)
    assert (told.stderr, told.stdout.strip()) == ("", "0")
