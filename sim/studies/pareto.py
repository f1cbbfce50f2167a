"""`coe-sim pareto`: accuracy against average cost of cascades of ensembles and of every baseline.

Paper: Figures 2, 3 and 6.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.calibration.bound import difference_interval, share_interval
from coe.cascade import Accounting, Agreement, ConfigError
from sim import arguments
from sim.output import OURS, Figure, Part, Progress, Series, Table
from sim.sweep import EnsembleVotes
from sim.traces import CALIBRATION, TEST, Costs, TierSpec, Trace, pick, read_costs, read_trace

from . import baselines
from .candidates import (
    Candidate,
    Choices,
    Measured,
    Shape,
    Values,
    cascade,
    differences,
    drop_in,
    measure,
    n_labels_of,
    pareto_set,
    shapes,
)
from .plan import table_of
from .replay import lead, replay_trace, with_limits

__all__ = ["Choices", "ParetoStudy", "as_part", "run"]

Cloud = tuple[Sequence[float], Sequence[float]]
N_METHODS = 13
SETTINGS = {"agreement 2/3": Fraction(2, 3), "agreement 100%": Fraction(1)}  # the paper's
CALIBRATED = "calibrated vote"
MOST_CALIBRATED = 2000  # tiers that a vote is fitted for
MOST_DOTS = 4000  # of the cascades tried, in a picture
SURE = 0.9  # level of the two-sided interval whose lower end is the margin: 95% to that side


@dataclass(frozen=True, slots=True)
class Method:
    """One method's chosen systems on the report split, by rising calibration cost.

    Args:
        pick: which of them is the drop-in: the cheapest that is shown on calibration (95%) to be as accurate as the
            best single model, or the most accurate where none is.
        is_drop_in: whether it was shown there.
        tried: systems swept on calibration.
        differing: (C, 2) examples of the report split where it alone is right, and where the best single model is.
        calibration_accuracy: (C,) of the chosen.
    """

    name: str
    chosen: Measured
    calibration_accuracy: Values
    pick: int
    is_drop_in: bool
    tried: int
    differing: NDArray[np.int64]

    def difference(self, row: int) -> tuple[float, float, float]:
        """Accuracy of one choice less that of the best single model, and its limits, 95%."""
        gains, losses = self.differing[row].tolist()
        return (gains - losses) / self.chosen.outcomes.n, *difference_interval(gains, losses, self.chosen.outcomes.n)


@dataclass(frozen=True)
class ParetoStudy:
    """Both splits, all methods.

    Args:
        settings: cascades of ensembles of one agreement setting in all tiers: 2/3, and all.
        cloud: (costs, accuracies) of every cascade tried, on calibration.
    """

    trace: Trace
    choices: Choices
    calibration: Trace
    report: Trace
    best_single: str
    methods: Sequence[Method]
    settings: Mapping[str, Method]
    cloud: tuple[Values, Values]
    is_complete: bool
    left_out: Sequence[str]

    @cached_property
    def lead(self) -> tuple[float, float, float]:
        """How much more accurate the chosen cascade is than the best single model, and its limits, 95%.

        Through `coe.cascade` itself, example by example; the sweep must have come to the same.
        """
        ours = self.method(OURS)
        if ours is None:
            return 0.0, 0.0, 0.0
        shape = ours.chosen.candidates[ours.pick].shape
        specs = [TierSpec(own, Agreement(Fraction(max(needed, 1), len(own)))) for own, needed in shape]
        replayed = replay_trace(self.report, specs)
        if replayed.wrong_exits != ours.chosen.outcomes.wrong[ours.pick, : len(specs)].tolist():
            raise AssertionError(f"the sweep and the cascade differ on {shape}")
        return lead(replayed.right, self.report.right(self.best_single))

    def method(self, name: str) -> Method | None:
        return next((one for one in self.methods if one.name == name), None)


def run(trace: Trace, choices: Choices, progress: Progress) -> ParetoStudy:
    """Choose on calibration, report on other examples. A method whose data the trace lacks is left out, with a note."""
    rng = np.random.default_rng(choices.seed)
    calibration, report = choices.splits(trace, rng)
    progress.start("sweeping methods", N_METHODS)
    chooser = _Chooser(choices, EnsembleVotes(calibration), EnsembleVotes(report), progress)
    cost = dict(choices.costs[0].of)
    found, is_complete = shapes(cost, choices.most, rng)
    chooser.calibration.count_all([members for shape in found for members, _ in shape])
    methods = [chooser.choose(baselines.singles(trace))]
    methods += [chooser.choose(baselines.alone(trace, cost, choices.most, rng))] if len(trace.models) > 1 else []
    cloud: tuple[Values, Values] = (np.zeros(0), np.zeros(0))
    settings: dict[str, Method] = {}
    if found:
        ours = chooser.measure(list(map(cascade, found)))
        cloud = (ours.costs[chooser.key], ours.accuracy)
        methods.append(chooser.choose_from(ours))
        settings = {name: one for name, share in SETTINGS.items() if (one := chooser.choose_by(ours, share))}
        methods += _variants(chooser, found, methods[-1].chosen.candidates, choices)
        methods += _calibrated(chooser, choices, rng)
    methods += _confidence(chooser, cost)
    progress.end()
    best, left_out = chooser.best_single, _left_out(trace, bool(found))
    return ParetoStudy(trace, choices, calibration, report, best, methods, settings, cloud, is_complete, left_out)


def _calibrated(chooser: _Chooser, choices: Choices, rng: np.random.Generator) -> list[Method]:
    most = min(choices.most, MOST_CALIBRATED)
    n_labels = max(n_labels_of(votes.trace) for votes in (chooser.calibration, chooser.report))
    found = baselines.calibrated(chooser.calibration, n_labels, choices.costs[0], choices.charged_by, most, rng)
    return [chooser.take_all(found)] if found else []


def _confidence(chooser: _Chooser, cost: dict[str, float]) -> list[Method]:
    trace = chooser.calibration.trace
    if not trace.has_scores or len(trace.models) < 2:
        return []
    others = [baselines.confidence(trace, cost), baselines.idk(chooser.calibration, cost)]
    if trace.has_probabilities:
        others += [baselines.idk_entropy(chooser.calibration, cost), baselines.committees(cost)]
    return list(map(chooser.choose, others))


def _variants(chooser: _Chooser, every: Sequence[Shape], chosen: Sequence[Candidate], choices: Choices) -> list[Method]:
    """Ensembles in tiers with other rules: by confidence any that could be had, else the chosen ones."""
    found = []
    if chooser.calibration.trace.has_scores:
        found.append(chooser.choose(baselines.of_ensembles(chooser.calibration, every, choices.most)))
    on_calibration = chooser.measure(chosen).outcomes
    random = []
    for one, exits in zip(chosen, on_calibration.exits.tolist(), strict=True):
        left = np.cumsum([0, *exits])[:-1]
        stays = [share / max(on_calibration.n - before, 1) for share, before in zip(exits, left.tolist(), strict=True)]
        random.append(baselines.random_deferral(one.shape, stays, choices.seed))
    found.append(chooser.take_all(random))
    found.append(chooser.take_all([baselines.ideal(one.shape) for one in chosen]))
    return found


def _left_out(trace: Trace, has_cascades: bool) -> list[str]:
    reasons = []
    if not has_cascades:
        reasons.append("cascades of ensembles: three models at least are needed, two of them in the first tier")
    if not trace.has_scores:
        reasons.append("confidence and IDK cascades: the trace has no scores")
    elif not trace.has_probabilities:
        reasons.append("IDK by entropy and committee cascades (Wang et al. 2021): the trace has no probabilities")
    return reasons


class _Chooser:
    """Two panels, and one way to choose."""

    def __init__(self, choices: Choices, calibration: EnsembleVotes, report: EnsembleVotes, progress: Progress) -> None:
        self.choices = choices
        self.progress = progress
        self.n_chosen = 0
        self.calibration = calibration
        self.report = report
        self.key: tuple[str, Accounting] = (choices.costs[0].kind, choices.charged_by)
        accuracy = self.measure(baselines.singles(calibration.trace)).accuracy
        self.best_single = list(calibration.trace.models)[int(accuracy.argmax())]  # on calibration, as is the bar

    def measure(self, candidates: Sequence[Candidate]) -> Measured:
        return measure(candidates, self.calibration, self.choices.costs)

    def choose(self, candidates: Sequence[Candidate]) -> Method:
        return self.choose_from(self.measure(candidates))

    def choose_from(self, swept: Measured) -> Method:
        """The Pareto set of what was swept on calibration, over the report split."""
        return self._method(swept, pareto_set(swept.costs[self.key], swept.accuracy))

    def choose_by(self, swept: Measured, share: Fraction) -> Method | None:
        """The Pareto set of the cascades whose tiers all agree by this share; None where there is none."""
        rows = [
            row
            for row, one in enumerate(swept.candidates)
            if all(needed == ceil(share * len(members)) for members, needed in one.shape[:-1])
        ]
        if not rows:
            return None
        best = pareto_set(swept.costs[self.key][rows], swept.accuracy[rows])
        return self._method(swept, [rows[at] for at in best])

    def take_all(self, candidates: Sequence[Candidate]) -> Method:
        """As they are, by rising cost: variants of systems chosen already."""
        swept = self.measure(candidates)
        return self._method(swept, np.argsort(swept.costs[self.key], kind="stable").tolist())

    def _method(self, swept: Measured, rows: list[int]) -> Method:
        accuracy, candidates = swept.accuracy[rows], [swept.candidates[row] for row in rows]
        seen = differences(candidates, self.calibration, self.best_single)
        n = len(self.calibration)
        is_shown = np.array([difference_interval(gains, losses, n, SURE)[0] >= 0 for gains, losses in seen.tolist()])
        pick = drop_in(swept.costs[self.key][rows], accuracy, is_shown)
        chosen = measure(candidates, self.report, self.choices.costs)
        differing = differences(candidates, self.report, self.best_single)
        self.n_chosen += 1
        self.progress.show(self.n_chosen)
        return Method(
            candidates[0].method, chosen, accuracy, pick, bool(is_shown[pick]), len(swept.candidates), differing
        )


MEANING = {
    Accounting.EXIT: "each example pays for the tier where it leaves",
    Accounting.REACH: "each example pays for every tier it passed, members side by side",
    Accounting.REACH_SERIAL: "each example pays for every member of every tier it passed",
}


def as_part(study: ParetoStudy) -> Part:
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


def _best_single(study: ParetoStudy) -> tuple[float, dict[str, float]]:
    """Its accuracy on the report split, and its cost of each kind."""
    of = {one.kind: one.of[study.best_single] for one in study.choices.costs}
    return study.report.accuracy(study.best_single), of


def _picks(study: ParetoStudy, costs: Costs) -> Table:
    """Each method's drop-in for the best single model."""
    accuracy, of = _best_single(study)
    best = of[costs.kind]
    single, ones = study.best_single, ["1.00x"] * len(Accounting)
    right = round(accuracy * len(study.report))
    limits = share_interval(right, len(study.report))
    lines = [[f"best single: {single}", with_limits(accuracy, limits), "", *ones, "", "100%", single]]
    for method in study.methods:
        if method.name == "single models":
            continue
        own = method.chosen
        point = _point(study, method, method.pick)
        low_high = point["costs_low_high"][costs.kind]
        ratios = [f"{_value(method, costs, kind) / best:.2f}x" if best else "-" for kind in Accounting]
        if best:
            place = list(Accounting).index(study.choices.charged_by)
            low, high = low_high[study.choices.charged_by.value]
            ratios[place] += f" ({low / best:.2f} to {high / best:.2f})"
        lines.append(
            [
                method.name + ("" if method.is_drop_in else " *"),
                with_limits(point["accuracy"], point["accuracy_low_high"]),
                with_limits(point["difference"], point["difference_low_high"], "+.2%"),
                *ratios,
                " / ".join(f"{share:.0%}" for share in point["exit"]),
                with_limits(point["sent"], point["sent_low_high"], ".0%") if len(point["exit"]) > 1 else "-",
                own.candidates[method.pick].as_text(),
            ]
        )
    header = ("method", "accuracy", "difference", *(kind.value for kind in Accounting), "exits", "sent", "system")
    source = f": {costs.note.rstrip('.')}" if costs.note else ""
    note = (
        f"Chosen on {len(study.calibration):,} examples, reported on {len(study.report):,} others. Each method: the "
        f"cheapest by {study.choices.charged_by.value} that calibration shows (95%) to be as accurate as the best "
        f"single model; *: none is shown to be, the most accurate instead. In brackets: 95% intervals. Costs against "
        f"{study.best_single} ({costs.text(best)}){source}. sent: the share of the examples that the first tier "
        "does not answer, so of the bytes that leave a device (the best single model in the cloud is sent all)."
    )
    return Table(f"drop-in-{costs.kind}", f"in place of the best single model, by {costs.axis}", header, lines, note)


def _shares(method: Method, row: int) -> list[float]:
    """Of each tier, of one choice."""
    n_tiers = len(method.chosen.candidates[row].charged)
    shares: list[float] = method.chosen.outcomes.shares[row, :n_tiers].tolist()
    return shares


def _verdict(study: ParetoStudy) -> list[str]:
    ours = study.method(OURS)
    if ours is None:
        return ["no cascade of ensembles can be made of these models"]
    costs, accounting = study.choices.costs[0], study.choices.charged_by
    accuracy, of = _best_single(study)
    own = float(ours.chosen.accuracy[ours.pick])
    ratio = _value(ours, costs, accounting) / of[costs.kind] if of[costs.kind] else float("nan")
    gain, low, high = study.lead
    outcome = _outcome(ratio, low, high)
    others = [
        f"{_value(ours, costs, kind) / of[costs.kind]:.2f}x by {kind.value}"
        for kind in Accounting
        if kind is not accounting and of[costs.kind]
    ]
    lines = [
        f"The cascade of ensembles {outcome} against {study.best_single}: {own:.2%} against {accuracy:.2%} "
        f"({with_limits(gain, (low, high), '+.2%')}), at {ratio:.2f}x its cost ({accounting.value}: "
        f"{MEANING[accounting]}; {', '.join(others)})."
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
    none = "No baseline's choice is both as accurate and as cheap."
    lines.append(f"As accurate or more, and no dearer than it: {'; '.join(better)}." if better else none)
    if not study.is_complete:
        lines.append(f"{ours.tried:,} cascades were drawn at random from more.")
    return lines


def _outcome(ratio: float, low: float, high: float) -> str:
    """Of a system at this ratio of the cost, whose accuracy differs by `low` to `high`: 95%."""
    if ratio < 1:
        return "wins" if low >= 0 else "saves" if high >= 0 else "trades"
    return "trades" if low >= 0 else "loses"


def _content(study: ParetoStudy) -> dict[str, Any]:
    accuracy, of = _best_single(study)
    return {
        "trace": study.trace.name,
        "n_calibration": len(study.calibration),
        "n_report": len(study.report),
        "cost": study.choices.costs[0].kind,
        "accounting": study.choices.charged_by.value,
        "best_single": {
            "model": study.best_single,
            "accuracy": accuracy,
            "accuracy_low_high": share_interval(round(accuracy * len(study.report)), len(study.report)),
            "costs": of,
        },
        "lead": {"accuracy": study.lead[0], "low_high": study.lead[1:]},
        "methods": {
            method.name: {
                "tried": method.tried,
                "drop_in": method.pick,
                "is_drop_in": method.is_drop_in,
                "points": [_point(study, method, row) for row in range(len(method.chosen.candidates))],
            }
            for method in study.methods
        },
        "left_out": list(study.left_out),
    }


def _point(study: ParetoStudy, method: Method, row: int) -> dict[str, Any]:
    own, shares, n = method.chosen, _shares(method, row), method.chosen.outcomes.n
    difference, *limits = method.difference(row)
    costs = {
        one.kind: {kind.value: float(own.costs[one.kind, kind][row]) for kind in Accounting}
        for one in study.choices.costs
    }
    return {
        "system": own.candidates[row].as_text(),
        "accuracy": float(own.accuracy[row]),
        "accuracy_low_high": share_interval(n - int(own.outcomes.wrong[row].sum()), n),
        "difference": difference,
        "difference_low_high": limits,
        "calibration_accuracy": float(method.calibration_accuracy[row]),
        "exit": shares,
        "sent": 1 - shares[0] if len(shares) > 1 else None,
        "sent_low_high": share_interval(n - own.exits(row)[0], n) if len(shares) > 1 else None,
        "wrong_exit": own.outcomes.wrong[row, : len(shares)].tolist(),
        "costs": costs,
        "costs_low_high": {
            one.kind: {kind.value: own.cost_limits(row, one, kind) for kind in Accounting}
            for one in study.choices.costs
        },
    }


def _points(study: ParetoStudy) -> list[list[object]]:
    """Every chosen system as a row of a CSV."""
    kinds = [(one.kind, accounting) for one in study.choices.costs for accounting in Accounting]
    rows: list[list[object]] = [
        ["method", "drop_in", "calibration_accuracy", "accuracy", "difference", "difference_low", "difference_high",
         *(f"{kind} {by.value}" for kind, by in kinds), "exits", "system"]
    ]  # fmt: skip
    for method in study.methods:
        for row, candidate in enumerate(method.chosen.candidates):
            point = _point(study, method, row)
            rows.append(
                [method.name, row == method.pick, point["calibration_accuracy"], point["accuracy"],
                 *method.difference(row),
                 *(point["costs"][kind][by.value] for kind, by in kinds),
                 " ".join(f"{share:.4f}" for share in point["exit"]), candidate.as_text()]
            )  # fmt: skip
    return rows


def _figures(study: ParetoStudy, costs: Costs) -> list[Figure]:
    from sim.charts import frontier

    accounting = study.choices.charged_by
    names = sorted(study.trace.models, key=lambda name: costs.of[name])
    single = Series("single models", [costs.of[name] for name in names], list(map(study.report.accuracy, names)),
                    names if len(names) <= 12 else ())  # fmt: skip
    of = {method.name: _series(method, (costs.kind, accounting)) for method in study.methods}
    mixed = [one for name, one in of.items() if name not in ("single models", "ensembles alone")]
    seen = [accuracy for one in (of["single models"], *mixed) for accuracy in one.accuracies]
    # A little under what any method would choose: models far below it are named at the edge.
    floor = min(seen) - 0.15 * (max(seen) - min(seen) + 0.01)
    paid = f"{MEANING[accounting][0].upper()}{MEANING[accounting][1:]}"
    chosen = (f"{paid}. All choices on {len(study.calibration):,} examples, accuracy and cost on "
              f"{len(study.report):,} others.")  # fmt: skip

    def picture(name: str, title: str, lines: Sequence[Series], caption: str, cloud: Cloud | None = None) -> Figure:
        axis = f"average {costs.axis}, accounting: {accounting.value}"
        return frontier([single, *lines], axis, costs.text, name=name, title=title, floor=floor, cloud=cloud,
                        caption=f"{caption} {chosen}")  # fmt: skip

    lines = "Each line is what a method would choose, cheap to dear."
    two = [replace(_series(one, (costs.kind, accounting)), method=name) for name, one in study.settings.items()]
    two += [of[name] for name in ("confidence cascade",) if name in of]
    figures = [picture("methods", "All methods (Figure 3)", mixed, lines)]
    if study.settings:
        caption = f"{lines} All tiers of a cascade of ensembles ask for the same agreement."
        figures.append(picture("agreement", "Both agreement settings (Figure 3)", two, caption))
    if "ensembles alone" in of:
        caption = "Every example through one ensemble, nothing deferred."
        figures.append(picture("ensembles", "Ensembles alone (Figure 2)", [of["ensembles alone"]], caption))
    if OURS in of:
        costs_tried, accuracies = study.cloud
        step = max(1, len(costs_tried) // MOST_DOTS)
        cloud = costs_tried[::step].tolist(), accuracies[::step].tolist()
        caption = (f"Dots: {len(cloud[0]):,} of {len(costs_tried):,} cascades tried, on calibration; the line: their "
                   "Pareto set there, as it does on the rest.")  # fmt: skip
        figures.append(picture("set", "The Pareto set (Figure 6)", [of[OURS]], caption, cloud))
    return figures


def _series(method: Method, key: tuple[str, Accounting]) -> Series:
    values = method.chosen.costs[key]
    order = np.argsort(values, kind="stable")
    return Series(method.name, values[order].tolist(), method.chosen.accuracy[order].tolist())


NAME = "pareto"
HELP = "cascades and all baselines, accuracy against cost"
DESCRIPTION = "Sweep cascades and baselines; choose on a calibration split, report on the rest."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_trace(parser)
    arguments.add_costs(parser)
    arguments.add_choices(parser)
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    trace = arguments.open_trace(options)
    study = run(trace, choices(options, trace), Progress(1))
    calibrated = study.method(CALIBRATED)
    if options.out and calibrated is not None:
        system = calibrated.chosen.candidates[calibrated.pick].system
        assert system is not None
        n_labels = system.stages[0].n_labels
        options.out.mkdir(parents=True, exist_ok=True)
        table = table_of(system, trace, n_labels, len(study.calibration), study.best_single)
        table.write(options.out / f"{trace.name}-calibration.json")
    return as_part(study)


def choices(options: argparse.Namespace, trace: Trace) -> Choices:
    """How to choose, as the options have it."""
    return Choices(
        costs=pick(read_costs(options.costs, trace), options.by),
        accounting=None if options.accounting is None else Accounting(options.accounting),
        calibration=_calibration(options.calibration, trace),
        most=options.most,
        seed=options.seed,
    )


def _calibration(given: float | Path | None, trace: Trace) -> float | Trace:
    """A share, or the trace to choose on; that of a bundled test trace is known."""
    if given is None and trace.task is not None and trace.name == f"{trace.task}-{Path(TEST).stem}":
        given = Path(f"zoo:{trace.task}/{CALIBRATION}")
    if isinstance(given, Path):
        other = read_trace(given)
        arguments.check_models("--calibration", list(trace.models), other)
        shared = set(other.ids) & set(trace.ids)
        if shared:
            raise ConfigError(
                [f"--calibration: expected other examples than those reported on, got {len(shared)} of them, "
                 f"{min(shared)} first (give a share of one trace instead)"]
            )  # fmt: skip
        return other.only(list(trace.models))
    share = 0.5 if given is None else given
    if not 1 <= round(share * len(trace)) < len(trace):
        raise ConfigError([f"--calibration: {share:g} of {len(trace)} examples leaves one split empty"])
    return share
