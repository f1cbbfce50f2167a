"""JSON lines on standard input, one example each.

{"id": "a", "file": "photos/a.jpg"}
{"id": "b", "image": "<base64 of a PNG or JPEG>"}
{"id": "c", "pixels": [[0, 17, ...], ...], "label": 3}
{"id": "d", "tensor": [0.1, ...]}
{"id": "e", "text": "a stirring , funny film"}
"""

from __future__ import annotations

import base64
import json
import os
import select
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coe.cascade.errors import describe_error
from coe.cascade.types import Array

from .base import Example

KINDS = ("file", "image", "pixels", "tensor", "text")
MOST_LINE_BYTES = 64 * 2**20


class JsonLinesSource:
    """Examples from a stream; a line that cannot be read is an example with an error, and the next is read."""

    def __init__(self, stream: BinaryIO, poll_s: float = 0.2) -> None:
        self.stream = stream
        self.poll_s = poll_s

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        for number, line in enumerate(self._lines(stop), start=1):
            if len(line) > MOST_LINE_BYTES:
                why = f"expected a line of at most {MOST_LINE_BYTES:,} bytes, got a longer one"
                yield Example(f"line-{number}", None, error=f"cannot be read: {why}")
            elif line.strip():
                yield parse_line(line, f"line-{number}")

    def _lines(self, stop: threading.Event) -> Iterator[bytes]:
        """Lines as they come; a stream without input does not keep the agent from stopping. Of a line that is too long,
        the first MOST_LINE_BYTES and some more.
        """
        descriptor = self.stream.fileno()
        parts: list[bytes] = []  # of the line whose end has not come
        n_bytes = 0  # of them
        while not stop.is_set():
            ready, _, _ = select.select([descriptor], [], [], self.poll_s)
            if not ready:
                continue
            chunk = os.read(descriptor, 2**16)  # returns what is there, without waiting for a full buffer
            if not chunk:
                break
            first, *others = chunk.split(b"\n")
            if n_bytes <= MOST_LINE_BYTES:  # the rest of a line that is too long is dropped
                parts.append(first)
                n_bytes += len(first)
            if others:
                yield b"".join(parts)
                yield from others[:-1]
                parts, n_bytes = [others[-1]], len(others[-1])
        if n_bytes and not stop.is_set():
            yield b"".join(parts)


def parse_line(line: bytes, default_id: str) -> Example:
    """One line's example; `error` says why a line cannot be read."""
    name = default_id
    try:
        content = json.loads(line)
        if not isinstance(content, dict):
            raise ValueError('expected an object such as {"id": "a", "file": "a.png"}')
        name = default_id if content.get("id") is None else str(content["id"])
        return Example(name, _value(content), _truth(content.get("label")))
    except (ValueError, OSError, RecursionError) as error:
        return Example(name, None, error=f"cannot be read: {describe_error(error)}")


def _value(content: dict[str, Any]) -> bytes | Array:
    kinds = [kind for kind in KINDS if kind in content]
    if len(kinds) != 1:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {', '.join(kinds) or 'none'}")
    kind, value = kinds[0], content[kinds[0]]
    if kind == "file":
        return _read_file(Path(str(value)))
    if kind == "text":
        if not isinstance(value, str):
            raise ValueError(f"text: expected a string, got {value!r}")
        return value.encode()
    if kind == "image":
        try:
            return base64.b64decode(value, validate=True)
        except (ValueError, TypeError) as error:
            raise ValueError(f"image: expected base64, {error}") from None
    try:
        array = np.array(value)  # keeps the numbers' kind: a direct cast would accept 0.5 and "17" as whole numbers
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{kind}: expected nested lists of numbers, {error}") from None
    if kind == "pixels":
        if array.dtype.kind not in "iu" or not (array.min() >= 0 and array.max() <= 255):
            raise ValueError("pixels: expected whole numbers 0 to 255")
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise ValueError("tensor: expected nested lists of numbers")
    with np.errstate(over="ignore"):  # too large becomes infinity, which the decoder refuses
        return array.astype(np.float32)


def _read_file(path: Path) -> bytes:
    """A regular file's bytes: reading a pipe could wait for ever."""
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # reading a directory is an error itself
        raise ValueError(f"file: expected a regular file, got {path}")
    if status.st_size > MOST_LINE_BYTES:
        raise ValueError(f"file: expected at most {MOST_LINE_BYTES} bytes, got {status.st_size}")
    return path.read_bytes()


def _truth(label: Any) -> int | None:
    if label is None:
        return None
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"label: expected a whole number, got {label!r}")
    return label
