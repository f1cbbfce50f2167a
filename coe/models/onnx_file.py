"""What an ONNX file holds beside its graph's shapes: its labels, and the names of the files with its weights.

Only the fields that are needed are read, by their numbers in onnx.proto; the package `onnx` is not.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from coe.cascade.errors import ModelError

# of ModelProto: graph, metadata_props; of GraphProto: node, initializer; of NodeProto: attribute;
# of AttributeProto: name, ints, strings; of TensorProto: data_type, string_data, name, raw_data, external_data,
# data_location
GRAPH, METADATA, NODE, INITIALIZER, ATTRIBUTE = 7, 14, 1, 5, 5
NAME, INTS, STRINGS = 1, 8, 9
DATA_TYPE, STRING_DATA, TENSOR_NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 2, 6, 8, 9, 13, 14
STRING_TYPE = 8
CLASSES = (b"classlabels_strings", b"classlabels_ints", b"classlabels_int64s")  # of scikit-learn's and others' nodes
LABEL_KEYS = ("labels", "names", "classes", "class_names", "id2label")
BYTES_WIRE = 2

Field = tuple[int, Any, int, int]  # number; number or bytes; where it starts and ends


def labels_in(data: bytes) -> list[tuple[str, ...]]:
    """Lists of names that may be those of the outputs, as the file has them; empty where it has none."""
    found: list[tuple[str, ...]] = []
    try:
        for number, value, _, _ in _fields(memoryview(data)):
            if number == METADATA:
                pair = {key: bytes(text).decode() for key, text, _, _ in _fields(value)}
                if pair.get(1, "").lower() in LABEL_KEYS:
                    found.append(labels_of_text(pair.get(2, "")))
            elif number == GRAPH:
                found += _labels_in_graph(value)
    except (ValueError, IndexError):
        return []  # no such file: its runtime says why
    return [labels for labels in found if len(labels) > 1]


def _labels_in_graph(graph: memoryview) -> Iterator[tuple[str, ...]]:
    for number, value, _, _ in _fields(graph):
        if number == NODE:
            for key, attribute, _, _ in _fields(value):
                if key == ATTRIBUTE:
                    yield _class_labels(attribute)
        elif number == INITIALIZER:
            tensor = [(key, one) for key, one, _, _ in _fields(value)]
            if (DATA_TYPE, STRING_TYPE) in tensor and b"classes" in bytes(dict(tensor).get(TENSOR_NAME, b"")):
                yield tuple(bytes(one).decode() for key, one in tensor if key == STRING_DATA)


def _class_labels(attribute: memoryview) -> tuple[str, ...]:
    names: list[str] = []
    for number, value, _, _ in _fields(attribute):
        if number == NAME and bytes(value) not in CLASSES:
            return ()  # its name comes first: a forest's other lists are long
        if number == STRINGS:
            names.append(bytes(value).decode())
        elif number == INTS:  # packed or one by one
            names += [str(value)] if isinstance(value, int) else map(str, _varints(value))
    return tuple(names)


def labels_of_text(text: str) -> tuple[str, ...]:
    """Names in JSON or as Python prints a list or a dictionary by number; else one a line, or between commas."""
    for read in (json.loads, ast.literal_eval):
        try:
            content = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(content, Mapping):
            numbered = {int(key): str(name) for key, name in content.items() if str(key).isdigit()}
            return tuple(numbered[key] for key in sorted(numbered))
        if isinstance(content, list | tuple):
            return tuple(map(str, content))
    lines = [line.strip() for line in (text.splitlines() if "\n" in text else text.split(",")) if line.strip()]
    numbered_lines = [re.fullmatch(r"(\d+)[ \t:]+(\S.*)", line) for line in lines]  # as Teachable Machine writes them
    if all(match and int(match[1]) == number for number, match in enumerate(numbered_lines)):
        return tuple(match[2] for match in numbered_lines if match)
    return tuple(lines)


def external_files(data: bytes) -> list[str]:
    """Names of the files that hold the weights, in order; empty where the file holds them itself.

    Raises:
        ModelError: one is not in the file's own folder.
    """
    names: list[str] = []
    try:
        for number, graph, _, _ in _fields(memoryview(data)):
            if number == GRAPH:
                for key, tensor, _, _ in _fields(graph):
                    if key == INITIALIZER and (place := _place(tensor)) and place["location"] not in names:
                        names.append(place["location"])
    except (ValueError, IndexError):
        return []
    for name in names:
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise ModelError(f"expected its external data beside it, got {name} (export it as one file)")
    return names


def _place(tensor: memoryview) -> dict[str, str]:
    """Location, offset and length of a tensor's data in another file; empty where it is in this one."""
    place = {}
    for number, value, _, _ in _fields(tensor):
        if number == EXTERNAL_DATA:
            pair = {key: bytes(text).decode() for key, text, _, _ in _fields(value)}
            place[pair.get(1, "")] = pair.get(2, "")
    return place if "location" in place else {}


def inlined(data: bytes, files: Mapping[str, bytes]) -> bytes:
    """The file with its external data inside."""

    def of_tensor(tensor: memoryview) -> bytes:
        place = _place(tensor)
        if not place:
            return bytes(tensor)
        start = int(place.get("offset", 0))
        whole = files[place["location"]]
        content = whole[start : start + int(place["length"])] if "length" in place else whole[start:]
        kept = (tensor[a:b] for number, _, a, b in _fields(tensor) if number not in (EXTERNAL_DATA, DATA_LOCATION))
        return b"".join([*kept, _field(RAW_DATA, content)])

    def of_graph(graph: memoryview) -> bytes:
        parts = (_field(INITIALIZER, of_tensor(one)) if number == INITIALIZER else graph[a:b]
                 for number, one, a, b in _fields(graph))  # fmt: skip
        return b"".join(parts)

    view = memoryview(data)
    return b"".join(
        _field(GRAPH, of_graph(one)) if number == GRAPH else view[a:b] for number, one, a, b in _fields(view)
    )


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of one message; those of fixed size are given as None.

    Raises:
        ValueError, IndexError: it is none.
    """
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        wire = key & 7
        value: Any = None
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == BYTES_WIRE:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("it ends in a field")
            value, at = data[at : at + size], at + size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"no such field: {wire}")
        yield key >> 3, value, start, at


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return (value - (1 << 64) if value >> 63 else value), at
        if shift > 63:
            raise ValueError("no such number")


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | BYTES_WIRE) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
