"""What is counted of the requests: plain integers, added to on the event loop, read whenever somebody looks.

A request costs 2 to 5 microseconds here. Metrics and history are views of these numbers and cost a request nothing.
Nothing a stranger sends becomes a name: models, tiers, codes and reasons are as many as the server itself has.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from coe.cascade.types import Array
from coe.wire.plane import Decided, Request, Served

from .codes import code_of, kind_of, refused_by

_STEPS = (100, 112, 125, 140, 160, 180, 200, 224, 250, 275, 300, 325, 355, 400, 450, 500, 560, 630, 710, 800, 900)
SECONDS = tuple(float(f"{step}e{power}") for power in range(-7, 0) for step in _STEPS)  # 10 us .. 90 s
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SHARES = (0.2, 0.34, 0.5, 0.6, 0.67, 0.75, 0.8, 0.9, 0.99, 1.0)  # 1/3, 2/3 and 1 each in a bucket of their own
_SHARES = tuple(share + 1e-6 for share in SHARES)  # 4/5 in float32 is a little over 0.8
MOST_TIERS = 64
UNKNOWN = "(unknown)"  # the model of a request that named none of ours
REASONS = ("unavailable", "timeout", "overloaded", "rejected", "error")


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


class TierTally:
    """One tier of one model. `rows` that reached it, those that `exits` there, and how far its members agreed.

    `seconds` is once for each request that had rows there: its votes, with the wait for them.
    """

    __slots__ = ("exits", "rows", "seconds", "shares")

    def __init__(self) -> None:
        self.rows = 0
        self.exits = 0
        self.shares = Histogram(_SHARES)
        self.seconds = Histogram(SECONDS)


class ModelTally:
    """One model. `batches`: rows decided together with each request's own, these included."""

    __slots__ = ("batches", "bytes_in", "degraded", "failed", "queue", "requests", "rows", "seconds", "tiers")

    def __init__(self) -> None:
        self.requests = 0  # answered
        self.rows = 0
        self.bytes_in = 0
        self.seconds = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.batches = Histogram(ROWS)
        self.tiers: list[TierTally] = []
        self.failed: Counter[tuple[str, str]] = Counter()  # by code and kind of error
        self.degraded: Counter[str] = Counter()  # rows, by the reason's first word

    def tiers_up_to(self, number: int) -> list[TierTally]:
        while len(self.tiers) < min(number, MOST_TIERS):
            self.tiers.append(TierTally())
        return self.tiers


class Tally:
    """A gate that lets everybody pass and a watcher, so that it sees every request twice. Not thread-safe."""

    def __init__(self) -> None:
        self.models: dict[str, ModelTally] = {}
        self.strangers = ModelTally()  # what was asked of models that are not there
        self.refused: Counter[str] = Counter()  # by what shed the load
        self.n_open = 0
        self.bytes_out = 0

    def enter(self, request: Request) -> None:
        self.n_open += 1

    def leave(self, request: Request) -> None:
        self.n_open -= 1

    def sent(self, n_bytes: int) -> None:
        """An answer of so many bytes went out: a door's to say."""
        self.bytes_out += n_bytes

    def answered(self, request: Request, served: Served, decided: Decided, seconds: float) -> None:
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
                if vote.call:
                    queue_s += vote.call.get("queue_s", 0.0)
                if vote.degraded is not None:
                    is_degraded = True
        model.queue.add(queue_s)
        if is_degraded:
            _count_degraded(model, decided.column("degraded", served))

    def failed(self, request: Request, error: BaseException, seconds: float) -> None:
        model = self.models.get(request.model, self.strangers)
        model.bytes_in += request.n_bytes
        model.failed[code_of(error), kind_of(error)] += 1
        shed_by = refused_by(error, request.model)
        if shed_by is not None:
            known = shed_by in self.refused or len(self.refused) < MOST_TIERS
            self.refused[shed_by if known else "other"] += 1

    def keep_only(self, names: Collection[str]) -> None:
        """Forget models that are not served any more, and begin with those that are."""
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


def _count_degraded(model: ModelTally, reasons: Array) -> None:
    """Rows by the first word of why an earlier tier answered; `reasons` (b,) of bytes, empty where none did."""
    for text in reasons.tolist():
        if text:
            reason = text.decode("utf-8", "replace").partition(":")[0]
            model.degraded[reason if reason in REASONS else "other"] += 1


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The time below which `share` of the requests in `counts` (over SECONDS) stayed; None: there were none."""
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for place, n in enumerate(counts):
        if n and below + n >= wanted:
            if place == len(SECONDS):
                break
            low = SECONDS[place - 1] if place else 0.0
            return low + (SECONDS[place] - low) * (wanted - below) / n
        below += n
    return SECONDS[-1]
