"""`coe-sim paper`: the paper's own tables, and what follows from them by its arithmetic and by ours.

A printed number stands for all that round to it. What follows from several has a range: a cell *follows* where its own
range and that one meet.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from coe.cascade import Accounting, average_cost
from coe.config import Fields, Report, format_seconds, read_yaml
from sim import arguments
from sim.output import Figure, Part, Table
from sim.traces.costs import si_prefixed

TABLES = Path(__file__).parents[1] / "paper" / "tables.yaml"
METRICS = {"cost_usd_per_hour": "cost, USD/h", "latency_ms": "latency, ms", "flops": "FLOPs"}
BLUE, GREY = "#0072B2", "#8a8a8a"
NEAR = 1e-9  # of binary fractions


@dataclass(frozen=True, slots=True)
class Printed:
    """A number as it is printed: what it stands for lies from `low` to `high`."""

    text: str
    value: float
    low: float
    high: float

    @classmethod
    def read(cls, fields: Fields, key: str, given: object) -> Printed:
        """From "2.15e9" or a plain number; a finding where it is none."""
        try:
            number = Decimal(str(given))
            if not number.is_finite() or number < 0:
                raise InvalidOperation
        except InvalidOperation:
            fields.wrong(key, f'expected a number from 0 as it is printed, got {given!r} (write "0.10")')
            return cls("0", 0.0, 0.0, 0.0)
        half = Decimal(1).scaleb(int(number.as_tuple().exponent)) / 2
        return cls(str(given), *map(float, (number, number - half, number + half)))

    def meets(self, other: Printed) -> bool:
        slack = NEAR * max(abs(self.high), abs(other.high))
        return self.low <= other.high + slack and other.low <= self.high + slack


def exactly(value: float) -> Printed:
    return Printed(f"{value:g}", value, value, value)


def times(one: Printed, other: Printed) -> Printed:
    values = (one.value * other.value, one.low * other.low, one.high * other.high)
    return Printed(f"{values[0]:.4g}", *values)


def average(exits: Sequence[Printed], costs: Sequence[Printed]) -> Printed:
    """sum_i exit_i * cost_i, with the range of all exits that round to those printed and sum to 1."""
    value = sum(share.value * cost.value for share, cost in zip(exits, costs, strict=True))
    ends = []
    for sign, at in ((1, [cost.low for cost in costs]), (-1, [cost.high for cost in costs])):
        left = 1 - sum(share.low for share in exits)
        total = sum(share.low * cost for share, cost in zip(exits, at, strict=True))
        for place in sorted(range(len(at)), key=lambda place: sign * at[place]):
            more = min(max(left, 0.0), exits[place].high - exits[place].low)
            total, left = total + more * at[place], left - more
        ends.append(total)
    return Printed(f"{value:.4g}", value, *ends)


@dataclass(frozen=True, slots=True)
class Cell:
    """A printed cell beside what follows for it. `column`: "tier 1", .., "cascade" or "best single"."""

    task: str
    metric: str
    column: str
    printed: Printed
    computed: Printed

    @property
    def follows(self) -> bool:
        return self.printed.meets(self.computed)


@dataclass(frozen=True, slots=True)
class Task:
    """A task's rows of Table 2, tier by tier.

    Args:
        costs: by METRICS, one per tier; cascade, best: the last two columns, "exit" among them.
        prices: of each tier's GPU. delays_s: of Figure 5, one per tier; empty: the paper does not say which.
        ratio: of Figure 5, where it is known.
    """

    name: str
    exits: Sequence[Printed]
    costs: Mapping[str, Sequence[Printed]]
    cascade: Mapping[str, Printed]
    best: Mapping[str, Printed]
    prices: Sequence[Printed]
    delays_s: Sequence[float]
    ratio: Printed | None

    def cells(self) -> list[Cell]:
        """Every cell of the task's rows that follows from others."""
        shares = average([exactly(1)] * len(self.exits), self.exits)
        found = [Cell(self.name, "exit", "cascade", self.cascade["exit"], shares)]
        for number, (cost, price) in enumerate(zip(self.costs["cost_usd_per_hour"], self.prices, strict=True)):
            computed = times(self.exits[number], price)
            found.append(Cell(self.name, "cost_usd_per_hour", f"tier {number + 1}", cost, computed))
        for metric in METRICS:
            each = self.prices if metric == "cost_usd_per_hour" else self.costs[metric]
            found += [
                Cell(self.name, metric, "cascade", self.cascade[metric], average(self.exits, each)),
                Cell(self.name, metric, "best single", self.best[metric], each[-1]),
            ]
        return found

    def average(self, metric: str, kind: Accounting) -> float:
        """Of one example, from the printed numbers; their exits are scaled to sum to 1."""
        each = self.prices if metric == "cost_usd_per_hour" else self.costs[metric]
        total = sum(share.value for share in self.exits)
        return average_cost([share.value / total for share in self.exits], [[one.value] for one in each], kind)

    @property
    def communication(self) -> Printed | None:
        """d_last / sum_i exit_i * d_i; None where the delays are not known."""
        if not self.delays_s:
            return None
        spent, last = average(self.exits, list(map(exactly, self.delays_s))), self.delays_s[-1]
        return Printed(f"{last / spent.value:.2f}", last / spent.value, last / spent.high, last / spent.low)


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A row of Table 3: of the wrong agreements, those that the large model gets wrong too, in percent."""

    task: str
    models: int
    threshold: str
    wrong: Printed
    large: Printed
    rate: Printed

    @property
    def computed(self) -> float:
        """In percent."""
        return 100 * self.large.value / self.wrong.value

    @property
    def follows(self) -> bool:
        return self.rate.meets(exactly(self.computed))

    @property
    def correct(self) -> int | None:
        """The large model's errors that the rate asks for; None where the row is right, or no whole number fits."""
        found = round(self.wrong.value * self.rate.value / 100)
        fits = self.rate.meets(exactly(100 * found / self.wrong.value))
        return None if self.follows or not fits else found


@dataclass(frozen=True, slots=True)
class Paper:
    """All tables."""

    gpus: Mapping[str, Printed]
    tasks: Sequence[Task]
    table3: Sequence[WrongRow]


def read_tables(path: Path) -> Paper:
    """The tables in a YAML file.

    Raises:
        ConfigError: every finding at once.
    """
    report = Report(str(path))
    fields = Fields(read_yaml(path), report)
    fields.text("status", "")
    prices = fields.section("gpus")
    gpus = {str(name): exactly(Printed.read(prices, str(name), prices.content[name]).value) for name in prices.content}
    delays = fields.numbers("delays_s")
    tasks = [_task(name, entry, list(gpus.values()), delays) for name, entry in fields.entries("table2")]
    table3 = fields.section("table3", {})
    rows = [row for name in table3.content for row in _wrong_rows(table3, str(name))]
    fields.finish()
    report.check()
    return Paper(gpus, tasks, rows)


def _task(name: str, fields: Fields, prices: Sequence[Printed], delays: Sequence[float]) -> Task:
    fields.integer("total", 0)
    columns: dict[str, list[Printed]] = {}
    for key in ("exit", *METRICS):
        given = fields.raw(key, expected="a list of cells")
        cells = given if isinstance(given, list) else []
        columns[key] = [Printed.read(fields, f"{key}[{at}]", cell) for at, cell in enumerate(cells)]
        if not len(cells) == len(columns["exit"]) >= 3:
            fields.wrong(key, f"expected a cell for each tier, CoE and the best model, got {len(cells)}")
            columns[key] = [exactly(1.0)] * max(len(columns["exit"]), 3)
    n = len(columns["exit"]) - 2
    ratio = fields.raw("communication", None)
    found = None if ratio is None else Printed.read(fields, "communication", ratio)
    if n > len(prices) or n > len(delays):
        fields.wrong("exit", f"expected at most {min(len(prices), len(delays))} tiers, of GPUs and delays, got {n}")
    known = [*delays[: n - 1], delays[-1]] if n in (2, len(delays)) else []  # of three, the paper does not say which
    fields.finish()
    return Task(
        name,
        columns["exit"][:n],
        {metric: columns[metric][:n] for metric in METRICS},
        {key: column[n] for key, column in columns.items()},
        {key: column[n + 1] for key, column in columns.items()},
        prices[:n],
        known,
        found,
    )


def _wrong_rows(fields: Fields, task: str) -> list[WrongRow]:
    rows = []
    for at, row in enumerate(fields.raw(task, [])):
        if not isinstance(row, list) or len(row) != 5:
            fields.wrong(f"{task}[{at}]", f"expected [models, threshold, wrong, large, rate], got {row!r}")
            continue
        numbers = [Printed.read(fields, f"{task}[{at}]", cell) for cell in row[2:]]
        rows.append(WrongRow(task, int(row[0]), str(row[1]), *numbers))
    return rows


def as_part(paper: Paper) -> Part:
    """The study, before it is printed or written."""
    cells = [cell for task in paper.tasks for cell in task.cells()]
    kinds = (Accounting.EXIT, Accounting.REACH)
    averages = [
        [task.name, words, task.cascade[metric].text, *(_number(task.average(metric, kind), metric) for kind in kinds),
         task.best[metric].text,
         *(f"{task.average(metric, kind) / task.best[metric].value:.2f}x" for kind in kinds)]
        for task in paper.tasks for metric, words in METRICS.items()
    ]  # fmt: skip
    tables = [
        Table("table1", "Table 1", ("GPU", "USD/h"), [[name, f"{one.value:.2f}"] for name, one in paper.gpus.items()]),
        Table("table2", "Table 2, cell by cell",
              ("task", "row", "column", "printed", "computed", "from", "to", "holds"),
              [_cell_line(cell) for cell in cells],
              "computed: exit x price, sum_i exit_i x cell_i, or the last tier's; from, to: with all that round to "
              "what is printed.", 3),
        Table("averages", "Table 2 in two accountings",
              ("task", "metric", "printed", "exit", "reach", "best single", "exit /", "reach /"), averages,
              "exit: an example pays for the tier where it leaves, alone, as in the paper; reach: for every tier it "
              "reached. The last two: against the best single model.", 2),
        Table("communication", "communication (Figure 5)",
              ("task", "delays", "printed", "computed", "from", "to", "holds"), list(map(_ratio_line, paper.tasks)),
              "d_last / sum_i exit_i * d_i: times less than with the best model in the cloud.", 2),
        Table("table3", "Table 3",
              ("task", "models", "threshold", "wrong", "large wrong too", "rate", "computed", "holds"),
              [[row.task, str(row.models), row.threshold, row.wrong.text, row.large.text, f"{row.rate.text}%",
                f"{row.computed:.2f}%", _follows(row.follows)] for row in paper.table3]),
    ]  # fmt: skip
    return Part(
        "paper", "The paper's own numbers", verdict(paper), tables, content(paper), draw=lambda: _figures(paper)
    )


def _cell_line(cell: Cell) -> list[str]:
    computed = cell.computed
    numbers = [_number(value, cell.metric) for value in (computed.value, computed.low, computed.high)]
    words = METRICS.get(cell.metric, "exits")
    return [cell.task, words, cell.column, cell.printed.text, *numbers, _follows(cell.follows)]


def _ratio_line(task: Task) -> list[str]:
    found, printed = task.communication, task.ratio
    delays = ", ".join(map(format_seconds, task.delays_s)) or "not said"
    if found is None:
        return [task.name, delays, "-", "-", "-", "-", ""]
    numbers = [f"{value:.2f}x" for value in (found.value, found.low, found.high)]
    known = "" if printed is None else _follows(found.meets(printed))
    return [task.name, delays, "-" if printed is None else f"{printed.text}x", *numbers, known]


def _follows(is_so: bool) -> str:
    return "follows" if is_so else "DOES NOT FOLLOW"


def _number(value: float, metric: str) -> str:
    return si_prefixed(value) if metric == "flops" else f"{value:.3f}"


def claims(paper: Paper) -> list[dict[str, Any]]:
    """What the paper says of its tables in words: the claim, what the tables give, and whether that is it."""
    tasks = paper.tasks
    ratios = {metric: max(one.best[metric].value / one.cascade[metric].value for one in tasks) for metric in METRICS}
    apart = max((one.communication.value for one in tasks if one.communication is not None), default=0.0)
    shares = [(row.correct or row.large.value) / row.wrong.value for row in paper.table3]
    cheaper = all(one.cascade[metric].value < one.best[metric].value for one in tasks for metric in METRICS)
    found: list[tuple[str, Any, bool]] = [
        ("up to 7x lower average cost of inference", max(ratios["flops"], ratios["latency_ms"]),
         max(ratios["flops"], ratios["latency_ms"]) >= 6.5),
        ("over 3x lower monetary cost", ratios["cost_usd_per_hour"], ratios["cost_usd_per_hour"] > 3),
        ("14x lower communication", apart, 13.5 <= apart < 14.5),
        ("cheaper than the best model in all three metrics, by exit", cheaper, cheaper),
    ]  # fmt: skip
    if shares:
        spread = [min(shares), max(shares)]
        found.append(("the large model is wrong on 1/2 to 3/4 of the wrong agreements", spread,
                      spread[0] >= 0.5 and spread[1] <= 0.75))  # fmt: skip
    return [{"claim": claim, "tables": value, "follows": is_so} for claim, value, is_so in found]


def verdict(paper: Paper) -> list[str]:
    """What follows, what does not, and what is left open."""
    cells = [cell for task in paper.tasks for cell in task.cells()]
    bad = [cell for cell in cells if not cell.follows]
    lines = [f"Table 2: {len(cells) - len(bad)} of {len(cells)} cells follow from the others, within their rounding."]
    lines += [
        f"{cell.task}, {METRICS.get(cell.metric, 'exits')}, {cell.column}: {cell.printed.text} DOES NOT FOLLOW: "
        f"{cell.computed.text} ({cell.computed.low:.4g} to {cell.computed.high:.4g})" for cell in bad
    ]  # fmt: skip
    for task in paper.tasks:
        found = task.communication
        if found is not None and task.ratio is not None:
            lines.append(f"{task.name}, communication: {task.ratio.text}x {_follows(found.meets(task.ratio))}: "
                         f"{found.text}x.")  # fmt: skip
        for metric, words in METRICS.items():
            over = task.average(metric, Accounting.REACH) / task.best[metric].value
            if over > 1:
                lines.append(f"{task.name}, {words}: charged for every tier reached, the cascade costs {over:.2f}x its "
                             "best single model.")  # fmt: skip
    for row in paper.table3:
        if not row.follows:
            wanted = "" if row.correct is None else f", so {row.large.text} must be {row.correct:,}"
            lines.append(
                f"Table 3, {row.task} with {row.models} models at {row.threshold}: {row.large.text} of "
                f"{row.wrong.text} is {row.computed:.2f}%, and {row.rate.text}% is printed{wanted}."
            )
    lines += [f'"{one["claim"]}" does not follow from the tables: {_in_words(one["tables"])}.'
              for one in claims(paper) if not one["follows"]]  # fmt: skip
    lines.append("Table 2 and Figure 5 charge an example for the tier where it leaves alone (exit); what it pays for "
                 "every tier it reached (reach) is larger.")  # fmt: skip
    lines.append("Which delays a cascade of three tiers has is not said in the paper.")
    return lines


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "they say otherwise"
    return " to ".join(f"{one:.0%}" for one in value) if isinstance(value, list) else f"{value:.2f}x at most"


def content(paper: Paper) -> dict[str, Any]:
    """The JSON."""
    return {
        "table1": {name: one.value for name, one in paper.gpus.items()},
        "table2": {task.name: _task_content(task) for task in paper.tasks},
        "communication": {task.name: _ratio_content(task) for task in paper.tasks},
        "table3": [
            {"task": row.task, "models": row.models, "threshold": float(row.threshold), "wrong": int(row.wrong.value),
             "large_wrong_too": int(row.large.value), "rate": row.rate.value, "rate_recomputed": row.computed,
             "follows": row.follows, "correct": row.correct}
            for row in paper.table3
        ],
        "claims": claims(paper),
        "says": verdict(paper),
    }  # fmt: skip


def _task_content(task: Task) -> dict[str, Any]:
    found: dict[str, Any] = {"exits": [share.value for share in task.exits], "cells": []}
    for metric in METRICS:
        averages = {kind.value: task.average(metric, kind) for kind in (Accounting.EXIT, Accounting.REACH)}
        found[metric] = {"paper": task.cascade[metric].value, **averages, "best_single": task.best[metric].value,
                         "tiers": [cell.value for cell in task.costs[metric]]}  # fmt: skip
    for cell in task.cells():
        found["cells"].append({
            "row": cell.metric, "column": cell.column, "printed": cell.printed.value, "computed": cell.computed.value,
            "low_high": [cell.computed.low, cell.computed.high], "follows": cell.follows,
        })  # fmt: skip
    return found


def _ratio_content(task: Task) -> dict[str, Any]:
    found, printed = task.communication, task.ratio
    return {
        "ratio": None if found is None else found.value,
        "low_high": None if found is None else [found.low, found.high],
        "paper": None if printed is None else printed.value,
        "delays_s": list(task.delays_s) or None,
        "follows": None if found is None or printed is None else found.meets(printed),
    }


def _figures(paper: Paper) -> list[Figure]:
    """Figures 4, 5 and 7 as the printed numbers give them."""
    from sim.charts import grouped_bars, stacked_bars

    tasks = paper.tasks
    names = [task.name.replace(" ", "\n", 1) for task in tasks]
    parts, colours = ("cascade of ensembles", "best single model"), (BLUE, GREY)
    costs = [[task.cascade["cost_usd_per_hour"].value, task.best["cost_usd_per_hour"].value] for task in tasks]
    apart = [task for task in tasks if task.delays_s]
    spent = [[average(one.exits, list(map(exactly, one.delays_s))).value, one.delays_s[-1]] for one in apart]
    most = max(len(task.exits) for task in tasks)
    shares = [[one.value for one in task.exits[:-1]] + [0.0] * (most - len(task.exits)) + [task.exits[-1].value]
              for task in tasks]  # fmt: skip
    return [
        grouped_bars(names, parts, costs, lambda value: f"${value:.2f}", name="cost", title="Price per hour (Figure 4)",
                     axis="US dollars per hour", colours=colours, caption="As printed in Table 2."),
        grouped_bars([f"{task.name.replace(' ', chr(10), 1)}\n{len(task.exits)} tiers" for task in apart], parts, spent,
                     format_seconds, name="communication", title="Communication of an example (Figure 5)",
                     axis="mean delay", colours=colours,
                     caption="sum_i exit_i * d_i from the printed exits: 1 us at the first tier, 1 s at the last and, "
                     "of four, 10 ms and 100 ms between; the best model is asked of every example, 1 s away. The "
                     "delays of three tiers are not said."),
        stacked_bars([task.name for task in tasks], [*(f"tier {n}" for n in range(1, most)), "last tier"], shares,
                     name="exits", title="Where examples exit (Table 2; Figure 7)", axis="share of examples",
                     caption="As printed in Table 2."),
    ]  # fmt: skip


NAME = "paper"
HELP = "the paper's own numbers, recomputed (Tables 1 to 3, Figures 4, 5 and 7)"
DESCRIPTION = "Each cell of the paper's tables beside what follows for it from the others, with their rounding."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tables", type=Path, metavar="FILE", help="YAML of the tables; default: the printed ones")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    return as_part(read_tables(options.tables or TABLES))
