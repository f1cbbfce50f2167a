"""What the study prints and draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coe.cascade import Accounting

from ...charts.series import OURS, Series
from ...parts import Figure, Part, Table
from ...traces import Costs
from .choose import Values
from .study import Method, Study

MEANING = {
    Accounting.EXIT: "each example pays for the tier where it leaves",
    Accounting.REACH: "each example pays for every tier it passed, members side by side",
    Accounting.REACH_SERIAL: "each example pays for every member of every tier it passed",
}


def as_part(study: Study) -> Part:
    costs = study.choices.costs[0]
    return Part(
        f"{study.trace.name}-pareto",
        f"Accuracy against cost: {study.trace.name}",
        [*_verdict(study), *(f"left out: {reason}" for reason in study.left_out)],
        [_picks(study, one) for one in study.choices.costs],
        _content(study),
        {"points": _points(study)},
        lambda: _figures(study, costs),
    )


def _value(method: Method, costs: Costs, accounting: Accounting) -> float:
    return float(method.chosen.costs[costs.kind, accounting][method.pick])


def _best_single(study: Study) -> tuple[float, dict[str, float]]:
    """Its accuracy on the report split, and its cost of each kind."""
    of = {one.kind: one.of[study.best_single] for one in study.choices.costs}
    return study.report.accuracy(study.best_single), of


def _picks(study: Study, costs: Costs) -> Table:
    """Each method's drop-in for the best single model."""
    accuracy, of = _best_single(study)
    best = of[costs.kind]
    lines = [
        [
            f"best single: {study.best_single}",
            f"{accuracy:.2%}",
            "",
            *["1.00x"] * len(Accounting),
            "",
            "100%",
            study.best_single,
        ]
    ]
    for method in study.methods:
        if method.name == "single models":
            continue
        own = method.chosen
        shares = _shares(method, method.pick)
        ratios = [f"{_value(method, costs, kind) / best:.2f}x" if best else "-" for kind in Accounting]
        lines.append(
            [
                method.name + ("" if method.is_drop_in else " *"),
                f"{own.accuracy[method.pick]:.2%}",
                f"{own.accuracy[method.pick] - accuracy:+.2%}",
                *ratios,
                " / ".join(f"{share:.0%}" for share in shares),
                f"{1 - shares[0]:.0%}" if len(shares) > 1 else "-",
                own.candidates[method.pick].as_text(),
            ]
        )
    header = ("method", "accuracy", "difference", *(kind.value for kind in Accounting), "exits", "sent", "system")
    source = f": {costs.note.rstrip('.')}" if costs.note else ""
    note = (
        f"Chosen on {len(study.calibration):,} examples, reported on {len(study.report):,} others. Each method: the "
        f"cheapest by {study.choices.charged_by.value} that is at least as accurate as the best single model on "
        f"calibration; *: none is, the most accurate instead. Costs against {study.best_single} "
        f"({costs.text(best)}){source}. sent: the share of the examples that the first tier does not answer, "
        "so of the bytes that leave a device (the best single model in the cloud is sent all)."
    )
    return Table(f"drop-in-{costs.kind}", f"in place of the best single model, by {costs.axis}", header, lines, note)


def _shares(method: Method, row: int) -> list[float]:
    """Of each tier, of one choice."""
    n_tiers = len(method.chosen.candidates[row].charged)
    shares: list[float] = method.chosen.outcomes.shares[row, :n_tiers].tolist()
    return shares


def _verdict(study: Study) -> list[str]:
    ours = study.method(OURS)
    if ours is None:
        return ["no cascade of ensembles can be made of these models"]
    costs, accounting = study.choices.costs[0], study.choices.charged_by
    accuracy, of = _best_single(study)
    own = float(ours.chosen.accuracy[ours.pick])
    ratio = _value(ours, costs, accounting) / of[costs.kind] if of[costs.kind] else float("nan")
    outcome = "wins" if ratio < 1 and own >= accuracy else "loses" if ratio >= 1 and own <= accuracy else "trades"
    others = [
        f"{_value(ours, costs, kind) / of[costs.kind]:.2f}x by {kind.value}"
        for kind in Accounting
        if kind is not accounting and of[costs.kind]
    ]
    gain, margin = study.lead
    lines = [
        f"The cascade of ensembles {outcome} against {study.best_single}: {own:.2%} against {accuracy:.2%} "
        f"({gain:+.2%} +- {margin:.2%}, 95%), at {ratio:.2f}x its cost ({accounting.value}: {MEANING[accounting]}; "
        f"{', '.join(others)})."
    ]
    better = [
        f"{method.name} ({method.chosen.accuracy[method.pick]:.2%} at "
        f"{_value(method, costs, accounting) / of[costs.kind]:.2f}x)"
        for method in study.methods
        if method.name not in (OURS, "single models", "random deferral", "ideal rule")
        and method.chosen.accuracy[method.pick] >= own
        and _value(method, costs, accounting) <= _value(ours, costs, accounting)
        and of[costs.kind]
    ]
    if better:
        lines.append(f"As accurate or more, and no dearer than it: {'; '.join(better)}.")
    else:
        lines.append("No baseline's choice is both as accurate and as cheap.")
    if not study.is_complete:
        lines.append(f"{ours.tried:,} cascades were drawn at random from more.")
    return lines


def _content(study: Study) -> dict[str, Any]:
    accuracy, of = _best_single(study)
    return {
        "trace": study.trace.name,
        "n_calibration": len(study.calibration),
        "n_report": len(study.report),
        "cost": study.choices.costs[0].kind,
        "accounting": study.choices.charged_by.value,
        "best_single": {"model": study.best_single, "accuracy": accuracy, "costs": of},
        "lead": {"accuracy": study.lead[0], "margin_95": study.lead[1]},
        "methods": {method.name: _method_content(study, method) for method in study.methods},
        "left_out": list(study.left_out),
    }


def _method_content(study: Study, method: Method) -> dict[str, Any]:
    points = [_point(study, method, row) for row in range(len(method.chosen.candidates))]
    return {"tried": method.tried, "drop_in": method.pick, "is_drop_in": method.is_drop_in, "points": points}


def _point(study: Study, method: Method, row: int) -> dict[str, Any]:
    own = method.chosen
    shares = _shares(method, row)
    costs: dict[str, dict[str, float]] = {}
    for one in study.choices.costs:
        costs[one.kind] = {kind.value: float(own.costs[one.kind, kind][row]) for kind in Accounting}
    return {
        "system": own.candidates[row].as_text(),
        "accuracy": float(own.accuracy[row]),
        "calibration_accuracy": float(method.calibration_accuracy[row]),
        "exit": shares,
        "sent": 1 - shares[0] if len(shares) > 1 else None,
        "wrong_exit": own.outcomes.wrong[row, : len(shares)].tolist(),
        "costs": costs,
    }


def _points(study: Study) -> list[list[object]]:
    """Every chosen system as a row of a CSV."""
    kinds = [(one.kind, accounting) for one in study.choices.costs for accounting in Accounting]
    rows: list[list[object]] = [
        ["method", "drop_in", "calibration_accuracy", "accuracy",
         *(f"{kind} {by.value}" for kind, by in kinds), "exits", "system"]
    ]  # fmt: skip
    for method in study.methods:
        for row, candidate in enumerate(method.chosen.candidates):
            point = _point(study, method, row)
            rows.append(
                [method.name, row == method.pick, point["calibration_accuracy"], point["accuracy"],
                 *(point["costs"][kind][by.value] for kind, by in kinds),
                 " ".join(f"{share:.4f}" for share in point["exit"]), candidate.as_text()]
            )  # fmt: skip
    return rows


def _figures(study: Study, costs: Costs) -> list[Figure]:
    from ...charts.frontier import frontier

    accounting = study.choices.charged_by
    key = (costs.kind, accounting)
    axis = f"average {costs.axis}, accounting: {accounting.value}"
    paid = MEANING[accounting][0].upper() + MEANING[accounting][1:]
    singles = _singles(study, costs)
    series = [
        _series(method, key) for method in study.methods if method.name not in ("single models", "ensembles alone")
    ]
    floor = _floor([_series(study.methods[0], key), *series])
    n_chosen, n_told = len(study.calibration), len(study.report)
    chosen = f"{paid}. All choices on {n_chosen:,} examples, accuracy and cost on {n_told:,} others."
    figures = [
        frontier([singles, *series], axis, costs.text, name="methods", title="All methods (Figure 3)", floor=floor,
                 caption=f"Each line is what a method would choose, cheap to dear. {chosen}"),
    ]  # fmt: skip
    alone = study.method("ensembles alone")
    if alone is not None:
        figures.append(
            frontier([singles, _series(alone, key)], axis, costs.text, name="ensembles", floor=floor,
                     title="Ensembles alone (Figure 2)",
                     caption=f"Every example through one ensemble, nothing deferred. {chosen}")
        )  # fmt: skip
    ours = study.method(OURS)
    if ours is not None:
        cloud = _thinned(study.cloud)
        figures.append(
            frontier([singles, _series(ours, key)], axis, costs.text, name="set", title="The Pareto set (Figure 6)",
                     cloud=cloud, floor=floor,
                     caption=f"Dots: {len(cloud[0]):,} of {len(study.cloud[0]):,} cascades tried, on calibration; the "
                             f"line: their Pareto set there, as it does on the rest. {chosen}")
        )  # fmt: skip
    return figures


def _singles(study: Study, costs: Costs) -> Series:
    names = sorted(study.trace.models, key=lambda name: costs.of[name])
    accuracy = [study.report.accuracy(name) for name in names]
    return Series("single models", [costs.of[name] for name in names], accuracy, names if len(names) <= 12 else ())


def _series(method: Method, key: tuple[str, Accounting]) -> Series:
    values = method.chosen.costs[key]
    order = np.argsort(values, kind="stable")
    return Series(method.name, values[order].tolist(), method.chosen.accuracy[order].tolist())


def _floor(series: Sequence[Series]) -> float:
    """A little under what any method would choose: models far below it are named at the edge."""
    chosen = [accuracy for one in series for accuracy in one.accuracies]
    return min(chosen) - 0.15 * (max(chosen) - min(chosen) + 0.01)


def _thinned(cloud: tuple[Values, Values], most: int = 4000) -> tuple[Sequence[float], Sequence[float]]:
    step = max(1, len(cloud[0]) // most)
    return cloud[0][::step].tolist(), cloud[1][::step].tolist()
