"""Inputs and outputs of a model file, as its runtime says."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from coe.cascade.errors import ModelError, RuntimeMissing
from coe.models.loading import TensorInfo, read_signature
from coe.zoo import digits


@pytest.mark.parametrize("path", sorted(digits.FOLDER.glob("*.onnx")), ids=lambda path: path.name)
def test_an_onnx_file_has_its_names_types_and_a_free_batch(path):
    signature = read_signature(path)
    (taken,), given = signature.inputs, signature.outputs
    assert (taken.dtype, taken.dims[0]) == ("float32", None)
    assert [(tensor.dtype, tensor.dims) for tensor in given] == [("float32", (None, 10))]


@pytest.mark.parametrize("path", sorted(digits.FOLDER.glob("*.tflite")), ids=lambda path: path.name)
def test_a_tflite_file_has_a_batch_of_one(path):
    signature = read_signature(path)
    (taken,), (given,) = signature.inputs, signature.outputs
    assert sorted(taken.dims) == [1, 1, 28, 28]
    assert given.dims == (1, 10)
    assert taken.dtype == given.dtype == "float32"


def test_a_constant_that_is_listed_among_the_inputs_is_none(tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.ones((4, 3), dtype=np.float16), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("w", TensorProto.FLOAT16, [4, 3]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 3])],
        [weight],
    )
    save(helper.make_model(graph), tmp_path / "m.onnx")
    signature = read_signature(tmp_path / "m.onnx")
    assert signature.inputs == (TensorInfo("x", "float16", (None, 4)),)
    assert signature.outputs == (TensorInfo("y", "float16", (None, 3)),)


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"not a model", lambda data: data[: len(data) // 2]])
def test_a_damaged_file_is_a_model_error(tmp_path, suffix, damage):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(damage((digits.FOLDER / f"loom{suffix}").read_bytes()))
    with pytest.raises(ModelError) as found:
        read_signature(path)
    assert "cannot load it" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_file_that_is_not_there_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_signature(tmp_path / "m.onnx")


def test_a_runtime_that_is_not_installed_names_its_pip_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissing, match="pip install onnxruntime"):
        read_signature(digits.FOLDER / "loom.onnx")
