"""The study: every method swept on the calibration split, its Pareto set and its drop-in reported on the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from coe.cascade import Accounting, Agreement

from ...charts.series import OURS
from ...progress import Progress
from ...sweep import Panel
from ...traces import TierSpec, Trace
from ..replayed import lead, replay_trace
from . import baselines
from .candidates import Candidate, cascade, shapes
from .choose import Choices, Measured, Values, drop_in, front, measure

N_METHODS = 10
BEST_FOUR = 4  # the paper shows the best four confidence cascades of a wide sweep


@dataclass(frozen=True, slots=True)
class Method:
    """One method's chosen systems on the report split, by rising calibration cost.

    Args:
        pick: which of them is the drop-in: on calibration the cheapest at least as accurate as the best single model,
            or the most accurate where none is.
        is_drop_in: whether it was at least as accurate there.
        tried: systems swept on calibration.
        calibration_accuracy: (C,) of the chosen.
    """

    name: str
    chosen: Measured
    calibration_accuracy: Values
    pick: int
    is_drop_in: bool
    tried: int


@dataclass(frozen=True)
class Study:
    """Both splits, all methods. `cloud`: (costs, accuracies) of every cascade tried, on calibration."""

    trace: Trace
    choices: Choices
    calibration: Trace
    report: Trace
    best_single: str
    methods: Sequence[Method]
    cloud: tuple[Values, Values]
    is_complete: bool
    left_out: Sequence[str]

    @cached_property
    def lead(self) -> tuple[float, float]:
        """How much more accurate the chosen cascade is than the best single model, and half its 95% interval.

        Through `coe.cascade` itself, example by example; the sweep must have come to the same.
        """
        ours = self.method(OURS)
        if ours is None:
            return 0.0, 0.0
        shape = ours.chosen.candidates[ours.pick].shape
        specs = [TierSpec(own, Agreement(Fraction(max(needed, 1), len(own)))) for own, needed in shape]
        told = replay_trace(self.report, specs)
        if told.wrong_exits != ours.chosen.outcomes.wrong[ours.pick, : len(specs)].tolist():
            raise AssertionError(f"the sweep and the cascade differ on {shape}")
        return lead(told.right, self.report.right(self.best_single))

    def method(self, name: str) -> Method | None:
        return next((one for one in self.methods if one.name == name), None)


def run(trace: Trace, choices: Choices, progress: Progress) -> Study:
    """Choose on calibration, report on other examples. A method whose data the trace lacks is left out, and said."""
    rng = np.random.default_rng(choices.seed)
    calibration, report = choices.splits(trace, rng)
    progress.start("sweeping methods", N_METHODS)
    chooser = _Chooser(choices, Panel(calibration), Panel(report), progress)
    cost = dict(choices.costs[0].of)
    found, is_complete = shapes(cost, choices.most, rng)
    chooser.prepare([members for shape in found for members, _ in shape])
    singles = baselines.singles(trace)
    best_single = chooser.set_bar(singles)
    methods = [chooser.choose(singles)]
    methods += [chooser.choose(baselines.alone(trace, cost, choices.most, rng))] if len(trace.models) > 1 else []
    cloud: tuple[Values, Values] = (np.zeros(0), np.zeros(0))
    if found:
        ours = chooser.measure(list(map(cascade, found)))
        cloud = (ours.costs[chooser.key], ours.accuracy)
        methods.append(chooser.choose_from(ours))
        methods += _variants(chooser, methods[-1].chosen.candidates, choices.seed)
    methods += _confidence(chooser, cost)
    progress.end()
    return Study(
        trace, choices, calibration, report, best_single, methods, cloud, is_complete, _left_out(trace, bool(found))
    )


def _confidence(chooser: _Chooser, cost: dict[str, float]) -> list[Method]:
    trace = chooser.calibration.trace
    if not trace.has_scores or len(trace.models) < 2:
        return []
    found = [
        chooser.choose(baselines.confidence(trace, cost), at_most=BEST_FOUR),
        chooser.choose(baselines.idk(chooser.calibration, cost)),
    ]
    if trace.has_probabilities:
        found.append(chooser.choose(baselines.idk_entropy(chooser.calibration, cost)))
        found.append(chooser.choose(baselines.committees(cost)))
    return found


def _variants(chooser: _Chooser, chosen: Sequence[Candidate], seed: int) -> list[Method]:
    """The chosen cascades with other rules in the same tiers."""
    found = []
    if chooser.calibration.trace.has_scores:
        found.append(chooser.choose(baselines.same_members(chooser.calibration, [one.shape for one in chosen])))
    on_calibration = chooser.measure(chosen).outcomes
    random = []
    for one, exits in zip(chosen, on_calibration.exits.tolist(), strict=True):
        left = np.cumsum([0, *exits])[:-1]
        stays = [share / max(on_calibration.n - before, 1) for share, before in zip(exits, left.tolist(), strict=True)]
        random.append(baselines.random_deferral(one.shape, stays, seed))
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

    def __init__(self, choices: Choices, calibration: Panel, report: Panel, progress: Progress) -> None:
        self.choices = choices
        self.progress = progress
        self.n_chosen = 0
        self.calibration = calibration
        self.report = report
        self.key: tuple[str, Accounting] = (choices.costs[0].kind, choices.charged_by)
        self.bar = 0.0  # the best single model's accuracy on calibration

    def prepare(self, ensembles: Sequence[tuple[str, ...]]) -> None:
        self.calibration.count_all(ensembles)

    def set_bar(self, singles: Sequence[Candidate]) -> str:
        """The best single model on calibration."""
        accuracy = self.measure(singles).accuracy
        self.bar = float(accuracy.max())
        return singles[int(accuracy.argmax())].charged[0][0]

    def measure(self, candidates: Sequence[Candidate]) -> Measured:
        return measure(candidates, self.calibration, self.choices.costs)

    def choose(self, candidates: Sequence[Candidate], at_most: int | None = None) -> Method:
        return self.choose_from(self.measure(candidates), at_most)

    def choose_from(self, swept: Measured, at_most: int | None = None) -> Method:
        """The Pareto set of what was swept on calibration, or the most accurate of it, over the report split."""
        costs, accuracy = swept.costs[self.key], swept.accuracy
        rows = front(costs, accuracy)[-at_most if at_most else None :]
        pick = drop_in(costs[rows], accuracy[rows], self.bar)
        return self._method(swept, rows, pick)

    def take_all(self, candidates: Sequence[Candidate]) -> Method:
        """As they are, by rising cost: variants of systems chosen already."""
        swept = self.measure(candidates)
        rows = np.argsort(swept.costs[self.key], kind="stable").tolist()
        return self._method(swept, rows, drop_in(swept.costs[self.key][rows], swept.accuracy[rows], self.bar))

    def _method(self, swept: Measured, rows: list[int], pick: int) -> Method:
        accuracy = swept.accuracy[rows]
        chosen = measure(swept.only(rows), self.report, self.choices.costs)
        name = chosen.candidates[0].method
        self.n_chosen += 1
        self.progress.show(self.n_chosen)
        return Method(name, chosen, accuracy, pick, bool(accuracy[pick] >= self.bar), len(swept.candidates))
