"""Which thread plan and which order of members is the fastest, measured on this machine."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from coe.cascade import Always, Batch, DeferralRule, LocalTier
from coe.cascade.vote import is_settled, leaders_of_one
from coe.config import format_seconds
from coe.config.cascade import CascadeConfig, LocalTierConfig
from coe.config.open import open_tier
from coe.models.pool import cheapest_first, plan_threads, seconds_each

ROUNDS = 5
MIN_VOTES = 10  # of a measurement
N_WARM = 3  # votes before it
MARGIN = 1.05  # a plan within this factor of the fastest counts as equally fast
EVERY_COUNT_TO = 8  # threads; above, only powers of two and the number of cores

Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a tier's members vote: `parallel:` and `threads:` of a config."""

    parallel: bool
    threads: int


@dataclass(frozen=True)
class PlanTiming:
    """A plan and its time.

    Args:
        how: its description, as in the agent's start-up line.
        seconds: of a decision: the mean over the examples, the median over the rounds.
        members: seconds of each member, where they run in turn; () where they run side by side.
        spread: time of the slowest round over that of the fastest.
    """

    plan: Plan
    how: str
    seconds: float
    members: tuple[float, ...]
    spread: float = 1.0


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plans(n_members: int, n_cores: int) -> list[Plan]:
    """The plans to try: in turn on 1 to `n_cores` threads, and side by side on 2 and more."""
    counts = [n for n in range(1, n_cores + 1) if n <= EVERY_COUNT_TO or n == n_cores or n & (n - 1) == 0]
    side_by_side = [Plan(True, n) for n in counts if n > 1] if n_members > 1 else []
    return [Plan(False, n) for n in counts] + side_by_side


def measure(
    tier: LocalTierConfig, config: CascadeConfig, batches: Sequence[Batch], seconds: float, *, asks_all: bool, log: Log
) -> list[PlanTiming]:
    """The time of each plan for a decision of this tier, without decoding. One plan's models are open at a time.

    Args:
        batches: one example each; as many of them are used as the time allows, the same for each plan.
        seconds: for all of it, without loading; slow models take longer.
        asks_all: every member votes, even if the vote is settled before.
    """
    candidates = plans(len(tier.members), cores())
    rule: DeferralRule = Always(asks_all=True) if asks_all else tier.rule
    slot_s = seconds / (ROUNDS * len(candidates))
    n = 0
    taken: dict[Plan, list[float]] = {plan: [] for plan in candidates}
    members: dict[Plan, list[list[float]]] = {plan: [] for plan in candidates}
    for number in range(ROUNDS):
        for plan in candidates if number % 2 == 0 else reversed(candidates):
            opened = open_plan(tier, config, plan)
            try:
                for batch in batches[:N_WARM]:
                    opened.vote(batch, rule)
                if not n:  # as many votes as fit in a slot
                    vote_s = _seconds_each(opened, rule, batches, min(MIN_VOTES, len(batches)))
                    n = max(MIN_VOTES, int(slot_s / vote_s))
                taken[plan].append(_seconds_each(opened, rule, batches, n))
                if not plan.parallel:
                    members[plan].append(seconds_each(opened.members, batches[0].x, slot_s / 4))
            finally:
                opened.close()
            log(
                f"round {number + 1} of {ROUNDS}: {described(tier, plan)}: {format_seconds(taken[plan][-1])} a decision"
            )
    return [
        PlanTiming(
            plan,
            described(tier, plan),
            statistics.median(taken[plan]),
            tuple(statistics.median(each) for each in zip(*members[plan], strict=True)),
            max(taken[plan]) / min(taken[plan]),
        )
        for plan in candidates
    ]


def open_plan(tier: LocalTierConfig, config: CascadeConfig, plan: Plan, early: bool | None = None) -> LocalTier:
    """The tier under a plan, its members in the listed order."""
    early = tier.early if early is None else early
    own = replace(tier, parallel=plan.parallel, threads=plan.threads, early=early, order="fixed", delay_s=None)
    opened = open_tier(own, config)
    assert isinstance(opened, LocalTier)
    return opened


def described(tier: LocalTierConfig, plan: Plan) -> str:
    words = plan_threads(tier.members, plan.threads, side_by_side=plan.parallel).describe()
    return f"{words} on 1 thread" if words == "in turn" else words


def choose(timed: Sequence[PlanTiming]) -> PlanTiming:
    """The plan with the fewest threads among those that are as fast as the fastest."""
    best = min(one.seconds for one in timed)
    near = [one for one in timed if one.seconds <= best * MARGIN]
    return min(near, key=lambda one: (one.plan.threads, one.plan.parallel))


def reason(timed: Sequence[PlanTiming], chosen: PlanTiming) -> str:
    """Why that plan was chosen."""
    if len(timed) == 1:
        return "the process may use one core, so there is no other"
    fastest = min(timed, key=lambda one: one.seconds)
    if fastest is not chosen:
        return f"within {MARGIN - 1:.0%} of the fastest ({fastest.how}), on fewer threads or in turn"
    other = min((one for one in timed if one is not chosen), key=lambda one: one.seconds)
    return f"the fastest; the next ({other.how}) takes {other.seconds / chosen.seconds:.2f} times as long"


def _seconds_each(tier: LocalTier, rule: DeferralRule, batches: Sequence[Batch], n: int) -> float:
    """Mean seconds of `n` votes, on the batches in turn."""
    started = time.perf_counter()
    for number in range(n):
        tier.vote(batches[number % len(batches)], rule)
    return (time.perf_counter() - started) / n


MAX_MEMBERS = 5  # of which all orders are tried: 120


@dataclass(frozen=True)
class Order:
    """The cost of orders of members: expected seconds of those that vote, for one example.

    Args:
        best: indices of the members in the order that was the cheapest on these examples.
        setting: the best value of `order:`: "measured" if asking the cheapest first saves time, else "fixed".
    """

    listed_s: float
    cheapest_first: tuple[int, ...]
    cheapest_first_s: float
    best: tuple[int, ...]
    best_s: float
    setting: str


def compare_orders(labels: Sequence[Sequence[int]], seconds: Sequence[float], needed: int) -> Order:
    """The cost of orders for examples whose votes are known.

    Args:
        labels: for each of N examples, the labels of the M members.
        seconds: of each of the M members for one example.
        needed: votes that make the tier answer.
    """
    n_members = len(seconds)
    listed, cheapest = tuple(range(n_members)), tuple(cheapest_first(seconds))
    tried: Iterable[tuple[int, ...]] = {listed: None, cheapest: None}
    if n_members <= MAX_MEMBERS:
        tried = itertools.permutations(range(n_members))
    costs = {order: expected_s(order, labels, seconds, needed) for order in tried}
    best = min(costs, key=lambda order: (costs[order], order != cheapest))
    return Order(
        listed_s=costs[listed],
        cheapest_first=cheapest,
        cheapest_first_s=costs[cheapest],
        best=best,
        best_s=costs[best],
        setting="measured" if costs[listed] > MARGIN * costs[cheapest] else "fixed",
    )


def expected_s(order: Sequence[int], labels: Sequence[Sequence[int]], seconds: Sequence[float], needed: int) -> float:
    """Mean seconds of the members that vote, if the vote ends as soon as it is settled."""
    total = 0.0
    for row in labels:
        cast: list[int] = []
        for index in order:
            cast.append(row[index])
            total += seconds[index]
            if is_settled(*leaders_of_one(cast), len(order) - len(cast), needed):
                break
    return total / len(labels)


def member_labels(tier: LocalTierConfig, config: CascadeConfig, batches: Sequence[Batch]) -> list[list[int]]:
    """For each example, the labels of the members."""
    opened = open_plan(tier, config, Plan(False, 1), early=False)
    try:
        votes = [opened.vote(batch, Always(asks_all=True)) for batch in batches]
        return [[int(output.argmax()) for output in vote.probabilities] for vote in votes]
    finally:
        opened.close()
