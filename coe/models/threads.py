"""A tier's thread budget: stated once, and split over the members that run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .base import ModelSpec

SHARED_SETTING = ("torch", "torch-export", "torchscript")


@dataclass(frozen=True)
class ThreadPlan:
    """Who runs when, on how many threads.

    Args:
        budget: threads at work at any time, at most, runtimes' own included.
        at_once: members at work at the same time, at most; 1: in turn.
        each: threads of each member's runtime.
    """

    budget: int
    at_once: int
    each: tuple[int, ...]

    def describe(self) -> str:
        """How the members vote, for the start-up line."""
        if self.at_once == 1:
            return "in turn" if self.budget == 1 else f"in turn, each on {self.budget} threads"
        if self.at_once < len(self.each):
            return f"side by side on {self.budget} threads: {self.at_once} at a time"
        return f"side by side on {sum(self.each)} threads: {'+'.join(map(str, self.each))}"


def plan_threads(specs: Sequence[ModelSpec], budget: int, *, side_by_side: bool) -> ThreadPlan:
    """How members share `budget` threads.

    In turn, each has all of them. Side by side, each has one; what is left goes, thread by thread, to the member with
    the most work per thread by its FLOPs (all alike where one's are not known), because a vote may have to wait for
    the slowest. Fewer threads than members: that many members at a time. Where torch runs one of them, all have the
    same number: its setting belongs to the thread that calls it.
    """
    if not side_by_side or budget == 1 or len(specs) == 1:
        return ThreadPlan(budget, 1, (budget,) * len(specs))
    at_once = min(budget, len(specs))
    if any(spec.format in SHARED_SETTING for spec in specs):
        return ThreadPlan(budget, at_once, (max(budget // len(specs), 1),) * len(specs))
    known = [spec.flops for spec in specs if spec.flops]
    work = known if len(known) == len(specs) else [1.0] * len(specs)
    each = [1] * len(specs)
    for _ in range(budget - len(specs)):
        each[max(range(len(specs)), key=lambda seat: work[seat] / each[seat])] += 1
    return ThreadPlan(budget, at_once, tuple(each))
