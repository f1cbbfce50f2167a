"""What a number of labelled examples can show: bounds, power and sample size.

X = right(cascade) - right(reference) on an example, -1, 0 or 1. "At least as accurate, less epsilon" is tested by
betting against mean X <= -epsilon: a bettor's capital, which a true hypothesis lets grow tenfold with probability 1/10
at most, whenever one looks (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2023).
It holds for examples drawn as these were, on average over them, and not when inputs change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

STAKES = (0.02, 0.04, 0.07, 0.11, 0.16, 0.23, 0.32, 0.45, 0.6, 0.75, 0.9, 0.98)  # of the largest bet allowed
LOOKS = 25  # at a simulated capital on its way
REPEATS = 400
MOST_EXAMPLES = 1_000_000


@dataclass(frozen=True, slots=True)
class Bets:
    """Capital spread over stakes, each a share in (0, 1) of the largest bet that cannot ruin.

    Any spread fixed before the examples are seen keeps the promise; one near the best makes it sooner.
    """

    stakes: Values
    weights: Values

    @classmethod
    def expecting(cls, gain: float, loss: float, epsilon: float) -> Bets:
        """Half on the best stake where the cascade alone is right (wrong) on these shares; half over all."""
        stakes, weights = np.array(STAKES), np.full(len(STAKES), 0.5 / len(STAKES))
        fine = np.linspace(0.005, 0.99, 198)
        growth = _log_factors(fine, -epsilon) @ np.array([loss, max(1 - gain - loss, 0.0), gain])
        return cls(np.append(stakes, fine[growth.argmax()]), np.append(weights, 0.5))


SPREAD = Bets(np.array(STAKES), np.full(len(STAKES), 1 / len(STAKES)))


def _log_factors(stakes: Values, mean: float) -> Values:
    """(S, 3) log of the capital's factor on X = -1, 0, 1, against a mean of at most `mean`."""
    x = np.array([-1.0, 0.0, 1.0])
    factors: Values = np.log1p(stakes[:, None] * (x - mean) / (1 + mean))
    return factors


def best_capital(x: ArrayLike, mean: float, bets: Bets = SPREAD) -> float:
    """The most that the log of the capital came to, over examples (n,) in {-1, 0, 1} in their (random) order."""
    steps = _log_factors(bets.stakes, mean)[:, np.asarray(x, dtype=np.intp) + 1]  # (S, n)
    if not steps.size:
        return 0.0
    capital = steps.cumsum(axis=1) + np.log(bets.weights)[:, None]
    top = capital.max(axis=0)
    return float((np.log(np.exp(capital - top).sum(axis=0)) + top).max())


def is_certified(x: ArrayLike, epsilon: float, delta: float, bets: Bets = SPREAD) -> bool:
    """Whether mean X > -epsilon is shown: wrongly so with probability `delta` at most."""
    return best_capital(x, -epsilon, bets) >= math.log(1 / delta)


def lower_bound(x: ArrayLike, delta: float, bets: Bets = SPREAD) -> float:
    """A mean of X that the true one is below with probability `delta` at most."""
    found = np.asarray(x, dtype=np.intp)
    low, high = -1.0 + 1e-9, float(found.mean()) if found.size else -1.0
    if high <= low or best_capital(found, low, bets) < math.log(1 / delta):
        return -1.0
    for _ in range(24):
        middle = (low + high) / 2
        if best_capital(found, middle, bets) >= math.log(1 / delta):
            low = middle
        else:
            high = middle
    return low


def power(n: int, gain: float, loss: float, epsilon: float, delta: float, seed: int = 0) -> float:
    """The probability that `n` examples certify, where the cascade alone is right (wrong) on these shares of them."""
    bets = Bets.expecting(gain, loss, epsilon)
    rng = np.random.default_rng(seed)
    looks = np.diff(np.linspace(0, n, min(LOOKS, n) + 1).astype(np.int64))
    counts = np.stack([rng.multinomial(many, [loss, 1 - gain - loss, gain], REPEATS) for many in looks.tolist()])
    capital = counts.cumsum(axis=0) @ _log_factors(bets.stakes, -epsilon).T + np.log(bets.weights)
    return float((np.logaddexp.reduce(capital, axis=2).max(axis=0) >= math.log(1 / delta)).mean())


def sample_size(gain: float, loss: float, epsilon: float, delta: float, wanted: float = 0.8) -> int | None:
    """Examples that certify with probability `wanted`, to two digits; None: none do, or more than a million."""
    if gain - loss <= -epsilon:
        return None
    low, high = 1, 32
    while power(high, gain, loss, epsilon, delta) < wanted:
        low, high = high, 2 * high
        if high > MOST_EXAMPLES:
            return None
    while high - low > max(high // 50, 1):
        middle = (low + high) // 2
        if power(middle, gain, loss, epsilon, delta) < wanted:
            low = middle
        else:
            high = middle
    digit = int(10 ** max(math.floor(math.log10(high)) - 1, 0))
    return math.ceil(high / digit) * digit


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(at most `k` of `n`), each with probability `p`."""
    if k >= n or p <= 0:
        return 1.0
    if k < 0 or p >= 1:
        return 0.0
    i = np.arange(k + 1)
    log_ways = np.concatenate([[0.0], np.log(n - np.arange(k)) - np.log(np.arange(1, k + 1))]).cumsum()
    terms = log_ways + i * math.log(p) + (n - i) * math.log1p(-p)
    return float(min(np.exp(np.logaddexp.reduce(terms)), 1.0))


def share_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact limits (Clopper and Pearson) of a probability, after `k` of `n`: wide where they are few."""
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else _solve(lambda p: 1 - binomial_tail(k - 1, n, p) >= tail)
    high = 1.0 if k == n else _solve(lambda p: binomial_tail(k, n, p) <= tail)
    return low, high


def _solve(is_above: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return (low + high) / 2


def difference_interval(gains: int, losses: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Limits of mean X, where it was 1 on `gains` and -1 on `losses` of `n` examples.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005: half an example
    more in each of the four cells, so that a few examples without a difference do not show that there is none.
    """
    mean = (gains - losses) / (n + 2)
    spread = max((gains + losses + 1) / (n + 2) - mean**2, 0.0)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(spread / (n + 2))
    return max(mean - half, -1.0), min(mean + half, 1.0)


def examples_needed(epsilon: float, losses: Sequence[int] = (0, 1, 3), level: float = 0.95) -> list[int]:
    """By exact binomial: examples after which this many losses (and no gain counted) show fewer than `epsilon`."""
    found = []
    for k in losses:
        low, high = k, 2
        while binomial_tail(k, high, epsilon) > 1 - level:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if binomial_tail(k, middle, epsilon) <= 1 - level else (middle, high)
        found.append(high)
    return found
