"""Everything that could be deployed, before anything is measured: which members sit in which tiers, at which rule.

A candidate holds no data: it makes its tiers over any panel, so that it is chosen on one split and reported on
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, pairwise

import numpy as np

from ...sweep import Panel, SweptTier

MOST_MEMBERS, MOST_TIERS = 5, 5

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
    """

    method: str
    charged: tuple[Ensemble, ...]
    make: Callable[[Panel], list[SweptTier]]
    rules: tuple[str, ...]
    shape: Shape = ()

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
        lambda panel: [panel.agreement(members, needed) for members, needed in shape],
        tuple(f"{needed}/{len(members)}" if needed else "" for members, needed in shape),
        shape,
    )


def shapes(cost: dict[str, float], most: int, rng: np.random.Generator) -> tuple[list[Shape], bool]:
    """Cascades of 2 to MOST_TIERS tiers of different models, no tier cheaper than the one before; and whether these
    are all there are. Where there are more than `most`, as many are drawn at random."""
    models = by_cost(cost)
    found = list(islice(_every(models, cost, 0.0, MOST_TIERS), most + 1))
    if len(found) <= most:
        return found, True
    drawn: dict[Shape, None] = {}
    for _ in range(20 * most):
        if (shape := _draw(models, cost, rng)) is not None:
            drawn[shape] = None
        if len(drawn) == most:
            break
    return list(drawn), False


def _every(models: Sequence[str], cost: dict[str, float], least: float, tiers_left: int) -> Iterator[Shape]:
    """Shapes of up to `tiers_left` tiers whose first costs at least `least`."""
    for first in ensembles(models, least=2):
        dearest = max(cost[name] for name in first)
        if dearest < least:
            continue
        rest = [name for name in models if name not in first]
        for needed in range(2, len(first) + 1):
            own = (first, needed)
            for last in ensembles(rest):
                if max(cost[name] for name in last) >= dearest:
                    yield (own, (last, 0))
            if tiers_left > 2:
                for after in _every(rest, cost, dearest, tiers_left - 1):
                    yield (own, *after)


def _draw(models: Sequence[str], cost: dict[str, float], rng: np.random.Generator) -> Shape | None:
    """One shape at random, a small one more often; None where the models do not suffice for it."""
    n_tiers = 1 + _small(rng, MOST_TIERS - 1)
    sizes = [1 + _small(rng, MOST_MEMBERS - 1) for _ in range(n_tiers - 1)]
    sizes.append(_small(rng, MOST_MEMBERS))
    if sum(sizes) > len(models):
        return None
    order = [models[at] for at in rng.permutation(len(models))]
    ends = np.cumsum([0, *sizes]).tolist()
    # Members in the order of their cost, so that one ensemble is one and the same however it was drawn.
    groups = [tuple(sorted(order[a:b], key=models.index)) for a, b in pairwise(ends)]
    groups.sort(key=lambda group: (max(cost[name] for name in group), group))
    if any(len(group) == 1 for group in groups[:-1]):
        return None
    needed = [int(rng.integers(2, len(group) + 1)) for group in groups[:-1]]
    return tuple(zip(groups, [*needed, 0], strict=True))


def _small(rng: np.random.Generator, most: int) -> int:
    """1 to `most`, each half as often as the one before."""
    return min(int(rng.geometric(0.5)), most)
