"""Choosing on one split, reporting on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Accounting, tier_charges

from ...sweep import Outcomes, Panel, sweep
from ...traces import Costs, Trace
from .candidates import Candidate

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the choice is made by.

    Args:
        costs: every kind known; the first is the one chosen by.
        accounting: by which the choice is charged; None: `reach` for time, in which members side by side cost no more
            than the slowest, and `reach-serial` for all else, where every member asked is paid for.
        calibration: share of the examples to choose on, or a trace of other examples.
        most: systems tried per method, at most; more are drawn at random.
    """

    costs: Sequence[Costs]
    accounting: Accounting | None = None
    calibration: float | Trace = 0.5
    most: int = 20_000
    seed: int = 0

    def splits(self, trace: Trace, rng: np.random.Generator) -> tuple[Trace, Trace]:
        """(to choose on, to report on)."""
        return trace.split(self.calibration, rng) if isinstance(self.calibration, float) else (self.calibration, trace)

    @property
    def charged_by(self) -> Accounting:
        if self.accounting is not None:
            return self.accounting
        return Accounting.REACH if self.costs[0].kind == "latency_s" else Accounting.REACH_SERIAL


@dataclass(frozen=True, slots=True)
class Measured:
    """Candidates of one method over one panel: (C,) each, costs by kind and accounting."""

    candidates: Sequence[Candidate]
    outcomes: Outcomes
    costs: Mapping[tuple[str, Accounting], Values]

    @property
    def accuracy(self) -> Values:
        return self.outcomes.accuracy

    def only(self, rows: Sequence[int]) -> list[Candidate]:
        return [self.candidates[row] for row in rows]


def measure(candidates: Sequence[Candidate], panel: Panel, costs: Sequence[Costs]) -> Measured:
    """Every candidate over the panel's examples."""
    made = [candidate.make(panel) for candidate in candidates]
    outcomes = sweep(made, len(panel))
    shares = outcomes.shares
    charged = {
        (one.kind, accounting): np.array(
            [
                shares[row, : len(candidate.charged)]
                @ tier_charges([[one.of[name] for name in tier] for tier in candidate.charged], accounting)
                for row, candidate in enumerate(candidates)
            ]
        )
        for one in costs
        for accounting in Accounting
    }
    return Measured(candidates, outcomes, charged)


def front(costs: Values, accuracy: Values) -> list[int]:
    """The Pareto set, by rising cost: nothing else is as cheap and as accurate. Paper: Figure 6."""
    order = np.lexsort((-accuracy, costs))
    found: list[int] = []
    best = -np.inf
    for at in order.tolist():
        if accuracy[at] > best:
            found.append(at)
            best = accuracy[at]
    return found


def drop_in(costs: Values, accuracy: Values, needed: float) -> int:
    """The cheapest that is at least `needed` accurate; where none is, the most accurate."""
    good = np.flatnonzero(accuracy >= needed)
    if good.size:
        return int(good[np.lexsort((-accuracy[good], costs[good]))[0]])
    return int(np.lexsort((costs, -accuracy))[0])
