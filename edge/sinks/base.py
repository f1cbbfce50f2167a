"""What a sink takes: outcomes, corrections and events, as records for JSON.

To add a kind of sink: one module with a class that fits `Writer`, and its name in `open_writer` (open.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from coe.cascade.cascade import Decisions
from coe.cascade.types import NO_CALL, CallCost, Decision

Record = Mapping[str, Any]  # plain data, for JSON


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one example ended: a decision, or the reason there is none.

    Args:
        decision: its `id` is another's where the answer is that of an earlier example of the same scene.
        latency_s: from taking the example up to its answer, waiting included.
        truth: its label, where the source knew it.
        call: what was spent on other machines where there is no decision.
        deferred: the local tiers did not settle it: it left the device, or was held back.
        trace: W3C trace id, where the example left the device; servers' logs and traces have the same.
        at: wall-clock second of the answer.
        spooled: key under which the example waits for a later answer; "" where it does not.
        corrects: key of the spooled example whose earlier, degraded answer this replaces; "" where it is the first.
        uncertain: the device's own answer, while its inputs are not as they were calibrated.
        decisions: what `decision` was read from (B = 1); None where there is none, or it came from the disk.
    """

    id: str
    decision: Decision | None
    latency_s: float
    truth: int | None = None
    error: str | None = None
    call: CallCost = NO_CALL
    deferred: bool = False
    trace: str = ""
    at: float = field(default_factory=time.time)
    spooled: str = ""
    corrects: str = ""
    uncertain: bool = False
    decisions: Decisions | None = field(default=None, repr=False, compare=False)

    @property
    def reason(self) -> str:
        """Why the wanted tier did not answer, in a word: "timeout", "unavailable"; "" where it did."""
        text = self.error if self.decision is None else self.decision.degraded
        return text.partition(":")[0] if text else ""


@dataclass(frozen=True, slots=True)
class Event:
    """A change in the agent itself, for readers of its decisions.

    Args:
        kind: "drift", "link", "spool", ...
        facts: plain data, for JSON.
        at: wall-clock second.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


class Writer(Protocol):
    """One place where records go."""

    def write(self, record: Record) -> None:
        """Write one record.

        Raises:
            OSError: it cannot be written.
        """

    def missing(self, keys: Collection[str]) -> Collection[str]:
        """Those of the corrections with these `corrects` keys, handed over just before a crash, that are not written.

        A writer that cannot know returns all: a record written twice carries the same key.
        """

    def close(self) -> None: ...


@runtime_checkable
class Rereadable(Protocol):
    """A writer whose records can be read back."""

    def mark(self) -> str:
        """The position of the next record; "" where that is not known."""

    def since(self, mark: str) -> Iterator[Record]:
        """The records from a mark on, in order; all of them where the mark is no longer found."""

    def sync(self) -> None:
        """Flush what was written to the disk. On any thread, also while another writes.

        Raises:
            OSError: the disk fails, or the writer is about to change its file: call it again while nobody writes.
        """


@runtime_checkable
class Grouping(Protocol):
    """A writer that keeps records, and writes them to the disk together."""

    def commit(self) -> None:
        """Write to the disk what was taken. On any thread, also while another writes.

        Raises:
            OSError: the disk fails; it is tried again with the next call.
        """


def as_record(outcome: Outcome, labels: tuple[str, ...]) -> dict[str, Any]:
    """An outcome as plain data."""
    record: dict[str, Any] = {"id": outcome.id}
    decision = outcome.decision
    if decision is not None:
        record |= {
            "label": decision.label,
            "name": labels[decision.label],
            "exit_tier": decision.exit_tier,
            "vote": round(decision.vote, 6),
            "score": None if math.isnan(decision.score) else round(decision.score, 6),
            "asked": decision.asked,
            "members": decision.n_members,
            "tier_votes": [round(vote, 6) for vote in decision.tier_votes],
            "tier_times_s": [round(seconds, 7) for seconds in decision.tier_times_s],
            "degraded": decision.degraded,
        }
        if decision.call is not NO_CALL:
            record["call"] = {key: round(value, 7) for key, value in decision.call.to_dict().items()}
        if decision.rule:
            record["rule"] = decision.rule
        if outcome.uncertain:
            record["uncertain"] = True
        if decision.id != outcome.id:
            record["same_as"] = decision.id
    if outcome.error is not None:
        record["error"] = outcome.error
    if outcome.truth is not None:
        record["truth"] = outcome.truth
    if outcome.trace:
        record["trace"] = outcome.trace
    if outcome.spooled:
        record["spooled"] = outcome.spooled
    if outcome.corrects:
        record["corrects"] = outcome.corrects
    record["latency_s"] = round(outcome.latency_s, 7)
    record["at"] = round(outcome.at, 3)
    return record


def event_record(event: Event) -> dict[str, Any]:
    """An event as plain data: `event` is its kind."""
    return {"event": event.kind, **event.facts, "at": round(event.at, 3)}


T = TypeVar("T")


class ReorderBuffer(Generic[T]):
    """Takes items with their number in the source (from 0), in any order; gives them back in order."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, T] = {}

    def take(self, number: int, item: T) -> list[T]:
        """The items due now: none, this one, or this one and those that waited for it."""
        self._waiting[number] = item
        due = []
        while self._next in self._waiting:
            due.append(self._waiting.pop(self._next))
            self._next += 1
        return due
