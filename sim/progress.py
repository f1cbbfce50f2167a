"""Progress on a terminal: one line rewritten in place; elsewhere one line per step, when it is done."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 24


class Progress:
    """Steps of known length, shown one after another."""

    def __init__(self, n_steps: int, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.n_steps = n_steps
        self.step = 0
        self._title = ""
        self._total = 1
        self._started = time.perf_counter()

    def start(self, title: str, total: int) -> None:
        self.step += 1
        self._title = title
        self._total = max(total, 1)
        self._started = time.perf_counter()
        self.show(0)

    def show(self, done: int) -> None:
        if not self.stream.isatty():
            return
        filled = round(WIDTH * min(done / self._total, 1.0))
        bar = "#" * filled + "." * (WIDTH - filled)
        self.stream.write(f"\r\x1b[K[{self.step}/{self.n_steps}] {self._title} {bar} {done}/{self._total}")
        self.stream.flush()

    def end(self) -> None:
        took = time.perf_counter() - self._started
        start = "\r\x1b[K" if self.stream.isatty() else ""
        self.stream.write(f"{start}[{self.step}/{self.n_steps}] {self._title}: {self._total} in {took:.1f} s\n")
        self.stream.flush()
