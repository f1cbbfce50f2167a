"""What a sink takes: one outcome per example, corrections that came late, and events.

To add a kind of sink: one module with a class that fits `Writer`, and its name in `open_writer` (open.py).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from coe.cascade.types import Decision

Record = Mapping[str, Any]  # plain data, for JSON


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one example ended: a decision, or the reason there is none.

    Args:
        latency_s: from taking the example up to its answer, waiting included.
        truth: its label, where the source knew it.
        call: what was spent on other machines where there is no decision.
        deferred: the local tiers did not settle it: it left the device, or was held back.
        trace: W3C trace id, where the example left the device: servers' logs and traces have it, too.
        at: wall-clock second of the answer.
        spooled: key under which the example waits for a later answer; "" where it does not.
        corrects: key of the spooled example whose earlier, degraded answer this replaces; "" where it is the first.
    """

    id: str
    decision: Decision | None
    latency_s: float
    truth: int | None = None
    error: str | None = None
    call: Mapping[str, float] = field(default_factory=dict)
    deferred: bool = False
    trace: str = ""
    at: float = field(default_factory=time.time)
    spooled: str = ""
    corrects: str = ""

    @property
    def reason(self) -> str:
        """Why the answer is not the one that was wanted, in a word: "timeout", "unavailable"; "" where it is."""
        told = self.error if self.decision is None else self.decision.degraded
        return told.partition(":")[0] if told else ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something about the agent itself that whoever reads its decisions should know.

    Args:
        kind: "drift", "link", "spool", ...
        facts: plain data, for JSON.
        at: wall-clock second.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


class Sink(Protocol):
    """What the agent writes to, from one thread at a time."""

    def write(self, outcome: Outcome) -> None: ...
    def tell(self, event: Event) -> None: ...
    def close(self) -> None: ...


class Writer(Protocol):
    """One place where records go."""

    def write(self, record: Record) -> None:
        """Take one record.

        Raises:
            OSError: it cannot be written.
        """
        ...

    def missing(self, keys: Collection[str]) -> Collection[str]:
        """Of corrections handed over just before a crash, by their `corrects` key, those not written.

        A writer that cannot know says all: what it gets twice carries the same key.
        """
        ...

    def close(self) -> None: ...
