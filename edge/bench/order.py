"""In which order members are best asked: what each order would have cost on these examples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coe.assembly import CascadeConfig, LocalTierConfig
from coe.cascade import Always, Batch
from coe.cascade.vote import is_settled, leaders_of_one
from coe.models.timing import cheapest_first

from .plans import MARGIN, Plan, open_plan

MOST_MEMBERS = 5  # whose orders are all tried: 120 of them


@dataclass(frozen=True)
class Order:
    """What orders cost: expected seconds of the members asked, for one example.

    Args:
        best: seats in the order that would have been the cheapest on these examples.
        setting: what `order:` is best: "measured" where the cheapest first saves something over the list as it is.
    """

    listed_s: float
    cheapest_first: tuple[int, ...]
    cheapest_first_s: float
    best: tuple[int, ...]
    best_s: float
    setting: str


def weigh_orders(ballots: Sequence[Sequence[int]], seconds: Sequence[float], needed: int) -> Order:
    """Which order is best for these ballots.

    Args:
        ballots: N of M labels each, by seat.
        seconds: M, of each member for one example.
        needed: votes that make the tier answer.
    """
    n_members = len(seconds)
    listed, cheapest = tuple(range(n_members)), tuple(cheapest_first(seconds))
    tried: Iterable[tuple[int, ...]] = {listed: None, cheapest: None}
    if n_members <= MOST_MEMBERS:
        tried = itertools.permutations(range(n_members))
    costs = {order: expected_s(order, ballots, seconds, needed) for order in tried}
    best = min(costs, key=lambda order: (costs[order], order != cheapest))
    return Order(
        listed_s=costs[listed],
        cheapest_first=cheapest,
        cheapest_first_s=costs[cheapest],
        best=best,
        best_s=costs[best],
        setting="measured" if costs[listed] > MARGIN * costs[cheapest] else "fixed",
    )


def expected_s(order: Sequence[int], ballots: Sequence[Sequence[int]], seconds: Sequence[float], needed: int) -> float:
    """Mean seconds of the members asked, with the vote stopped as soon as it is settled."""
    total = 0.0
    for row in ballots:
        cast: list[int] = []
        for seat in order:
            cast.append(row[seat])
            total += seconds[seat]
            if is_settled(*leaders_of_one(cast), len(order) - len(cast), needed):
                break
    return total / len(ballots)


def ballots_of(tier: LocalTierConfig, config: CascadeConfig, batches: Sequence[Batch]) -> list[list[int]]:
    """Each member's label for each example, by seat."""
    opened = open_plan(tier, config, Plan(False, 1), early=False)
    try:
        votes = [opened.vote(batch, Always(asks_all=True)) for batch in batches]
        return [[int(output.argmax()) for output in vote.probabilities] for vote in votes]
    finally:
        opened.close()
