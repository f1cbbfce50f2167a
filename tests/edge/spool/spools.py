"""Examples, outcomes and an opened store for the spool's tests."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from coe.cascade import CallCost, Decision
from edge.sinks import Event, Outcome
from edge.sources import Example
from edge.spool import SpoolConfig
from edge.spool.database import SpoolRow
from edge.spool.store import SpoolStore

MB = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def example(name: str, size: int = 400) -> Example:
    content = f"{name} ".encode("utf-8", "surrogatepass")
    return Example(name, (content * (size // len(content) + 1))[:size], 1)


def local(name: str, why: str = "unavailable: gone") -> Outcome:
    decision = Decision(name, 1, 1, 2 / 3, 0.5, 3, 3, (2 / 3,), (0.001,), degraded=why, call=CallCost(1, call_s=1.0))
    return Outcome(name, decision, 0.002, 1, deferred=True, trace="ab")


def better(row: SpoolRow) -> Outcome:
    decision = Decision(row.local.id, 2, 2, 1.0, 0.9, 3, 3, (2 / 3, 1.0), (0.001, 0.1))
    return Outcome(row.local.id, decision, 1.0, 1, corrects=row.key)


def opened(
    folder: Path, events: list[Event] | None = None, clock: Clock | None = None, **changes: object
) -> SpoolStore:
    config = replace(SpoolConfig(folder / "spool.db", max_bytes=MB, sync="normal"), **changes)  # type: ignore[arg-type]
    return SpoolStore(config, [].append if events is None else events.append, clock or Clock())


def put(store: SpoolStore, *names: str, size: int = 400) -> list[str]:
    """Keys of examples that were put, and whose outcome is in the sink."""
    keys = [store.put(example(name, size), local(name)) for name in names]
    for key in keys:
        store.confirm(key)
    return keys


def finish(store: SpoolStore) -> str:
    """The id of the next, answered and gone."""
    row = store.next()
    assert row is not None
    assert store.answer(row, better(row))
    assert store.gone(row)
    return row.local.id


def fill(disk: Path, leave: int = 0) -> None:
    """Take all the room of a disk; `leave`: all but so many bytes."""
    path = disk / "others"
    with path.open("ab") as file:
        status = os.statvfs(disk)
        file.write(bytes(max(status.f_bavail * status.f_frsize - leave, 0)))
