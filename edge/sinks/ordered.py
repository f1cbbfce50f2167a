"""The order of the source, restored: an outcome waits here until those before it are written."""

from __future__ import annotations

from .base import Outcome, Sink


class Reorder:
    """Takes outcomes with their number in the source (from 0), in any order; writes them in order."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._next = 0
        self._waiting: dict[int, Outcome] = {}

    def write(self, number: int, outcome: Outcome) -> None:
        self._waiting[number] = outcome
        while self._next in self._waiting:
            self.sink.write(self._waiting.pop(self._next))
            self._next += 1
