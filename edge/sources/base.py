"""What a source gives: examples, one after another, until it ends or is stopped.

To add a source: one module with a class that fits `Source`, and its name in `open_source` (open.py).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from coe.cascade.types import Array

if TYPE_CHECKING:
    from edge.sinks import Outcome


@dataclass(frozen=True, slots=True)
class Example:
    """One example as it came in.

    Args:
        id: the source's name for it.
        value: encoded image bytes, or an array; None where it could not be read.
        truth: its label, where the source knows it.
        error: why it could not be read.
        deadline: `time.monotonic()` second by which the caller wants the answer.
        answered: called once with the example's `Outcome`, after it is in the sink.
    """

    id: str
    value: bytes | Array | None
    truth: int | None = None
    error: str | None = None
    deadline: float = math.inf
    answered: Callable[[Outcome], None] | None = None


class Source(Protocol):
    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """Examples until the source ends, or soon after `stop` is set.

        The agent asks for the next example when the outcome of the last one is in the sink, or when that one waits
        for a server.
        """
        ...
