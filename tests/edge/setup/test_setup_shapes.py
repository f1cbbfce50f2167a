"""What a model file takes and gives, read from its bytes: held against what the runtimes say of the same files."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.cascade.errors import ConfigError
from coe.zoo import digits
from edge.setup.init import input_spec_of
from edge.setup.shapes import Tensor, shape_of

ONNX_FILES = sorted(digits.FOLDER.glob("*.onnx"))
TFLITE_FILES = sorted(digits.FOLDER.glob("*.tflite"))


@pytest.mark.parametrize("path", ONNX_FILES, ids=lambda path: path.name)
def test_an_onnx_file_takes_what_the_runtime_says(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    shape = shape_of(path)
    for ours, theirs in ((shape.inputs, session.get_inputs()), (shape.outputs, session.get_outputs())):
        assert [tensor.name for tensor in ours] == [tensor.name for tensor in theirs]
        for tensor, other in zip(ours, theirs, strict=True):
            assert tensor.dims == tuple(dim if isinstance(dim, int) else None for dim in other.shape)
            assert tensor.dtype == "float32"


@pytest.mark.parametrize("path", TFLITE_FILES, ids=lambda path: path.name)
def test_a_tflite_file_takes_what_the_interpreter_says(path):
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(model_path=str(path))
    shape = shape_of(path)
    for ours, theirs in ((shape.inputs, net.get_input_details()), (shape.outputs, net.get_output_details())):
        assert [tensor.dims for tensor in ours] == [tuple(entry["shape"].tolist()) for entry in theirs]
        assert [tensor.dtype for tensor in ours] == [np.dtype(entry["dtype"]).name for entry in theirs]
        assert [tensor.name for tensor in ours] == [entry["name"] for entry in theirs]


def test_a_constant_that_is_listed_among_the_inputs_is_none(tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.ones((4, 3), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 3])],
        [weight],
    )
    save(helper.make_model(graph), tmp_path / "m.onnx")
    shape = shape_of(tmp_path / "m.onnx")
    assert shape.inputs == (Tensor("x", "float16", (None, 4)),)
    assert shape.outputs == (Tensor("y", "float16", (None, 3)),)


@pytest.mark.parametrize("name", ["m.onnx", "m.tflite"])
@given(data=st.binary(max_size=200), at=st.integers(0, 3000), cut=st.integers(0, 5000))
def test_damaged_files_are_told_in_one_line_or_read(tmp_path_factory, name, data, at, cut):
    whole = (ONNX_FILES if name == "m.onnx" else TFLITE_FILES)[0].read_bytes()
    for damaged in (data, whole[:cut], whole[:at] + data + whole[at + len(data) :]):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(damaged)
        with contextlib.suppress(ConfigError):  # any other error fails
            shape_of(path)


@pytest.mark.parametrize(
    ("tensor", "kind", "shape", "layout", "dtype", "scale"),
    [
        (Tensor("x", "float32", (None, 3, 96, 128)), "image", (96, 128, 3), "NCHW", "float32", 1 / 255),
        (Tensor("x", "float32", (1, 96, 128, 3)), "image", (96, 128, 3), "NHWC", "float32", 1 / 255),
        (Tensor("x", "uint8", (1, 28, 28, 1)), "image", (28, 28, 1), "NHWC", "uint8", 1.0),
        (Tensor("x", "int8", (1, 28, 28, 1)), "image", (28, 28, 1), "NHWC", "float32", 1 / 255),
        (Tensor("x", "float32", (None, 12)), "tensor", (12,), "NHWC", "float32", 1.0),
        (Tensor("x", "int64", (None, 3, 8, 8)), "tensor", (3, 8, 8), "NHWC", "int64", 1.0),
        (Tensor("x", "float32", (None, 7, 8, 9)), "tensor", (7, 8, 9), "NHWC", "float32", 1.0),
    ],
)
def test_an_input_becomes_a_contract(tmp_path, tensor, kind, shape, layout, dtype, scale):
    input_spec = input_spec_of(tmp_path / "m.onnx", tensor)
    got = (input_spec.kind, input_spec.shape, input_spec.layout, input_spec.dtype, input_spec.scale)
    assert got == (kind, shape, layout, dtype, scale)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (Tensor("x", "float32", (None, 3, None, None)), "got [free, 3, free, free]"),
        (Tensor("x", "float32", (None,)), "got [free]"),
        (Tensor("x", "type 9", (None, 3)), "got type 9"),
    ],
)
def test_an_input_that_no_member_could_take_is_told(tmp_path, tensor, told):
    with pytest.raises(ConfigError) as found:
        input_spec_of(tmp_path / "m.onnx", tensor)
    assert told in str(found.value)
