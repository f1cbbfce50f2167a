"""Everything that can answer is a tier; the cascade does not know where one runs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, ModelError
from .rule import Always, DeferralRule
from .types import NO_LABEL, Array, Batch, Labels, Vote
from .vote import is_settled, leaders, leaders_of_one, plurality, plurality_of_one
from .vote import pool as pooled

Prepare = Callable[[Array], Array]


class Member(Protocol):
    """One model of a tier. `prepare` turns a batch's x (B, *S) into what `predict` takes."""

    @property
    def name(self) -> str: ...
    @property
    def n_labels(self) -> int: ...
    @property
    def prepare(self) -> Prepare: ...

    def predict(self, x: Array) -> Array:
        """(B, L) float probabilities."""
        ...

    def close(self) -> None: ...


class MemberRunner(Protocol):
    """Makes the members' calls side by side; `coe.models.pool.MemberPool` is one."""

    def run(
        self, calls: Mapping[int, Callable[[], Array]], is_enough: Callable[[Mapping[int, Array]], bool] | None = None
    ) -> dict[int, Array]:
        """Outputs by member index: all, or those that were back when `is_enough` accepted them."""
        ...

    def close(self) -> None: ...


class Tier(Protocol):
    """What the cascade asks of a tier.

    `n_tiers` is 1, or more where the tier is a whole cascade (a server that holds several).
    `waits`: a vote waits for somebody else (a server) rather than computing here.
    """

    name: str
    rule: DeferralRule

    @property
    def n_tiers(self) -> int: ...
    @property
    def waits(self) -> bool: ...

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        """The tier's say on every row, as far as `rule` needs it.

        Raises:
            TierError: no answer; the cascade decides what then.
        """
        ...

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        """The same vote with every member asked: for rows whose local answer is to stand after all."""
        ...

    def close(self) -> None: ...


class LocalTier:
    """An ensemble of members in this process.

    Members vote one after another, or side by side on threads of their own (`pool`), and stop as soon as the
    outcome is settled (`early`): in turn, row by row; side by side, once every row of the batch is settled by the
    members that are through, without waiting for the others (stragglers).

    Either way the decision is that of asking everybody, and so is the label wherever the tier answers. With `early`,
    `asked`, `count` and `score` are over the members that were asked; side by side these are the first that came
    back, so the three may differ from one time to the next, and the label of a row that goes on may too.

    Side by side, a member that fails does not fail a vote that is settled without it: that is logged.

    Args:
        early: stop when the outcome is settled; False: every member is asked.
        pool: runs members side by side (`coe.models.pool.MemberPool`); None: one after another. Closed with the tier.
    """

    n_tiers = 1
    waits = False

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        rule: DeferralRule,
        *,
        early: bool = True,
        pool: MemberRunner | None = None,
    ) -> None:
        if not members:
            raise ValueError(f"tier {name}: expected at least one member, got none")
        if len({member.n_labels for member in members}) > 1:
            sizes = ", ".join(f"{member.name} {member.n_labels}" for member in members)
            raise ModelError(f"tier {name}: expected members with one set of labels, got sizes {sizes}")
        self.name = name
        self.rule = rule
        self.members = tuple(members)
        self.early = early
        self._plan: tuple[DeferralRule | None, int | None] = (None, None)  # the last rule, and what it needs
        self._numbers: Labels = np.arange(max(len(members), members[0].n_labels) + 1, dtype=np.int64)  # of votes on one
        self._numbers.flags.writeable = False
        self._pool = pool

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        known, needed = self._plan
        if known is not rule:
            needed = rule.needed(len(self.members)) if self.early and not rule.pools_scores else None
            self._plan = (rule, needed)
        if self._pool is not None:
            return self._vote_side_by_side(self._pool, batch.x, needed, rule.pools_scores)
        if len(batch.ids) == 1 and not rule.pools_scores:
            return self._vote_on_one(batch.x, needed)
        probabilities, asked = self._ask_in_turn(batch.x, needed)
        return self._tally(probabilities, asked, rule.pools_scores)

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        short = np.flatnonzero(vote.asked < len(self.members))
        if not short.size:
            return vote
        shape = (len(self.members), len(short), self.members[0].n_labels)
        probabilities = np.zeros(shape, dtype=np.float32)  # (M, S, L)
        missing: dict[int, NDArray[np.intp]] = dict.fromkeys(range(len(self.members)), np.arange(len(short)))
        indices = range(len(self.members)) if vote.member_indices is None else vote.member_indices
        for place, (index, known) in enumerate(zip(indices, vote.probabilities, strict=False)):  # let go: ask anew
            probabilities[index] = known[short]
            missing[index] = np.flatnonzero(vote.asked[short] <= place)
        calls = {
            index: partial(self._output, member, _Inputs(batch.x[short[missing[index]]]))
            for index, member in enumerate(self.members)
            if missing[index].size
        }
        if self._pool is not None:
            outputs = self._pool.run(calls)
        else:
            outputs = {index: call() for index, call in calls.items()}
        for index, output in outputs.items():
            probabilities[index, missing[index]] = output
        return vote.replaced(short, self._tally(probabilities, None, pools_scores=False))

    def warm_up(self, example: Array, sizes: Iterable[int]) -> None:
        """Ask every member about that many copies of an example, where it would be asked: a runtime plans and
        allocates for each batch size anew. Takes the memory of one such batch at a time.

        Args:
            example: (1, *S), as a caller sends it.
        """
        for n_rows in sizes:
            x = np.repeat(example, n_rows, axis=0)
            self.vote(Batch(("",) * n_rows, x), Always(self.rule.pools_scores, asks_all=True))

    def close(self) -> None:
        """Wait for stragglers, then let the members go."""
        if self._pool is not None:
            self._pool.close()
        for member in self.members:
            member.close()

    def _vote_on_one(self, x: Array, needed: int | None) -> Vote:
        """`_ask_in_turn` and `_tally` for one example, on plain integers: the device's hot path."""
        ballots: list[int] = []
        outputs: list[Array] = []
        left = len(self.members)
        prepare, ready = None, x
        for member in self.members:
            if member.prepare != prepare:  # members with one input spec share the prepared input
                prepare = member.prepare
                ready = prepare(x)
            output = member.predict(ready)  # (1, L)
            ballot = int(output.argmax())
            if not math.isfinite(output.item(ballot)):  # argmax points at a NaN if there is one
                raise self._not_a_number(member)
            outputs.append(output)
            ballots.append(ballot)
            left -= 1
            if left and needed is not None and is_settled(*leaders_of_one(ballots), left, needed):
                break
        top, _ = leaders_of_one(ballots)
        try:
            label, score = plurality_of_one(ballots, top, outputs)
        except (OverflowError, ValueError):  # an infinity that was no member's highest
            raise self._not_a_number(self.members[0]) from None
        numbers = self._numbers
        return Vote(
            labels=numbers[label : label + 1],
            count=numbers[top : top + 1],
            asked=numbers[len(ballots) : len(ballots) + 1],
            n_members=len(self.members),
            score=np.array((score,), dtype=np.float32),
            probabilities=outputs,
        )

    def _ask_in_turn(self, x: Array, needed: int | None) -> tuple[Array, Labels]:
        """Outputs (M, B, L) and how many members were asked (B,); rows leave as they are settled."""
        n_members = len(self.members)
        ballots = np.full((n_members, len(x)), NO_LABEL, dtype=np.int64)
        asked = np.zeros(len(x), dtype=np.int64)
        probabilities = np.zeros((n_members, len(x), self.members[0].n_labels), dtype=np.float32)
        active: NDArray[np.intp] = np.arange(len(x))
        inputs = _Inputs(x)
        for index, member in enumerate(self.members):
            output = member.predict(inputs.prepared_by(member))  # (A, L)
            probabilities[index, active] = output
            ballots[index, active] = output.argmax(axis=1)
            asked[active] = index + 1
            if needed is not None:
                top, runner_up = leaders(ballots[: index + 1, active])
                stays = ~np.asarray(is_settled(top, runner_up, n_members - index - 1, needed))
                if not stays.any():
                    break
                if not stays.all():
                    active = active[stays]
                    inputs = inputs.take(stays)
        return probabilities, asked

    def _vote_side_by_side(self, pool: MemberRunner, x: Array, needed: int | None, pools_scores: bool) -> Vote:
        inputs, n_members = _Inputs(x), len(self.members)

        def is_enough(outputs: Mapping[int, Array]) -> bool:
            assert needed is not None
            left = n_members - len(outputs)
            if len(x) == 1:
                ballots = [int(output.argmax()) for output in outputs.values()]
                return bool(is_settled(*leaders_of_one(ballots), left, needed))
            top, runner_up = leaders(np.stack([output.argmax(axis=1) for output in outputs.values()]))
            return bool(np.all(is_settled(top, runner_up, left, needed)))

        calls = {index: partial(self._output, member, inputs) for index, member in enumerate(self.members)}
        outputs = pool.run(calls, None if needed is None else is_enough)
        indices = sorted(outputs)
        vote = self._tally(np.stack([outputs[index] for index in indices]), None, pools_scores)
        if len(indices) < n_members:
            vote.member_indices = indices
        return vote

    def _output(self, member: Member, inputs: _Inputs) -> Array:
        """(B, L) from one member, all of it numbers."""
        output = member.predict(inputs.prepared_by(member))
        if not np.isfinite(output).all():
            raise self._not_a_number(member)
        return output

    def _tally(self, probabilities: Array, asked: Labels | None, pools_scores: bool) -> Vote:
        """The vote over outputs (M, B, L), of which the first `asked` (B,) of each row count (None: all)."""
        bad = ~np.isfinite(probabilities).all(axis=(1, 2))  # (M,)
        if bad.any():
            raise self._not_a_number(self.members[int(bad.argmax())])
        n_asked, n_rows = probabilities.shape[:2]
        ballots = probabilities.argmax(axis=2)  # (M, B)
        if asked is None:
            asked = np.full(n_rows, n_asked, dtype=np.int64)
        else:
            ballots[np.arange(n_asked)[:, None] >= asked] = NO_LABEL
        if pools_scores:
            labels, score = pooled(probabilities)
            count = (ballots == labels).sum(axis=0)
        else:
            labels, count, score = plurality(ballots, probabilities)
        return Vote(labels, count, asked, len(self.members), score, tuple(probabilities))

    def _not_a_number(self, member: Member) -> InputError:
        return InputError(f"tier {self.name}: the output of member {member.name} is not a number (NaN or infinity)")


class _Inputs:
    """A batch's x as each input spec prepares it: once, for all members that share the spec. Thread-safe."""

    def __init__(self, x: Array) -> None:
        self._x = x
        self._lock = threading.Lock()  # over the two below
        self._turns: dict[Prepare, threading.Lock] = {}
        self._ready: dict[Prepare, Array] = {}

    def take(self, rows: NDArray[np.bool_]) -> _Inputs:
        """The rows where True alone."""
        taken = _Inputs(self._x[rows])
        taken._ready = {prepare: ready[rows] for prepare, ready in self._ready.items()}
        return taken

    def prepared_by(self, member: Member) -> Array:
        """What `member.predict` takes. A member that shares its input spec with one that is preparing waits for it."""
        prepare = member.prepare
        with self._lock:
            turn = self._turns.setdefault(prepare, threading.Lock())
        with turn:
            if prepare not in self._ready:
                self._ready[prepare] = prepare(self._x)
            return self._ready[prepare]
