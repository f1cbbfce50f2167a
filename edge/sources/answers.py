"""Outcomes of the agent as an answer over the wire."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from coe.cascade.cascade import Decisions, Visit
from coe.cascade.errors import (
    CascadeError,
    InputError,
    NotAllowed,
    TierOverloaded,
    TierRejected,
    TierTimeout,
    TierUnavailable,
)
from coe.cascade.types import Array, Batch, Decision, Vote, added_calls


class Answered(Protocol):
    """What the agent's outcome says of an example."""

    @property
    def id(self) -> str: ...
    @property
    def decision(self) -> Decision | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def reason(self) -> str: ...


KINDS = {  # by an outcome's reason; any other is an example that cannot be read
    "unavailable": TierUnavailable,
    "timeout": TierTimeout,
    "overloaded": TierOverloaded,
    "rejected": TierRejected,
}


def decisions_of(batch: Batch, outcomes: Sequence[Answered]) -> Decisions:
    """B decisions of one call, in the order of its rows.

    To the caller the device is one tier that is a cascade: which of its tiers answered is in `exit_tier`.

    Raises:
        CascadeError: a row has no decision; as the tier that should have given it, or the agent's door, put it.
    """
    rows_of: dict[int, list[int]] = defaultdict(list)  # by the number of members of the tier that answered
    decisions: list[Decision] = []
    for row, outcome in enumerate(outcomes):
        if outcome.decision is None:
            raise error_of(outcome)
        decisions.append(outcome.decision)
        rows_of[outcome.decision.n_members].append(row)
    return Decisions(batch, [_visit(decisions, np.array(rows)) for rows in rows_of.values()], {})


def error_of(outcome: Answered) -> CascadeError:
    """What the caller is told of an example without a decision."""
    text = outcome.error or "no decision"
    told = text.partition(": ")[2]
    if outcome.reason == "held-back":
        return NotAllowed(told)
    kind = KINDS.get(outcome.reason)
    return InputError(text) if kind is None else kind(outcome.id, told)


def _visit(decisions: Sequence[Decision], rows: Array) -> Visit:
    """The vote on `rows` (A,), all by tiers of as many members."""
    chosen = [decisions[row] for row in rows]
    n_tiers = max(len(decision.tier_votes) for decision in chosen)
    votes = np.full((len(chosen), n_tiers), np.nan, dtype=np.float32)
    for at, decision in enumerate(chosen):
        votes[at, : len(decision.tier_votes)] = decision.tier_votes
    asked = np.array([decision.asked for decision in chosen])
    shares = np.array([decision.vote for decision in chosen])
    reasons = tuple(decision.degraded for decision in chosen)
    vote = Vote(
        labels=np.array([decision.label for decision in chosen]),
        count=np.rint(shares * asked).astype(np.int64),
        asked=asked,
        n_members=chosen[0].n_members,
        score=np.array([decision.score for decision in chosen], dtype=np.float32),
        exit_tier=np.array([decision.exit_tier for decision in chosen]),
        tier_votes=votes,
        degraded=reasons if any(reasons) else None,
        call=added_calls(decision.call for decision in chosen),
    )
    return Visit(1, rows, vote, max(sum(decision.tier_times_s) for decision in chosen))
