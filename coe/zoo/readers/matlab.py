"""The fields of a struct array in a MATLAB 5 file: as much of the format as ImageNet's meta.mat needs.

The format: a header of 128 bytes, then elements, each a type, a size and its data, padded to 8 bytes; small ones have
their data in the tag. A matrix is an element of elements: its flags, dimensions, name, and contents.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

HEADER, TAG = 128, 8
MATRIX, COMPRESSED = 14, 15
STRUCT, TEXT = 2, 4  # classes of a matrix
FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q", 16: "B", 17: "H"}
MOST_BYTES = 64 * 2**20  # of a file, unpacked


def read_struct(path: Path, name: str) -> dict[str, list[float | str]]:
    """The fields of the struct array `name`, each with one value per element: a number, or a text.

    A field of anything else (a list, another struct) is an empty text.

    Raises:
        ValueError: the file is no such file, or has no such array.
    """
    data = path.read_bytes()
    if len(data) < HEADER or data[126:128] != b"IM":
        raise ValueError(f"{path}: expected a MATLAB 5 file (little-endian), got {len(data)} bytes of something else")
    try:
        for kind, body in _elements(data[HEADER:]):
            if kind == COMPRESSED:
                kind, body = next(_elements(_unpacked(body)))
            if kind == MATRIX and (found := _struct(body, name)) is not None:
                return found
    except (struct.error, zlib.error, StopIteration, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a MATLAB 5 file, got a damaged one: {error}") from None
    raise ValueError(f"{path}: expected the struct array {name}, got none")


def _unpacked(body: bytes) -> bytes:
    packer = zlib.decompressobj()
    data = packer.decompress(body, MOST_BYTES)
    if packer.unconsumed_tail:
        raise zlib.error(f"more than {MOST_BYTES} bytes")
    return data


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, data) of each element in a row of them."""
    at = 0
    while at + TAG <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:  # a small one: size and type share the first four bytes
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += TAG
            continue
        yield kind, data[at + TAG : at + TAG + size]
        at += TAG + (size if kind == COMPRESSED else -(-size // 8) * 8)


def _struct(body: bytes, name: str) -> dict[str, list[float | str]] | None:
    """The fields, of the struct array of that name; None of another matrix."""
    parts = _elements(body)
    (_, flags), (_, dimensions), (_, own) = next(parts), next(parts), next(parts)
    if flags[0] != STRUCT or own.decode() != name:
        return None
    count = 1
    for size in struct.unpack(f"<{len(dimensions) // 4}i", dimensions):
        count *= size
    (width,) = struct.unpack("<i", next(parts)[1])
    names = next(parts)[1]
    fields = [names[at : at + width].split(b"\0")[0].decode() for at in range(0, len(names), width)]
    found: dict[str, list[float | str]] = {field: [] for field in fields}
    for _ in range(count):
        for field in fields:
            found[field].append(_value(next(parts)[1]))
    return found


def _value(body: bytes) -> float | str:
    """A number or a text; an empty text where a matrix is neither."""
    if not body:
        return ""
    parts = _elements(body)
    flags = next(parts)[1]
    next(parts)
    next(parts)
    kind, data = next(parts, (0, b""))
    if flags[0] == TEXT:
        return data.decode("utf-16-le" if kind in (4, 17) else "utf-8")
    if kind not in FORMATS or flags[0] <= 3:
        return ""
    numbers = struct.unpack(f"<{len(data) // struct.calcsize(FORMATS[kind])}{FORMATS[kind]}", data)
    return float(numbers[0]) if len(numbers) == 1 else ""
