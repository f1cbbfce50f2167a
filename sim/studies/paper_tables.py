"""The paper's own tables as data, and what follows from them by its arithmetic and by ours.

Two tiers and one number give them exactly: a ratio R says sum_i exit_i * d_i = d_last / R, a cost C says
sum_i exit_i * price_i = C, and the exits sum to 1. With more tiers than numbers they lie between bounds. Rounding of
the printed numbers is passed over.

Nothing is filled in that does not follow: a column with a missing cell is None, and `missing` says which cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Accounting, average_cost, communication_ratio
from coe.config import Fields, Report, read_yaml

TABLES = Path(__file__).parents[1] / "paper" / "tables.yaml"
STATUSES = ("printed", "inferred", "missing")  # from the surest
METRICS = ("latency_ms", "cost_usd_per_hour", "flops")
EXITS_OFF = 0.02  # printed shares are rounded, and need not sum to 1 exactly


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table; `value` is None where it is missing."""

    value: float | None = None
    status: str = "missing"
    source: str = ""

    @property
    def is_known(self) -> bool:
        return self.value is not None


def worst(cells: Sequence[Cell]) -> str:
    """The status of what is computed from these cells: that of the least sure one."""
    return max((cell.status for cell in cells), key=STATUSES.index, default="printed")


@dataclass(frozen=True, slots=True)
class TierCells:
    """A tier's cells; `costs` by METRICS. Members as of its ensemble."""

    exit: Cell
    costs: Mapping[str, Cell]
    members: Cell


@dataclass(frozen=True, slots=True)
class TaskCells:
    """A task's rows of Table 2, and its ratio in Figure 5.

    Args:
        delays_s: one per tier; empty where the paper does not say them.
    """

    name: str
    tiers: Sequence[TierCells]
    cascade: Mapping[str, Cell]
    best_single: Mapping[str, Cell]
    delays_s: Sequence[float]
    ratio: Cell


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A row of Table 3. `wrong_by_rate`: what the row's own rate comes to, where that is known otherwise."""

    task: str
    models: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Tables:
    """All of them. `open_costs`: printed costs that are known to be of a task without one, not of which."""

    source: str
    about: str
    table1: Sequence[Any]
    tasks: Sequence[TaskCells]
    open_costs: Sequence[Cell]
    table3: Sequence[WrongRow]


def read_tables(path: Path) -> Tables:
    """The tables in a YAML file.

    Raises:
        ConfigError: every finding at once.
    """
    report = Report(str(path))
    fields = Fields(read_yaml(path), report)
    gpus = _cells(fields.section("gpus", {}))
    lists = Fields({f"delays_s[{place}]": each for place, each in enumerate(_rows(fields, "delays_s"))}, report)
    delays = {len(each): each for each in map(lists.numbers, lists.content)}
    tables = Tables(
        source=str(path),
        about=fields.text("about", ""),
        table1=_rows(fields, "table1"),
        tasks=[_task(name, entry, gpus, delays) for name, entry in fields.entries("table2")],
        open_costs=[_cell(entry, "value", entry.content) for entry in _list(fields, "open_costs")],
        table3=[_wrong(entry) for entry in _list(fields, "table3")],
    )
    fields.finish()
    report.check()
    return tables


def _rows(fields: Fields, key: str) -> list[Any]:
    """A list of anything; empty where it is not there."""
    given = fields.raw(key, [])
    if not isinstance(given, list):
        fields.wrong(key, f"expected a list, got {given!r} (write [..], or leave it out)")
        return []
    return given


def _list(fields: Fields, key: str) -> list[Fields]:
    return fields.sections(key) if fields.has(key) else []


def _task(name: str, fields: Fields, gpus: Mapping[str, Cell], delays: Mapping[int, Sequence[float]]) -> TaskCells:
    tiers = [_tier(entry, gpus) for entry in _list(fields, "tiers")]
    exits = [tier.exit.value for tier in tiers]
    shares = [share for share in exits if share is not None]
    if shares and len(shares) == len(exits) and abs(sum(shares) - 1) > EXITS_OFF:
        fields.wrong("tiers", f"expected exit shares that sum to 1, got {sum(shares):g} (write 0.93 and 0.07)")
    own = fields.numbers("delays_s", ()) if fields.has("delays_s") else delays.get(len(tiers), ())
    if own and len(own) != len(tiers):
        fields.wrong("delays_s", f"expected {len(tiers)} delays, one per tier, got {len(own)}")
    task = TaskCells(
        name=name,
        tiers=tiers,
        cascade=_metrics(fields.section("cascade", {})),
        best_single=_metrics(fields.section("best_single", {})),
        delays_s=own,
        ratio=_take(fields, "communication_ratio"),
    )
    fields.finish()
    return task


def _tier(fields: Fields, gpus: Mapping[str, Cell]) -> TierCells:
    exits = _take(fields, "exit")
    if exits.value is not None and exits.value > 1:
        fields.wrong("exit", f"expected a share from 0 to 1, got {exits.value:g} (write 0.93 for 93%)")
    costs = {metric: _take(fields, metric) for metric in METRICS}
    gpu = fields.text("gpu", "")
    if gpu and not costs["cost_usd_per_hour"].is_known:
        if gpu not in gpus:
            fields.wrong("gpu", f'expected one of {", ".join(gpus) or "the gpus above"}, got "{gpu}" (add its price)')
        costs["cost_usd_per_hour"] = gpus.get(gpu, Cell())
    members = _take(fields, "members")
    if members.value is not None and (members.value < 1 or members.value % 1):
        fields.wrong("members", f"expected a whole number from 1, got {members.value:g} (write 3)")
    fields.finish()
    return TierCells(exits, costs, members)


def _wrong(fields: Fields) -> WrongRow:
    names = ("agreed", "wrong", "wrong_by_rate", "rate", "large_wrong_too")
    row = WrongRow(fields.text("task"), fields.integer("models", 0), {name: _take(fields, name) for name in names})
    fields.finish()
    return row


def _metrics(fields: Fields) -> dict[str, Cell]:
    cells = {metric: _take(fields, metric) for metric in METRICS}
    fields.finish()
    return cells


def _cells(fields: Fields) -> dict[str, Cell]:
    return {str(key): _take(fields, str(key)) for key in fields.content}


def _take(fields: Fields, key: str) -> Cell:
    """The cell at `key`; missing where it is not there."""
    return _cell(fields, key, fields.raw(key, None))


def _cell(fields: Fields, key: str, given: Any) -> Cell:
    if given is None:
        return Cell()
    if not isinstance(given, dict):
        return Cell(_number(fields, key, given), "printed", "the file")
    unknown = sorted(set(given) - {"value", "status", "source"})
    if unknown:
        fields.wrong(key, f'expected value, status and source, got "{unknown[0]}" (leave it out)')
    value = _number(fields, key, given.get("value"))
    status = given.get("status", "missing" if value is None else "printed")
    if status not in STATUSES or (status == "missing") != (value is None):
        wanted = "missing" if value is None else "printed or inferred"
        fields.wrong(key, f'expected the status {wanted}, got "{status}" (correct it, or leave it out)')
        return Cell()
    return Cell(value, str(status), str(given.get("source", "")))


def _number(fields: Fields, key: str, given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < float("inf"):
        fields.wrong(key, f"expected a number from 0, or null, got {given!r}")
        return None
    return float(given)


OFF = 1e-9
Row = tuple[Sequence[float], float]


@dataclass(frozen=True, slots=True)
class Implied:
    """Exits (V, T) that fit, one row where they are exact, else the corners of what is possible.

    Args:
        by: which printed number they follow from.
        arithmetic: how, in one line.
        status: of the cells they follow from.
        rows: the equations: one weight per tier, and what the exits' weighted sum is.
    """

    by: str
    exits: NDArray[np.float64]
    arithmetic: str
    status: str
    rows: Sequence[Row]

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
    result = f"{task.delays_s[-1]:g} / {task.ratio.value:g} = {mean_s:.4f} s"
    return _solved("ratio", [(task.delays_s, mean_s)], f"{_terms(task.delays_s, 'g')} = {result}", "inferred")


def by_cost(task: TaskCells, cost: Cell) -> Implied | None:
    """From a printed cost per hour; None where a price is not known, or no exits fit."""
    prices = [tier.costs["cost_usd_per_hour"] for tier in task.tiers]
    values = [price.value for price in prices if price.value is not None]
    if cost.value is None or not prices or len(values) < len(prices):
        return None
    arithmetic = f"{_terms(values, '.2f')} = {cost.value:.2f} USD/h"
    return _solved("cost", [(values, cost.value)], arithmetic, worst([cost, *prices]))


def by_both(task: TaskCells, cost: Cell) -> Implied | None:
    """From ratio and cost together, where neither alone is enough (three tiers and more)."""
    ratio, priced = by_ratio(task), by_cost(task, cost)
    if ratio is None or priced is None or len(task.tiers) < 3:
        return None
    arithmetic = f"{ratio.arithmetic}; {priced.arithmetic}"
    return _solved("ratio and cost", [*ratio.rows, *priced.rows], arithmetic, priced.status)


def _terms(weights: Sequence[float], form: str) -> str:
    return " + ".join(f"exit_{number} * {weight:{form}}" for number, weight in enumerate(weights, start=1))


def _solved(by: str, rows: Sequence[Row], arithmetic: str, status: str) -> Implied | None:
    corners = _corners(rows)
    return None if corners is None else Implied(by, corners, arithmetic, status, rows)


def _corners(rows: Sequence[Row]) -> NDArray[np.float64] | None:
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
    tasks = [_task_result(task, tables.open_costs) for task in tables.tasks]
    return Paper(tables, tasks, [_wrong_result(number, row) for number, row in enumerate(tables.table3)])


def _task_result(task: TaskCells, open_costs: Sequence[Cell]) -> TaskResult:
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


def _wrong_result(number: int, row: WrongRow) -> WrongResult:
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
