"""The REST protocol's messages: JSON and binary tensors to a Request, an Answer to a body, errors to HTTP statuses.

With the binary tensor data extension a body is JSON followed by the tensors' raw bytes, one after the other; a header
has the JSON's length.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import grpc
import numpy as np

from coe.cascade.errors import CascadeError, TierOverloaded, Unauthenticated
from coe.cascade.types import Array
from coe.protocol.codec import DATATYPES, WireError, check_shape, encode, read_raw
from coe.protocol.core import OUTPUTS, Answer, Request, ServedModel, row_shape
from coe.protocol.service import INPUT, MEMBER_VOTES, PLATFORM
from coe.protocol.status import to_status

# HTTP's status for each code of `coe.protocol.status.TABLE`, and for bugs.
HTTP: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
RETRY_S = 1  # where the error gives none; the header has whole seconds
ASK_TOKEN = 'Bearer realm="coe-cloud"'


class HttpError(CascadeError):
    """An error of HTTP alone: in a body, a header, a method."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def to_http(error: Exception) -> tuple[int, dict[str, str], str]:
    """Status, headers and text for the caller. An unexpected error becomes 500 with its id in the log."""
    if isinstance(error, HttpError):
        return error.status, error.headers, str(error)
    code, text = to_status(error)
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = ASK_TOKEN
    if isinstance(error, TierOverloaded):
        seconds = error.retry_after_s
        headers["retry-after"] = str(RETRY_S if seconds is None else max(1, math.ceil(seconds)))
    return HTTP.get(code, 500), headers, text


BINARY_ALONE = ("FP16", "BF16")  # JSON has no such numbers; other servers of the protocol refuse them too
_KINDS: dict[str, tuple[frozenset[type], str]] = {  # by NumPy's kind: what an element may be
    "b": (frozenset({bool}), "true and false"),
    "i": (frozenset({int}), "whole numbers"),
    "u": (frozenset({int}), "whole numbers"),
    "f": (frozenset({int, float}), "numbers"),
    "O": (frozenset({str}), "strings"),
}


def read_values(where: str, datatype: str, shape: tuple[int, ...], data: Any, *, is_base64: bool = False) -> Array:
    """The tensor in `data`.

    Args:
        where: names it in errors.
        shape: known to be plausible.
        data: flat, or nested as `shape` says.
        is_base64: each element of BYTES is base64; otherwise it is text, taken as UTF-8.
    Returns:
        A read-only array of that shape.
    Raises:
        WireError: shape, datatype and elements do not fit together.
    """
    if datatype in BINARY_ALONE:
        fix = "send it as binary data (binary_data_size), or as FP32"
        raise WireError(where, "a datatype that JSON can hold", datatype, fix)
    dtype = DATATYPES[datatype]
    elements = _flattened(where, shape, data)
    kinds, expected = _KINDS[dtype.kind]
    others = set(map(type, elements)) - kinds
    if others:
        got = ", ".join(sorted(_named(kind) for kind in others))
        raise WireError(where, f"{expected} for {datatype}", got, "convert the elements, or name another datatype")
    if dtype.kind == "O":
        array = _texts(where, elements, is_base64)
    elif dtype.kind == "f":
        array = _floats(where, datatype, elements)
    else:
        if dtype.kind != "b" and elements:
            limits = np.iinfo(dtype)
            if min(elements) < limits.min or max(elements) > limits.max:
                allowed = f"{datatype} values, {limits.min} to {limits.max}"
                raise WireError(where, allowed, "one outside", "send a wider datatype")
        array = np.array(elements, dtype)
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def to_values(column: Array) -> list[Any]:
    """Flat, row by row. Floats keep every bit; those that are not finite become null; BYTES become text."""
    flat = column.ravel()
    if flat.dtype == object:
        return [element.decode("utf-8", "replace") for element in flat]
    values: list[Any] = flat.tolist()
    if flat.dtype.kind == "f" and not (finite := np.isfinite(flat)).all():
        return [value if known else None for value, known in zip(values, finite.tolist(), strict=True)]
    return values


def _flattened(where: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """The elements in order: `data` itself where it is flat, else one level of lists for each dimension."""
    if type(data) is not list:
        raise WireError(where, "a list as data", _named(type(data)), "send data, or binary_data_size")
    is_nested = bool(data) and type(data[0]) is list
    level = [data]
    for size in shape if is_nested else (int(np.prod(shape, dtype=object)),):
        for part in level:
            if type(part) is not list or len(part) != size:
                got = f"a list of {len(part)}" if type(part) is list else _named(type(part))
                expected = f"lists of {size}" if is_nested else f"{size} elements"
                fix = f"send data flat, or nested as its shape {list(shape)}"
                raise WireError(where, expected, got, fix)
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return level


def _floats(where: str, datatype: str, elements: list[Any]) -> Array:
    try:
        wide = np.array(elements, np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        wide = np.array([np.inf])
    with np.errstate(over="ignore"):
        array = wide.astype(DATATYPES[datatype], copy=False)
    if not np.isfinite(array).all():
        raise WireError(where, f"numbers within {datatype}", "one that is too large", "send it as binary data")
    return array


def _texts(where: str, elements: list[str], is_base64: bool) -> Array:
    array = np.empty(len(elements), object)
    try:
        array[:] = [base64.b64decode(element, validate=True) if is_base64 else element.encode() for element in elements]
    except (binascii.Error, ValueError):  # half a surrogate pair is no text; letters beyond ASCII are no base64
        expected = "base64" if is_base64 else "text that UTF-8 can hold"
        raise WireError(where, expected, "a string that is none", "send it as binary data") from None
    return array


def _named(kind: type) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(kind, "a whole number" if kind is int else "a number")


LENGTH = "inference-header-content-length"
MEMORY = "shared_memory_region"
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Of one request: rows of a tensor, bytes of all tensors in raw form, bytes of JSON."""

    max_rows: int
    max_bytes: int
    max_json_bytes: int


@dataclass(frozen=True, slots=True)
class OutputFormats:
    """The form of each output in the response: binary or not by its name in `binary`, else as `usually`."""

    binary: Mapping[str, bool] = field(default_factory=dict)
    usually: bool = False

    def is_binary(self, name: str) -> bool:
        return self.binary.get(name, self.usually)


def read_request(
    body: bytes, header_length: str | None, *, model: str, version: str, limits: RequestLimits
) -> tuple[Request, OutputFormats]:
    """The request in a body, and the forms of its outputs.

    Args:
        header_length: bytes of JSON in it, as the header has them; None: all of it.
    Raises:
        HttpError: it is not JSON, or too much of it.
        WireError: it contradicts itself, or goes over a limit.
    """
    size = most = len(body)
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) <= 12
        if not is_number or int(header_length) > most:
            expected = f"a number of 0 to {most}, the body's bytes"
            raise HttpError(400, f"{LENGTH}: expected {expected}, got {header_length[:64]!r}")
        size = int(header_length)
    if size > limits.max_json_bytes:
        fix = "send tensors as binary data"
        raise HttpError(413, f"body: expected at most {limits.max_json_bytes} bytes of JSON, got {size} ({fix})")
    message = parse(body[:size])
    parameters = _part(message, "parameters", dict, "request")
    timeout = parameters.get("timeout", 0)  # Triton's parameter, in microseconds; 0 means none
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise WireError("parameter 'timeout'", "microseconds", _shown(timeout), "send a whole number, or none")
    asked: dict[str, bool | None] = {}
    for number, given in enumerate(_part(message, "outputs", list, "request")):
        where = f"outputs[{number}]"
        output = _object(given, where)
        name, wishes = _name(output, where), _part(output, "parameters", dict, where)
        if MEMORY in wishes:
            raise WireError(where, "an answer in the message", "a shared memory region", "leave it out")
        asked[name] = _flag(wishes, "binary_data", where)
    request = Request(
        model=model,
        version=version,
        id=_text(message.get("id", ""), "id"),
        inputs=_inputs(_part(message, "inputs", list, "request"), body, size, limits),
        outputs=tuple(asked),
        remaining_s=timeout / 1e6 if timeout else None,
        n_bytes=len(body),
        asks_members=_flag(parameters, MEMBER_VOTES, "parameters") or False,
    )
    binary = {name: chosen for name, chosen in asked.items() if chosen is not None}
    return request, OutputFormats(binary, _flag(parameters, "binary_data_output", "parameters") or False)


def write_answer(answer: Answer, formats: OutputFormats) -> tuple[bytes, int | None]:
    """The response's body, and the bytes of JSON in it where that is not all."""
    outputs: list[Object] = []
    tail: list[bytes] = []
    for name, column in answer.outputs.items():
        output: Object = {"name": name, "datatype": OUTPUTS[name][0], "shape": list(column.shape)}
        if formats.is_binary(name):
            _, raw = encode(name, column)
            output["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            output["data"] = to_values(column)
        outputs.append(output)
    message: Object = {"model_name": answer.served.name, "model_version": answer.served.version}
    if answer.id:
        message["id"] = answer.id
    message["parameters"] = {key: value for key, value in answer.parameters.items() if math.isfinite(value)}
    message["outputs"] = outputs
    head = to_json(message)
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


def metadata(served: ServedModel) -> Object:
    """The protocol's ModelMetadata of a model, as JSON."""
    datatype, shape = served.input
    outputs = [
        {"name": name, "datatype": kind, "shape": [-1, *row_shape(name, served)]} for name, (kind, _) in OUTPUTS.items()
    ]
    inputs = [{"name": INPUT, "datatype": datatype, "shape": list(shape)}]
    described: Object = {"name": served.name, "versions": [served.version], "platform": PLATFORM}
    return described | {"inputs": inputs, "outputs": outputs}


def parse(body: bytes) -> Object:
    """The JSON object in `body`.

    Raises:
        HttpError: it is none.
    """
    try:
        message = json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # also: not UTF-8, a number of thousands of digits
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise HttpError(400, f"body: expected JSON, got something else ({what})") from None
    return _object(message, "body")


def to_json(message: Any) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()


def _inputs(inputs: list[Any], body: bytes, at: int, limits: RequestLimits) -> dict[str, Array]:
    """The tensors by name; those in binary form are taken from `body`, from `at` on, in the order named."""
    arrays: dict[str, Array] = {}
    left = limits.max_bytes
    for number, given in enumerate(inputs):
        tensor = _object(given, f"inputs[{number}]")
        name = _name(tensor, f"inputs[{number}]")
        where = f"input {name[:64]!r}"
        if name in arrays:
            raise WireError(where, "a name of its own", "one used twice", "name each tensor")
        datatype = _text(tensor.get("datatype"), f"{where}: datatype")
        dims = _part(tensor, "shape", list, where)
        if any(type(size) is not int for size in dims):
            raise WireError(where, "whole numbers as shape", "others", "send the size of each dimension")
        size = _part(tensor, "parameters", dict, where).get("binary_data_size")
        if size is None:
            array = _read_json_tensor(tensor, where, datatype, dims, limits.max_rows, left)
        else:
            if type(size) is not int or not 0 <= size <= len(body) - at:
                expected = f"a binary_data_size of 0 to {len(body) - at}, which is there"
                raise WireError(where, expected, _shown(size), f"count the tensor's bytes, and set {LENGTH}")
            if "data" in tensor:
                raise WireError(where, "data or binary_data_size", "both", "send one of them")
            raw = body[at : at + size]
            array = read_raw(where, datatype, dims, raw, max_rows=limits.max_rows, max_bytes=left)
            at += size
        left -= sum(4 + len(element) for element in array.ravel()) if array.dtype.hasobject else array.nbytes
        if array.dtype.hasobject and array.ndim > 1:  # BYTES of [B, 1] become (B,), as `read_inputs` gives them
            if array.size != len(array):
                fix = "join them, or send one tensor each"
                raise WireError(where, "one BYTES element for each row", f"shape {array.shape}", fix)
            array = array.reshape(len(array))
        arrays[name] = array
        if left < 0:
            raise WireError(where, "all tensors within the size limit", f"{-left} bytes over it", "send fewer rows")
    if at != len(body):
        fix = "binary_data_size of all inputs must add up to what follows the JSON"
        raise WireError("body", "nothing after the last tensor", f"{len(body) - at} bytes more", fix)
    return arrays


def _read_json_tensor(
    tensor: Object, where: str, datatype: str, dims: list[int], max_rows: int, max_bytes: int
) -> Array:
    """A tensor in JSON itself."""
    parameters = _part(tensor, "parameters", dict, where)
    if MEMORY in parameters:
        raise WireError(where, "its contents in the message", "a shared memory region", "send data, or binary data")
    if "data" not in tensor:
        raise WireError(where, "data", "none", "send data, or binary_data_size and the bytes after the JSON")
    shape, _ = check_shape(where, datatype, dims, max_rows, max_bytes)
    is_base64 = parameters.get("content_type") == "base64"  # as MLServer has it
    return read_values(where, datatype, shape, tensor["data"], is_base64=is_base64)


def _flag(parameters: Object, key: str, where: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and type(value) is not bool:
        raise WireError(f"{where}: {key}", "true or false", _shown(value), "send one of them, or none")
    return value


def _part(message: Object, key: str, kind: type, where: str) -> Any:
    """A list or an object in a message; empty where it is left out."""
    value = message.get(key)
    if value is None:
        return kind()
    if type(value) is not kind:
        named = "a list" if kind is list else "an object"
        raise WireError(f"{where}: {key}", named, _shown(value), "see docs/protocol.md")
    return value


def _object(value: Any, where: str) -> Object:
    if type(value) is not dict:
        raise WireError(where, "an object", _shown(value), "see docs/protocol.md")
    return value


def _name(tensor: Object, where: str) -> str:
    name = _text(tensor.get("name", ""), f"{where}: name")
    if not name:
        raise WireError(where, "a name", "none", "name each tensor")
    return name


def _text(value: Any, where: str) -> str:
    if type(value) is not str:
        raise WireError(where, "a string", _shown(value), "quote it")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise WireError(where, "text that UTF-8 can hold", "half a surrogate pair", "send whole characters")
    return value


def _shown(value: Any) -> str:
    """A scalar as it came, cut short; of the rest, which may be of any depth, the kind."""
    kinds = {dict: "an object", list: "a list", type(None): "none"}
    return kinds.get(type(value)) or f"{value!r:.64}"


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")
