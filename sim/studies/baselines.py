"""What the paper compares with, each as candidates over the same trace.

Confidence cascades are swept as widely as ours; all their thresholds come from the calibration split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from sim.sweep import EnsembleVotes, SweptTier
from sim.traces import Trace

from .candidates import MOST_TIERS, Candidate, Ensemble, Shape, by_cost, ensembles

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # one t for all tiers
LEVELS = tuple(np.round(np.arange(0.05, 1.0, 0.1), 2).tolist())  # shares of a tier's examples that stay
MOST_SEARCHED = 3  # tiers whose thresholds are searched one by one; longer cascades share a level

Build = Callable[[EnsembleVotes], list[SweptTier]]


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
        _by_confidence("confidence cascade", model_sequence, [t] * (len(model_sequence) - 1))
        for model_sequence in model_sequences(cost)
        for t in GRID
    ]


def idk(ensemble_votes: EnsembleVotes, cost: dict[str, float]) -> list[Candidate]:
    """The same with a threshold for each tier, at shares of the calibration scores. Wang et al., IDK cascades, 2018."""
    marks = {name: _quantiles(_scores(ensemble_votes, (name,))) for name in ensemble_votes.trace.models}
    return [
        _by_confidence(
            "IDK, max probability",
            model_sequence,
            [marks[name][at] for name, at in zip(model_sequence, levels, strict=False)],
        )
        for model_sequence in model_sequences(cost)
        for levels in _levels(len(model_sequence))
    ]


def idk_entropy(ensemble_votes: EnsembleVotes, cost: dict[str, float]) -> list[Candidate]:
    """The same by the entropy of the output; needs probabilities."""
    marks = {name: _quantiles(-ensemble_votes.entropies(name)) for name in ensemble_votes.trace.models}
    found = []
    for model_sequence in model_sequences(cost):
        for levels in _levels(len(model_sequence)):
            limits = [-marks[name][at] for name, at in zip(model_sequence, levels, strict=False)]
            found.append(_by_entropy(model_sequence, limits))
    return found


def _by_confidence(method: str, model_sequence: tuple[str, ...], thresholds: Sequence[float]) -> Candidate:
    tiers = tuple((name,) for name in model_sequence)

    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        before = [ensemble_votes.confidence(tier, t, pools=False) for tier, t in zip(tiers, thresholds, strict=False)]
        return [*before, ensemble_votes.always(tiers[-1])]

    return Candidate(method, tiers, make, (*(f"confidence>={t:.4g}" for t in thresholds), ""))


def _by_entropy(model_sequence: tuple[str, ...], limits: Sequence[float]) -> Candidate:
    tiers = tuple((name,) for name in model_sequence)

    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        before = [ensemble_votes.entropy(name, most) for name, most in zip(model_sequence, limits, strict=False)]
        return [*before, ensemble_votes.always(tiers[-1])]

    return Candidate("IDK, entropy", tiers, make, (*(f"entropy<={most:.3g}" for most in limits), ""))


def committees(cost: dict[str, float]) -> list[Candidate]:
    """Tier k answers with the mean output of models 1..k, of which k alone is new. Wang et al., 2021."""
    found = []
    for model_sequence in model_sequences(cost):
        for t in GRID:
            found.append(_committee(model_sequence, t))
    return found


def _committee(model_sequence: tuple[str, ...], t: float) -> Candidate:
    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        return [
            ensemble_votes.confidence(model_sequence[: k + 1], t if k + 1 < len(model_sequence) else -1.0, pools=True)
            for k in range(len(model_sequence))
        ]

    charged = tuple((name,) for name in model_sequence)  # the outputs of those before are there already
    return Candidate("committee cascade", charged, make, (*[f"mean confidence>={t:g}"] * (len(model_sequence) - 1), ""))


def same_members(ensemble_votes: EnsembleVotes, chosen: Sequence[Shape]) -> list[Candidate]:
    """The chosen cascades' own tiers, deferring by the score of their label instead of by agreement."""
    pools = ensemble_votes.trace.has_probabilities
    found = []
    for shape in dict.fromkeys(tuple(members for members, _ in shape) for shape in chosen):
        marks = [_quantiles(ensemble_votes.scored(members, pools)[1].astype(np.float64)) for members in shape[:-1]]
        for level in range(len(LEVELS)):
            found.append(_scored(shape, [own[level] for own in marks], pools))
    return found


def _scored(tiers: tuple[Ensemble, ...], thresholds: Sequence[float], pools: bool) -> Candidate:
    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        before = [ensemble_votes.confidence(tier, t, pools=pools) for tier, t in zip(tiers, thresholds, strict=False)]
        return [*before, ensemble_votes.always(tiers[-1])]

    rules = (*(f"confidence>={t:.4g}" for t in thresholds), "")
    return Candidate("confidence, same members", tiers, make, rules)


def random_deferral(shape: Shape, stays: Sequence[float], seed: int) -> Candidate:
    """The same tiers, each keeping a random share of its examples: that which it keeps on calibration."""
    tiers = tuple(members for members, _ in shape)

    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        rng = np.random.default_rng(seed)
        before = [ensemble_votes.random(members, rate, rng) for members, rate in zip(tiers, stays, strict=False)]
        return [*before, ensemble_votes.always(tiers[-1])]

    return Candidate("random deferral", tiers, make, (*(f"random {rate:.0%}" for rate in stays[: len(tiers) - 1]), ""))


def ideal(shape: Shape) -> Candidate:
    """The same tiers, each keeping exactly what it gets right. Paper: Proposition 1, as headroom."""
    tiers = tuple(members for members, _ in shape)

    def make(ensemble_votes: EnsembleVotes) -> list[SweptTier]:
        return [*(ensemble_votes.ideal(members) for members in tiers[:-1]), ensemble_votes.always(tiers[-1])]

    return Candidate("ideal rule", tiers, make, (*["where right"] * (len(tiers) - 1), ""))


def _scores(ensemble_votes: EnsembleVotes, members: Ensemble) -> NDArray[np.float64]:
    return ensemble_votes.scored(members, pools=False)[1].astype(np.float64)


def _quantiles(values: NDArray[np.float64]) -> list[float]:
    """Thresholds at which 95%, 85% .. 5% of the examples leave, from low to high."""
    return [float(np.float32(value)) for value in np.quantile(values, LEVELS, method="nearest")]


def _levels(n_tiers: int) -> Iterator[tuple[int, ...]]:
    """For each tier but the last, which of LEVELS its threshold is at."""
    if n_tiers <= MOST_SEARCHED:
        yield from product(range(len(LEVELS)), repeat=n_tiers - 1)
    else:
        yield from ((level,) * (n_tiers - 1) for level in range(len(LEVELS)))
