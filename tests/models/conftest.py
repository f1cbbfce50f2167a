"""Fixtures: model files made once for all tests of this folder."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from strategies import LinearModel
from tiny_models import CONTRACT, Case, Shelf, bundled, linear_module, pixels, weights_file

from coe.models import TableMember, load
from coe.models.torch import ARCHITECTURES


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture(scope="session")
def export_file() -> bytes:
    import torch

    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(linear_module(), (torch.zeros(2, 1, 4, 4),), dynamic_shapes=(rows,), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def script_file() -> bytes:
    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch discourages making such files, not reading them
        torch.jit.save(torch.jit.trace(linear_module(), torch.zeros(2, 1, 4, 4)), buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _known_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "linear", linear_module)
    monkeypatch.setitem(ARCHITECTURES, "linear-logits", lambda: linear_module("logits"))


RUNTIMES = [
    "onnx",
    "onnx-batch-1",
    "onnx-logits",
    "onnx-float16",
    "onnx-uint8",
    "tflite",
    "tflite-int8",
    "torch",
    "torch-export",
    "torchscript",
    "table",
]


@pytest.fixture(params=RUNTIMES)
def case(request: pytest.FixtureRequest, shelf: Shelf) -> Case:
    """One of every kind of member."""
    name = request.param
    if name == "table":
        table = np.random.default_rng(3).dirichlet(np.ones(3), 6).astype(np.float32)
        return Case(lambda: TableMember(table), np.arange(6)[:, None], 3, (1,), "int64")
    if name.startswith("tflite"):
        spec = bundled("loom.int8.tflite" if name.endswith("int8") else "loom.tflite")
        return Case(lambda: load(spec), pixels(6, 28, 28), 10, spec.input_spec.model_shape)
    dtype = "float32"
    if name.startswith("onnx"):
        variant = name.removeprefix("onnx").removeprefix("-")
        if variant in ("float16", "uint8"):
            dtype = variant
        model = LinearModel(rows=1 if variant == "batch-1" else None, end="none" if variant == "logits" else "softmax")
        spec = shelf.put("a.onnx", model.onnx(dtype), input_spec=replace(CONTRACT, dtype=dtype))
        spec = replace(spec, output="logits" if variant == "logits" else "probabilities")
    elif name == "torch":
        spec = shelf.put("a.pt", weights_file(), architecture="linear")
    else:
        fixture, suffix = ("export_file", "pt2") if name == "torch-export" else ("script_file", "ts")
        spec = shelf.put(f"a.{suffix}", request.getfixturevalue(fixture), pinned=True)
    return Case(lambda: load(spec), pixels(6), 3, spec.input_spec.model_shape, dtype)
