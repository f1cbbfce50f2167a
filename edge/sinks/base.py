"""What a sink takes: one outcome per example.

To add a sink: one module with a class that fits `Sink`, and its name in `open_sink` (open.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from coe.cascade.types import Decision


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one example ended: a decision, or the reason there is none.

    Args:
        latency_s: from taking the example up to its answer, waiting included.
        truth: its label, where the source knew it.
        call: what was spent on other machines where there is no decision.
        trace: W3C trace id, where the example left the device: servers' logs and traces have it, too.
    """

    id: str
    decision: Decision | None
    latency_s: float
    truth: int | None = None
    error: str | None = None
    call: Mapping[str, float] = field(default_factory=dict)
    trace: str = ""


class Sink(Protocol):
    def write(self, outcome: Outcome) -> None:
        """Take one outcome; the agent calls it from one thread at a time."""

    def close(self) -> None: ...
