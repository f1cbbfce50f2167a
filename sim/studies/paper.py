"""`coe-sim paper`: the paper's own numbers beside what follows from them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coe.cascade import Accounting
from coe.config import format_seconds
from sim import arguments
from sim.output import Figure, Part, Table
from sim.traces.costs import si_prefixed

from .paper_tables import (
    METRICS,
    TABLES,
    Cell,
    Implied,
    Paper,
    Tables,
    TaskResult,
    WrongResult,
    read_tables,
    recompute,
    worst,
)

__all__ = ["TABLES", "Paper", "Tables", "as_part", "read_tables", "recompute"]


UNITS = {"latency_ms": "latency, ms", "cost_usd_per_hour": "cost, USD/h", "flops": "FLOPs"}
BLUE, GREY = "#0072B2", "#8a8a8a"
NOTE = "~ inferred, not printed (tables.yaml says how); - a cell is not carried, and nothing is made up for it."


def as_part(paper: Paper) -> Part:
    """The study, before it is printed or written."""
    accountings = [kind.value for kind in Accounting]
    tables = [
        Table("table2", "Table 2, recomputed",
              ("task", "metric", "paper", *accountings, "best single", "exit /", "reach /"),
              [_line(one, metric) for one in paper.tasks for metric in METRICS],
              f"The last two: against the best single model. {NOTE}", 2),
        Table("communication", "communication (Figure 5)", ("task", "delays", "paper", "recomputed", "exits from"),
              [_communication(one) for one in paper.tasks],
              "recomputed: d_last / sum_i exit_i * d_i, from the table's exits or from those the printed cost implies.",
              2),
        Table("implied", "exits that a printed number implies", ("task", "by", "exits", "arithmetic"),
              [line for one in paper.tasks for line in _implied(one)], "", 4),
        Table("bounds", "bounds, where the exits are not carried", ("task", "metric", "accounting", "from", "to"),
              [line for one in paper.tasks for line in _bounds(one)], "", 3),
        Table("table3", "Table 3",
              ("task", "models", "agreed", "wrong", "by its own rate", "rate", "wrong / agreed", "large wrong too"),
              [_wrong(row) for row in paper.table3], NOTE),
        Table("missing", "not carried: fill in tables.yaml from the paper", ("where", "cells"),
              _grouped(paper.missing), "", 2),
    ]  # fmt: skip
    shown = [table for table in tables if table.lines]
    return Part("paper", "The paper's own numbers", verdict(paper), shown, content(paper), draw=lambda: _figures(paper))


def _grouped(missing: Sequence[str]) -> list[list[str]]:
    """(trail, its missing cells), one line for each row of the file."""
    groups: dict[str, list[str]] = {}
    for line in missing:
        trail, _, cell = line.partition(": ")[0].rpartition(".")
        groups.setdefault(trail or cell, []).append(cell)
    return [[trail, ", ".join(cells)] for trail, cells in groups.items()]


def verdict(paper: Paper) -> list[str]:
    """What follows, and what is left open."""
    lines = []
    for one in paper.tasks:
        lines += _follows(one)
    costs = [cell.value for cell in paper.tables.open_costs if cell.value is not None]
    if costs and any(not one.columns["cost_usd_per_hour"].paper.is_known for one in paper.tasks):
        names = [one.task.name for one in paper.tasks if not one.columns["cost_usd_per_hour"].paper.is_known]
        lines.append(f"Costs of {', '.join(f'{cost:.2f}' for cost in costs)} USD/h are those of {' and '.join(names)}, "
                     "which of them whose is not known here.")  # fmt: skip
    for row in paper.table3:
        wrong, by_rate = row.row.cells["wrong"].value, row.row.cells["wrong_by_rate"].value
        if wrong is not None and by_rate is not None and wrong != by_rate:
            lines.append(
                f"Table 3, {row.row.task} with {row.row.models} models: {wrong:,.0f} wrong agreements are printed, and "
                f"the row's own rate comes to about {by_rate:,.0f}, as if a digit were lost."
            )
    if any(column.computed["exit"].status == "inferred" for one in paper.tasks for column in one.columns.values()):
        lines.append("What fits, and does not follow, rests on inferred numbers too, which were chosen to agree with "
                     "printed ones: it shows that they go together, not that each is right.")  # fmt: skip
    lines.append("Table 2 and Figure 5 charge an example for the tier where it leaves alone (exit); what it pays for "
                 "every tier it reached (reach) is larger.")  # fmt: skip
    lines.append("The delays of a cascade of three tiers are not said in the paper.")
    if paper.missing:
        lines.append(f"{len(paper.missing)} cells are not carried: fill a copy of {paper.tables.source} from the paper "
                     "and give it with --tables.")  # fmt: skip
    return lines


def _follows(one: TaskResult) -> list[str]:
    lines = []
    name = one.task.name
    for metric, column in one.columns.items():
        paper, by_exit, by_reach = column.paper, column.computed["exit"], column.computed["reach"]
        if paper.value is not None and by_exit.value is not None:
            # Within the rounding of a number printed with two decimals, or to three digits where it is large.
            agrees = abs(by_exit.value - paper.value) <= max(0.01, 0.005 * paper.value) + 1e-9
            fits = _fits(agrees, worst([paper, by_exit]))
            lines.append(
                f"{name}, {UNITS[metric]}: {_number(paper, metric)} {fits}: {_number(by_exit, metric)} by exit "
                f"({_status(by_exit)}; exits from the {one.exits_from})."
            )
        best = column.best_single.value
        if best and by_reach.value is not None and by_reach.value > best:
            lines.append(f"{name}, {UNITS[metric]}: charged for every tier reached, the cascade costs "
                         f"{by_reach.value / best:.2f}x its best single model.")  # fmt: skip
    if one.task.ratio.value is not None and one.ratio.value is not None:
        agrees = abs(one.ratio.value - one.task.ratio.value) <= 0.1 + 1e-9
        fits = _fits(agrees, worst([one.task.ratio, one.ratio]))
        lines.append(f"{name}, communication: {one.task.ratio.value:g}x {fits}: {one.ratio.value:.2f}x "
                     f"({_status(one.ratio)}; exits from the {one.ratio_from}).")  # fmt: skip
    return lines


def _fits(agrees: bool, status: str) -> str:
    """Inferred numbers were chosen to agree: that they do shows no more than that the printed ones fit together."""
    if status == "printed":
        return "follows" if agrees else "DOES NOT FOLLOW"
    return "fits" if agrees else "DOES NOT FIT"


def content(paper: Paper) -> dict[str, Any]:
    """The JSON."""
    return {
        "table1": list(paper.tables.table1) or None,
        "table2": {one.task.name: _task_content(one) for one in paper.tasks},
        "communication": {
            one.task.name: {
                "ratio": one.ratio.value,
                "paper": one.task.ratio.value,
                "delays_s": list(one.task.delays_s) or None,
                "exits_from": one.ratio_from or None,
                "status": one.ratio.status,
            }
            for one in paper.tasks
        },
        "table3": [_wrong_content(row) for row in paper.table3],
        "implied": {one.task.name: [_implied_content(each) for each in one.implied] for one in paper.tasks},
        "open_costs_usd_per_hour": [cell.value for cell in paper.tables.open_costs],
        "says": verdict(paper),
        "missing": paper.missing,
    }


def _task_content(one: TaskResult) -> dict[str, Any]:
    found: dict[str, Any] = {
        "exits": {"value": [cell.value for cell in one.exits] or None, "from": one.exits_from or None,
                  "status": max((cell.status for cell in one.exits), default="missing")}
    }  # fmt: skip
    for metric, column in one.columns.items():
        computed = {name.replace("-", "_"): cell for name, cell in column.computed.items()}
        cells = {"paper": column.paper, **computed, "best_single": column.best_single}
        found[metric] = {name: cell.value for name, cell in cells.items()}
        found[metric]["status"] = {name: cell.status for name, cell in cells.items()}
        if metric in one.bounds:
            found[metric]["bounds"] = {kind: list(ends) for kind, ends in one.bounds[metric].items()}
    return found


def _wrong_content(row: WrongResult) -> dict[str, Any]:
    cells = {**row.row.cells, "rate_recomputed": row.rate, "large_wrong_too_share": row.large_share}
    return {
        "task": row.row.task,
        "models": row.row.models,
        **{name: cell.value for name, cell in cells.items()},
        "status": {name: cell.status for name, cell in cells.items()},
    }


def _implied_content(one: Implied) -> dict[str, Any]:
    low, high = one.exits.min(axis=0), one.exits.max(axis=0)
    return {
        "by": one.by,
        "exits": one.exits[0].tolist() if one.is_exact else None,
        "least": low.tolist(),
        "most": high.tolist(),
        "arithmetic": one.arithmetic,
        "status": one.status,
    }


def _line(one: TaskResult, metric: str) -> list[str]:
    column = one.columns[metric]
    best = column.best_single.value
    against = [
        "-" if not best or cell.value is None else f"{cell.value / best:.2f}x"
        for cell in (column.computed["exit"], column.computed["reach"])
    ]
    cells = [column.paper, *column.computed.values(), column.best_single]
    return [one.task.name, UNITS[metric], *(_number(cell, metric) for cell in cells), *against]


def _number(cell: Cell, metric: str) -> str:
    if cell.value is None:
        return "-"
    text = si_prefixed(cell.value) if metric == "flops" else f"{cell.value:.2f}"
    return f"~{text}" if cell.status == "inferred" else text


def _status(cell: Cell) -> str:
    return "from printed numbers" if cell.status == "printed" else "from inferred numbers too"


def _communication(one: TaskResult) -> list[str]:
    mark = "~" if one.ratio.status == "inferred" else ""
    return [
        one.task.name,
        ", ".join(map(format_seconds, one.task.delays_s)) or "not said",
        "-" if one.task.ratio.value is None else f"{one.task.ratio.value:g}x",
        "-" if one.ratio.value is None else f"{mark}{one.ratio.value:.2f}x",
        one.ratio_from or "-",
    ]


def _implied(one: TaskResult) -> list[list[str]]:
    lines = []
    for each in one.implied:
        low, high = each.exits.min(axis=0), each.exits.max(axis=0)
        if each.is_exact:
            exits = " / ".join(f"{share:.3f}" for share in low)
        else:
            exits = " / ".join(f"{least:.2f}..{most:.2f}" for least, most in zip(low, high, strict=True))
        lines.append([one.task.name, each.by, exits, each.arithmetic])
    return lines


def _bounds(one: TaskResult) -> list[list[str]]:
    return [
        [one.task.name, UNITS[metric], kind, *(_number(Cell(end, "inferred"), metric) for end in ends)]
        for metric, kinds in one.bounds.items()
        for kind, ends in kinds.items()
    ]


def _wrong(row: WrongResult) -> list[str]:
    cells = row.row.cells
    counts = [_count(cells[name]) for name in ("agreed", "wrong", "wrong_by_rate")]
    rates = [_percent(cells["rate"]), _percent(row.rate)]
    return [row.row.task, str(row.row.models), *counts, *rates, _percent(row.large_share)]


def _count(cell: Cell) -> str:
    return "-" if cell.value is None else f"{'~' if cell.status == 'inferred' else ''}{cell.value:,.0f}"


def _percent(cell: Cell) -> str:
    return "-" if cell.value is None else f"{cell.value:.1%}"


def _figures(paper: Paper) -> list[Figure]:
    """Figures 4 and 5, of the tasks for which they follow."""
    from sim.charts import bar_chart

    costs = [(one.task.name, one.columns["cost_usd_per_hour"]) for one in paper.tasks]
    costs = [(name, column) for name, column in costs if column.computed["exit"].is_known]
    ratios = [
        (one.task.name if one.task.ratio.value is None else f"{one.task.name} (printed: {one.task.ratio.value:g}x)",
         one.ratio.value)
        for one in paper.tasks
        if one.ratio.value is not None
    ]  # fmt: skip
    figures = []
    if costs:
        bars = [
            (f"{name}, {which}", cell.value, colour)
            for name, column in costs
            for which, cell, colour in (
                ("cascade", column.computed["exit"], BLUE), ("best single", column.best_single, GREY))
            if cell.value is not None
        ]  # fmt: skip
        figures.append(
            bar_chart([name for name, _, _ in bars], [value for _, value, _ in bars], lambda value: f"${value:.2f}",
                  name="cost", title="Price per hour (Figure 4)", axis="US dollars per hour",
                  colours=[colour for _, _, colour in bars],
                  caption="By exit, as in the paper; GPU prices are inferred.")
        )  # fmt: skip
    if ratios:
        figures.append(
            bar_chart([name for name, _ in ratios], [value for _, value in ratios], lambda value: f"{value:.1f}x",
                  name="communication", title="Communication against the cloud alone (Figure 5)", axis="times less",
                  colours=[BLUE] * len(ratios), caption="d_last / sum_i exit_i * d_i, recomputed from the table's "
                  "exits or from those that the printed cost implies.")
        )  # fmt: skip
    return figures


NAME = "paper"
HELP = "the paper's own numbers, recomputed (Tables 1 to 3, Figures 4 and 5)"
DESCRIPTION = (
    "The printed numbers that are carried, each column that follows from them, in three accountings, "
    "and which cells are not carried. With the paper at hand: fill a copy of the tables, and give it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tables", type=Path, metavar="FILE", help="YAML of the tables; default: the bundled ones")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    return as_part(recompute(read_tables(options.tables or TABLES)))
