"""Every cascade that could be deployed, its measurement over a trace, and the choice on a calibration split.

A candidate holds no data: it makes its tiers over any panel, so that it is chosen on one split and reported on
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, pairwise, product
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from coe.calibration.bound import share_interval
from coe.calibration.choose import Panel, System
from coe.calibration.choose import pareto_set as pareto_set  # beside `measure`, whose columns it takes
from coe.cascade import Accounting
from sim.sweep import EnsembleVotes, Outcomes, SweptTier, right_rows, sweep
from sim.traces import Costs, Trace
from sim.traces.tiers import ballots_of

MOST_MEMBERS, MOST_TIERS = 5, 5
MOST_RANKED = 4  # tiers of a cascade whose thresholds are tried in every combination

Ensemble = tuple[str, ...]
Shape = tuple[tuple[Ensemble, int], ...]  # per tier: members, votes needed (0: it always answers)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One system.

    Args:
        method: whose it is.
        charged: per tier, the models an example pays for there.
        make: its tiers over a panel.
        rules: per tier, as a reader would write it.
        shape: of a cascade of ensembles, for the variants that keep its tiers.
        system: of a calibrated one, fitted.
    """

    method: str
    charged: tuple[Ensemble, ...]
    make: Callable[[EnsembleVotes], list[SweptTier]]
    rules: tuple[str, ...]
    shape: Shape = ()
    system: System | None = None

    def as_text(self) -> str:
        tiers = (
            ",".join(tier) + (f"@{rule}" if rule else "") for tier, rule in zip(self.charged, self.rules, strict=True)
        )
        return " | ".join(tiers)


def by_cost(cost: dict[str, float]) -> list[str]:
    """The models from the cheapest."""
    return sorted(cost, key=lambda name: (cost[name], name))


def ensembles(models: Sequence[str], least: int = 1) -> Iterator[Ensemble]:
    """Every choice of `least` to MOST_MEMBERS models."""
    for size in range(least, min(MOST_MEMBERS, len(models)) + 1):
        yield from combinations(models, size)


def cascade(shape: Shape) -> Candidate:
    """The candidate of a shape, by agreement."""
    return Candidate(
        "cascade of ensembles",
        tuple(members for members, _ in shape),
        lambda ensemble_votes: [ensemble_votes.agreement(members, needed) for members, needed in shape],
        tuple(f"{needed}/{len(members)}" if needed else "" for members, needed in shape),
        shape,
    )


def shapes(cost: dict[str, float], most: int, rng: np.random.Generator) -> tuple[list[Shape], bool]:
    """Cascades of 2 to MOST_TIERS tiers of different models, no tier cheaper than the one before; and whether these
    are all there are. Where there are more than `most`, as many are drawn at random."""
    every = (
        tuple(zip(tiers, (*needed, 0), strict=True))
        for tiers in _every(by_cost(cost), cost, 0.0, MOST_TIERS, 2)
        for needed in product(*(range(2, len(tier) + 1) for tier in tiers[:-1]))
        if len(tiers) > 1
    )
    found = list(islice(every, most + 1))
    if len(found) <= most:
        return found, True
    return list(_drawn(lambda: _draw(cost, rng, 2), most)), False


def sequences(cost: dict[str, float], most: int, rng: np.random.Generator) -> list[tuple[Ensemble, ...]]:
    """The tiers of 1 to MOST_RANKED ensembles or single models, no tier cheaper than the one before, small ones first.

    Where there are more than `most`, every model alone, every pair of them, and others at random.
    """
    models = by_cost(cost)
    found = list(islice(_every(models, cost, 0.0, MOST_RANKED, 1), most + 1))
    if len(found) > most:
        known = {((one,),) for one in models} | {((one,), (other,)) for one, other in combinations(models, 2)}
        shapes = _drawn(lambda: _draw(cost, rng, 1), most)
        drawn = {tuple(members for members, _ in shape) for shape in shapes}
        found = [*known, *(tiers for tiers in drawn - known if len(tiers) <= MOST_RANKED)]
    return sorted(found, key=lambda tiers: (sum(map(len, tiers)), len(tiers), tiers))


def _drawn(draw: Callable[[], Shape | None], most: int) -> dict[Shape, None]:
    """Up to `most` different shapes."""
    drawn: dict[Shape, None] = {}
    for _ in range(20 * most):
        if (shape := draw()) is not None:
            drawn[shape] = None
        if len(drawn) == most:
            break
    return drawn


def _every(
    models: Sequence[str], cost: dict[str, float], least: float, tiers_left: int, smallest: int
) -> Iterator[tuple[Ensemble, ...]]:
    """Up to `tiers_left` tiers whose first costs at least `least`; all but the last of `smallest` members at least."""
    for first in ensembles(models):
        dearest = max(cost[name] for name in first)
        if dearest < least:
            continue
        yield (first,)
        if tiers_left > 1 and len(first) >= smallest:
            rest = [name for name in models if name not in first]
            for after in _every(rest, cost, dearest, tiers_left - 1, smallest):
                yield (first, *after)


def _draw(cost: dict[str, float], rng: np.random.Generator, smallest: int) -> Shape | None:
    """One shape at random, a small one more often; None where the models do not suffice for it.

    Args:
        smallest: members, at least, of a tier before the last; of a single one any vote is a majority.
    """
    models = by_cost(cost)
    n_tiers = 1 + _small(rng, MOST_TIERS - 1)
    sizes = [smallest - 1 + _small(rng, MOST_MEMBERS - 1) for _ in range(n_tiers - 1)]
    sizes.append(_small(rng, MOST_MEMBERS))
    if sum(sizes) > len(models):
        return None
    order = [models[at] for at in rng.permutation(len(models))]
    ends = np.cumsum([0, *sizes]).tolist()
    # Members in the order of their cost, so that one ensemble is one and the same however it was drawn.
    groups = [tuple(sorted(order[a:b], key=models.index)) for a, b in pairwise(ends)]
    groups.sort(key=lambda group: (max(cost[name] for name in group), group))
    if any(len(group) < smallest for group in groups[:-1]):
        return None
    needed = [int(rng.integers(min(2, len(group)), len(group) + 1)) for group in groups[:-1]]
    return tuple(zip(groups, [*needed, 0], strict=True))


def _small(rng: np.random.Generator, most: int) -> int:
    """1 to `most`, each half as often as the one before."""
    return min(int(rng.geometric(0.5)), most)


Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the choice is made by.

    Args:
        costs: every kind known; the first is the one chosen by.
        accounting: by which the choice is charged; None: as is usual for the first cost.
        calibration: share of the examples to choose on, or a trace of other examples.
        most: systems tried per method, at most; more are drawn at random.
    """

    costs: Sequence[Costs]
    accounting: Accounting | None = None
    calibration: float | Trace = 0.5
    most: int = 20_000
    seed: int = 0

    def splits(self, trace: Trace, rng: np.random.Generator) -> tuple[Trace, Trace]:
        """(to choose on, to report on)."""
        return trace.split(self.calibration, rng) if isinstance(self.calibration, float) else (self.calibration, trace)

    @property
    def charged_by(self) -> Accounting:
        return self.accounting or self.costs[0].usual_accounting


@dataclass(frozen=True, slots=True)
class Measured:
    """Candidates of one method over one panel: (C,) each, costs by kind and accounting."""

    candidates: Sequence[Candidate]
    outcomes: Outcomes
    costs: Mapping[tuple[str, Accounting], Values]

    @property
    def accuracy(self) -> Values:
        return self.outcomes.accuracy

    def exits(self, row: int) -> list[int]:
        """Of one candidate, examples that left at each tier."""
        exits: list[int] = self.outcomes.exits[row, : len(self.candidates[row].charged)].tolist()
        return exits

    def cost_limits(self, row: int, costs: Costs, accounting: Accounting) -> tuple[float, float]:
        """Of one candidate's average cost, 95%."""
        return cost_interval(costs.charges(self.candidates[row].charged, accounting), self.exits(row))


def measure(candidates: Sequence[Candidate], ensemble_votes: EnsembleVotes, costs: Sequence[Costs]) -> Measured:
    """Every candidate over the panel's examples."""
    made = [candidate.make(ensemble_votes) for candidate in candidates]
    outcomes = sweep(made, len(ensemble_votes))
    shares = outcomes.shares
    charged = {
        (one.kind, accounting): np.array(
            [
                shares[row, : len(candidate.charged)] @ one.charges(candidate.charged, accounting)
                for row, candidate in enumerate(candidates)
            ]
        )
        for one in costs
        for accounting in Accounting
    }
    return Measured(candidates, outcomes, charged)


def differences(candidates: Sequence[Candidate], ensemble_votes: EnsembleVotes, model: str) -> NDArray[np.int64]:
    """(C, 2) examples on which a candidate alone is right, and on which this model alone is."""
    other, n = ensemble_votes.trace.right(model), len(ensemble_votes)
    rights = [right_rows(candidate.make(ensemble_votes), n) for candidate in candidates]
    return np.array([[int((mine & ~other).sum()), int((other & ~mine).sum())] for mine in rights])


def drop_in(costs: Values, accuracy: Values, is_good: NDArray[np.bool_]) -> int:
    """The cheapest of those that are good enough; where none is, the most accurate."""
    good = np.flatnonzero(is_good)
    if good.size:
        return int(good[np.lexsort((-accuracy[good], costs[good]))[0]])
    return int(np.lexsort((costs, -accuracy))[0])


def cost_interval(charges: Values, exits: Sequence[int], level: float = 0.95) -> tuple[float, float]:
    """Limits of the average cost, where `exits` (T,) examples left at each tier and `charges` (T,) is what they pay.

    Exact where there are two tiers; of more, half an example more in each, so that a few that all left at one tier do
    not show that all would.
    """
    if len(charges) == 1:
        return float(charges[0]), float(charges[0])
    if len(charges) == 2:
        shares = share_interval(int(exits[1]), int(sum(exits)), level)
        low, high = sorted(float(charges[0] + share * (charges[1] - charges[0])) for share in shares)
        return low, high
    counts = np.asarray(exits) + 0.5
    mean = counts @ charges / counts.sum()
    spread = counts @ (charges - mean) ** 2 / counts.sum()
    half = NormalDist().inv_cdf((1 + level) / 2) * float(spread / counts.sum()) ** 0.5
    return max(float(mean) - half, float(charges.min())), min(float(mean) + half, float(charges.max()))


def panel_of(ensemble_votes: EnsembleVotes, n_labels: int) -> Panel:
    """The trace as the chooser of calibrated votes takes it; plain votes are those of `coe.cascade`."""
    trace = ensemble_votes.trace
    labels, scores = ballots_of(list(trace.models.values()))
    return Panel(tuple(trace.models), labels, scores.astype(np.float64), trace.labels.astype(np.int64), n_labels,
                 ensemble_votes.counted)  # fmt: skip


def n_labels_of(trace: Trace) -> int:
    """Those of the models' outputs; else up to the highest label in the trace."""
    outputs = [one.probabilities.shape[1] for one in trace.models.values() if one.probabilities is not None]
    highest = max(int(one.predictions.max()) for one in trace.models.values())
    return max(*map(int, outputs), int(trace.labels.max()) + 1, highest + 1, 2)
