"""JSON lines on standard input, one example each.

{"id": "a", "file": "photos/a.jpg"}
{"id": "b", "image": "<base64 of a PNG or JPEG, in lines or a data: URI or not>"}
{"id": "c", "pixels": [[0, 17, ...], ...], "label": 3}      (or its name)
{"id": "d", "tensor": [0.1, ...]}
{"id": "e", "text": "a stirring , funny film"}
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from coe.cascade.errors import describe_error
from coe.models.labelled import json_label, json_value, number_of, read_object

from .base import Example

MOST_LINE_BYTES = 64 * 2**20


class JsonLinesSource:
    """Examples from a stream; a line that cannot be read is an example with an error, and the next is read.

    Args:
        labels: of the task, for a `label` that is a name; (): only numbers are read.
    """

    def __init__(self, stream: BinaryIO, poll_s: float = 0.2, labels: Sequence[str] = ()) -> None:
        self.stream = stream
        self.poll_s = poll_s
        self.labels = labels

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        for number, line in enumerate(read_lines(self.stream, stop, self.poll_s), start=1):
            if len(line) > MOST_LINE_BYTES:
                why = f"expected a line of at most {MOST_LINE_BYTES:,} bytes, got a longer one"
                yield Example(f"line-{number}", None, error=f"cannot be read: {why}")
            elif line.strip():
                yield parse_line(line, f"line-{number}", self.labels)


def read_lines(stream: BinaryIO, stop: threading.Event, poll_s: float = 0.2) -> Iterator[bytes]:
    """Lines as they come; a stream without input does not keep the agent from stopping. Of a line that is too long,
    the first MOST_LINE_BYTES and some more.
    """
    descriptor = stream.fileno()
    parts: list[bytes] = []  # of the line whose end has not come
    n_bytes = 0  # of them
    while not stop.is_set():
        ready, _, _ = select.select([descriptor], [], [], poll_s)
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


def parse_line(line: bytes, default_id: str, labels: Sequence[str] = ()) -> Example:
    """One line's example; `error` says why a line cannot be read."""
    name = default_id
    try:
        content = read_object(line)
        name = default_id if content.get("id") is None else str(content["id"])
        label = json_label(content)
        return Example(name, json_value(content), number_of(label, labels) if isinstance(label, str) else label)
    except (ValueError, OSError, RecursionError) as error:
        return Example(name, None, error=f"cannot be read: {describe_error(error)}")
