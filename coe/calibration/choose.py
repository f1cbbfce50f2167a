"""The choice of what to run, from what every member answered on labelled examples.

One half of the examples fits and ranks the candidates (by numbers fitted on other examples than those they are ranked
on), the other half is read once, to certify. Candidates are sequences of tiers, each by the calibrated vote, by plain
agreement, and by confidence where every tier is one model, with every combination of thresholds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coe.cascade.types import Array, Labels
from coe.cascade.vote import plurality

from .bound import is_certified, lower_bound, sample_size
from .fit import fit, out_of_fold, with_share
from .table import Bound
from .vote import StageVote, Values

Flags = NDArray[np.bool_]
Ensemble = tuple[str, ...]
Tiers = tuple[Ensemble, ...]

QUANTILES = 25  # thresholds tried, of each tier
MOST_SETS = 250  # sets of members that a vote is fitted for
MOST_TESTS = 30  # systems on the way down the front
FEW = 500  # labels


@dataclass(frozen=True)
class Panel:
    """What every member answered on n labelled examples.

    Args:
        names: M.
        labels: (M, n) int64; scores: (M, n) float, NaN where not known; truth: (n,) int64.
        n_labels: L.
        plain: of an ensemble, where its plurality is right (n,) and its votes (n,); None: from labels and scores.
    """

    names: tuple[str, ...]
    labels: Labels
    scores: Array
    truth: Labels
    n_labels: int
    plain: Callable[[Ensemble], tuple[Flags, Array]] | None = None
    _ranked: dict[Ensemble, tuple[Labels, Values]] = field(default_factory=dict)
    _fitted: dict[Ensemble, tuple[StageVote, Values]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: NDArray[np.intp]) -> Panel:
        return Panel(self.names, self.labels[:, rows], self.scores[:, rows], self.truth[rows], self.n_labels)

    def right(self, name: str) -> Flags:
        """(n,) where one model is."""
        right: Flags = self.labels[self.names.index(name)] == self.truth
        return right

    def of(self, members: Ensemble) -> tuple[Labels, Array]:
        """Their labels and scores, (S, n) each."""
        rows = [self.names.index(name) for name in members]
        return self.labels[rows], self.scores[rows]

    def counted(self, members: Ensemble) -> tuple[Flags, Array]:
        if self.plain is not None:
            return self.plain(members)
        labels, scores = self.of(members)
        found, count, _ = plurality(labels, None, None if np.isnan(scores).any() else scores)
        return found == self.truth, count

    def out_of_fold(self, members: Ensemble) -> tuple[Labels, Values]:
        """Label and p of the calibrated vote, by numbers fitted on the other half of the panel."""
        key = tuple(sorted(members))
        if key not in self._ranked:
            folds = np.arange(len(self)) % 2
            self._ranked[key] = out_of_fold(*self.of(key), self.truth, self.n_labels, folds)
        return self._ranked[key]

    def fitted(self, members: Ensemble) -> tuple[StageVote, Values]:
        """The calibrated vote fitted on the whole panel, and its p (n,) of the same examples."""
        if members not in self._fitted:
            labels, scores = self.of(members)
            stage = fit(labels, scores, self.truth, self.n_labels, members)
            self._fitted[members] = stage, stage.posterior(labels, scores)[1]
        return self._fitted[members]


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on what an example costs on average.

    Args:
        charges: of tiers, what an example pays that leaves at each, (T,).
        most: allowed on average.
    """

    charges: Callable[[Tiers], ArrayLike]
    most: float


@dataclass(frozen=True, slots=True)
class System:
    """What could be run.

    Args:
        rule: "calibrated", "agreement", "confidence" or "single".
        thresholds: of each tier but the last: p, votes needed, or score.
        stages: of the calibrated rule, one a tier.
    """

    rule: str
    tiers: Tiers
    thresholds: tuple[float, ...] = ()
    stages: tuple[StageVote, ...] = ()

    def decide(self, panel: Panel) -> tuple[Flags, NDArray[np.intp]]:
        """(n,) where it is right, and (n,) the tier at which each example leaves, from 0."""
        right = np.zeros(len(panel), dtype=np.bool_)
        exit_tier = np.full(len(panel), -1, dtype=np.intp)
        for place in range(len(self.tiers)):
            own, score = self.vote(panel, place)
            is_last = place == len(self.tiers) - 1
            leaves = (exit_tier < 0) & (True if is_last else score >= self.thresholds[place])
            exit_tier[leaves], right[leaves] = place, own[leaves]
        return right, exit_tier

    def vote(self, panel: Panel, place: int) -> tuple[Flags, Array]:
        """(n,) where a tier's label is right, and (n,) what its threshold is compared with."""
        if self.rule == "calibrated":
            labels, p = self.stages[place].posterior(*panel.of(asked(self.tiers, place)))
            return labels == panel.truth, p
        if self.rule == "confidence":
            return panel.right(self.tiers[place][0]), panel.of(self.tiers[place])[1][0]
        return panel.counted(self.tiers[place])

    def shares(self, exit_tier: NDArray[np.intp]) -> list[float]:
        """(T,) share of the examples that leave at each tier."""
        found: list[float] = (np.bincount(exit_tier, minlength=len(self.tiers)) / max(len(exit_tier), 1)).tolist()
        return found

    def as_text(self) -> str:
        """As a reader would write it: 'a,b@2/2 | c'."""
        rules = [*map(self._rule_text, range(len(self.thresholds))), ""]
        return " | ".join(f"{','.join(tier)}{rule}" for tier, rule in zip(self.tiers, rules, strict=True))

    @property
    def written_thresholds(self) -> tuple[str | float, ...]:
        """As a table has them: those of agreement are shares, such as "2/3"."""
        if self.rule != "agreement":
            return self.thresholds
        return tuple(f"{t:g}/{len(tier)}" for t, tier in zip(self.thresholds, self.tiers, strict=False))

    def _rule_text(self, place: int) -> str:
        t = self.written_thresholds[place]
        if self.rule == "agreement":
            return f"@{t}"
        return f"@p>={t!r}" if self.rule == "calibrated" else f"@confidence>={t!r}"


def asked(tiers: Tiers, place: int) -> Ensemble:
    """The members asked by the end of a tier, in their order."""
    return tuple(itertools.chain.from_iterable(tiers[: place + 1]))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A system on the Pareto front; `shares`: what each tier but the last would answer of all examples."""

    cost: float
    accuracy: float
    system: System
    shares: tuple[float, ...]

    def fitted(self, panel: Panel) -> System:
        """The system, by numbers fitted on all of the panel; each tier answers the share that it was ranked with."""
        if self.system.rule != "calibrated":
            return self.system
        tiers, stages = self.system.tiers, []
        for place in range(len(tiers)):
            stage, p = panel.fitted(asked(tiers, place))
            if place < len(tiers) - 1:
                stage = with_share(stage, p, self.shares[place])
            stages.append(stage)
        thresholds = tuple(stage.threshold for stage in stages if stage.threshold is not None)
        return replace(self.system, thresholds=thresholds, stages=tuple(stages))


@dataclass(frozen=True, slots=True)
class _Swept:
    """One tier's vote on the panel: where its label is right, its score, and the thresholds tried, rising."""

    right: Flags
    score: Array
    marks: Values


RULES = ("single", "agreement", "confidence", "calibrated")


def candidates(
    panel: Panel,
    sequences: Iterable[Tiers],
    budgets: Sequence[Budget],
    progress: Callable[[int], None] = lambda done: None,
    rules: Sequence[str] = RULES,
) -> list[Candidate]:
    """The Pareto sets within the budgets of each sequence and rule.

    An average counts two standard errors more than it came to, so that it holds on other examples too. The first budget
    is the cost.
    """
    found: list[Candidate] = []
    sets: set[Ensemble] = set()
    for done, tiers in enumerate(sequences):
        progress(done)
        charges = [np.asarray(budget.charges(tiers), dtype=np.float64) for budget in budgets]
        for rule in rules:
            if not _suits(rule, tiers, panel):
                continue
            if rule == "calibrated":
                wanted = {tuple(sorted(asked(tiers, place))) for place in range(len(tiers))}
                if len(sets | wanted) > MOST_SETS:
                    continue
                sets |= wanted
            swept = _votes(rule, tiers, panel)
            found += _pareto(rule, tiers, swept, charges, [budget.most for budget in budgets])
    return found


def front(found: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front of candidates, from the cheapest and least accurate up."""
    order = pareto_set(np.array([one.cost for one in found]), np.array([one.accuracy for one in found]))
    return [found[at] for at in order]


def pareto_set(costs: Values, accuracy: Values) -> list[int]:
    """The Pareto set, by rising cost: nothing else is as cheap and as accurate. Paper: Figure 6."""
    order = np.lexsort((-accuracy, costs))
    best = np.maximum.accumulate(accuracy[order])
    is_new = np.concatenate([[True], best[1:] > best[:-1]])[: len(order)]
    found: list[int] = order[is_new].tolist()
    return found


def _suits(rule: str, tiers: Tiers, panel: Panel) -> bool:
    is_single = len(tiers) == 1 and len(tiers[0]) == 1
    if rule == "single" or is_single:
        return rule == "single" and is_single
    if rule == "agreement":
        return all(len(tier) > 1 for tier in tiers[:-1])
    if rule == "confidence":
        known = not np.isnan(panel.of(asked(tiers, len(tiers) - 1))[1]).any()
        return known and all(len(tier) == 1 for tier in tiers)
    return True


def _votes(rule: str, tiers: Tiers, panel: Panel) -> list[_Swept]:
    system, found = System(rule, tiers), []
    levels = np.linspace(0, 1, QUANTILES + 2)[1:-1]
    for place, members in enumerate(tiers):
        if rule == "calibrated":
            labels, score = panel.out_of_fold(asked(tiers, place))
            right = labels == panel.truth
        else:
            right, score = system.vote(panel, place)
        marks = np.arange(2.0, len(members) + 1)  # votes
        if rule in ("calibrated", "confidence"):
            marks = np.unique(np.quantile(score, levels, method="nearest")).astype(np.float64)
        found.append(_Swept(right, score, marks))
    return found


def _pareto(
    rule: str, tiers: Tiers, swept: Sequence[_Swept], charges: Sequence[Values], most: Sequence[float]
) -> list[Candidate]:
    """The Pareto set within the limits of one sequence of tiers, over all combinations of thresholds."""
    exits, right = combinations_of(swept)
    n = len(swept[0].right)
    accuracy = right.sum(axis=-1).ravel() / n
    shares = exits.reshape(-1, len(tiers)) / n
    upper = []
    for own in charges:
        mean = shares @ own
        upper.append(mean + 2 * np.sqrt(np.maximum(shares @ own**2 - mean**2, 0) / n))
    good = np.flatnonzero(np.all([mean <= limit for mean, limit in zip(upper, most, strict=True)], axis=0))
    found = []
    for at in good[pareto_set(upper[0][good], accuracy[good])].tolist() if good.size else []:
        places = np.unravel_index(at, exits.shape[:-1])
        thresholds = tuple(float(own.marks[place]) for own, place in zip(swept[:-1], places, strict=True))
        own_shares = tuple(float((own.score >= t).mean()) for own, t in zip(swept[:-1], thresholds, strict=True))
        found.append(Candidate(float(upper[0][at]), float(accuracy[at]), System(rule, tiers, thresholds), own_shares))
    return found


def combinations_of(swept: Sequence[_Swept]) -> tuple[Values, Values]:
    """(Q1, .., Q(T-1), T) examples that leave at each tier, and of them right, for every combination of thresholds."""
    n = len(swept[0].right)
    sizes = tuple(len(own.marks) for own in swept[:-1])
    exits, right = np.empty((2, *sizes, len(swept)))
    code = np.zeros(n, dtype=np.intp)
    for place, own in enumerate(swept):
        is_last = place == len(swept) - 1
        bins = () if is_last else (len(own.marks) + 1,)
        dims = (*(size + 1 for size in sizes[:place]), *bins)
        if not is_last:
            code = code * (len(own.marks) + 1) + np.searchsorted(own.marks, own.score, side="right")
        for counts, weights in ((exits, None), (right, own.right.astype(np.float64))):
            left = np.bincount(code, weights, minlength=int(np.prod(dims))).astype(np.float64).reshape(dims)
            for axis in range(place):  # went on at the tiers before: fewer marks reached than the threshold's
                left = np.take(left.cumsum(axis=axis), range(sizes[axis]), axis=axis)
            if not is_last:
                left = left.sum(axis=-1, keepdims=True) - left.cumsum(axis=-1)[..., :-1]
            counts[..., place] = left.reshape(left.shape + (1,) * (len(sizes) - left.ndim))
    return exits, right


@dataclass(frozen=True, slots=True)
class Choice:
    """What to run, and what may be said of it.

    Args:
        expected: accuracy on the half that ranked it.
        gain, loss: shares of calibration examples on which it alone (the reference alone) is right.
    """

    system: System
    expected: float
    bound: Bound
    gain: float
    loss: float


@dataclass(frozen=True, slots=True)
class Certifier:
    """Tests systems on examples that nothing was chosen on.

    Args:
        ranked: the half that candidates were fitted and ranked on: it says how much to bet.
        unseen: the other half.
        reference: the model compared with; against: models that the bound must hold against, each.
    """

    ranked: Panel
    unseen: Panel
    reference: str
    against: Sequence[str]
    epsilon: float
    delta: float

    def holds(self, system: System) -> bool:
        """Whether it is shown against each model; no correction is needed where all must pass."""
        return self._is_shown(self._differences(*self._right(system)))

    def choice(self, system: System, expected: float) -> Choice:
        """The system with its bound."""
        right = self._right(system)
        both = np.concatenate(right) - np.concatenate([own.right(self.reference) for own in (self.ranked, self.unseen)])
        gain, loss = float((both > 0).mean()), float((both < 0).mean())
        if not gain and not loss and system.rule == "single":  # the reference itself
            return Choice(system, expected, Bound(self.epsilon, self.delta, True, 0.0, len(self.unseen), 0), 0.0, 0.0)
        differences = list(self._differences(*right))
        low = min(lower_bound(x, self.delta, before) for x, before in differences)
        needed = sample_size(gain, loss, self.epsilon, self.delta)
        labels = None if needed is None else round(needed * len(both) / len(self.unseen))
        bound = Bound(self.epsilon, self.delta, self._is_shown(differences), low, len(self.unseen), labels)
        return Choice(system, expected, bound, gain, loss)

    def _right(self, system: System) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Where it is right on either half."""
        ranked, unseen = (system.decide(panel)[0].astype(np.int8) for panel in (self.ranked, self.unseen))
        return ranked, unseen

    def _is_shown(self, differences: Iterable[tuple[NDArray[np.int8], tuple[int, int]]]) -> bool:
        return all(is_certified(x, self.epsilon, self.delta, before) for x, before in differences)

    def _differences(
        self, ranked: NDArray[np.int8], unseen: NDArray[np.int8]
    ) -> Iterable[tuple[NDArray[np.int8], tuple[int, int]]]:
        """Per model: X on the unseen half, and how often the two differ on the other, of how many."""
        for name in self.against:
            differ = int((ranked != self.ranked.right(name)).sum())
            yield unseen - self.unseen.right(name), (differ, len(ranked))


def most_accurate(found: Sequence[Candidate], certifier: Certifier) -> Choice | None:
    """The most accurate of a front, with its bound; None: the front is empty."""
    if not found:
        return None
    return certifier.choice(found[-1].fitted(certifier.ranked), found[-1].accuracy)


def cheapest_certified(found: Sequence[Candidate], certifier: Certifier) -> Choice | None:
    """The cheapest that is certified, walking the front down from the most accurate; None: not even that one is.

    The order is fixed before the unseen half is read and the walk stops at the first that fails, so that no
    correction for several tests is needed.
    """
    places = sorted(set(np.linspace(0, len(found) - 1, MOST_TESTS).round().astype(int).tolist())) if found else []
    kept: tuple[System, float] | None = None
    for place in reversed(places):
        system = found[place].fitted(certifier.ranked)
        if not certifier.holds(system):
            break
        kept = system, found[place].accuracy
    return None if kept is None else certifier.choice(*kept)


def best_single(panel: Panel, cost: Mapping[str, float]) -> str:
    """The most accurate model; of those within a standard error of it, which labels cannot tell apart, the dearest."""
    right = {name: panel.right(name).astype(np.float64) for name in panel.names}
    top = max(sorted(panel.names), key=lambda name: float(right[name].mean()))

    def is_close(name: str) -> bool:
        behind = right[top] - right[name]
        return bool(behind.mean() <= behind.std() / max(len(behind), 1) ** 0.5)

    return max(filter(is_close, sorted(panel.names)), key=lambda name: (cost[name], float(right[name].mean())))


def wrong_together(panel: Panel, reference: str, cost: Mapping[str, float]) -> tuple[float, float] | None:
    """Where all models cheaper than the reference agree, the share wrong, and the reference's; None: they never do."""
    cheaper = tuple(name for name in panel.names if cost[name] < cost[reference])
    if len(cheaper) < 2:
        return None
    right, count = panel.counted(cheaper)
    agreed = count == len(cheaper)
    if not agreed.any():
        return None
    return float((~right[agreed]).mean()), float((~panel.right(reference)[agreed]).mean())
