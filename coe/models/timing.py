"""What members cost, measured: the time of one example alone, and the order in which they are best asked."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from coe.cascade.tier import Member
from coe.cascade.types import Array

BUDGET_S = 0.05  # of a start, for all members of a tier together
MOST_ROUNDS = 200  # enough for a steady median


def seconds_each(members: Sequence[Member], x: Array, budget_s: float = BUDGET_S) -> list[float]:
    """Median seconds each member takes for one example, asked in turn, so that a machine that drifts takes all along.

    A preparation counts where no other member shares it. Each is asked once at least, whatever the budget.

    Args:
        x: (1, *S), as it comes through the door.
    """
    shared = [sum(other.prepare == member.prepare for other in members) > 1 for member in members]
    ready = [member.prepare(x) for member in members]
    times: list[list[float]] = [[] for _ in members]
    end = time.perf_counter() + budget_s
    for _ in range(MOST_ROUNDS):
        for seat, member in enumerate(members):
            started = time.perf_counter()
            member.predict(ready[seat] if shared[seat] else member.prepare(x))
            times[seat].append(time.perf_counter() - started)
        if time.perf_counter() >= end:
            break
    return [statistics.median(taken) for taken in times]


def cheapest_first(seconds: Sequence[float]) -> list[int]:
    """Seats by cost, the listed order where it is the same.

    How often a vote needs its n-th member falls with n. As long as nothing is known of who agrees with whom, it does
    not depend on who the n-th is, so the expected time is least with the costs in rising order.
    """
    return sorted(range(len(seconds)), key=lambda seat: seconds[seat])
