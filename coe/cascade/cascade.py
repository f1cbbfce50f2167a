"""Algorithm 1: tiers in turn, each seeing only what the one before it deferred.

Paper: Algorithm 1 and Section 3. This is the only implementation: the device, the cloud server, the simulator
and offline replay all run it. `Cascade.decide` runs it to the end; `Cascade.start` gives it step by step, so
that an agent can hand a deferred example to a waiting thread and take the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import TierError
from .rule import Always, DeferralRule
from .tier import Tier
from .types import Array, Batch, Decision, Labels, Vote, added_calls


class Visit:
    """One tier's vote on the rows that reached it. `rows` (A,) index the batch; None: all of them."""

    __slots__ = ("first_tier", "rows", "time_s", "vote")

    def __init__(self, first_tier: int, rows: NDArray[np.intp] | None, vote: Vote, time_s: float) -> None:
        self.first_tier = first_tier
        self.rows = rows
        self.vote = vote
        self.time_s = time_s

    @property
    def next_tier(self) -> int:
        """Number of the tier after this one: a tier may be a cascade of several itself."""
        inner = self.vote.tier_votes
        return self.first_tier + (1 if inner is None else inner.shape[1])

    def position(self, row: int) -> int | None:
        """Where a row of the batch stands in this vote; None where it was not asked about."""
        if self.rows is None:
            return row
        at = int(np.searchsorted(self.rows, row))
        return at if at < len(self.rows) and self.rows[at] == row else None


class Decisions:
    """The answers to a batch, in the caller's order, read off the visits that made them."""

    __slots__ = ("batch", "degraded", "visits")

    def __init__(self, batch: Batch, visits: Sequence[Visit], degraded: dict[int, str]) -> None:
        self.batch = batch
        self.visits = visits
        self.degraded = degraded

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def labels(self) -> Labels:
        """(B,) int64."""
        return self._last(lambda visit: visit.vote.labels, np.int64)

    @property
    def vote(self) -> NDArray[np.float32]:
        """(B,) float32: share of the members asked that voted for the label."""
        return self._last(lambda visit: visit.vote.share, np.float32)

    @property
    def score(self) -> NDArray[np.float32]:
        """(B,) float32: mean probability that the members asked give the label."""
        return self._last(lambda visit: visit.vote.score, np.float32)

    @property
    def exit_tier(self) -> Labels:
        """(B,) int64, from 1."""
        return self._last(lambda visit: visit.first_tier - 1 + _inner_exit(visit.vote), np.int64)

    @property
    def asked(self) -> Labels:
        """(B,) int64: members asked by the tier that answered."""
        return self._last(lambda visit: visit.vote.asked, np.int64)

    @property
    def n_members(self) -> Labels:
        """(B,) int64: members of the tier that answered."""
        return self._last(lambda visit: np.full(len(visit.vote), visit.vote.n_members), np.int64)

    @property
    def tier_votes(self) -> NDArray[np.float32]:
        """(B, T) float32: each tier's vote, NaN where it was not visited. T: the furthest tier any row reached."""
        n_tiers = max((visit.next_tier - 1 for visit in self.visits), default=0)
        votes = np.full((len(self), n_tiers), np.nan, dtype=np.float32)
        for visit in self.visits:
            rows = slice(None) if visit.rows is None else visit.rows
            own = visit.vote.share[:, None] if visit.vote.tier_votes is None else visit.vote.tier_votes
            votes[rows, visit.first_tier - 1 : visit.first_tier - 1 + own.shape[1]] = own
        return votes

    def exit_shares(self, n_tiers: int) -> NDArray[np.float64]:
        """(T,) share of the examples that left at each tier."""
        return np.bincount(self.exit_tier - 1, minlength=n_tiers) / max(len(self), 1)

    @property
    def is_degraded(self) -> bool:
        """Whether any answer is."""
        return bool(self.degraded) or any(any(visit.vote.degraded or ()) for visit in self.visits)

    def reasons(self) -> list[str | None]:
        """B reasons why an answer is degraded, None where it is not."""
        return [self._reason(row) for row in range(len(self))]

    def _reason(self, row: int) -> str | None:
        if row in self.degraded:
            return self.degraded[row]
        for visit in reversed(self.visits):
            at = visit.position(row)
            if at is not None:
                return None if visit.vote.degraded is None else visit.vote.degraded[at]
        return None

    def _last(self, read: Callable[[Visit], Array], dtype: type) -> Array:
        column: Array = np.zeros(len(self), dtype=dtype)
        for visit in self.visits:  # a later tier overwrites the earlier: y <- H_i(x)
            column[slice(None) if visit.rows is None else visit.rows] = read(visit)
        return column

    def __iter__(self) -> Iterator[Decision]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Decision:
        votes: list[float] = []
        times: list[float] = []
        calls: list[Mapping[str, float]] = []
        for visit in self.visits:
            at = visit.position(row)
            if at is None:
                continue
            vote, last, last_at = visit.vote, visit, at
            inner = [float(vote.count[at] / vote.asked[at])]
            if vote.tier_votes is not None:
                inner = [float(share) for share in vote.tier_votes[at] if share == share]
            votes.extend(inner)
            times.append(visit.time_s)
            if vote.call:
                calls.append(vote.call)
        vote = last.vote
        return Decision(
            id=self.batch.ids[row],
            label=int(vote.labels[last_at]),
            exit_tier=last.first_tier - 1 + int(1 if vote.exit_tier is None else vote.exit_tier[last_at]),
            vote=float(vote.count[last_at] / vote.asked[last_at]),
            score=float(vote.score[last_at]),
            asked=int(vote.asked[last_at]),
            n_members=vote.n_members,
            tier_votes=tuple(votes),
            tier_times_s=tuple(times),
            degraded=self._reason(row) if self.degraded or vote.degraded else None,
            call=added_calls(calls) if len(calls) > 1 else vote.call,
        )


def _inner_exit(vote: Vote) -> Labels:
    return np.ones(len(vote), dtype=np.int64) if vote.exit_tier is None else vote.exit_tier


class Cascade:
    """Tiers from the cheapest to the one that always answers.

    Args:
        tiers: at least one; the last answers whatever its vote, so its own rule is not asked.
        keep_last_answer: where a tier gives no answer, the tier before it has the last word (`degraded` says
            why); otherwise the error is raised.
        last_rule: how the last tier is asked; None: as its own rule says of pooling.
    """

    def __init__(
        self, tiers: Sequence[Tier], *, keep_last_answer: bool = True, last_rule: Always | None = None
    ) -> None:
        if not tiers:
            raise ValueError("a cascade needs at least one tier, got none")
        self.tiers = tuple(tiers)
        self.keep_last_answer = keep_last_answer
        own = tiers[-1].rule
        last_rule = last_rule or (own if isinstance(own, Always) else Always(pools_scores=own.pools_scores))
        self.rules: tuple[DeferralRule, ...] = (*(tier.rule for tier in tiers[:-1]), last_rule)

    def decide(self, batch: Batch) -> Decisions:
        """Every example's answer, in order.

        Raises:
            TierError: the first tier gave none, or a later one did not and `keep_last_answer` is off.
        """
        run = self.start(batch)
        goes_on = not run.is_done
        while goes_on:
            goes_on = run.step()
        return run.decisions()

    def start(self, batch: Batch) -> Run:
        """The same, to be stepped tier by tier."""
        return Run(self, batch)

    @property
    def n_tiers(self) -> int:
        """Tiers in all; a remote one counts as the tiers its server is known to hold."""
        return sum(tier.n_tiers for tier in self.tiers)

    def close(self) -> None:
        for tier in self.tiers:
            tier.close()


class Run:
    """One batch on its way through Algorithm 1."""

    __slots__ = ("active", "batch", "cascade", "degraded", "number", "visits")

    def __init__(self, cascade: Cascade, batch: Batch) -> None:
        self.cascade = cascade
        self.batch = batch
        self.number = 0  # tiers visited so far
        self.active: NDArray[np.intp] | None = None if len(batch) else _NOBODY  # (A,) rows still here; None: all
        self.visits: list[Visit] = []
        self.degraded: dict[int, str] = {}

    @property
    def is_done(self) -> bool:
        return self.number == len(self.cascade.tiers) or (self.active is not None and not self.active.size)

    @property
    def next_tier(self) -> Tier:
        """The tier the next `step` asks."""
        return self.cascade.tiers[self.number]

    def step(self) -> bool:
        """Ask the next tier; the rows whose answer stands leave. True while some are left and tiers are too."""
        tier, rule, batch = self.question()
        started = time.perf_counter()
        try:
            vote = tier.vote(batch, rule)
        except TierError as error:
            if not self.falls_back:
                raise
            self.fall_back(error)
            return False
        return self.take(batch, vote, time.perf_counter() - started)

    def question(self) -> tuple[Tier, DeferralRule, Batch]:
        """What `step` asks: the next tier, how its vote will be judged, and the rows that are still here."""
        number, active = self.number, self.active
        batch = self.batch if active is None else self.batch.take(active)
        return self.cascade.tiers[number], self.cascade.rules[number], batch

    def take(self, batch: Batch, vote: Vote, time_s: float) -> bool:
        """The tier's vote on the rows asked about (`batch`), which took `time_s`. As `step`, True while any go on."""
        active, rule = self.active, self.cascade.rules[self.number]
        first_tier = self.visits[-1].next_tier if self.visits else 1
        self.visits.append(Visit(first_tier, active, vote, time_s))
        self.number += 1
        exits = rule.exits(batch, vote)
        if len(exits) == 1:
            if exits[0]:
                self.active = _NOBODY
                return False
        else:
            stay = np.flatnonzero(~exits)
            self.active = stay if active is None else active[stay]
        return not self.is_done

    @property
    def falls_back(self) -> bool:
        """Whether the tier before has the last word, should the next one give no answer."""
        return bool(self.visits) and self.cascade.keep_last_answer

    def decisions(self) -> Decisions:
        return Decisions(self.batch, self.visits, self.degraded)

    def fall_back(self, error: TierError) -> None:
        """The tier before has the last word on the rows still active, with all its members asked."""
        before = self.visits[-1]
        rows = np.arange(len(self.batch)) if self.active is None else self.active
        at = rows if before.rows is None else np.searchsorted(before.rows, rows)
        tier = self.cascade.tiers[self.number - 1]
        started = time.perf_counter()
        whole = tier.complete(self.batch.take(rows), before.vote.take(at))
        before.vote = before.vote.replaced(at, whole, added_calls((before.vote.call, error.call)))
        before.time_s += time.perf_counter() - started
        self.degraded.update((int(row), f"{error.reason}: {error}") for row in rows)
        self.number = len(self.cascade.tiers)


_NOBODY: NDArray[np.intp] = np.zeros(0, dtype=np.intp)
