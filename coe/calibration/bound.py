"""What a number of labelled examples can show: bounds, power and sample size.

X = right(cascade) - right(reference) on an example, -1, 0 or 1. "At least as accurate, less epsilon" is tested by
betting against mean X <= -epsilon: where that is true, a bettor's capital grows to 1 / delta with probability delta at
most (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2023). Each stake is that with
which the capital, looked at once, after all examples, shows most; it follows from how often the two differed before.
The bound holds for examples drawn as these were, on average over them, and not when inputs change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

LARGEST_STAKE = 0.95  # of a bet that could ruin
FIRST_GUESS = (1, 20)  # examples on which the two differ, of how many, where nothing is known
REPEATS = 2000  # simulated draws
MOST_EXAMPLES = 1_000_000


def _stakes(differ: ArrayLike, n: int, delta: float) -> Values:
    """(...) the best stake for `n` examples, where the two differ on these shares of them."""
    stakes: Values = np.sqrt(2 * math.log(1 / delta) / (n * np.asarray(differ, dtype=np.float64)))
    return np.minimum(stakes, LARGEST_STAKE)


def _capital(x: Values, stakes: Values, mean: float) -> float:
    """Log of the capital after examples (n,), against a mean of at most `mean`."""
    return float(np.log1p(stakes * (x - mean) / (1 + mean)).sum())


def _bets(x: ArrayLike, delta: float, before: tuple[int, int]) -> tuple[Values, Values]:
    """The examples, and the stake on each, by those before it."""
    found = np.asarray(x, dtype=np.float64)
    seen = before[0] + np.concatenate([[0.0], np.abs(found).cumsum()[:-1]])[: len(found)]
    return found, _stakes((seen + 1) / (before[1] + np.arange(len(found)) + 2), max(len(found), 1), delta)


def is_certified(x: ArrayLike, epsilon: float, delta: float, before: tuple[int, int] = FIRST_GUESS) -> bool:
    """Whether mean X > -epsilon is shown by examples (n,) in a random order; wrongly with probability `delta` at most.

    Args:
        before: on how many other examples the two differed, and of how many.
    """
    return _capital(*_bets(x, delta, before), -epsilon) >= math.log(1 / delta)


def lower_bound(x: ArrayLike, delta: float, before: tuple[int, int] = FIRST_GUESS) -> float:
    """A mean of X that the true one is below with probability `delta` at most."""
    found, stakes = _bets(x, delta, before)
    low, high = -1.0 + 1e-9, float(found.mean()) if found.size else -1.0
    if high <= low or _capital(found, stakes, low) < math.log(1 / delta):
        return -1.0
    for _ in range(30):
        middle = (low + high) / 2
        if _capital(found, stakes, middle) >= math.log(1 / delta):
            low = middle
        else:
            high = middle
    return low


def power(n: int, gain: float, loss: float, epsilon: float, delta: float, seed: int = 0) -> float:
    """The probability that `n` examples certify, where the cascade alone is right (wrong) on these shares of them."""
    counts = np.random.default_rng(seed).multinomial(n, [loss, 1 - gain - loss, gain], REPEATS)
    stake = _stakes(max(gain + loss, 1 / (n + 2)), n, delta)
    steps = np.log1p(stake * (np.array([-1.0, 0.0, 1.0]) + epsilon) / (1 - epsilon))
    return float((counts @ steps >= math.log(1 / delta)).mean())


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
    if k >= n * p:
        return 1 - _lower_tail(n - k - 1, n, 1 - p)
    return _lower_tail(k, n, p)


def _lower_tail(k: int, n: int, p: float) -> float:
    """P(at most `k`), k < n p: the terms fall from the last on, and those far below it do not count."""
    if k < 0:
        return 0.0
    i = k - np.arange(min(k, int(12 * math.sqrt(n * p * (1 - p))) + 40))
    ratios = np.log(i * (1 - p) / ((n - i + 1) * p)).cumsum()
    last = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return min(math.exp(last) * (1 + float(np.exp(ratios).sum())), 1.0)


@lru_cache(maxsize=1 << 16)
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
