"""Decisions as JSON lines on a stream, such as standard output."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TextIO

from .base import Record


class JsonLines:
    """One line per record, flushed at once: whoever reads the pipe sees a decision when it is made."""

    kind = "jsonlines"
    name = "standard output"

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, record: Record) -> None:
        self.stream.write(json.dumps(record) + "\n")
        self.stream.flush()

    def missing(self, keys: Collection[str]) -> Collection[str]:
        return keys

    def close(self) -> None:
        """The stream is its owner's to close."""
