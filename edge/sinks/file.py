"""Decisions as JSON lines in a file that is appended to, rotated, and read back after a crash."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from . import tail
from .base import Record
from .rotation import Rotation, Shelf

FOLLOW_S = 0.5  # how soon it is noticed that somebody else moved the file away, as logrotate does


class FileLines:
    """One line per record, each whole or not there at all.

    Args:
        path: made where it is not there. What is no regular file (a pipe, a device) is neither rotated nor read back.
        rotation: None: it grows.
    Raises:
        OSError: it cannot be opened.
    """

    kind = "jsonlines"

    def __init__(self, path: Path, rotation: Rotation | None = None) -> None:
        self.path = path
        self.name = str(path)
        self.n_rotations = 0
        tail.mend(path)  # the last line of an agent that was killed
        self._descriptor = -1
        self._open()
        self._shelf = Shelf(path, rotation) if rotation is not None and self._is_regular else None
        self._looked_at = time.monotonic()

    def write(self, record: Record) -> None:
        line = (json.dumps(record) + "\n").encode()
        try:
            if self._is_regular:
                self._make_room(len(line))
            self._append(line)
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, say: the operating system does not name the file
            raise OSError(error.errno, error.strerror, self.name) from None

    def missing(self, keys: Collection[str]) -> Collection[str]:
        return tail.missing_from(self.path, keys) if self._is_regular else keys

    def mark(self) -> str:
        return tail.mark_of(self.path) if self._is_regular else ""

    def since(self, mark: str) -> Iterator[Record]:
        return tail.since(self.path, mark) if self._is_regular else iter(())

    def sync(self) -> None:
        """Whatever was written stays, should the power fail now."""
        if self._is_regular:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._shelf is not None:
            self._shelf.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._is_regular = stat.S_ISREG(status.st_mode)
        self._identity = status.st_dev, status.st_ino
        self._size = status.st_size

    def _make_room(self, n_bytes: int) -> None:
        """Go on in the file that now has our name, and in a new one where this line would not fit."""
        now = time.monotonic()
        if now - self._looked_at >= FOLLOW_S:
            self._looked_at = now
            self._follow()
        shelf = self._shelf
        if shelf is None or not self._size or self._size + n_bytes <= shelf.rotation.max_bytes or shelf.is_busy:
            return
        os.fsync(self._descriptor)  # `sync` will only know the new one
        try:
            shelf.put()
        finally:  # a rename that failed leaves us where we were
            self._open()
        self.n_rotations += 1

    def _follow(self) -> None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            self._open()
            return
        if (status.st_dev, status.st_ino) != self._identity:
            self._open()
        else:
            self._size = status.st_size  # somebody may have cut it off

    def _append(self, line: bytes) -> None:
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            if self._is_regular and len(left) < len(line):  # half a line would spoil the next one, too
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - (len(line) - len(left)))
            raise
        self._size += len(line)
