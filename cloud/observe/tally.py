"""Counters of the requests by outcome, model and tier, and what they gained in each ten seconds of the last hour.

A request costs 2 to 5 microseconds here. Metrics and history are views of these numbers and cost a request nothing.
Nothing that a caller sends becomes a name: models, tiers, codes and reasons are as many as the server itself has.
"""

from __future__ import annotations

import asyncio
import math
import operator
import time
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from coe.cascade.errors import CascadeError, TierOverloaded
from coe.cascade.types import Array
from coe.protocol import status
from coe.protocol.core import Decided, Request, ServedModel

if TYPE_CHECKING:
    from .status import ServerView


OK = "OK"
INTERNAL = "INTERNAL"
CANCELLED = "CANCELLED"
SERVER = "server"
BUG = "bug"  # the kind of every error that is none of ours


def code_of(error: BaseException) -> str:
    """The status code's name: one of a fixed few, so that it can be a label."""
    if isinstance(error, asyncio.CancelledError):
        return CANCELLED
    code = status.code_of(error)
    return INTERNAL if code is None else code.name


def kind_of(error: BaseException) -> str:
    """The name of the error's class where it is one of ours, else BUG."""
    return type(error).__name__ if isinstance(error, CascadeError) else BUG


def refused_by(error: BaseException, model: str) -> str | None:
    """What shed a request for `model`; None where nothing did.

    An error's own `reason` (such as "quota") where it has one; else the tier whose queue is full, or the server,
    which refuses in the model's name.
    """
    if not isinstance(error, TierOverloaded):
        return None
    if error.reason != TierOverloaded.reason:
        return error.reason
    return SERVER if error.tier == model[:64] else error.tier


_STEPS = (100, 112, 125, 140, 160, 180, 200, 224, 250, 275, 300, 325, 355, 400, 450, 500, 560, 630, 710, 800, 900)
SECONDS = tuple(float(f"{step}e{power}") for power in range(-7, 0) for step in _STEPS)  # 10 us .. 90 s
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SHARES = (0.2, 0.34, 0.5, 0.6, 0.67, 0.75, 0.8, 0.9, 0.99, 1.0)  # 1/3, 2/3 and 1 each in a bucket of their own
_SHARES = tuple(share + 1e-6 for share in SHARES)  # 4/5 in float32 is a little over 0.8
MOST_TIERS = 64
UNKNOWN = "(unknown)"  # the model of a request for one that does not exist
REASONS = ("unavailable", "timeout", "overloaded", "rejected", "failed", "error")


class Histogram:
    """How many values fell between `bounds`, each bound included below, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_all(self, values: Array) -> None:
        """Every value of (N,)."""
        for place, n in enumerate(np.bincount(np.searchsorted(self.bounds, values)).tolist()):
            self.counts[place] += n
        self.total += float(values.sum())


@dataclass(slots=True, eq=False)
class TierTally:
    """One tier of one model.

    Args:
        rows: that reached it; exits: that left there.
        shares: of the members asked that voted for the tier's label, by row.
        seconds: of the tier's votes and the wait for them, once for each request that had rows there.
    """

    rows: int = 0
    exits: int = 0
    shares: Histogram = field(default_factory=lambda: Histogram(_SHARES))
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))


@dataclass(slots=True, eq=False)
class ModelTally:
    """One model.

    Args:
        requests: answered.
        seconds: of each request; queue: of it, in queues.
        batches: rows decided together with each request's own, these included.
        failed: requests, by code and kind of error.
        degraded: rows, by the reason's first word.
    """

    requests: int = 0
    rows: int = 0
    bytes_in: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    queue: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batches: Histogram = field(default_factory=lambda: Histogram(ROWS))
    tiers: list[TierTally] = field(default_factory=list)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)

    @property
    def failed_by_code(self) -> Counter[str]:
        codes: Counter[str] = Counter()
        for (code, _), n in self.failed.items():
            codes[code] += n
        return codes

    def tiers_up_to(self, number: int) -> list[TierTally]:
        while len(self.tiers) < min(number, MOST_TIERS):
            self.tiers.append(TierTally())
        return self.tiers


class Tally:
    """Counts requests: a `Gate` that lets everybody pass, and a `RequestObserver`. Not thread-safe."""

    def __init__(self) -> None:
        self.models: dict[str, ModelTally] = {}
        self.strangers = ModelTally()  # requests for models that do not exist
        self.refused: Counter[str] = Counter()  # by what shed the load
        self.n_open = 0
        self.bytes_out = 0

    def enter(self, request: Request) -> None:
        self.n_open += 1

    def leave(self, request: Request) -> None:
        self.n_open -= 1

    def sent(self, n_bytes: int) -> None:
        """Count an inference response of so many bytes; each transport calls it."""
        self.bytes_out += n_bytes

    def answered(self, request: Request, served: ServedModel, decided: Decided, seconds: float) -> None:
        model = self.models.get(served.name)
        if model is None:
            model = self.models[served.name] = ModelTally()
        model.requests += 1
        model.bytes_in += request.n_bytes
        model.seconds.add(seconds)
        model.batches.add(len(decided.decisions.batch.ids))
        exits = decided.column("exit_tier", served)  # (b,), laid out for the answer already
        votes = decided.column("tier_votes" if served.n_tiers > 1 else "vote", served)  # (b, T) or (b,)
        n_rows = len(exits)
        model.rows += n_rows
        tiers = model.tiers
        if votes.size > len(tiers) * n_rows:
            tiers = model.tiers_up_to(votes.size // n_rows)
        reached = _count_row(tiers, exits, votes) if n_rows == 1 else _count_rows(tiers, exits, votes)
        decisions, queue_s = decided.decisions, decided.queue_s
        is_degraded = len(decisions.degraded) > 0
        for visit in decisions.visits:
            place = visit.first_tier - 1
            if reached[place] == reached[place]:  # not NaN: some of these rows were there
                tiers[place].seconds.add(visit.time_s)
                vote = visit.vote
                queue_s += vote.call.queue_s
                if vote.degraded is not None:
                    is_degraded = True
        model.queue.add(queue_s)
        if is_degraded:  # (b,) of bytes, empty where a row was not; by the first word of the reason
            for text in filter(None, decided.column("degraded", served).tolist()):
                reason = text.decode("utf-8", "replace").partition(":")[0]
                model.degraded[reason if reason in REASONS else "other"] += 1

    def failed(self, request: Request, error: BaseException, seconds: float) -> None:
        model = self.models.get(request.model, self.strangers)
        model.bytes_in += request.n_bytes
        model.failed[code_of(error), kind_of(error)] += 1
        shed_by = refused_by(error, request.model)
        if shed_by is not None:
            known = shed_by in self.refused or len(self.refused) < MOST_TIERS
            self.refused[shed_by if known else "other"] += 1

    def keep_only(self, names: Collection[str]) -> None:
        """Drop models that are not served any more, and begin with those that are."""
        for name in [name for name in self.models if name not in names]:
            del self.models[name]
        for name in names:
            self.models.setdefault(name, ModelTally())

    @property
    def everybody(self) -> list[tuple[str, ModelTally]]:
        """Every model by name, strangers last where there were any."""
        strangers = [(UNKNOWN, self.strangers)] if self.strangers.failed else []
        return [*self.models.items(), *strangers]


def _count_row(tiers: list[TierTally], exits: Array, votes: Array) -> Sequence[float]:
    """One row's exit and shares, on plain numbers. (T) numbers, NaN for the tiers it did not reach."""
    number = exits.item()
    if number <= len(tiers):
        tiers[number - 1].exits += 1
    shares: list[float] = votes.ravel().tolist()
    for tier, share in zip(tiers, shares, strict=False):
        if share == share:  # NaN: not visited
            tier.rows += 1
            tier.shares.add(share)
    return shares


def _count_rows(tiers: list[TierTally], exits: Array, votes: Array) -> Sequence[float]:
    """The same for many rows."""
    for place, n in enumerate(np.bincount(exits)[1 : len(tiers) + 1].tolist()):
        tiers[place].exits += n
    columns = votes.reshape(len(exits), -1)
    reached: list[float] = []
    for tier, column in zip(tiers, columns.T, strict=False):
        shares = column[column == column]
        reached.append(float(len(shares)) or math.nan)
        if len(shares):
            tier.rows += len(shares)
            tier.shares.add_all(shares)
    return reached


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The time below which `share` of the requests in `counts` (over SECONDS) stayed; None: there were none."""
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for low, high, n in zip((0.0, *SECONDS), SECONDS, counts, strict=False):
        if n and below + n >= wanted:
            return low + (high - low) * (wanted - below) / n
        below += n
    return SECONDS[-1]


SLOT_S = 10.0
N_SLOTS = 360  # an hour
_NONE = [0] * (len(SECONDS) + 1)


@dataclass(slots=True)
class Slot:
    """What happened in `seconds` up to `ends_at` (seconds since 1970).

    Args:
        degraded: rows answered by the tier before the one that should have.
        queued: most rows seen waiting at once; open_calls: most requests seen under way.
        times: requests answered, by how long they took, over SECONDS.
        errors: requests that failed, by code.
        exits: by model, the rows that left at each tier.
    Attributes:
        p50_s, p99_s: seconds within which half of the requests and 99% were answered; None where there were none.
    """

    ends_at: float
    seconds: float
    requests: int = 0
    rows: int = 0
    degraded: int = 0
    queued: int = 0
    open_calls: int = 0
    times: array[int] = field(default_factory=lambda: array("Q", _NONE))
    errors: Counter[str] = field(default_factory=Counter)
    exits: dict[str, list[int]] = field(default_factory=dict)
    p50_s: float | None = field(init=False)
    p99_s: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.p50_s, self.p99_s = quantile(self.times, 0.5), quantile(self.times, 0.99)

    @property
    def failed(self) -> int:
        return self.errors.total()

    def __add__(self, later: Slot) -> Slot:
        """This slot and the one after it as one."""
        whole = self._combined(later, operator.add, self.exits | later.exits)
        whole.ends_at, whole.seconds = later.ends_at, self.seconds + later.seconds
        whole.queued, whole.open_calls = max(self.queued, later.queued), max(self.open_calls, later.open_calls)
        return whole

    def __sub__(self, before: Slot) -> Slot:
        """Running totals less earlier ones; a model that was dropped meanwhile takes its counts along."""
        gained = self._combined(before, lambda now, then: max(now - then, 0), self.exits)
        gained.seconds = self.seconds - before.seconds
        return gained

    def _combined(self, other: Slot, combine: Callable[[int, int], int], models: Iterable[str]) -> Slot:
        def lists(one: Iterable[int], two: Iterable[int]) -> Iterable[int]:
            return (combine(*pair) for pair in zip_longest(one, two, fillvalue=0))

        errors = {code: combine(self.errors[code], other.errors[code]) for code in self.errors | other.errors}
        return replace(
            self,
            requests=combine(self.requests, other.requests),
            rows=combine(self.rows, other.rows),
            degraded=combine(self.degraded, other.degraded),
            times=array("Q", lists(self.times, other.times)),
            errors=+Counter(errors),
            exits={name: list(lists(self.exits.get(name, ()), other.exits.get(name, ()))) for name in models},
        )


class History:
    """Slots of the last hour.

    Args:
        clock, wall: seconds that only go forward, and seconds since 1970.
    """

    def __init__(
        self,
        tally: Tally,
        server: ServerView,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.tally = tally
        self.server = server
        self.started = clock()
        self._clock = clock
        self._wall = wall
        self._closed: deque[Slot] = deque(maxlen=N_SLOTS)
        self._queued = self._open = 0
        self._totals_before = self._totals()  # as the slot under way began

    @property
    def uptime_s(self) -> float:
        return self._clock() - self.started

    def sample(self) -> None:
        """Note what waits now, and close the slot when its time has come. To be called about once a second."""
        self._queued = max(self._queued, sum(self.server.queued().values()))
        self._open = max(self._open, self.tally.n_open)
        if self._clock() - self._totals_before.seconds < SLOT_S:
            return
        self.tally.keep_only([model.name for model in self.server.facts()])
        totals = self._totals()
        self._closed.append(totals - self._totals_before)
        self._totals_before = totals
        self._queued = self._open = 0

    def slots(self) -> list[Slot]:
        """Oldest first; the last is still under way."""
        self.sample()
        return [*self._closed, self._totals() - self._totals_before]

    def _totals(self) -> Slot:
        """The tally's running totals now; `seconds` is the clock's."""
        everybody = [model for _, model in self.tally.everybody]
        return Slot(
            self._wall(),
            self._clock(),
            requests=sum(model.requests for model in everybody),
            rows=sum(model.rows for model in everybody),
            degraded=sum(model.degraded.total() for model in everybody),
            queued=self._queued,
            open_calls=self._open,
            times=array("Q", map(sum, zip(_NONE, *(model.seconds.counts for model in everybody), strict=True))),
            errors=sum((model.failed_by_code for model in everybody), Counter()),
            exits={name: [tier.exits for tier in model.tiers] for name, model in self.tally.models.items()},
        )


def merged_slots(slots: Iterable[Slot]) -> Slot:
    """Slots in a row as one."""
    return reduce(operator.add, slots, Slot(0.0, 0.0))


def errors_of(slots: Iterable[Slot]) -> Counter[str]:
    """Requests that failed in all of them, by code."""
    return sum((slot.errors for slot in slots), Counter())
