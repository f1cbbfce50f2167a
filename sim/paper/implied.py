"""Which exits a printed number implies, where the exits themselves are not carried.

Two tiers and one number give them exactly: a ratio R says sum_i exit_i * d_i = d_last / R, a cost C says
sum_i exit_i * price_i = C, and the exits sum to 1. With more tiers than numbers they lie between bounds. Rounding of
the printed numbers is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from .tables import Cell, TaskCells, worst

OFF = 1e-9


@dataclass(frozen=True, slots=True)
class Implied:
    """Exits (V, T) that fit, one row where they are exact, else the corners of what is possible.

    Args:
        by: which printed number they follow from.
        arithmetic: how, in one line.
        status: of the cells they follow from.
    """

    by: str
    exits: NDArray[np.float64]
    arithmetic: str
    status: str

    @property
    def is_exact(self) -> bool:
        return len(self.exits) == 1

    def cells(self) -> list[Cell]:
        """As cells of a table: what follows from one number is inferred."""
        return [Cell(float(share), "inferred", f"implied by the {self.by}") for share in self.exits[0]]


def by_ratio(task: TaskCells) -> Implied | None:
    """From the ratio of Figure 5; None where it or the delays are not known, or no exits fit."""
    if task.ratio.value is None or not task.delays_s:
        return None
    mean_s = task.delays_s[-1] / task.ratio.value
    corners = _corners([(task.delays_s, mean_s)])
    if corners is None:
        return None
    terms = " + ".join(f"exit_{number} * {delay_s:g}" for number, delay_s in enumerate(task.delays_s, start=1))
    arithmetic = f"{terms} = {task.delays_s[-1]:g} / {task.ratio.value:g} = {mean_s:.4f} s"
    return Implied("ratio", corners, arithmetic, "inferred")


def by_cost(task: TaskCells, cost: Cell) -> Implied | None:
    """From a printed cost per hour; None where a price is not known, or no exits fit."""
    prices = [tier.costs["cost_usd_per_hour"] for tier in task.tiers]
    if cost.value is None or not prices or not all(price.is_known for price in prices):
        return None
    values = [price.value or 0.0 for price in prices]
    corners = _corners([(values, cost.value)])
    if corners is None:
        return None
    terms = " + ".join(f"exit_{number} * {value:.2f}" for number, value in enumerate(values, start=1))
    return Implied("cost", corners, f"{terms} = {cost.value:.2f} USD/h", worst([cost, *prices]))


def by_both(task: TaskCells, cost: Cell) -> Implied | None:
    """From ratio and cost together, where neither alone is enough (three tiers and more)."""
    ratio, priced = by_ratio(task), by_cost(task, cost)
    if ratio is None or priced is None or task.ratio.value is None or cost.value is None or len(task.tiers) < 3:
        return None
    prices = [tier.costs["cost_usd_per_hour"].value or 0.0 for tier in task.tiers]
    rows = [(task.delays_s, task.delays_s[-1] / task.ratio.value), (prices, cost.value)]
    corners = _corners(rows)
    if corners is None:
        return None
    return Implied("ratio and cost", corners, f"{ratio.arithmetic}; {priced.arithmetic}", priced.status)


def _corners(rows: Sequence[tuple[Sequence[float], float]]) -> NDArray[np.float64] | None:
    """(V, T) corners of all exits that are 0 or more, sum to 1 and fit every row; None where none do.

    A linear quantity is least and largest at corners, and a corner has as many exits above 0 as there are equations.
    """
    n_tiers = len(rows[0][0])
    equations = np.array([np.ones(n_tiers), *(weights for weights, _ in rows)])  # (E, T)
    wanted = np.array([1.0, *(value for _, value in rows)])
    found: list[NDArray[np.float64]] = []
    for used in combinations(range(n_tiers), min(len(equations), n_tiers)):
        part = equations[:, used]
        solved, _, rank, _ = np.linalg.lstsq(part, wanted, rcond=None)
        if rank < len(used) or not np.allclose(part @ solved, wanted, atol=OFF) or (solved < -OFF).any():
            continue
        corner = np.zeros(n_tiers)
        corner[list(used)] = solved.clip(0, 1)
        if not any(np.allclose(corner, other) for other in found):
            found.append(corner)
    return np.array(found) if found else None
