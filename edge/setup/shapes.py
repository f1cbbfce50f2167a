"""What a model file takes and gives, read from its own bytes: no runtime need be installed for that.

ONNX is protobuf (onnx.proto: ModelProto.graph), TFLite a flatbuffer (schema.fbs: Model.subgraphs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coe.cascade.errors import ConfigError

Dims = tuple[int | None, ...]  # None: free

ONNX_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16"}
TFLITE_TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 9: "int8"}
GRAPH, INITIALIZER, INPUT, OUTPUT = 7, 5, 11, 12  # fields of ModelProto and GraphProto
NAME, TYPE, TENSOR_NAME = 1, 2, 8  # of ValueInfoProto and TensorProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Tensor:
    """A model's input or output; the first of `dims` is the batch's."""

    name: str
    dtype: str
    dims: Dims


@dataclass(frozen=True, slots=True)
class Shape:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def shape_of(path: Path) -> Shape:
    """Inputs and outputs of an ONNX or TFLite file.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    try:
        data = path.read_bytes()
        return _tflite(data) if path.suffix == ".tflite" else _onnx(data)
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
    except (ValueError, IndexError, struct.error, UnicodeDecodeError, RecursionError):
        kind = path.suffix.removeprefix(".")
        raise ConfigError([f"expected an {kind} model, got something else (export it again)"], str(path)) from None


def _onnx(data: bytes) -> Shape:
    graph = next((value for field, value in _fields(data) if field == GRAPH), None)
    if not isinstance(graph, bytes):
        raise ValueError("no graph")
    inputs, outputs, constants = [], [], set()
    for field, value in _fields(graph):
        if field == INPUT and isinstance(value, bytes):
            inputs.append(_onnx_tensor(value))
        elif field == OUTPUT and isinstance(value, bytes):
            outputs.append(_onnx_tensor(value))
        elif field == INITIALIZER and isinstance(value, bytes):
            constants.add(next((_text(name) for field, name in _fields(value) if field == TENSOR_NAME), ""))
    return Shape(tuple(tensor for tensor in inputs if tensor.name not in constants), tuple(outputs))


def _onnx_tensor(value: bytes) -> Tensor:
    fields = dict(_fields(value))
    tensor_type = dict(_fields(_bytes(dict(_fields(_bytes(fields.get(TYPE, b"")))).get(1, b""))))
    number = tensor_type.get(1, 0)
    dims: list[int | None] = []
    for _, dim in _fields(_bytes(tensor_type.get(2, b""))):
        size = dict(_fields(_bytes(dim))).get(1)
        dims.append(size if isinstance(size, int) and size > 0 else None)
    dtype = ONNX_TYPES.get(number, f"type {number!r}") if isinstance(number, int) else "unknown"
    return Tensor(_text(fields.get(NAME, b"")), dtype, tuple(dims))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == VARINT:
            value, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
            value, at = data[at : at + length], at + length
        elif kind == BYTES:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            raise ValueError("no protobuf")
        if at > len(data) or not number:
            raise ValueError("it ends early")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("no number")


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("no message")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode("utf-8")


def _tflite(data: bytes) -> Shape:
    if data[4:8] != b"TFL3":
        raise ValueError("no TFLite file")
    model = _Table(data, _u32(data, 0))
    graph = model.tables(2)[0]
    tensors = graph.tables(0)

    def taken(numbers: list[int]) -> tuple[Tensor, ...]:
        found = []
        for number in numbers:
            tensor = tensors[number]
            sizes = tensor.integers(7) or tensor.integers(0)  # shape_signature has -1 where it is free
            dims = tuple(size if size > 0 else None for size in sizes)
            kind = tensor.byte(1)
            found.append(Tensor(tensor.text(3), TFLITE_TYPES.get(kind, f"type {kind}"), dims))
        return tuple(found)

    return Shape(taken(graph.integers(1)), taken(graph.integers(2)))


class _Table:
    """A flatbuffer's table; fields by their number in the schema."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self._vtable = at - struct.unpack_from("<i", data, at)[0]
        if self._vtable < 0:
            raise ValueError("no table")

    def _field(self, number: int) -> int | None:
        """Where its value is; None: it has its default."""
        place = 4 + 2 * number
        if place >= struct.unpack_from("<H", self.data, self._vtable)[0]:
            return None
        offset: int = struct.unpack_from("<H", self.data, self._vtable + place)[0]
        return self.at + offset if offset else None

    def _vector(self, number: int) -> tuple[int, int]:
        """Where its first element is, and how many there are."""
        at = self._field(number)
        if at is None:
            return 0, 0
        start = at + _u32(self.data, at)
        length = _u32(self.data, start)
        if start + 4 + length > len(self.data):
            raise ValueError("it ends early")
        return start + 4, length

    def byte(self, number: int) -> int:
        at = self._field(number)
        return 0 if at is None else self.data[at]

    def text(self, number: int) -> str:
        at, length = self._vector(number)
        return self.data[at : at + length].decode("utf-8")

    def integers(self, number: int) -> list[int]:
        at, length = self._vector(number)
        return list(struct.unpack_from(f"<{length}i", self.data, at))

    def tables(self, number: int) -> list[_Table]:
        at, length = self._vector(number)
        places = [at + 4 * index for index in range(length)]
        return [_Table(self.data, place + _u32(self.data, place)) for place in places]


def _u32(data: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", data, at)[0]
    return value
