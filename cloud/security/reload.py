"""A value read from files, read again when they change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from coe.cascade.errors import CascadeError
from coe.protocol.credentials import Stamp, stamp

log = logging.getLogger(__name__)

T = TypeVar("T")


class ReloadedFiles(Generic[T]):
    """A value read from files. A new version that cannot be used is logged once, and the old one stays.

    Args:
        what: its name in the log.
        files: it is read from these.
        read: makes the value; its CascadeError or OSError is why a version cannot be used. The first is raised here.
        every_s: the files are checked no more often.
        in_background: they are checked and read on a thread of its own, and the caller gets the old one.
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
        self._last = self._stamps()  # before reading: what changes meanwhile is read again
        self._value = read()
        self._next_check = clock() + every_s
        self._checking = threading.Lock()

    def current(self) -> T:
        """The newest usable version. Any thread may call: one checks the files, the others do not wait for it."""
        if self._clock() >= self._next_check and self._checking.acquire(blocking=False):
            self._next_check = self._clock() + self.every_s
            if self._in_background:
                threading.Thread(target=self._check, name="coe-reload", daemon=True).start()
            else:
                self._check()
        return self._value

    def _check(self) -> None:
        """Read the files again where they have changed, then release the lock."""
        try:
            stamps = self._stamps()
            if stamps != self._last:
                self._last = stamps  # a bad version is logged once
                self._value = self._read()
                log.info("%s: read again, in use from now on", self.what)
        except (CascadeError, OSError) as error:
            reason = "; ".join(str(error).splitlines())
            log.warning("%s: changed, but cannot be used, so the one before stays in use: %s", self.what, reason)
        finally:
            self._checking.release()

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(stamp(path) for path in self.files)
