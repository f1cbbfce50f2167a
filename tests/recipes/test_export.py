"""What the recipes share: files that answer as their network does, manifests, and cascades over recorded outputs."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch
from coe_zoo import networks
from coe_zoo.networks import Network
from torch import nn

from coe import zoo
from coe.zoo import digits
from recipes import bundle, export

SHAPE = (2, 8, 8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 6, 3), nn.Flatten()]
    made = Network(nn.Sequential(*layers, nn.Linear(96, 5)))
    made.train()
    for _ in range(3):
        made(torch.randn(16, *SHAPE))  # the normalisation has statistics to fold
    return made.eval()


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(7, *SHAPE)).astype(np.float32)


def test_an_onnx_file_answers_as_its_network_for_any_batch(network, x, tmp_path):
    export.to_onnx(network, tmp_path / "a.onnx", SHAPE, "test")
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    assert np.allclose(export.opened(tmp_path / "a.onnx")(x), expected, atol=1e-5)
    assert np.allclose(export.opened(tmp_path / "a.onnx")(x[:1]), expected[:1], atol=1e-5)


def test_an_onnx_file_comes_out_the_same_each_time(network, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        export.to_onnx(network, tmp_path / name / "a.onnx", SHAPE, "test")
    assert (tmp_path / "one/a.onnx").read_bytes() == (tmp_path / "two/a.onnx").read_bytes()


def test_weights_in_16_bits_halve_the_file_and_hardly_move_the_answers(tmp_path, x):
    torch.manual_seed(1)
    wide = Network(nn.Sequential(nn.Flatten(), nn.Linear(128, 200), nn.ReLU(), nn.Linear(200, 5))).eval()
    export.to_onnx(wide, tmp_path / "full.onnx", SHAPE, "test")
    export.to_onnx(wide, tmp_path / "half.onnx", SHAPE, "test", half=True)
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.55 * sizes[1]
    answers = [export.opened(tmp_path / f"{name}.onnx")(x) for name in ("half", "full")]
    assert np.allclose(*answers, atol=2e-3)
    assert not np.array_equal(*answers)


def test_the_bundled_best_digit_model_is_what_its_network_exports_to(tmp_path):
    """The recipe's file again, from the weights that are bundled beside it."""
    best = networks.build("resnet")
    best.load_state_dict(torch.load(zoo.find("digits-torch/best.pt"), weights_only=True))
    export.to_onnx(best.eval(), tmp_path / "resnet.onnx", (1, 28, 28), "coe.zoo.digits")
    x = np.random.default_rng(0).random((5, 1, 28, 28), dtype=np.float32)
    again, bundled = (export.opened(folder / "resnet.onnx")(x) for folder in (tmp_path, digits.FOLDER))
    assert np.allclose(again, bundled, atol=1e-5)


@pytest.mark.parametrize("name", networks.ARCHITECTURES)
def test_the_digits_manifest_counts_what_the_architecture_computes(name):
    entry = next(one for one in bundle.read_entries(digits.FOLDER) if one.file == f"{name}.onnx")
    built = networks.build(name).eval()
    assert (export.flops(built, (1, 28, 28)), export.parameters(built)) == (entry.flops, entry.parameters)


def test_a_manifest_keeps_the_lines_of_files_that_were_not_made_again(tmp_path):
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    contract = {"task": "t", "labels": ["x", "y"]}
    first = [bundle.ModelEntry("a.onnx", "a", 2, 10, 3, 0.5), bundle.ModelEntry("b.onnx", "b", 1, 5, 2, 0.41239)]
    bundle.write_manifest(tmp_path, "# made\n", contract, first)
    bundle.write_manifest(tmp_path, "# made\n", contract, [bundle.ModelEntry("a.onnx", "a", 2, 11, 3, 0.6)])
    text = (tmp_path / "manifest.yaml").read_text()
    assert text.startswith("# made\ntask: t\n")
    assert list(yaml.safe_load(text)["models"]) == ["b.onnx", "a.onnx"]  # by tier
    found = {entry.file: entry for entry in bundle.read_entries(tmp_path)}
    assert (found["a.onnx"].flops, found["b.onnx"].calibration_accuracy) == (11, 0.4124)
