"""Algorithm 1 over many cascades at once, on bits: the vectorised twin of `coe.cascade.Cascade` for studies.

Of a cascade only what a study asks is worked out: how many examples leave at each tier, and how many of them wrong.
A property test holds every figure against the cascade itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bits import Words, ones, packed
from .panel import THREADS, SweptTier

AT_ONCE = 64  # cascades in one piece of work: with 50,000 examples each array is 400 kB, and stays in the cache

Configuration = Sequence[SweptTier]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What each of C cascades came to; T: tiers of the longest, counts after a shorter one's last tier are 0.

    Args:
        exits: (C, T) examples that left at each tier.
        wrong: (C, T) of them, with a wrong label.
        n: examples.
    """

    exits: Counts
    wrong: Counts
    n: int

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(C,)"""
        accuracy: NDArray[np.float64] = 1 - self.wrong.sum(axis=1) / self.n
        return accuracy

    @property
    def shares(self) -> NDArray[np.float64]:
        """(C, T) share of the examples that left at each tier."""
        shares: NDArray[np.float64] = self.exits / self.n
        return shares


def sweep(configurations: Sequence[Configuration], n: int, threads: int = THREADS) -> Outcomes:
    """Every configuration over the same `n` examples, in their order."""
    n_tiers = max(map(len, configurations), default=0)
    exits, wrong = np.zeros((2, len(configurations), n_tiers), dtype=np.int64)
    outcomes = Outcomes(exits, wrong, n)
    tiers = list({id(tier): tier for one in configurations for tier in one}.values())
    place = {id(tier): at for at, tier in enumerate(tiers)}
    table = _Table(
        np.stack([tier.right for tier in tiers]) if tiers else np.zeros((0, 0), dtype=np.uint64),
        np.stack([tier.stands for tier in tiers]) if tiers else np.zeros((0, 0), dtype=np.uint64),
        packed(np.ones(n, dtype=np.bool_)),
    )
    work = []
    for length in range(1, n_tiers + 1):
        rows = np.array([row for row, one in enumerate(configurations) if len(one) == length], dtype=np.intp)
        seats = np.array([[place[id(tier)] for tier in configurations[row]] for row in rows], dtype=np.intp)
        work += [
            (rows[start : start + AT_ONCE], seats[start : start + AT_ONCE]) for start in range(0, len(rows), AT_ONCE)
        ]
    with ThreadPoolExecutor(threads) as pool:
        for rows, counts in zip((rows for rows, _ in work), pool.map(lambda one: table.run(one[1]), work), strict=True):
            outcomes.exits[rows, : counts.shape[2]] = counts[0]
            outcomes.wrong[rows, : counts.shape[2]] = counts[1]
    return outcomes


@dataclass(frozen=True, slots=True)
class _Table:
    """Every distinct tier once: (K, W) words each, and (W,) ones for all examples."""

    right: Words
    stands: Words
    everybody: Words

    def run(self, seats: NDArray[np.intp]) -> Counts:
        """(2, C, T) exits and wrong exits of C cascades of T tiers, `seats` (C, T) pointing into the table."""
        n, n_tiers = seats.shape
        counts = np.empty((2, n, n_tiers), dtype=np.int64)
        active = np.repeat(self.everybody[None], n, axis=0)  # (C, W)
        for number in range(n_tiers):
            leaving = active if number == n_tiers - 1 else active & self.stands[seats[:, number]]
            counts[0, :, number] = ones(leaving)
            counts[1, :, number] = counts[0, :, number] - ones(leaving & self.right[seats[:, number]])
            if leaving is not active:
                active ^= leaving  # what left is no longer here
        return counts
