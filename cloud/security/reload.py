"""Files that are read again when they change, while everything goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from coe.cascade.errors import CascadeError

log = logging.getLogger(__name__)

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int] | None, ...]


class ReloadedFiles(Generic[T]):
    """What was read from files; a new version that cannot be used is told in one log line, and the old one stays.

    Args:
        what: how the log calls it.
        files: those it is read from.
        read: makes the value; its CascadeError or OSError is why a version cannot be used. The first is raised here.
        every_s: the files are looked at no more often.
        in_background: a new version is read on a thread of its own, and the caller goes on with the old one.
    """

    def __init__(
        self,
        what: str,
        files: Sequence[Path],
        read: Callable[[], T],
        every_s: float,
        *,
        in_background: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.files = tuple(files)
        self.every_s = every_s
        self._read = read
        self._in_background = in_background
        self._clock = clock
        self._stamp = self._look()  # before reading: what changes meanwhile is read again
        self._value = read()
        self._next_look = clock() + every_s
        self._looking = threading.Lock()

    def current(self) -> T:
        """The newest usable version. Any thread may ask; one of them looks, the others do not wait for it."""
        if self._clock() >= self._next_look and self._looking.acquire(blocking=False):
            try:
                self._next_look = self._clock() + self.every_s
                stamp = self._look()
                changed = stamp != self._stamp
                if changed and self._in_background:
                    thread = threading.Thread(target=self._background, args=(stamp,), name="coe-reload", daemon=True)
                    thread.start()
                    return self._value  # the thread ends the looking
                if changed:
                    self._read_again(stamp)
            except BaseException:
                self._looking.release()
                raise
            self._looking.release()
        return self._value

    def _background(self, stamp: Stamp) -> None:
        try:
            self._read_again(stamp)
        finally:
            self._looking.release()

    def _read_again(self, stamp: Stamp) -> None:
        self._stamp = stamp  # a bad version is told once
        try:
            self._value = self._read()
            log.info("%s: read again, in use from now on", self.what)
        except (CascadeError, OSError) as error:
            reason = "; ".join(str(error).splitlines())
            log.warning("%s: changed, but cannot be used, so the one before stays in use: %s", self.what, reason)

    def _look(self) -> Stamp:
        return tuple(_stamp(path) for path in self.files)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
