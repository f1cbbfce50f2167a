"""How often something is so, from a sample in which each example had a known chance to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z95 = 1.959963984540054  # standard normal quantile of 0.975


@dataclass(slots=True)
class Estimate:
    """A share, estimated from examples drawn with chances that may change over time.

    Each example counts 1 / chance (Horvitz-Thompson); the share is the ratio of two such sums (Hajek), so that no
    stretch of time weighs more because it was sampled more. The interval is Wilson's, with the number of draws
    replaced by the effective one: as many equal draws as would vary as much. With one chance for all that is Wilson's
    own.

    Args:
        n: examples there were; n_drawn: of them, drawn; n_answered: of those, with an answer.
        n_hits: of those, where it was so.
    """

    n: int = 0
    n_drawn: int = 0
    n_answered: int = 0
    n_hits: int = 0
    weight: float = 0.0
    weight_squared: float = 0.0
    weight_hits: float = 0.0
    weight_squared_hits: float = 0.0

    def add(self, chance: float, is_hit: bool) -> None:
        """An example that was drawn with that chance, and answered."""
        weight = 1.0 / chance
        self.n_answered += 1
        self.n_hits += is_hit
        self.weight += weight
        self.weight_squared += weight * weight
        self.weight_hits += weight * is_hit
        self.weight_squared_hits += weight * weight * is_hit

    @property
    def share(self) -> float | None:
        """None while nothing is known."""
        return self.weight_hits / self.weight if self.weight else None

    @property
    def n_effective(self) -> float:
        """Draws of one chance that would vary as much: at most (sum w)^2 / sum w^2 (Kish), which leaves out that the
        weights may go with what is counted; less where sum w^2 (hit - share)^2, the ratio's variance, says so.
        """
        share = self.share
        if share is None:
            return 0.0
        square = self.weight * self.weight
        spread = self.weight_squared_hits * (1 - 2 * share) + share * share * self.weight_squared
        kish = square / self.weight_squared
        return min(kish, share * (1 - share) * square / spread) if 0 < share < 1 and spread > 0 else kish

    def interval(self, z: float = Z95) -> tuple[float, float]:
        """Low and high end; (0, 1) while nothing is known."""
        share = self.share
        return (0.0, 1.0) if share is None else wilson(share, self.n_effective, z)


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share seen in n draws (Wilson 1927)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)
