"""Algorithm 1: tiers in turn, each asked about the examples that the tier before it deferred.

Paper: Algorithm 1 and Section 3. This is the only implementation: the device, the cloud server, the simulator and
offline replay all run it. `Cascade.decide` runs it to the end; `Cascade.start` gives it step by step, so that an
agent can hand a deferred example to a waiting thread, and a server can ask a tier without blocking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import TierError, TierFailed
from .rule import DeferralRule, as_last
from .tier import Tier
from .types import NO_CALL, NO_LABEL, Array, Ballots, Batch, Decision, Labels, Vote

Question = tuple[Tier, DeferralRule, Batch]  # whom to ask, the rule that will judge the vote, the examples


def algorithm_1(run: Run) -> Generator[Question, tuple[Vote, float], None]:
    """Yields each question; is sent the tier's vote and the seconds it took, or thrown the tier's TierError."""
    for tier, rule in run.cascade.stages:  # H_1, ..., H_n: the cheapest first, and the last one always answers
        batch = run.remaining()  # x: the examples still in the cascade
        if batch is None:
            return
        try:
            vote, time_s = yield tier, rule, batch  # y <- H_i(x)
            vote = run.fused(len(run.visits), run.active, vote)
        except TierError as error:
            run.fall_back(error)  # Departs from the paper: the tier before has the last word
            return
        run.write(vote, time_s)
        run.leave(rule.exits(batch, vote))  # vote(x; H_i) >= theta_v: x leaves the cascade with answer y
    if run.remaining() is not None:  # no member of the last tier voted
        run.fall_back(None)


class Cascade:
    """Tiers from the cheapest to the one that always answers.

    Args:
        tiers: at least one; the last answers whatever its vote, so its own rule is not asked.
        keep_last_answer: where a tier gives no answer, the tier before it has the last word (`degraded` says
            why); otherwise the error is raised.
        last_rule: how the last tier is asked; None: as its own rule says of pooling.
    """

    def __init__(
        self, tiers: Sequence[Tier], *, keep_last_answer: bool = True, last_rule: DeferralRule | None = None
    ) -> None:
        if not tiers:
            raise ValueError("a cascade needs at least one tier, got none")
        self.tiers = tuple(tiers)
        self.keep_last_answer = keep_last_answer
        last_rule = last_rule or as_last(tiers[-1].rule)
        self.rules: tuple[DeferralRule, ...] = (*(tier.rule for tier in tiers[:-1]), last_rule)
        self.stages = tuple(zip(self.tiers, self.rules, strict=True))

    def decide(self, batch: Batch, known: Sequence[Ballots] = ()) -> Decisions:
        """The answer to every example, in order.

        Args:
            known: as of `start`.
        Raises:
            TierError: the first tier gave none, or a later one did not and `keep_last_answer` is off.
            TierFailed: an example has none, because no member voted on it.
        """
        run = self.start(batch, known)
        while run.question is not None:
            run.step()
        decisions = run.decisions()
        if (failure := decisions.failure()) is not None:
            raise failure
        return decisions

    def start(self, batch: Batch, known: Sequence[Ballots] = ()) -> Run:
        """The run of Algorithm 1 on a batch, to be taken step by step.

        Args:
            known: what tiers before this cascade's first said, as `Vote.ballots` gives it, for a rule that fuses.
        """
        return Run(self, batch, known)

    @property
    def n_tiers(self) -> int:
        """Tiers in all; a remote one counts as the tiers its server is known to hold."""
        return sum(tier.n_tiers for tier in self.tiers)

    def close(self) -> None:
        for tier in self.tiers:
            tier.close()


class Run:
    """One batch on its way through Algorithm 1.

    `question` is the open one, None once every example has its answer, or none (`failed` has the errors of these);
    `active` (A,) indexes the examples still in the cascade, None: all of them; `visits` are the votes so far, one a
    tier.
    """

    __slots__ = ("_algorithm", "active", "batch", "cascade", "degraded", "failed", "known", "question", "visits")

    def __init__(self, cascade: Cascade, batch: Batch, known: Sequence[Ballots] = ()) -> None:
        self.cascade = cascade
        self.batch = batch
        self.known = known
        self.active: NDArray[np.intp] | None = None if len(batch) else _NOBODY
        self.visits: list[Visit] = []
        self.degraded: dict[int, str] = {}
        self.failed: dict[int, TierFailed] = {}
        self._algorithm = algorithm_1(self)
        self.question: Question | None = next(self._algorithm, None)

    @property
    def is_done(self) -> bool:
        return self.question is None

    @property
    def next_tier(self) -> Tier:
        """The tier that the next `step` asks."""
        assert self.question is not None, "the run is done"
        return self.question[0]

    @property
    def falls_back(self) -> bool:
        """True if the tier before has the last word, should the next one give no answer."""
        return bool(self.visits) and self.cascade.keep_last_answer

    def step(self) -> bool:
        """Ask the next tier; the examples whose answer stands leave. True while some are left and tiers are too.

        Raises:
            TierError: the tier gave no answer, and the run does not fall back.
        """
        assert self.question is not None, "the run is done"
        tier, rule, batch = self.question
        started = time.perf_counter()
        try:
            vote = tier.vote(batch, rule)
        except TierError as error:
            self.fail(error)
            return False
        return self.take(vote, time.perf_counter() - started)

    def take(self, vote: Vote, time_s: float) -> bool:
        """Go on with the vote on the open question, which took `time_s`. Returns what `step` does."""
        try:
            self.question = self._algorithm.send((vote, time_s))
        except StopIteration:
            self.question = None
        return self.question is not None

    def fail(self, error: TierError) -> None:
        """Go on without a vote on the open question: fall back, or raise the error."""
        try:
            self._algorithm.throw(error)
        except StopIteration:
            self.question = None

    def decisions(self) -> Decisions:
        return Decisions(self.batch, self.visits, self.degraded, self.failed)

    def remaining(self) -> Batch | None:
        """The examples still in the cascade; None where all have left."""
        if self.active is None:
            return self.batch
        return self.batch.take(self.active) if self.active.size else None

    def fused(self, number: int, rows: NDArray[np.intp] | None, vote: Vote) -> Vote:
        """The vote of a tier (from 0) on `rows`, with what the tiers before it said where its rule weighs that, too.

        Raises:
            TierRejected: the tier's members are not those that the rule was made for.
        """
        fuse = getattr(self.cascade.rules[number], "fuse", None)
        if fuse is None:
            return vote
        before = list(self.known) if rows is None else [(said[:, rows], scores[:, rows]) for said, scores in self.known]
        for visit in self.visits[:number]:
            at = rows if visit.rows is None or rows is None else np.searchsorted(visit.rows, rows)
            labels, scores = visit.vote.ballots()
            before.append((labels, scores) if at is None else (labels[:, at], scores[:, at]))
        fused: Vote = fuse(self.cascade.tiers[number].name, vote, before)
        return fused

    def write(self, vote: Vote, time_s: float) -> None:
        """Keep a tier's vote on the examples that remained."""
        self.visits.append(Visit(self.visits[-1].next_tier if self.visits else 1, self.active, vote, time_s))

    def leave(self, exits: NDArray[np.bool_]) -> None:
        """Let those of the remaining examples go where `exits` (A,) is True."""
        if len(exits) == 1:  # the device's hot path
            if exits[0]:
                self.active = _NOBODY
        else:
            stay = np.flatnonzero(~exits)
            self.active = stay if self.active is None else self.active[stay]

    def fall_back(self, error: TierError | None) -> None:
        """Give the tiers before the last word on the remaining examples, with all their members asked: each example
        is answered by the last one of which a member votes on it.

        Args:
            error: why the tier asked gave no answer; None: none of its members voted.
        Raises:
            TierError: `error`, where there is no tier before, or its answer may not be kept.
        """
        if error is not None and not self.falls_back:
            raise error
        rows = np.arange(len(self.batch)) if self.active is None else self.active
        for number in range(len(self.visits) - 1, -1, -1):
            rows, failure = self._answer_at(number, rows, error)
            if failure is None:
                break
            error = failure
            if not self.cascade.keep_last_answer:
                break
        if rows.size:
            assert isinstance(error, TierFailed)
            self.failed.update(dict.fromkeys(rows.tolist(), error))
        self.active = _NOBODY

    def _answer_at(
        self, number: int, rows: NDArray[np.intp], error: TierError | None
    ) -> tuple[NDArray[np.intp], TierFailed | None]:
        """Let a visit's whole vote stand for `rows`. Returns those on which no member voted, and the error of these."""
        before, tier = self.visits[number], self.cascade.tiers[number]
        at = rows if before.rows is None else np.searchsorted(before.rows, rows)
        started = time.perf_counter()
        whole = tier.complete(self.batch.take(rows), before.vote.take(at))
        whole = self.fused(number, rows, whole)
        time_s = before.time_s + time.perf_counter() - started
        vote = before.vote.replaced(at, whole, before.vote.call + (NO_CALL if error is None else error.call))
        silent = whole.labels == NO_LABEL
        if error is not None:
            words = error.brief if isinstance(error, TierFailed) else str(error)
            self.degraded.update((int(row), f"{error.reason}: {words}") for row in rows[~silent])
        if not silent.any():
            self.visits[number] = Visit(before.first_tier, before.rows, vote, time_s)
            return _NOBODY, None
        stays = np.setdiff1d(np.arange(len(vote)), at[silent])
        left = stays if before.rows is None else before.rows[stays]
        kept = [Visit(before.first_tier, left, vote.take(stays), time_s)] if stays.size else []
        self.visits[number : number + 1] = kept  # later tiers may have answered others
        reasons = "; ".join((whole.failures or {}).values())
        failure = TierFailed(tier.name, reasons).with_call(vote.call)
        return rows[silent], failure


_NOBODY: NDArray[np.intp] = np.zeros(0, dtype=np.intp)


@dataclass(slots=True, eq=False)
class Visit:
    """One tier's vote on the rows that reached it. `rows` (A,) index the batch; None: all of them."""

    first_tier: int
    rows: NDArray[np.intp] | None
    vote: Vote
    time_s: float

    @property
    def next_tier(self) -> int:
        """Number of the tier after this one: a tier may be a cascade of several itself."""
        inner = self.vote.tier_votes
        return self.first_tier + (1 if inner is None else inner.shape[1])

    def position(self, row: int) -> int | None:
        """The index of a row of the batch in this vote; None where it was not asked about."""
        if self.rows is None:
            return row
        at = int(np.searchsorted(self.rows, row))
        return at if at < len(self.rows) and self.rows[at] == row else None


@dataclass(slots=True, eq=False)
class Decisions:
    """The answers to a batch, in the caller's order, read from the tiers' votes. A row in `failed` has none."""

    batch: Batch
    visits: Sequence[Visit]
    degraded: Mapping[int, str]
    failed: Mapping[int, TierFailed] = field(default_factory=dict)

    def failure(self, rows: slice = slice(None)) -> TierFailed | None:
        """The error of the first of these rows that has no answer; None where all have one."""
        if not self.failed:
            return None
        return next((self.failed[row] for row in range(len(self))[rows] if row in self.failed), None)

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

    def ballots(self) -> Ballots:
        """(M, B) labels and scores of the members of all tiers that a row reached, as `Vote.ballots` gives them."""
        found: dict[int, Ballots] = {}
        for visit in self.visits:
            own = visit.vote.ballots()
            shape = (len(own[0]), len(self))
            labels, scores = found.setdefault(
                visit.first_tier, (np.full(shape, NO_LABEL, dtype=np.int64), np.full(shape, np.nan, dtype=np.float32))
            )
            rows = slice(None) if visit.rows is None else visit.rows
            labels[:, rows], scores[:, rows] = own
        if not found:
            return np.zeros((0, len(self)), dtype=np.int64), np.zeros((0, len(self)), dtype=np.float32)
        return np.concatenate([one for one, _ in found.values()]), np.concatenate([one for _, one in found.values()])

    def exit_shares(self, n_tiers: int) -> NDArray[np.float64]:
        """(T,) share of the examples that left at each tier."""
        return np.bincount(self.exit_tier - 1, minlength=n_tiers) / max(len(self), 1)

    @property
    def is_degraded(self) -> bool:
        """True if any answer is."""
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
        """One row's answer. Raises TierFailed where it has none."""
        if row in self.failed:
            raise self.failed[row]
        votes: list[float] = []
        times: list[float] = []
        call = NO_CALL
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
            if vote.call is not NO_CALL:
                call += vote.call
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
            call=call,
            rule=vote.rule,
        )


def _inner_exit(vote: Vote) -> Labels:
    return np.ones(len(vote), dtype=np.int64) if vote.exit_tier is None else vote.exit_tier
