"""`coe-sim models`: the Pareto set of a table of single models. Paper: Figure 6.

Predictions are not known, so no cascade can be replayed; what is worked out is what the single models leave on the
table, and how many examples a cascade must keep in a cheap first tier to cost less than the best of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.cascade import ConfigError
from coe.config import format_seconds
from coe.models.tables import SUFFIXES, read_table
from sim import arguments
from sim.output import Figure, Part, Series, Table
from sim.traces.costs import si_prefixed
from sim.traces.files import numbers_of

from .candidates import pareto_set

POINTS_BELOW = (1.0, 2.0, 5.0)  # percentage points under the best model


@dataclass(frozen=True, slots=True)
class CostColumn:
    """One cost: the models it is known of, and which of them are in the Pareto set (by rising cost)."""

    cost: str
    rows: NDArray[np.intp]
    costs: NDArray[np.float64]
    pareto_set: Sequence[int]


@dataclass(frozen=True, slots=True)
class ModelTable:
    source: str
    names: Sequence[str]
    accuracy: NDArray[np.float64]
    against: Sequence[CostColumn]

    def set_of(self, one: CostColumn) -> list[tuple[str, float, float]]:
        """(model, accuracy, cost) of each model in the Pareto set of a column, by rising cost."""
        rows = [(one.rows[at], one.costs[at]) for at in one.pareto_set]
        return [(self.names[row], float(self.accuracy[row]), float(cost)) for row, cost in rows]


def run(path: Path, accuracy: str, costs: Sequence[str]) -> ModelTable:
    """The study of a TSV or CSV table.

    Args:
        accuracy: the column of it, in percent or as a share.
        costs: columns; "1/name" for one of which more is cheaper (examples per second).
    Raises:
        ConfigError: no such file or column, or no model with an accuracy and a cost above 0.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(["expected a .tsv or .csv table"], str(path))
    table = read_table(path)
    wanted = [accuracy, *(cost.removeprefix("1/") for cost in costs), "model"]
    missing = [f"no column {name} (known: {', '.join(table)})" for name in wanted if name not in table]
    if missing:
        raise ConfigError(missing, str(path))
    values = numbers_of(path, accuracy, table[accuracy])
    if not np.isfinite(values).any():
        raise ConfigError([f"column {accuracy}: expected the accuracy of one model at least, got none"], str(path))
    values = values / 100 if np.nanmax(values) > 1 else values
    sizes = table.get("img_size")
    names = [f"{name} @{sizes[row]}" if sizes else name for row, name in enumerate(table["model"])]
    against = []
    for cost in costs:
        own = numbers_of(path, cost.removeprefix("1/"), table[cost.removeprefix("1/")])
        with np.errstate(divide="ignore"):  # none a second costs without end: left out
            own = 1 / own if cost.startswith("1/") else own
        rows = np.flatnonzero(np.isfinite(own) & np.isfinite(values) & (own > 0))
        if not rows.size:
            raise ConfigError([f"column {cost}: expected a number above 0 of one model at least, got none"], str(path))
        against.append(CostColumn(cost, rows, own[rows], pareto_set(own[rows], values[rows])))
    return ModelTable(path.name, names, values, against)


def as_part(study: ModelTable) -> Part:
    tables, verdict = [], []
    for one in study.against:
        accuracy = study.accuracy[one.rows]
        verdict.append(
            f"{one.cost}: {len(one.pareto_set)} of {len(one.rows):,} models are in the Pareto set; the most accurate "
            f"({accuracy[one.pareto_set[-1]]:.2%}) costs {_cheaper(one, accuracy)}."
        )
        tables.append(_headroom(study, one))
    keys = ("model", "accuracy", "cost")
    sets = {one.cost: [dict(zip(keys, row, strict=True)) for row in study.set_of(one)] for one in study.against}
    data = {f"set-{_slug(one.cost)}": [(*keys[:2], one.cost), *study.set_of(one)] for one in study.against}
    title, content = f"Single models: {study.source}", {"n": len(study.names), "sets": sets}
    return Part("models", title, verdict, tables, content, data, lambda: _figures(study))


def _cheaper(one: CostColumn, accuracy: NDArray[np.float64]) -> str:
    best = one.pareto_set[-1]
    parts = []
    for points in POINTS_BELOW:
        near = [at for at in one.pareto_set if accuracy[at] >= accuracy[best] - points / 100]
        parts.append(
            f"{one.costs[best] / one.costs[near[0]]:.3g}x as much as one {points:g} point{'s' * (points > 1)} below"
        )
    return ", ".join(parts)


def _headroom(study: ModelTable, one: CostColumn) -> Table:
    """What a first tier must keep: three members of the cost c of a cheap model, and the best for the rest."""
    accuracy = study.accuracy[one.rows]
    best = one.pareto_set[-1]
    text = _unit(one.cost)[1]
    lines = []
    for points in (0.0, *POINTS_BELOW, 10.0):
        at = next(at for at in one.pareto_set if accuracy[at] >= accuracy[best] - points / 100)
        share = one.costs[at] / one.costs[best]
        keep = [f"{min(share * members, 9.99):.1%}" if share * members < 1 else "cannot" for members in (1, 3)]
        lines.append(
            [study.names[one.rows[at]], f"{accuracy[at]:.2%}", text(float(one.costs[at])), f"{share:.3g}x", *keep]
        )
    header = ("model", "accuracy", one.cost, "of the best", "to break even: reach", "three, reach-serial")
    note = (
        "The cheapest models within 0, 1, 2, 5 and 10 points of the best. To break even: the share of examples that a "
        "first tier of such models must answer so that tier and best model together cost what the best costs alone."
    )
    return Table(_slug(one.cost), f"against {one.cost}", header, lines, note)


def _slug(cost: str) -> str:
    return cost.replace("1/", "per-").replace("_", "-")


def _unit(cost: str) -> tuple[str, Any]:
    """The label of the axis, and how one value is written."""
    if cost.startswith("1/"):
        return f"seconds per image ({cost})", format_seconds
    if cost == "gmacs":
        return "multiply-adds per image", lambda value: si_prefixed(value * 1e9)
    return cost, lambda value: f"{value:.3g}"


def _figures(study: ModelTable) -> list[Figure]:
    from sim.charts import frontier

    figures = []
    for one in study.against:
        accuracy = study.accuracy[one.rows]
        label, text = _unit(one.cost)
        at = list(one.pareto_set)
        figures.append(
            frontier(
                [Series("Pareto set", one.costs[at].tolist(), accuracy[at].tolist())],
                label, text, name=_slug(one.cost), title=f"Accuracy against {one.cost}",
                cloud=(one.costs.tolist(), accuracy.tolist()), floor=0.6,
                caption=f"{len(one.rows):,} models of {study.source}; the line joins those that no other model "
                        "beats in both. Models under 60% are out of view.",
            )
        )  # fmt: skip
    return figures


NAME = "models"
HELP = "the Pareto set of a table of single models (Figure 6)"
DESCRIPTION = "Which models of a table no other beats in accuracy and cost, and what that leaves to a cascade."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, metavar="TABLE", help="a .tsv or .csv table with a column `model`")
    parser.add_argument("--accuracy", default="top1", metavar="COLUMN", help="default: top1")
    parser.add_argument(
        "--cost",
        action="append",
        required=True,
        metavar="COLUMN",
        help="again for each; 1/COLUMN where more is cheaper, as examples per second are",
    )
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    return as_part(run(options.table, options.accuracy, options.cost))
