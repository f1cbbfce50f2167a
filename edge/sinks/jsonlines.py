"""Decisions as JSON lines, on standard output or appended to a file."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TextIO

from .base import Record


class JsonLines:
    """One line per record, flushed at once: whoever reads the pipe sees a decision when it is made."""

    def __init__(self, stream: TextIO, owns_stream: bool) -> None:
        self.stream = stream
        self.owns_stream = owns_stream

    def write(self, record: Record) -> None:
        try:
            self.stream.write(json.dumps(record) + "\n")
            self.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, say: the operating system does not name the file
            raise OSError(error.errno, error.strerror, getattr(self.stream, "name", None)) from None

    def missing(self, keys: Collection[str]) -> Collection[str]:
        return keys

    def close(self) -> None:
        if self.owns_stream:
            self.stream.close()
