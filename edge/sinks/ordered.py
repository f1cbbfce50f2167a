"""The order of the source, restored: what has a number waits here until those before it have come."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Reorder(Generic[T]):
    """Takes things with their number in the source (from 0), in any order; gives them back in order."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, T] = {}

    def take(self, number: int, thing: T) -> list[T]:
        """What is due now: none, this one, or this one and those that waited for it."""
        self._waiting[number] = thing
        due = []
        while self._next in self._waiting:
            due.append(self._waiting.pop(self._next))
            self._next += 1
        return due
