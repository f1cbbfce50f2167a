"""Everything that can answer is a tier; the cascade does not know where one runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, ModelError
from .rule import DeferralRule
from .types import NO_LABEL, Array, Batch, Labels, Vote
from .vote import is_settled, leaders, leaders_of_one, plurality, plurality_of_one, pool

Prepare = Callable[[Array], Array]


class Member(Protocol):
    """One model in its seat. `prepare` turns a batch's x (B, *S) into what `predict` takes."""

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

    Members vote one after another and stop as soon as the outcome is settled (`early`), or side by side on
    cores (`parallel`). Either way the label and the decision are those of asking everybody.
    """

    n_tiers = 1
    waits = False

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        rule: DeferralRule,
        *,
        parallel: bool = False,
        early: bool = True,
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
        self._pool = ThreadPoolExecutor(len(members), f"coe-{name}") if parallel and len(members) > 1 else None

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        known, needed = self._plan
        if known is not rule:
            needed = rule.needed(len(self.members)) if self.early else None
            self._plan = (rule, needed)
        if self._pool is not None:
            return self._tally(self._ask_side_by_side(batch.x), None, rule.pools_scores)
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
        asked = vote.asked[short] if vote.probabilities else np.zeros_like(short)  # outputs let go: ask anew
        for seat, known in enumerate(vote.probabilities):
            probabilities[seat] = known[short]
        for seat, member in enumerate(self.members):
            rows = np.flatnonzero(asked <= seat)
            if rows.size:
                probabilities[seat, rows] = member.predict(member.prepare(batch.x[short[rows]]))
        return vote.replaced(short, self._tally(probabilities, None, pools_scores=False))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for member in self.members:
            member.close()

    def _vote_on_one(self, x: Array, needed: int | None) -> Vote:
        """`_ask_in_turn` and `_tally` for one example, on plain integers: the device's hot path."""
        ballots: list[int] = []
        outputs: list[Array] = []
        left = len(self.members)
        prepare, ready = None, x
        for member in self.members:
            if member.prepare != prepare:  # members with one input contract share the prepared input
                prepare = member.prepare
                ready = prepare(x)
            output = member.predict(ready)  # (1, L)
            ballot = int(output.argmax())
            if not math.isfinite(output.item(ballot)):  # argmax points at a NaN if there is one
                raise self._not_a_number(member)
            outputs.append(output)
            ballots.append(ballot)
            left -= 1
            top, runner_up = leaders_of_one(ballots)
            if needed is not None and is_settled(top, runner_up, left, needed):
                break
        try:
            label, score = plurality_of_one(ballots, top, outputs)
        except (OverflowError, ValueError):  # an infinity that was no member's highest
            raise self._not_a_number(self.members[0]) from None
        facts = np.array(((label,), (top,), (len(ballots),)), dtype=np.int64)  # (3, 1)
        return Vote(
            labels=facts[0],
            count=facts[1],
            asked=facts[2],
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
        for seat, member in enumerate(self.members):
            rows = x if active.size == len(x) else x[active]
            output = member.predict(member.prepare(rows))  # (A, L)
            probabilities[seat, active] = output
            ballots[seat, active] = output.argmax(axis=1)
            asked[active] = seat + 1
            if needed is not None:
                top, runner_up = leaders(ballots[: seat + 1, active])
                active = active[~is_settled(top, runner_up, n_members - seat - 1, needed)]
                if not active.size:
                    break
        return probabilities, asked

    def _ask_side_by_side(self, x: Array) -> Array:
        """Outputs (M, B, L) of all members, each on a thread of its own."""
        assert self._pool is not None
        return np.stack(list(self._pool.map(lambda member: member.predict(member.prepare(x)), self.members)))

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
            labels, score = pool(probabilities)
            count = (ballots == labels).sum(axis=0)
        else:
            labels, count, score = plurality(ballots, probabilities)
        return Vote(labels, count, asked, len(self.members), score, tuple(probabilities))

    def _not_a_number(self, member: Member) -> InputError:
        return InputError(f"tier {self.name}: the output of member {member.name} is not a number (NaN or infinity)")
