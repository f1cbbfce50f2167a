"""The tensor codec: NumPy arrays <-> the parts of a protocol message.

The only place that knows datatypes. Tensors are written raw: little-endian, C order, one copy. They are
read raw or typed, for servers answer either way. Every length is checked before anything is allocated, and
whatever the bytes, the one error is WireError.

Rows are the first dimension. What is read is read-only; numbers in raw form are views of the bytes received.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from coe.cascade.errors import CascadeError

from . import inference_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.internal.containers import MessageMap

    Array = np.ndarray[Any, np.dtype[Any]]
    AnyTensor = pb.ModelInferRequest.InferInputTensor | pb.ModelInferResponse.InferOutputTensor

DATATYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"BOOL": np.dtype("?")}
    | {f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)}
    | {f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)}
    | {f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)}
    | {"BYTES": np.dtype(object)}  # of `bytes`
)
_KNOWN = ", ".join(DATATYPES)
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
# The least a raw element takes. BF16, which NumPy has not, is read, as float32; it is never written.
_SIZES = {name: 4 if name == "BYTES" else dtype.itemsize for name, dtype in DATATYPES.items()} | {"BF16": 2}
_FIELDS = (  # of typed contents; FP16 and BF16 have none
    dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents")
    | dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents")
    | {name: f"{name.lower()}_contents" for name in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")}
)
_LENGTH = struct.Struct("<I")  # in front of each element of a raw BYTES tensor
_MAX_DIMS = 32  # NumPy 1 has no more
_MAX_MESSAGE = 2**31 - 1  # no protobuf message is larger


class WireError(CascadeError):
    """A message and its tensors do not fit together.

    Args:
        where: the tensor, such as "input 'image'", or the message's field.
        expected, got: what the protocol or the limits ask for, and what was there.
        fix: what to do about it.
    """

    def __init__(self, where: str, expected: str, got: str, fix: str) -> None:
        self.where = where
        self.expected = expected
        self.got = got
        self.fix = fix
        super().__init__(f"{where}: expected {expected}, got {got} ({fix})")


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a message says about a tensor, beside its contents."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def encode(name: str, array: Array) -> tuple[Tensor, bytes]:
    """The tensor's description and its raw contents.

    Args:
        array: (B, ...), at least one dimension; any dtype in DATATYPES, in either byte order and any memory
            layout. BYTES is an object array of `bytes`.
    Raises:
        WireError: a dtype with no datatype, no or too many dimensions, an element that is not `bytes`.
    """
    datatype = _NAMES.get(array.dtype)
    if datatype is None:
        little = array.dtype.newbyteorder("<")
        datatype = _NAMES.get(little)
        if datatype is None:
            fix = "convert it; text is an object array of UTF-8 bytes"
            raise WireError(f"tensor {name!r}", f"a dtype for one of {_KNOWN}", str(array.dtype), fix)
        array = array.astype(little)
    shape = array.shape
    if not 1 <= len(shape) <= _MAX_DIMS:
        raise WireError(f"tensor {name!r}", f"1 to {_MAX_DIMS} dimensions", str(len(shape)), "put the rows first")
    raw = _pack(name, array) if datatype == "BYTES" else array.tobytes()
    return Tensor(name, datatype, shape), raw


def add_input(request: pb.ModelInferRequest, name: str, array: Array) -> None:
    """Append a tensor, raw, to a request whose other inputs are raw. Arguments and errors as in encode."""
    tensor, raw = encode(name, array)
    request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
    request.raw_input_contents.append(raw)


def add_output(response: pb.ModelInferResponse, name: str, array: Array) -> None:
    """Append a tensor, raw, to a response whose other outputs are raw. Arguments and errors as in encode."""
    tensor, raw = encode(name, array)
    response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.append(raw)


def read_inputs(request: pb.ModelInferRequest, *, max_rows: int, max_bytes: int) -> dict[str, Array]:
    """A request's tensors by name, in the order sent.

    Args:
        max_rows: the most rows a tensor may have.
        max_bytes: the most bytes all tensors may have together, counted in raw form.
    Returns:
        Read-only arrays of the shapes sent, (B, ...); BYTES is (B,), of `bytes`, for [B] and [B, 1] alike; BF16
        is float32.
    Raises:
        WireError: the message contradicts itself, goes over a limit, or has several BYTES elements a row.
    """
    arrays = _read("input", request.inputs, request.raw_input_contents, max_rows, max_bytes)
    for name, array in arrays.items():
        if array.ndim > 1 and array.dtype.hasobject:
            expected, fix = "one BYTES element for each row", "join them, or send one tensor each"
            raise WireError(f"input {_short(name)}", expected, f"shape {array.shape}", fix)
    return arrays


def read_outputs(response: pb.ModelInferResponse) -> dict[str, Array]:
    """A response's tensors by name, as read_inputs; but BYTES may have several elements a row, (B, ...).

    Raises:
        WireError: the message contradicts itself.
    """
    return _read("output", response.outputs, response.raw_output_contents, _MAX_MESSAGE, _MAX_MESSAGE)


def read_raw(where: str, datatype: str, dims: Sequence[int], raw: bytes, *, max_rows: int, max_bytes: int) -> Array:
    """One tensor in raw form, described by something else than a protobuf message, such as JSON.

    Args:
        where: names it in errors.
    Returns:
        A read-only array of shape `dims`; BF16 is float32.
    Raises:
        WireError: what is said of it and `raw` contradict each other, or it goes over a limit.
    """
    shape, count = check_shape(where, datatype, dims, max_rows, max_bytes)
    return _from_raw(where, datatype, count, raw).reshape(shape)


def set_parameter(params: MessageMap[str, pb.InferParameter], key: str, value: bool | int | float | str) -> None:
    """Set a parameter. A whole number of 2**63 or more travels as uint64, which not every server knows.

    Raises:
        WireError: another type, or a whole number outside -2**63 to 2**64 - 1.
    """
    if isinstance(value, bool):
        params[key].bool_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        params[key].int64_param = value
    elif isinstance(value, int) and 2**63 <= value < 2**64:
        params[key].uint64_param = value
    elif isinstance(value, float):
        params[key].double_param = value
    elif isinstance(value, str):
        params[key].string_param = value
    else:
        expected, got = "a bool, a 64-bit int, a float or a str", f"{type(value).__name__}, or one too large"
        raise WireError(f"parameter {_short(key)}", expected, got, "convert it")


def get_parameters(params: Mapping[str, pb.InferParameter]) -> dict[str, bool | int | float | str]:
    """Every parameter that has a value of a kind we know; the others are left out."""
    kinds = ((key, value, value.WhichOneof("parameter_choice")) for key, value in params.items())
    return {key: getattr(value, kind) for key, value, kind in kinds if kind is not None}


def _read(
    side: str, tensors: Sequence[AnyTensor], raws: Sequence[bytes], max_rows: int, max_bytes: int
) -> dict[str, Array]:
    if raws and len(raws) != len(tensors):
        expected, fix = f"{len(tensors)} entries", f"one for each {side}, in the same order"
        raise WireError(f"raw_{side}_contents", expected, str(len(raws)), fix)
    arrays: dict[str, Array] = {}
    left = max_bytes
    for number, tensor in enumerate(tensors):
        name, datatype = tensor.name, tensor.datatype
        where = f"{side} {_short(name)}"
        if not name or name in arrays:
            got = "one used twice" if name else "none"
            raise WireError(where, "a name of its own", got, "name each tensor")
        shape, count = check_shape(where, datatype, tensor.shape, max_rows, max_bytes)
        array: Array
        if raws:
            raw = raws[number]
            left -= len(raw)
            _check_budget(where, left)
            if tensor.HasField("contents") and tensor.contents.ListFields():
                expected, fix = "raw contents alone", "send every tensor raw, or every tensor typed"
                raise WireError(where, expected, "typed contents as well", fix)
            array = _from_raw(where, datatype, count, raw)
        else:
            if "shared_memory_region" in tensor.parameters:
                fix = "this server shares no memory: send them raw"
                raise WireError(where, "its contents in the message", "a shared memory region", fix)
            values = _typed_values(where, datatype, count, tensor.contents)
            left -= _SIZES[datatype] * count + (sum(map(len, values)) if datatype == "BYTES" else 0)
            _check_budget(where, left)
            array = _from_typed(where, datatype, count, values)
        if datatype == "BYTES" and count == shape[0]:
            shape = (count,)  # [B, 1] -> (B,)
        arrays[name] = array.reshape(shape)
    return arrays


def check_shape(
    where: str, datatype: str, dims: Sequence[int], max_rows: int, max_bytes: int
) -> tuple[tuple[int, ...], int]:
    """The shape and its number of elements, once both are known to be plausible."""
    if datatype not in _SIZES:
        raise WireError(where, f"a datatype of {', '.join(_SIZES)}", _short(datatype), "convert the tensor")
    if not 1 <= len(dims) <= _MAX_DIMS:
        raise WireError(where, f"1 to {_MAX_DIMS} dimensions", str(len(dims)), "put the rows first")
    shape = tuple(dims)
    if min(shape) < 0:
        raise WireError(where, "dimensions of 0 or more", f"shape {shape}", "send the size itself, not -1")
    if shape[0] > max_rows:
        raise WireError(where, f"at most {max_rows} rows", str(shape[0]), "send fewer rows in each request")
    count = math.prod(shape)
    # No elements is no licence for absurd dimensions: an empty batch, too, is of rows that could be sent.
    if _SIZES[datatype] * (count or math.prod(dim or 1 for dim in shape)) > max_bytes:
        fix = "send fewer rows, or check the shape"
        raise WireError(where, f"a shape that fits in {max_bytes} bytes", f"{datatype} {shape}", fix)
    return shape, count


def _check_budget(where: str, left: int) -> None:
    if left < 0:
        expected, fix = "all tensors within the size limit", "send fewer rows in each request"
        raise WireError(where, expected, f"{-left} bytes over it", fix)


def _from_raw(where: str, datatype: str, count: int, raw: bytes) -> Array:
    if datatype == "BYTES":
        return _elements(_unpack(where, count, raw))
    if len(raw) != count * _SIZES[datatype]:
        expected = f"{count * _SIZES[datatype]} bytes for {count} {datatype}"
        raise WireError(where, expected, str(len(raw)), "make shape, datatype and contents agree")
    if datatype == "BOOL" and raw.translate(None, b"\0\1"):
        raise WireError(where, "BOOL bytes of 0 or 1", "others", "send one byte, 0 or 1, for each element")
    if datatype == "BF16":
        bits = np.frombuffer(raw, "<u2").astype("<u4")
        bits <<= 16  # as float32: the same number, whose lower half is zero
        bits.flags.writeable = False
        return bits.view("<f4")
    return np.frombuffer(raw, DATATYPES[datatype])


def _typed_values(where: str, datatype: str, count: int, contents: pb.InferTensorContents) -> Any:
    """The one repeated field that fits the datatype, once it has count elements and the others none."""
    field = _FIELDS.get(datatype)
    if field is None:
        fix = f"{datatype} has no typed form: send every tensor raw"
        raise WireError(where, "raw contents", "none", fix)
    sent = [found.name for found, _ in contents.ListFields()]
    if sent not in ([], [field]):
        raise WireError(where, f"{datatype} in {field}", ", ".join(sent), "use that field, or send all raw")
    values = getattr(contents, field)
    if len(values) != count:
        fix = "make shape and contents agree, or send every tensor raw"
        raise WireError(where, f"{count} elements in {field}", str(len(values)), fix)
    return values


def _from_typed(where: str, datatype: str, count: int, values: Any) -> Array:
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        return _elements(list(values))
    array: Array
    if dtype.kind in "iu" and dtype.itemsize < 4:  # travels as 32 bits
        wide = np.array(values, f"<{dtype.kind}4")
        limits = np.iinfo(dtype)
        if count and not limits.min <= wide.min() <= wide.max() <= limits.max:
            expected = f"{datatype} values, {limits.min} to {limits.max}"
            raise WireError(where, expected, f"{wide.min()} to {wide.max()}", "send a wider datatype")
        array = wide.astype(dtype)
    else:
        array = np.array(values, dtype)
    array.flags.writeable = False
    return array


def _pack(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        if not isinstance(element, bytes) or len(element) > _MAX_MESSAGE:
            expected, fix = "elements of bytes, under 2 GiB", "encode text as UTF-8, images as PNG or JPEG"
            raise WireError(f"tensor {name!r}", expected, type(element).__name__, fix)
        parts += _LENGTH.pack(len(element)), element
    return b"".join(parts)


def _unpack(where: str, count: int, raw: bytes) -> list[bytes]:
    elements = []
    at, end = 0, len(raw)
    fix = "put its length, 4 bytes little-endian, before each element"
    for number in range(count):
        if end - at < 4:
            raise WireError(where, f"{count} elements", f"contents that end after {number}", fix)
        (length,) = _LENGTH.unpack_from(raw, at)
        at += 4
        if length > end - at:
            got = f"a length of {length} with {end - at} left, at element {number}"
            raise WireError(where, "elements within the contents", got, fix)
        elements.append(raw[at : at + length])
        at += length
    if at != end:
        raise WireError(where, f"nothing after {count} elements", f"{end - at} bytes more", fix)
    return elements


def _elements(elements: list[bytes]) -> Array:
    array = np.array(elements, object)
    array.flags.writeable = False
    return array


def _short(text: str) -> str:
    """Quoted, and cut: a name can be as long as a message may be."""
    return repr(text) if len(text) <= 64 else f"{text[:48]!r}... ({len(text)} characters)"
