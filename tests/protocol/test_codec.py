"""The tensor codec: exact both ways, and one error for whatever does not fit."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coe.cascade.errors import CascadeError
from coe.protocol import codec
from coe.protocol import inference_pb2 as pb

NUMBERS = [name for name in codec.DATATYPES if name != "BYTES"]
TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
ROOMY = {"max_rows": 1000, "max_bytes": 1 << 20}


def objects(*elements: bytes) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


@st.composite
def numbers(draw, datatypes=tuple(NUMBERS)) -> np.ndarray:
    """Any bits at all (so every NaN) in any shape, byte order and memory layout."""
    dtype = codec.DATATYPES[draw(st.sampled_from(datatypes))]
    shape = draw(SHAPES)
    if dtype.kind == "b":
        array = draw(hnp.arrays(dtype, shape))
    else:
        bits = draw(hnp.arrays(f"<u{dtype.itemsize}", shape))
        array = bits.view(dtype)
    layout = draw(st.sampled_from(["plain", "big-endian", "transposed", "reversed", "fortran", "strided"]))
    if layout == "big-endian":
        return array.byteswap().view(array.dtype.newbyteorder(">"))
    if layout == "transposed":
        return array.T
    if layout == "reversed":
        return array[::-1]
    if layout == "fortran":
        return np.asfortranarray(array)
    if layout == "strided":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    return array


def bits_of(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def through_the_wire(array: np.ndarray) -> np.ndarray:
    request = pb.ModelInferRequest()
    codec.add_input(request, "x", array)
    request = pb.ModelInferRequest.FromString(request.SerializeToString())
    return codec.read_inputs(request, **ROOMY)["x"]


def raw_request(datatype: str, shape: list[int], *raw: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(raw_input_contents=raw)
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


def typed_request(datatype: str, shape: list[int], **contents: list) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest()
    request.inputs.add(name="x", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents))
    return request


def refusal(request: pb.ModelInferRequest, **limits: int) -> str:
    with pytest.raises(codec.WireError) as caught:
        codec.read_inputs(request, **(ROOMY | limits))
    return str(caught.value)


# Round trips


@given(numbers())
def test_numbers_come_back_bit_for_bit_in_any_layout(array):
    back = through_the_wire(array)
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("<")
    assert back.tobytes() == bits_of(array)
    assert not back.flags.writeable


@given(numbers())
def test_raw_contents_are_little_endian_c_order(array):
    tensor, raw = codec.encode("x", array)
    assert (tensor.name, tensor.shape) == ("x", array.shape)
    assert codec.DATATYPES[tensor.datatype] == array.dtype.newbyteorder("<")
    assert raw == bits_of(array)


@given(numbers(tuple(name for name in NUMBERS if name in TYPED)))
def test_typed_contents_are_read_as_the_raw_ones(array):
    tensor, _ = codec.encode("x", array)
    request = typed_request(tensor.datatype, list(array.shape), **{TYPED[tensor.datatype]: array.ravel().tolist()})
    request = pb.ModelInferRequest.FromString(request.SerializeToString())
    back = codec.read_inputs(request, **ROOMY)["x"]
    np.testing.assert_array_equal(back, array, strict=array.dtype.isnative)
    assert not back.flags.writeable


@given(hnp.arrays(object, hnp.array_shapes(max_dims=1, min_side=0), elements=st.binary(max_size=20)))
def test_bytes_come_back_whatever_they_hold(array):
    assert through_the_wire(array).tolist() == array.tolist()
    column = through_the_wire(array.reshape(-1, 1))
    assert column.shape == array.shape
    assert column.tolist() == array.tolist()


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_typed_bytes_are_read_as_the_raw_ones(elements):
    back = codec.read_inputs(typed_request("BYTES", [len(elements)], bytes_contents=elements), **ROOMY)["x"]
    assert back.tolist() == elements
    assert back.dtype == object


@given(st.lists(numbers(), max_size=4), st.booleans())
def test_outputs_keep_names_order_and_values(arrays, with_names):
    response = pb.ModelInferResponse()
    for number, array in enumerate(arrays):
        codec.add_output(response, f"y{number}", array)
    if with_names:
        codec.add_output(response, "label_name", objects(b"a", b"", b"\xff"))
    back = codec.read_outputs(pb.ModelInferResponse.FromString(response.SerializeToString()))
    assert list(back) == [f"y{number}" for number in range(len(arrays))] + ["label_name"] * with_names
    for array, output in zip(arrays, back.values(), strict=False):
        assert output.tobytes() == bits_of(array)


def test_outputs_may_have_several_bytes_elements_in_a_row_and_inputs_may_not():
    array = objects(b"a", b"b", b"c", b"d").reshape(2, 2)
    response = pb.ModelInferResponse()
    codec.add_output(response, "top", array)
    assert codec.read_outputs(response)["top"].tolist() == [[b"a", b"b"], [b"c", b"d"]]
    request = pb.ModelInferRequest()
    codec.add_input(request, "x", array)
    assert "input 'x': expected one BYTES element for each row, got shape (2, 2)" in refusal(request)


def test_raw_numbers_are_views_of_the_bytes_received():
    back = codec.read_inputs(raw_request("FP32", [2, 1], bytes(8)), **ROOMY)["x"]
    base = back
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, bytes)


def test_empty_typed_contents_beside_raw_ones_do_no_harm():
    request = raw_request("UINT8", [1], b"\7")
    request.inputs[0].contents.SetInParent()
    assert codec.read_inputs(request, **ROOMY)["x"].tolist() == [7]


# What encode refuses


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.float32(3).reshape(()), "expected 1 to 32 dimensions, got 0"),
        (np.zeros(2, complex), "got complex128"),
        (np.array(["a"]), "text is an object array of UTF-8 bytes"),
        (np.array([b"a"]), "got |S1"),
        (np.zeros(2, "datetime64[s]"), "got datetime64[s]"),
        (np.zeros(2, [("a", "i4")]), "tensor 'x'"),
        (np.array(["text"], object), "expected elements of bytes, under 2 GiB, got str"),
        (np.array([None], object), "got NoneType"),
    ],
)
def test_encode_refuses_what_has_no_datatype(array, words):
    with pytest.raises(codec.WireError) as caught:
        codec.encode("x", array)
    assert words in str(caught.value)


# What read_inputs refuses


@given(numbers(), st.integers(1, 9), st.booleans())
def test_contents_of_another_length_are_refused(array, much, longer):
    tensor, raw = codec.encode("x", array)
    wrong = raw + b"\0" * much if longer else raw[: max(0, len(raw) - much)]
    if wrong != raw:
        text = refusal(raw_request(tensor.datatype, list(array.shape), wrong))
        assert f"input 'x': expected {len(raw)} bytes" in text
        assert f"got {len(wrong)}" in text


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=4), st.data())
def test_bytes_contents_of_another_length_are_refused(elements, data):
    _, raw = codec.encode("x", objects(*elements))
    cut = data.draw(st.integers(0, len(raw) - 1))
    for wrong in (raw[:cut], raw + b"\0" * (cut + 1)):
        refusal(raw_request("BYTES", [len(elements)], wrong))


@pytest.mark.parametrize("length", [5, 2**31, 2**32 - 1])
def test_a_length_that_lies_is_refused(length):
    raw = struct.pack("<I", length) + b"four"
    assert f"a length of {length} with 4 left, at element 0" in refusal(raw_request("BYTES", [1], raw))


@pytest.mark.parametrize("datatype", list(codec.DATATYPES))
@pytest.mark.parametrize("shape", [[2**62], [0, 2**62], [1, 2**62, 0], [1, 2**62, 2**62], [2**63 - 1] * 32])
def test_huge_dimensions_are_refused_before_anything_is_allocated(datatype, shape):
    request = raw_request(datatype, shape, b"")
    response = pb.ModelInferResponse(raw_output_contents=[b""])
    response.outputs.add(name="y", datatype=datatype, shape=shape)
    tracemalloc.start()
    try:
        refusal(request)
        refusal(request, max_rows=2**63, max_bytes=2**40)
        del request.raw_input_contents[:]
        refusal(request)
        with pytest.raises(codec.WireError, match="output 'y'"):
            codec.read_outputs(response)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "words"),
    [
        ("FP32", [], b"1234", "expected 1 to 32 dimensions, got 0 (put the rows first)"),
        ("FP32", [1] * 33, b"1234", "got 33"),
        ("FP32", [-1, 1], b"1234", "got shape (-1, 1) (send the size itself, not -1)"),
        ("FP32", [-1, -1], b"1234", "dimensions of 0 or more"),
        ("FP8", [1], b"1", "got 'FP8'"),
        ("fp32", [1], b"1234", "a datatype of BOOL, UINT8,"),
        ("", [1], b"1", "got ''"),
        ("BF16", [1], b"123", "expected 2 bytes for 1 BF16, got 3"),
        ("X" * 9999, [1], b"12", "(9999 characters)"),
        ("BOOL", [1, 3], b"\0\1\2", "BOOL bytes of 0 or 1"),
        ("BYTES", [2], bytes(4), "got contents that end after 1"),
        ("UINT8", [3], bytes(3), "expected at most 2 rows, got 3"),
        ("UINT8", [1, 101], bytes(101), "a shape that fits in 100 bytes, got UINT8 (1, 101)"),
        ("BYTES", [1], struct.pack("<I", 97) + bytes(97), "got 1 bytes over it"),
    ],
)
def test_a_bad_tensor_is_refused_in_words(datatype, shape, raw, words):
    text = refusal(raw_request(datatype, shape, raw), max_rows=2, max_bytes=100)
    assert text.startswith("input 'x': expected ")
    assert words in text
    assert len(text) < 1000


@pytest.mark.parametrize(
    ("datatype", "shape", "contents", "words"),
    [
        ("FP32", [2], {"fp32_contents": [1.0]}, "expected 2 elements in fp32_contents, got 1"),
        ("FP32", [1], {"fp32_contents": [1.0, 2.0]}, "got 2"),
        ("FP32", [1], {}, "got 0"),
        ("FP32", [1], {"fp64_contents": [1.0]}, "expected FP32 in fp32_contents, got fp64_contents"),
        ("INT32", [1], {"int_contents": [1], "bool_contents": [True]}, "got bool_contents, int_contents"),
        ("FP16", [1], {"fp32_contents": [1.0]}, "FP16 has no typed form: send every tensor raw"),
        ("BF16", [1], {"fp32_contents": [1.0]}, "BF16 has no typed form: send every tensor raw"),
        ("INT8", [2], {"int_contents": [1, 128]}, "expected INT8 values, -128 to 127, got 1 to 128"),
        ("INT16", [1], {"int_contents": [-32769]}, "got -32769 to -32769"),
        ("UINT8", [1], {"uint_contents": [256]}, "expected UINT8 values, 0 to 255"),
        ("UINT16", [1], {"uint_contents": [2**16]}, "got 65536"),
        ("BYTES", [1], {"bytes_contents": [bytes(97)]}, "got 1 bytes over it"),
    ],
)
def test_bad_typed_contents_are_refused_in_words(datatype, shape, contents, words):
    assert words in refusal(typed_request(datatype, shape, **contents), max_bytes=100)


@given(hnp.arrays(np.uint16, SHAPES))
def test_bf16_is_read_as_the_same_numbers_in_float32(bits):
    array = codec.read_inputs(raw_request("BF16", list(bits.shape), bits.astype("<u2").tobytes()), **ROOMY)["x"]
    assert (array.dtype, array.shape, array.flags.writeable) == (np.dtype("<f4"), bits.shape, False)
    np.testing.assert_array_equal(array.view("<u4"), bits.astype(np.uint32) << 16)


def test_bf16_of_known_numbers_is_those_numbers():
    raw = struct.pack("<4H", 0x3F80, 0xC000, 0x7F80, 0x3EAB)  # the upper halves of FP32's 1, -2, infinity and 1/3
    array = codec.read_inputs(raw_request("BF16", [1, 4], raw), **ROOMY)["x"]
    assert array.tolist() == [[1.0, -2.0, np.inf, 0.333984375]]


def test_a_tensor_left_in_shared_memory_is_refused_as_such():
    request = typed_request("UINT8", [4])
    codec.set_parameter(request.inputs[0].parameters, "shared_memory_region", "region")
    assert "got a shared memory region (this server shares no memory: send them raw)" in refusal(request)


def test_the_size_limit_counts_all_tensors_together():
    request = pb.ModelInferRequest()
    for name in "xyz":
        codec.add_input(request, name, np.zeros((1, 40), np.uint8))
    assert len(codec.read_inputs(request, max_rows=1, max_bytes=120)) == 3
    assert refusal(request, max_bytes=119).startswith("input 'z'")


def test_names_are_there_and_differ():
    request = raw_request("UINT8", [1], b"1", b"2")
    request.inputs.add(name="x", datatype="UINT8", shape=[1])
    assert "expected a name of its own, got one used twice" in refusal(request)
    request.inputs[0].name = ""
    assert "expected a name of its own, got none" in refusal(request)


def test_there_is_one_raw_entry_for_each_tensor():
    request = raw_request("UINT8", [1], b"1", b"2")
    assert "raw_input_contents: expected 1 entries, got 2 (one for each input" in refusal(request)


def test_raw_and_typed_do_not_mix():
    request = raw_request("INT8", [1], b"1")
    request.inputs[0].contents.int_contents.append(1)
    assert "send every tensor raw, or every tensor typed" in refusal(request)


def test_the_error_is_ours_and_keeps_its_parts():
    with pytest.raises(CascadeError) as caught:
        codec.read_inputs(raw_request("FP32", [1], b""), **ROOMY)
    error = caught.value
    assert (error.where, error.expected, error.got) == ("input 'x'", "4 bytes for 1 FP32", "0")
    assert error.fix


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(data):
    try:
        request = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    try:
        codec.read_inputs(request, **ROOMY)
    except codec.WireError:
        return


CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=4),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        "int64_contents": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=4),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=4),
        "fp32_contents": st.lists(st.floats(width=32), max_size=4),
        "fp64_contents": st.lists(st.floats(), max_size=4),
        "bytes_contents": st.lists(st.binary(max_size=4), max_size=4),
    },
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y", ""]) | st.text(max_size=3),
        "datatype": st.sampled_from([*codec.DATATYPES, "BF16", ""]),
        "shape": st.lists(st.integers(-1, 4) | st.integers(-(2**63), 2**63 - 1), max_size=5),
    },
    optional={"contents": CONTENTS},
)


@given(st.lists(TENSORS, max_size=3), st.lists(st.binary(max_size=12), max_size=3))
@example([{"name": "x", "datatype": "BYTES", "shape": [0, 4]}], [b""])
def test_any_message_at_all_is_read_as_it_says_or_refused(tensors, raws):
    request = pb.ModelInferRequest(inputs=tensors, raw_input_contents=raws)
    response = pb.ModelInferResponse(outputs=tensors, raw_output_contents=raws)
    for read, message in ((codec.read_outputs, response), (lambda m: codec.read_inputs(m, **ROOMY), request)):
        try:
            arrays = read(message)
        except codec.WireError:
            continue
        assert list(arrays) == [tensor["name"] for tensor in tensors]
        for tensor, array in zip(tensors, arrays.values(), strict=True):
            assert array.dtype == codec.DATATYPES.get(tensor["datatype"], np.dtype("<f4"))  # BF16 is read as that
            assert len(array) == tensor["shape"][0]
            assert array.size == np.prod(tensor["shape"], dtype=object)


# Parameters


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    )
)
def test_parameters_come_back_with_their_types(values):
    request = pb.ModelInferRequest()
    for key, value in values.items():
        codec.set_parameter(request.parameters, key, value)
    back = codec.get_parameters(pb.ModelInferRequest.FromString(request.SerializeToString()).parameters)
    assert back == values
    assert {key: type(value) for key, value in back.items()} == {key: type(value) for key, value in values.items()}


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, pytest.param(10**5000, id="10**5000"), None, b"bytes", [1]])
def test_a_parameter_of_another_kind_is_refused(value):
    request = pb.ModelInferRequest()
    with pytest.raises(codec.WireError, match="parameter 'k': expected a bool"):
        codec.set_parameter(request.parameters, "k", value)
    assert not request.parameters


def test_a_parameter_without_a_value_is_left_out():
    request = pb.ModelInferRequest()
    request.parameters["empty"].SetInParent()
    codec.set_parameter(request.parameters, "k", 1)
    assert codec.get_parameters(request.parameters) == {"k": 1}
