"""What follows from the tables: the CoE columns of Table 2 in three accountings, ratios of Figure 5, Table 3's rates.

Nothing is filled in that does not follow: a column with a missing cell is None, and `missing` says which cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coe.cascade import Accounting, average_cost, communication_ratio

from .implied import Implied, by_both, by_cost, by_ratio
from .tables import METRICS, Cell, Tables, TaskCells, WrongRow, worst


@dataclass(frozen=True, slots=True)
class Column:
    """A CoE column of Table 2 for one metric: as printed, as computed, and the best single model's."""

    paper: Cell
    computed: Mapping[str, Cell]  # accounting -> cell
    best_single: Cell


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What follows for one task.

    Args:
        exits: those used for Table 2; `exits_from` says where they are from: "table", or what implies them.
        ratio: recomputed for Figure 5, from the table's exits or from those its cost implies: never from itself.
        bounds: metric -> accounting -> (least, most) where the exits are known only between bounds.
    """

    task: TaskCells
    exits: Sequence[Cell]
    exits_from: str
    columns: Mapping[str, Column]
    ratio: Cell
    ratio_from: str
    implied: Sequence[Implied]
    bounds: Mapping[str, Mapping[str, tuple[float, float]]]
    missing: Sequence[str]


@dataclass(frozen=True, slots=True)
class WrongResult:
    """A row of Table 3, and its rates as they follow from its counts."""

    row: WrongRow
    rate: Cell
    large_share: Cell
    missing: Sequence[str]


@dataclass(frozen=True, slots=True)
class Paper:
    tables: Tables
    tasks: Sequence[TaskResult]
    table3: Sequence[WrongResult]

    @property
    def missing(self) -> list[str]:
        """The cells that are not carried, and where in the paper each is."""
        cells = [] if self.tables.table1 else ["table1"]
        cells += [cell for one in self.tasks for cell in one.missing]
        cells += [cell for row in self.table3 for cell in row.missing]
        return [f"{cell}: not carried: fill in tables.yaml from the paper's {_place(cell)}" for cell in cells]


def _place(cell: str) -> str:
    table, _, inner = cell.partition(".")
    return "Figure 5" if inner.endswith("communication_ratio") else f"Table {table.removeprefix('table')[0]}"


def recompute(tables: Tables) -> Paper:
    """Everything that follows."""
    tasks = [_task(task, tables.open_costs) for task in tables.tasks]
    return Paper(tables, tasks, [_wrong(number, row) for number, row in enumerate(tables.table3)])


def _task(task: TaskCells, open_costs: Sequence[Cell]) -> TaskResult:
    own = [tier.exit for tier in task.tiers]
    has_own = bool(own) and all(cell.is_known for cell in own)
    cost = task.cascade["cost_usd_per_hour"]
    costs = [cost] if cost.is_known else list(open_costs)
    implied = [one for one in (by_ratio(task), *(by_cost(task, each) for each in costs)) if one is not None]
    implied += [one for one in (by_both(task, each) for each in costs) if one is not None]
    of_ratio = next((one for one in implied if one.by == "ratio" and one.is_exact), None)
    of_cost = next((one for one in implied if one.by == "cost" and one.is_exact and cost.is_known), None)
    exits, exits_from = _first(has_own, own, of_ratio, of_cost)
    ratio_exits, ratio_from = _first(has_own, own, of_cost)
    return TaskResult(
        task=task,
        exits=exits,
        exits_from=exits_from,
        columns={metric: _column(task, metric, exits) for metric in METRICS},
        ratio=_ratio(task, ratio_exits),
        ratio_from=ratio_from,
        implied=[] if has_own else implied,
        bounds={} if exits else _bounds(task, implied),
        missing=_missing(task),
    )


def _first(has_own: bool, own: Sequence[Cell], *implied: Implied | None) -> tuple[list[Cell], str]:
    if has_own:
        return list(own), "table"
    for one in implied:
        if one is not None:
            return one.cells(), one.by
    return [], ""


def _column(task: TaskCells, metric: str, exits: Sequence[Cell]) -> Column:
    costs = [tier.costs[metric] for tier in task.tiers]
    best = task.best_single[metric]
    if not best.is_known and costs and costs[-1].is_known:
        best = Cell(costs[-1].value, "inferred", "the last tier is the best single model")
    computed = {}
    for kind in Accounting:
        cells = [*exits, *costs]
        if kind is Accounting.REACH_SERIAL:
            cells += [tier.members for tier in task.tiers]
        is_known = bool(exits) and all(cell.is_known for cell in cells)
        computed[kind.value] = Cell(_average(task, metric, exits, kind), worst(cells)) if is_known else Cell()
    return Column(task.cascade[metric], computed, best)


def _average(task: TaskCells, metric: str, exits: Sequence[Cell], kind: Accounting) -> float:
    charged = []
    for tier in task.tiers:
        n_members = round(tier.members.value or 1) if kind is Accounting.REACH_SERIAL else 1
        charged.append([tier.costs[metric].value or 0.0] * n_members)
    return average_cost(_shares(exits), charged, kind)


def _shares(exits: Sequence[Cell]) -> list[float]:
    """Printed shares are rounded: they are scaled to sum to 1."""
    values = [cell.value or 0.0 for cell in exits]
    return [value / sum(values) for value in values]


def _ratio(task: TaskCells, exits: Sequence[Cell]) -> Cell:
    if not exits or not task.delays_s:
        return Cell()
    return Cell(communication_ratio(_shares(exits), task.delays_s), worst(exits))


def _bounds(task: TaskCells, implied: Sequence[Implied]) -> dict[str, dict[str, tuple[float, float]]]:
    """What a metric must lie between, over all exits that the strongest implication leaves."""
    strongest = [one for one in implied if one.by == "ratio and cost"] or list(implied)
    corners = np.concatenate([one.exits for one in strongest]) if strongest else np.zeros((0, 0))
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for metric in METRICS:
        costs = [tier.costs[metric].value for tier in task.tiers]
        if not len(corners) or any(cost is None for cost in costs):
            continue
        charged = [[cost or 0.0] for cost in costs]
        for kind in (Accounting.EXIT, Accounting.REACH):
            values = [average_cost(corner / corner.sum(), charged, kind) for corner in corners]
            found.setdefault(metric, {})[kind.value] = (min(values), max(values))
    return found


def _missing(task: TaskCells) -> list[str]:
    trail = f"table2.{task.name}"
    lines = [] if task.tiers else [f"{trail}.tiers"]
    for number, tier in enumerate(task.tiers):
        lines += [f"{trail}.tiers[{number}].exit"] if not tier.exit.is_known else []
        lines += [f"{trail}.tiers[{number}].{name}" for name, cell in tier.costs.items() if not cell.is_known]
        lines += [f"{trail}.tiers[{number}].members"] if not tier.members.is_known else []
    for place, cells in (("cascade", task.cascade), ("best_single", task.best_single)):
        lines += [f"{trail}.{place}.{name}" for name, cell in cells.items() if not cell.is_known]
    return lines + ([] if task.ratio.is_known else [f"{trail}.communication_ratio"])


def _wrong(number: int, row: WrongRow) -> WrongResult:
    agreed, wrong = row.cells["agreed"], row.cells["wrong"]
    shared = row.cells["large_wrong_too"]
    missing = [
        f"table3[{number}].{name}" for name, cell in row.cells.items() if not cell.is_known and name != "wrong_by_rate"
    ]
    return WrongResult(row, _share(wrong, agreed), _share(shared, wrong), missing)


def _share(part: Cell, whole: Cell) -> Cell:
    if part.value is None or not whole.value:
        return Cell()
    return Cell(part.value / whole.value, worst([part, whole]))
