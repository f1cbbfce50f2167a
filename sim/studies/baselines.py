"""What the paper compares with, each as candidates over the same trace.

Confidence cascades are swept as widely as ours; all their thresholds come from the calibration split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from coe.calibration.choose import Budget, Panel, System, asked, candidates, front
from coe.cascade import Accounting
from sim.sweep import EnsembleVotes, SweptTier, packed
from sim.traces import Costs, Trace, exact

from .candidates import (
    MOST_TIERS,
    Candidate,
    Ensemble,
    Shape,
    by_cost,
    ensembles,
    panel_of,
    sequences,
)

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # one t for all tiers
LEVELS = tuple(np.round(np.arange(0.05, 1.0, 0.1), 2).tolist())  # shares of a tier's examples that stay
MOST_SCORED = 2000  # cascades of ensembles by score: each ensemble's outputs are pooled
MOST_SEARCHED = 3  # tiers whose thresholds are searched one by one; longer cascades share a level


def singles(trace: Trace) -> list[Candidate]:
    return [_alone("single models", (name,)) for name in trace.models]


def alone(trace: Trace, cost: dict[str, float], most: int, rng: np.random.Generator) -> list[Candidate]:
    """Every ensemble on every example, nothing deferred. Paper: Figure 2."""
    found = [_alone("ensembles alone", members) for members in ensembles(by_cost(cost), least=2)]
    if len(found) > most:
        found = [found[at] for at in sorted(rng.choice(len(found), most, replace=False).tolist())]
    return found


def _alone(method: str, members: Ensemble) -> Candidate:
    return Candidate(method, (members,), lambda ensemble_votes: [ensemble_votes.always(members)], ("",))


def model_sequences(cost: dict[str, float]) -> Iterator[tuple[str, ...]]:
    """Two to MOST_TIERS single models, each no cheaper than the one before."""
    models = by_cost(cost)
    for length in range(2, min(MOST_TIERS, len(models)) + 1):
        yield from combinations(models, length)


def confidence(trace: Trace, cost: dict[str, float]) -> list[Candidate]:
    """One single model per tier, its maximum probability against one threshold t. As the paper ran "WoC"."""
    return [
        _by_confidence("confidence cascade", _singly(models), [t] * (len(models) - 1))
        for models in model_sequences(cost)
        for t in GRID
    ]


def idk(ensemble_votes: EnsembleVotes, cost: dict[str, float]) -> list[Candidate]:
    """The same with a threshold for each tier, at shares of the calibration scores. Wang et al., IDK cascades, 2018."""
    marks = {name: _score_quantiles(ensemble_votes, (name,), pools=False) for name in ensemble_votes.trace.models}
    return [
        _by_confidence("IDK, max probability", _singly(models), _at(marks, models, levels))
        for models in model_sequences(cost)
        for levels in _levels(len(models))
    ]


def idk_entropy(ensemble_votes: EnsembleVotes, cost: dict[str, float]) -> list[Candidate]:
    """The same by the entropy of the output; needs probabilities."""
    marks = {name: _quantiles(-ensemble_votes.entropies(name)) for name in ensemble_votes.trace.models}
    return [
        _by_entropy(models, [-mark for mark in _at(marks, models, levels)])
        for models in model_sequences(cost)
        for levels in _levels(len(models))
    ]


def _at(marks: Mapping[str, Sequence[float]], models: Sequence[str], levels: Sequence[int]) -> list[float]:
    """Each tier's threshold: the mark of its model at the tier's level."""
    return [marks[name][level] for name, level in zip(models, levels, strict=False)]


def _singly(models: Sequence[str]) -> tuple[Ensemble, ...]:
    return tuple((name,) for name in models)


def _deferring(
    method: str, tiers: tuple[Ensemble, ...], decide: Callable[[EnsembleVotes, int], SweptTier], rules: Sequence[str]
) -> Candidate:
    """A candidate whose tiers answer as `decide(ensemble_votes, place)` says; the last answers always."""

    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        return [*(decide(ensemble_votes, place) for place in range(len(tiers) - 1)), ensemble_votes.always(tiers[-1])]

    return Candidate(method, tiers, make, (*rules, ""))


def _by_confidence(
    method: str, tiers: tuple[Ensemble, ...], thresholds: Sequence[float], pools: bool = False
) -> Candidate:
    def decide(ensemble_votes: EnsembleVotes, place: int) -> SweptTier:
        return ensemble_votes.confidence(tiers[place], thresholds[place], pools=pools)

    return _deferring(method, tiers, decide, [f"confidence>={exact(t)}" for t in thresholds])


def _by_entropy(models: Sequence[str], limits: Sequence[float]) -> Candidate:
    def decide(ensemble_votes: EnsembleVotes, place: int) -> SweptTier:
        return ensemble_votes.entropy(models[place], limits[place])

    return _deferring("IDK, entropy", _singly(models), decide, [f"entropy<={exact(most)}" for most in limits])


def committees(cost: dict[str, float]) -> list[Candidate]:
    """Tier k answers with the mean output of models 1..k, of which k alone is new. Wang et al., 2021."""
    return [_committee(models, t) for models in model_sequences(cost) for t in GRID]


def _committee(models: tuple[str, ...], t: float) -> Candidate:
    thresholds = [t] * (len(models) - 1) + [-1.0]

    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        return [ensemble_votes.confidence(models[:k], at, pools=True) for k, at in enumerate(thresholds, start=1)]

    rules = (*[f"mean confidence>={exact(t)}"] * (len(models) - 1), "mean")
    return Candidate("committee cascade", _singly(models), make, rules)  # outputs of those before are there already


def of_ensembles(ensemble_votes: EnsembleVotes, shapes: Sequence[Shape], most: int) -> list[Candidate]:
    """The tiers that cascades of ensembles may have, deferring by the score of their label instead of by agreement;
    of more than `most` or MOST_SCORED, evenly chosen ones."""
    pools = ensemble_votes.trace.has_probabilities
    every = list(dict.fromkeys(tuple(members for members, _ in shape) for shape in shapes))
    step = max(1, -(-len(every) * len(LEVELS) // min(most, MOST_SCORED)))
    found = []
    for tiers in every[::step]:
        marks = [_score_quantiles(ensemble_votes, members, pools) for members in tiers[:-1]]
        for level in range(len(LEVELS)):
            thresholds = [own[level] for own in marks]
            found.append(_by_confidence("confidence, ensembles", tiers, thresholds, pools))
    return found


def calibrated(
    ensemble_votes: EnsembleVotes,
    n_labels: int,
    costs: Costs,
    accounting: Accounting,
    most: int,
    rng: np.random.Generator,
) -> list[Candidate]:
    """The Pareto set of the calibrated vote, fitted on these examples and ranked on them by numbers fitted on others.

    `make` has those out-of-fold votes for the same examples, so that none is judged by what was fitted on it.
    """
    own = panel_of(ensemble_votes, n_labels)
    tried = sequences(dict(costs.of), most, rng)
    budget = Budget(lambda tiers: costs.charges(tiers, accounting), np.inf)
    found = front(candidates(own, tried, [budget], rules=["calibrated"]))
    return [_calibrated(one.system, one.fitted(own), own, ensemble_votes) for one in found]


def _calibrated(ranked: System, fitted: System, own: Panel, of: EnsembleVotes) -> Candidate:
    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        tiers = []
        panel = own if ensemble_votes is of else panel_of(ensemble_votes, own.n_labels)
        for place, members in enumerate(fitted.tiers):
            voters = asked(fitted.tiers, place)
            if ensemble_votes is of:
                (labels, p), thresholds = own.out_of_fold(voters), ranked.thresholds
            else:
                (labels, p), thresholds = fitted.stages[place].posterior(*panel.of(voters)), fitted.thresholds
            is_final = p >= thresholds[place] if place < len(thresholds) else np.ones_like(p, dtype=np.bool_)
            right = labels == ensemble_votes.trace.labels
            tiers.append(SweptTier(members, "calibrated", packed(right), packed(is_final)))
        return tiers

    rules = (*(f"p>={threshold!r}" for threshold in fitted.thresholds), "")
    return Candidate("calibrated vote", fitted.tiers, make, rules, system=fitted)


def random_deferral(shape: Shape, stays: Sequence[float], seed: int) -> Candidate:
    """The same tiers, each keeping a random share of its examples: that which it keeps on calibration."""
    tiers = tuple(members for members, _ in shape)
    rates = [round(rate, 4) for rate in stays[: len(tiers) - 1]]

    def decide(ensemble_votes: EnsembleVotes, place: int) -> SweptTier:
        return ensemble_votes.random(tiers[place], rates[place], seed, place + 1)

    return _deferring("random deferral", tiers, decide, [f"random {rate} seed {seed}" for rate in rates])


def ideal(shape: Shape) -> Candidate:
    """The same tiers, each keeping exactly what it gets right. Paper: Proposition 1, as headroom."""
    tiers = tuple(members for members, _ in shape)
    rules = ["where right"] * (len(tiers) - 1)
    return _deferring("ideal rule", tiers, lambda ensemble_votes, place: ensemble_votes.ideal(tiers[place]), rules)


def _score_quantiles(ensemble_votes: EnsembleVotes, members: Ensemble, pools: bool) -> list[float]:
    return _quantiles(ensemble_votes.scored(members, pools)[1].astype(np.float64))


def _quantiles(values: NDArray[np.floating]) -> list[float]:
    """Thresholds at which 95%, 85% .. 5% of the examples leave, from low to high."""
    return [float(np.float32(value)) for value in np.quantile(values, LEVELS, method="nearest")]


def _levels(n_tiers: int) -> Iterator[tuple[int, ...]]:
    """For each tier but the last, which of LEVELS its threshold is at."""
    if n_tiers <= MOST_SEARCHED:
        yield from product(range(len(LEVELS)), repeat=n_tiers - 1)
    else:
        yield from ((level,) * (n_tiers - 1) for level in range(len(LEVELS)))
