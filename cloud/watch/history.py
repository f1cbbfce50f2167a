"""The last hour, in slots of ten seconds: what the tally gained in each. Memory stays what it is at the start."""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .facts import Watched
from .tally import SECONDS, ModelTally, Tally, quantile

SLOT_S = 10.0
N_SLOTS = 360  # an hour
_NONE = [0] * (len(SECONDS) + 1)


@dataclass(slots=True)
class Slot:
    """What happened in `seconds` up to `ends_at` (seconds since 1970).

    Args:
        times: requests answered, by how long they took, over `tally.SECONDS`.
        p50_s, p99_s: seconds within which half of them and 99% were answered; None where there were none.
        degraded: rows answered by the tier before the one that should have.
        queued: most rows seen waiting at once; open_calls: most requests seen under way.
        errors: requests that failed, by code.
        exits: by model, the rows that left at each tier.
    """

    ends_at: float
    seconds: float
    requests: int = 0
    rows: int = 0
    degraded: int = 0
    queued: int = 0
    open_calls: int = 0
    times: array[int] = field(default_factory=lambda: array("Q", _NONE))
    p50_s: float | None = None
    p99_s: float | None = None
    errors: Counter[str] = field(default_factory=Counter)
    exits: dict[str, list[int]] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return self.errors.total()

    def take_times(self, times: array[int]) -> None:
        self.times = times
        self.p50_s, self.p99_s = quantile(times, 0.5), quantile(times, 0.99)


class _Reading:
    """The tally's running totals at one moment."""

    __slots__ = ("degraded", "errors", "exits", "requests", "rows", "times")

    def __init__(self, tally: Tally) -> None:
        everybody = [model for _, model in tally.everybody]
        self.requests = sum(model.requests for model in everybody)
        self.rows = sum(model.rows for model in everybody)
        self.degraded = sum(model.degraded.total() for model in everybody)
        self.times = _added(model.seconds.counts for model in everybody)
        self.errors: Counter[str] = Counter()
        for model in everybody:
            for (code, _), n in model.failed.items():
                self.errors[code] += n
        self.exits = {name: _exits(model) for name, model in tally.models.items()}

    def gained(self, before: _Reading, slot: Slot) -> Slot:
        """`slot` with what came since; a model that was forgotten meanwhile takes its counts along."""
        slot.requests = max(self.requests - before.requests, 0)
        slot.rows = max(self.rows - before.rows, 0)
        slot.degraded = max(self.degraded - before.degraded, 0)
        slot.take_times(array("Q", [max(now - then, 0) for now, then in zip(self.times, before.times, strict=True)]))
        slot.errors = self.errors - before.errors
        for name, exits in self.exits.items():
            then = before.exits.get(name, [])
            then = [*then, *[0] * (len(exits) - len(then))]
            slot.exits[name] = [max(now - was, 0) for now, was in zip(exits, then, strict=False)]
        return slot


class History:
    """Slots of the last hour.

    Args:
        clock, wall: seconds that only go forward, and seconds since 1970.
    """

    def __init__(
        self,
        tally: Tally,
        watched: Watched,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.tally = tally
        self.watched = watched
        self.started = clock()
        self._clock = clock
        self._wall = wall
        self._closed: deque[Slot] = deque(maxlen=N_SLOTS)
        self._reading = _Reading(tally)
        self._began = self.started
        self._queued = self._open = 0

    @property
    def uptime_s(self) -> float:
        return self._clock() - self.started

    def sample(self) -> None:
        """Look at what waits now, and close the slot when its time has come. Wanted about once a second."""
        self._queued = max(self._queued, sum(self.watched.queued().values()))
        self._open = max(self._open, self.tally.n_open)
        if self._clock() - self._began < SLOT_S:
            return
        self.tally.keep_only([model.name for model in self.watched.facts()])
        reading = _Reading(self.tally)
        self._closed.append(reading.gained(self._reading, self._slot()))
        self._reading, self._began = reading, self._clock()
        self._queued = self._open = 0

    def slots(self) -> list[Slot]:
        """Oldest first; the last is still under way."""
        self.sample()
        return [*self._closed, _Reading(self.tally).gained(self._reading, self._slot())]

    def _slot(self) -> Slot:
        return Slot(self._wall(), self._clock() - self._began, queued=self._queued, open_calls=self._open)


def merged(slots: Iterable[Slot]) -> Slot:
    """Slots in a row as one."""
    parts = list(slots)
    whole = Slot(parts[-1].ends_at if parts else 0.0, sum(part.seconds for part in parts))
    whole.requests = sum(part.requests for part in parts)
    whole.rows = sum(part.rows for part in parts)
    whole.degraded = sum(part.degraded for part in parts)
    whole.queued = max((part.queued for part in parts), default=0)
    whole.open_calls = max((part.open_calls for part in parts), default=0)
    whole.take_times(_added(part.times for part in parts))
    for part in parts:
        whole.errors.update(part.errors)
        for name, exits in part.exits.items():
            so_far = whole.exits.setdefault(name, [])
            so_far.extend([0] * (len(exits) - len(so_far)))
            for place, n in enumerate(exits):
                so_far[place] += n
    return whole


def errors_of(slots: Iterable[Slot]) -> Counter[str]:
    """Requests that failed in all of them, by code."""
    errors: Counter[str] = Counter()
    for slot in slots:
        if slot.errors:
            errors.update(slot.errors)
    return errors


def _exits(model: ModelTally) -> list[int]:
    return [tier.exits for tier in model.tiers]


def _added(counts: Iterable[Iterable[int]]) -> array[int]:
    """Histograms over SECONDS as one."""
    columns = list(zip(*counts, strict=True))
    return array("Q", [sum(column) for column in columns] or _NONE)
