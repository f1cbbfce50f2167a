"""A delay of each message, the same each time or with jitter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .link import Passage, Seconds

JITTERS = ("none", "normal", "lognormal", "pareto")


@dataclass(frozen=True, slots=True)
class Propagation:
    """Messages take `delay_s` on average, with a standard deviation of `jitter_s`, whatever the distribution.

    Messages do not wait for each other. A normal delay below 0 is 0; a Pareto delay has a least value and a long tail.
    """

    delay_s: float
    jitter: str = "none"
    jitter_s: float = 0.0

    def start(self, rng: np.random.Generator, phases: Seconds) -> Passage:
        mean, std = self.delay_s, self.jitter_s
        if self.jitter == "none" or not mean or not std:
            return lambda sent_s, n_bytes, links: sent_s + mean
        if self.jitter == "normal":
            return lambda sent_s, n_bytes, links: sent_s + np.maximum(rng.normal(mean, std, len(sent_s)), 0.0)
        if self.jitter == "lognormal":
            sigma = math.sqrt(math.log1p((std / mean) ** 2))
            mu = math.log(mean) - sigma**2 / 2
            return lambda sent_s, n_bytes, links: sent_s + rng.lognormal(mu, sigma, len(sent_s))
        alpha = 1 + math.sqrt(1 + (mean / std) ** 2)
        least = mean * (alpha - 1) / alpha
        return lambda sent_s, n_bytes, links: sent_s + least * (1 + rng.pareto(alpha, len(sent_s)))
