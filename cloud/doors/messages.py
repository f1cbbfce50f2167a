"""Messages of the REST protocol: a body becomes a `Request`, an `Answer` a body.

With the binary tensor data extension a body is JSON followed by the tensors' raw bytes, one after the other; a header
tells the JSON's length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coe.cascade.types import Array
from coe.wire.convert import WireError, check_shape, encode, read_raw
from coe.wire.plane import OUTPUTS, Answer, Request
from coe.wire.service import INPUT, PLATFORM

from .http_errors import HttpError
from .json_values import read_values, to_values

LENGTH = "inference-header-content-length"
MEMORY = "shared_memory_region"
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one request: rows of a tensor, bytes of all tensors in raw form, bytes of JSON."""

    max_rows: int
    max_bytes: int
    max_json_bytes: int


@dataclass(frozen=True, slots=True)
class Asked:
    """How the answer is to be told: binary where `binary` says so of an output, else as `usually`."""

    binary: Mapping[str, bool] = field(default_factory=dict)
    usually: bool = False

    def is_binary(self, name: str) -> bool:
        return self.binary.get(name, self.usually)


def read_request(
    body: bytes, header_length: str | None, *, model: str, version: str, limits: Limits
) -> tuple[Request, Asked]:
    """The question in a body.

    Args:
        header_length: of JSON in it, as the header has it; None: all of it.
    Raises:
        HttpError: it is not JSON, or too much of it.
        WireError: it contradicts itself, or goes over a limit.
    """
    size = len(body) if header_length is None else _length(header_length, len(body))
    if size > limits.max_json_bytes:
        mend = "send tensors as binary data"
        raise HttpError(413, f"body: expected at most {limits.max_json_bytes} bytes of JSON, got {size} ({mend})")
    message = parse(body[:size])
    parameters = _part(message, "parameters", dict, "request")
    outputs = [_object(output, f"outputs[{n}]") for n, output in enumerate(_part(message, "outputs", list, "request"))]
    asked = {_name(output, f"outputs[{n}]"): _binary(output, f"outputs[{n}]") for n, output in enumerate(outputs)}
    request = Request(
        model=model,
        version=version,
        id=_text(message.get("id", ""), "id"),
        inputs=_inputs(_part(message, "inputs", list, "request"), body, size, limits),
        outputs=tuple(asked),
        remaining_s=_timeout(parameters),
        n_bytes=len(body),
    )
    binary = {name: chosen for name, chosen in asked.items() if chosen is not None}
    return request, Asked(binary, _flag(parameters, "binary_data_output", "parameters") or False)


def write_answer(answer: Answer, asked: Asked) -> tuple[bytes, int | None]:
    """The body, and how much of it is JSON where not all of it is."""
    outputs: list[Object] = []
    tail: list[bytes] = []
    for name, column in answer.outputs.items():
        told: Object = {"name": name, "datatype": OUTPUTS[name][0], "shape": list(column.shape)}
        if asked.is_binary(name):
            _, raw = encode(name, column)
            told["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            told["data"] = to_values(column)
        outputs.append(told)
    message: Object = {"model_name": answer.served.name, "model_version": answer.served.version}
    if answer.id:
        message["id"] = answer.id
    message["parameters"] = {key: value for key, value in answer.parameters.items() if math.isfinite(value)}
    message["outputs"] = outputs
    head = to_json(message)
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


def metadata(served: Any) -> Object:
    """A `coe.wire.plane.Served` as the protocol's ModelMetadata tells it."""
    datatype, shape = served.input
    outputs = [
        {"name": name, "datatype": kind, "shape": [-1, *(served.n_tiers if size == -1 else size for size in row)]}
        for name, (kind, row) in OUTPUTS.items()
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


def _inputs(inputs: list[Any], body: bytes, at: int, limits: Limits) -> dict[str, Array]:
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
        size = _binary_size(tensor, where, len(body) - at)
        if size is None:
            array = _told(tensor, where, datatype, dims, limits.max_rows, left)
        else:
            raw = body[at : at + size]
            array = read_raw(where, datatype, dims, raw, max_rows=limits.max_rows, max_bytes=left)
            at += size
        arrays[name] = _one_element_a_row(where, array)
        left -= _n_bytes(array)
        if left < 0:
            raise WireError(where, "all tensors within the size limit", f"{-left} bytes over it", "send fewer rows")
    if at != len(body):
        mend = "binary_data_size of all inputs must add up to what follows the JSON"
        raise WireError("body", "nothing after the last tensor", f"{len(body) - at} bytes more", mend)
    return arrays


def _told(tensor: Object, where: str, datatype: str, dims: list[int], max_rows: int, max_bytes: int) -> Array:
    """A tensor in JSON itself."""
    parameters = _part(tensor, "parameters", dict, where)
    if MEMORY in parameters:
        raise WireError(where, "its contents in the message", "a shared memory region", "send data, or binary data")
    if "data" not in tensor:
        raise WireError(where, "data", "none", "send data, or binary_data_size and the bytes after the JSON")
    shape, _ = check_shape(where, datatype, dims, max_rows, max_bytes)
    is_base64 = parameters.get("content_type") == "base64"  # as MLServer has it
    return read_values(where, datatype, shape, tensor["data"], is_base64=is_base64)


def _binary_size(tensor: Object, where: str, left: int) -> int | None:
    size = _part(tensor, "parameters", dict, where).get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or not 0 <= size <= left:
        mend = f"count the tensor's bytes, and set {LENGTH}"
        raise WireError(where, f"a binary_data_size of 0 to {left}, which is there", _shown(size), mend)
    if "data" in tensor:
        raise WireError(where, "data or binary_data_size", "both", "send one of them")
    return size


def _one_element_a_row(where: str, array: Array) -> Array:
    """As `read_inputs` gives it: BYTES of [B, 1] become (B,)."""
    if not array.dtype.hasobject or array.ndim == 1:
        return array
    if array.size != len(array):
        expected, mend = "one BYTES element for each row", "join them, or send one tensor each"
        raise WireError(where, expected, f"shape {array.shape}", mend)
    return array.reshape(len(array))


def _n_bytes(array: Array) -> int:
    return sum(4 + len(element) for element in array.ravel()) if array.dtype.hasobject else array.nbytes


def _length(told: str, most: int) -> int:
    if not (told.isascii() and told.isdecimal()) or len(told) > 12 or int(told) > most:
        raise HttpError(400, f"{LENGTH}: expected a number of 0 to {most}, the body's bytes, got {told[:64]!r}")
    return int(told)


def _timeout(parameters: Object) -> float | None:
    """Triton's parameter, in microseconds; 0 means none."""
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise WireError("parameter 'timeout'", "microseconds", _shown(timeout), "send a whole number, or none")
    return timeout / 1e6 if timeout else None


def _binary(output: Object, where: str) -> bool | None:
    parameters = _part(output, "parameters", dict, where)
    if MEMORY in parameters:
        raise WireError(where, "an answer in the message", "a shared memory region", "leave it out")
    return _flag(parameters, "binary_data", where)


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
