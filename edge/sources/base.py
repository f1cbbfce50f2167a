"""What a source gives: examples, one after another, until it ends or is told to stop.

To add a source: one module with a class that fits `Source`, and its name in `open_source` (open.py).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from coe.cascade.types import Array


@dataclass(frozen=True, slots=True)
class Example:
    """One example as it came in.

    Args:
        id: the source's name for it.
        value: encoded image bytes, or an array; None where it could not be read.
        truth: its label, where the source knows it.
        error: why it could not be read.
        deadline: `time.monotonic()` second by which whoever asked wants the answer.
        answered: called once with the example's `Outcome`, after it is in the sink; for a source whose callers wait.
    """

    id: str
    value: bytes | Array | None
    truth: int | None = None
    error: str | None = None
    deadline: float = math.inf
    answered: Callable[[Any], None] | None = None


class FolderHistory(Protocol):
    """What was done of a watched folder, over restarts. A stamp is a file's size and its time of change in ns."""

    def done(self) -> dict[str, tuple[int, int]]:
        """Files that were decided, as they were then. Asked once, before any is taken."""
        ...

    def take(self, stamps: Mapping[str, tuple[int, int]]) -> None:
        """These are about to be decided."""
        ...

    def finish(self, name: str, stamp: tuple[int, int]) -> None:
        """Its outcome is in the sink. On any thread."""
        ...

    def forget(self, names: Collection[str]) -> None:
        """They are gone."""
        ...


class FileHistory(Protocol):
    """Of all watched folders."""

    def of(self, folder: Path) -> FolderHistory: ...


class Source(Protocol):
    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """Examples until the source ends; soon after `stop` is set it ends early.

        The agent asks for the next example when the outcome of the last one is in the sink, or when it waits for a
        server: what a source remembers of examples before the last may be written down.
        """
        ...
