"""The live line on a terminal: rewritten in place, gone when the agent ends."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from typing import TextIO


class LiveLine:
    """Shows `line()` five times a second while the `with` block runs; nothing where not on a terminal.

    `hidden`: nothing at all, for where decisions are printed on the same terminal.
    """

    def __init__(self, line: Callable[[], str], stream: TextIO, every_s: float = 0.2, hidden: bool = False) -> None:
        self.line = line
        self.stream = stream
        self.every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True) if stream.isatty() and not hidden else None

    def __enter__(self) -> LiveLine:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _show(self) -> None:
        while not self._ended.wait(self.every_s):
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K" + self.line()[:width])
            self.stream.flush()
