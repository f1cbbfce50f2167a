"""REST messages: any tensor arrives as it was sent, in JSON and in binary; whatever cannot be one is refused."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from rest_loopback import Reply, binary_message, table_core

from cloud.transports.rest_messages import (
    HTTP,
    LENGTH,
    HttpError,
    OutputFormats,
    RequestLimits,
    read_request,
    read_values,
    to_values,
    write_answer,
)
from coe.cascade.types import Array
from coe.protocol.codec import DATATYPES, WireError, encode
from coe.protocol.core import OUTPUTS, Answer, Request
from coe.protocol.status import TABLE

LIMITS = RequestLimits(max_rows=8, max_bytes=4096, max_json_bytes=2**16)
IN_JSON = [name for name in DATATYPES if name != "FP16"]
SHAPES = npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str], *, finite: bool) -> Array:
    datatype = draw(st.sampled_from(datatypes))
    if datatype == "BYTES":
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map(str.encode)
        elements = draw(st.lists(text if finite else st.binary(max_size=6), max_size=6))
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array
    elements = npst.from_dtype(DATATYPES[datatype], allow_nan=not finite, allow_infinity=not finite)
    return draw(npst.arrays(DATATYPES[datatype], draw(SHAPES), elements=elements))


def read(message: Any, tail: bytes | None = None, limits: RequestLimits = LIMITS) -> tuple[Request, OutputFormats]:
    head = message if isinstance(message, bytes) else json.dumps(message).encode()
    length = None if tail is None else str(len(head))
    return read_request(head + (tail or b""), length, model="m", version="", limits=limits)


def told(array: Array, data: Any, name: str = "input") -> dict[str, Any]:
    return {"name": name, "datatype": encode(name, array)[0].datatype, "shape": list(array.shape), "data": data}


def same(found: Array, sent: Array) -> None:
    assert (found.dtype, found.shape) == (sent.dtype, sent.shape)
    assert found.tolist() == sent.tolist() if sent.dtype.hasobject else found.tobytes() == sent.tobytes()
    assert not found.flags.writeable


@given(tensors(IN_JSON, finite=True), st.booleans())
def test_any_tensor_arrives_through_json_as_it_was_sent(array: Array, is_nested: bool):
    texts = np.array([element.decode() for element in array], object) if array.dtype.hasobject else array
    data = texts.tolist() if is_nested else texts.ravel().tolist()
    request, _ = read({"inputs": [told(array, data)]})
    same(request.inputs["input"], array)


@given(st.lists(tensors(list(DATATYPES), finite=False), min_size=1, max_size=3))
def test_any_tensors_arrive_in_binary_as_they_were_sent(arrays: list[Array]):
    inputs, tail = [], b""
    for number, array in enumerate(arrays):
        message, raw = binary_message(array)
        inputs.append(message["inputs"][0] | {"name": f"input {number}"})
        tail += raw
    request, _ = read({"inputs": inputs}, tail)
    assert list(request.inputs) == [f"input {number}" for number in range(len(arrays))]
    for found, sent in zip(request.inputs.values(), arrays, strict=True):
        same(found, sent)


def test_binary_and_json_tensors_may_stand_side_by_side():
    message, tail = binary_message(np.array([1.5, 2.5], np.float16))
    message["inputs"].insert(0, told(np.array([1]), [7], "first"))
    request, _ = read(message, tail)
    assert {name: array.tolist() for name, array in request.inputs.items()} == {"first": [7], "input": [1.5, 2.5]}


def test_bytes_of_one_element_a_row_are_a_column():
    request, _ = read({"inputs": [{"name": "i", "datatype": "BYTES", "shape": [2, 1], "data": [["a"], ["é"]]}]})
    same(request.inputs["i"], np.array([b"a", "é".encode()], object))


def test_bytes_may_be_base64_in_json():
    png = b"\x89PNG\r\n\x00\xff"
    tensor = told(np.array([png], object), [base64.b64encode(png).decode()])
    request, _ = read({"inputs": [tensor | {"parameters": {"content_type": "base64"}}]})
    same(request.inputs["input"], np.array([png], object))


@given(st.data())
def test_any_answer_can_be_read_back_from_json_and_from_binary(data: st.DataObject):
    n_rows = data.draw(st.integers(1, 5))
    columns: dict[str, Array] = {}
    for name, (datatype, row) in OUTPUTS.items():
        if datatype == "BYTES":
            column = np.empty(n_rows, object)
            column[:] = [
                data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=4)).encode() for _ in column
            ]
        else:
            shape = (n_rows, *(3 if size == -1 else size for size in row))
            elements = npst.from_dtype(DATATYPES[datatype], allow_nan=None)
            column = data.draw(npst.arrays(DATATYPES[datatype], shape, elements=elements))
        columns[name] = column
    binary = data.draw(st.dictionaries(st.sampled_from(list(OUTPUTS)), st.booleans()))
    answer = Answer(table_core().models["table"], "id", columns, {"server_s": 0.5, "odd": math.nan})
    body, length = write_answer(answer, OutputFormats(binary, usually=data.draw(st.booleans())))
    headers = {} if length is None else {LENGTH: str(length)}
    head = json.loads(body if length is None else body[:length], parse_constant=pytest.fail)
    assert head["parameters"] == {"server_s": 0.5}
    is_binary = {output["name"]: "data" not in output for output in head["outputs"]}
    for name, found in Reply(200, headers, body).outputs().items():
        sent = columns[name]
        if sent.dtype.hasobject:
            assert found.tolist() == ([t.decode() for t in sent] if not is_binary[name] else sent.tolist())
        elif is_binary[name]:
            assert found.tobytes() == sent.tobytes()
        else:  # JSON has no NaN and no infinity
            known = np.isfinite(sent)
            assert np.isnan(found[~known]).all()
            assert found[known].tobytes() == sent[known].tobytes()


def test_floats_that_json_has_not_become_null():
    assert to_values(np.array([0.1, np.nan, np.inf, -np.inf], np.float32)) == [float(np.float32(0.1)), None, None, None]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_taken_in_binary_alone(datatype: str):
    tensor = {"name": "i", "datatype": datatype, "shape": [1], "data": [0.5]}
    with pytest.raises(WireError, match="binary_data_size"):
        read({"inputs": [tensor]})
    raw = {"FP16": b"\x00\x38", "BF16": b"\x00\x3f"}[datatype]
    del tensor["data"]
    request, _ = read({"inputs": [tensor | {"parameters": {"binary_data_size": 2}}]}, raw)
    assert request.inputs["i"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2], [1.0]),
        ("FP32", [1], [1.0, 2.0]),
        ("FP32", [2, 2], [[1.0, 2.0], [3.0]]),
        ("FP32", [2, 2], [[1.0, 2.0], 3.0]),
        ("FP32", [2], [[1.0, 2.0]]),
        ("FP32", [2], [[1.0], [2.0]]),
        ("FP32", [1], [[[[[1.0]]]]]),
        ("FP32", [1], 1.0),
        ("FP32", [1], "1"),
        ("FP32", [1], {"0": 1.0}),
        ("FP32", [1], [None]),
        ("FP32", [1], ["1"]),
        ("FP32", [1], [True]),
        ("FP32", [1], [1e39]),
        ("FP64", [1], [10**400]),
        ("INT64", [1], [1.0]),
        ("INT64", [1], [2**63]),
        ("UINT8", [1], [-1]),
        ("UINT8", [1], [256]),
        ("INT32", [1], [False]),
        ("BOOL", [1], [1]),
        ("BYTES", [1], [1]),
        ("BYTES", [1], ["\ud800"]),
    ],
    ids=lambda value: str(value)[:24],
)
def test_json_that_is_not_the_tensor_it_says_is_refused(datatype: str, shape: list[int], data: Any):
    with pytest.raises(WireError, match=r"input 'i': expected .*, got "):
        read({"inputs": [{"name": "i", "datatype": datatype, "shape": shape, "data": data}]})


def test_a_number_too_large_for_any_float_is_refused():
    with pytest.raises(WireError, match="within FP64"):
        read(b'{"inputs": [{"name": "i", "datatype": "FP64", "shape": [1], "data": [1e999]}]}')


def test_base64_that_is_none_is_refused():
    for data in ("a", "é", "a b="):
        with pytest.raises(WireError, match="base64"):
            read_values("input", "BYTES", (1,), [data], is_base64=True)


SIZE = {"binary_data_size": 4}


def changed(**fields: Any) -> dict[str, Any]:
    """A good message of four bytes of binary data, with some of its tensor's fields other ones; None: left out."""
    tensor = {"name": "i", "datatype": "FP32", "shape": [1], "parameters": SIZE} | fields
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def test_the_message_that_the_next_test_spoils_is_good():
    assert read(changed(), bytes(4))[0].inputs["i"].tolist() == [0.0]


@pytest.mark.parametrize(
    "message",
    [
        changed(name=None),
        changed(name=""),
        changed(name=7),
        changed(name="\ud800"),
        changed(datatype=None),
        changed(datatype="FP8"),
        changed(datatype=["FP32"]),
        changed(shape=None),
        changed(shape=[]),
        changed(shape="1"),
        changed(shape=[1.0]),
        changed(shape=[True]),
        changed(shape=[-1]),
        changed(shape=[2]),
        changed(shape=[2**62, 2**62]),
        changed(shape=[0, 2**62]),
        changed(shape=[1] * 33),
        changed(shape=[9]),
        changed(shape=[10**4000]),
        changed(data=[1.0]),
        changed(parameters=None),
        changed(parameters=[4]),
        changed(parameters={"binary_data_size": -1}),
        changed(parameters={"binary_data_size": 5}),
        changed(parameters={"binary_data_size": 3}),
        changed(parameters={"binary_data_size": "4"}),
        changed(parameters={"binary_data_size": 4.0}),
        changed(parameters={"binary_data_size": True}),
        changed(parameters={"shared_memory_region": "r"}),
        {"inputs": [*changed()["inputs"], *changed()["inputs"]]},
        {"inputs": {"i": [1]}},
        {"inputs": ["i"]},
        {"inputs": [None]},
        {**changed(), "id": 7},
        {**changed(), "id": "\udfff"},
        {**changed(), "parameters": ["timeout"]},
        {**changed(), "parameters": {"binary_data_output": 1}},
        {**changed(), "outputs": "label"},
        {**changed(), "outputs": ["label"]},
        {**changed(), "outputs": [{"name": ""}]},
        {**changed(), "outputs": [{"name": "label", "parameters": {"binary_data": "yes"}}]},
        {**changed(), "outputs": [{"name": "label", "parameters": {"shared_memory_region": "r"}}]},
    ],
    ids=lambda message: json.dumps(message)[-60:],
)
def test_a_message_that_contradicts_itself_is_refused(message: dict[str, Any]):
    with pytest.raises(WireError, match=r"expected .*, got "):
        read(message, bytes(4))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"7", b"null", b'"{}"', b"\xff{}", b'{"a": NaN}', b'{"a": Infinity}', b"[" * 100_000, b"{}{}"],
    ids=repr,
)
def test_what_is_no_json_object_is_refused(body: bytes):
    with pytest.raises((HttpError, WireError), match="body: expected"):
        read(body[:60_000])


def test_a_number_of_too_many_digits_is_refused():
    with pytest.raises(HttpError, match="expected JSON"):
        read(b'{"id": ' + b"9" * 5000 + b"}")


@pytest.mark.parametrize("length", ["", "-1", "3x", "1e1", "٣", "999", "9" * 40])
def test_a_header_length_that_is_none_or_too_long_is_refused(length: str):
    with pytest.raises(HttpError, match="inference-header-content-length") as refused:
        read_request(b"{}", length, model="m", version="", limits=LIMITS)
    assert refused.value.status == 400


def test_more_json_than_may_be_is_refused_before_it_is_read():
    with pytest.raises(HttpError, match="binary data") as refused:
        read(b"{" * 101, limits=RequestLimits(8, 4096, 100))
    assert refused.value.status == 413
    message, tail = binary_message(np.zeros((8, 100), np.float32))
    assert read(message, tail, RequestLimits(8, 4096, 400))[0].inputs["input"].shape == (8, 100)


def test_all_tensors_together_stay_within_the_limit():
    def two(size: int) -> Callable[[], Any]:
        message, raw = binary_message(np.zeros((1, size), np.uint8))
        second = message["inputs"][0] | {"name": "second"}
        return lambda: read({"inputs": [*message["inputs"], second]}, raw * 2)

    two(2048)()
    with pytest.raises(WireError, match=r"4096|2047|over"):
        two(2049)()


@given(st.binary(max_size=64), st.none() | st.integers(0, 64))
def test_whatever_the_bytes_the_error_is_one_of_ours(body: bytes, length: int | None):
    with pytest.raises((HttpError, WireError)):
        read_request(body, None if length is None else str(length), model="m", version="", limits=LIMITS)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = {"name": "i", "datatype": "FP32", "shape": [1], "data": [1.0], "parameters": {}}


@given(
    st.dictionaries(st.sampled_from([*FIELDS, "parameters"]), JUNK),
    st.dictionaries(st.sampled_from(["id", "outputs", "parameters", "inputs"]), JUNK),
    st.binary(max_size=8),
)
def test_whatever_the_fields_are_the_error_is_one_of_ours(tensor: dict[str, Any], fields: dict[str, Any], tail: bytes):
    try:
        request, _ = read({"inputs": [FIELDS | tensor], **fields}, tail)
    except (HttpError, WireError):
        return
    assert all(isinstance(array, np.ndarray) for array in request.inputs.values())


def test_every_error_of_the_table_has_an_http_status():
    assert {code for _, code in TABLE} <= HTTP.keys()
