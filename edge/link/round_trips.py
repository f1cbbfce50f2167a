"""How long calls take: a moving average for people, and the best lately, below which a call cannot fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

WEIGHT = 0.125  # of the latest in the mean, and twice that in the deviation: TCP's, RFC 6298
REMEMBERED_S = 30.0  # the best is that of this period and the one before


class Smoothed:
    """A moving average and the mean deviation from it. To be added to by one thread at a time."""

    def __init__(self) -> None:
        self.mean = math.nan
        self.deviation = math.nan

    def add(self, value: float) -> None:
        if math.isnan(self.mean):
            self.mean, self.deviation = value, value / 2
            return
        self.deviation += 2 * WEIGHT * (abs(value - self.mean) - self.deviation)
        self.mean += WEIGHT * (value - self.mean)

    @property
    def high(self) -> float:
        """What it rarely goes beyond: the mean and four deviations, as TCP's timeout; 0 while nothing is known."""
        return 0.0 if math.isnan(self.mean) else self.mean + 4 * self.deviation


class RoundTrips:
    """Times of calls that were answered. What is long past is forgotten: a device may have moved to a better network.

    To be added to by one thread at a time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times = Smoothed()
        self._best = self._best_before = math.inf
        self._from = clock()  # when the present period began

    def add(self, seconds: float) -> None:
        self._turn()
        self._times.add(seconds)
        self._best = min(self._best, seconds)

    @property
    def mean_s(self) -> float:
        """NaN while nothing is known."""
        return self._times.mean

    @property
    def best_s(self) -> float:
        """The least of the last 30 to 60 seconds; NaN where nothing was answered in them."""
        self._turn()
        best = min(self._best, self._best_before)
        return math.nan if best == math.inf else best

    def _turn(self) -> None:
        past = self._clock() - self._from
        if past < REMEMBERED_S:
            return
        self._best_before = self._best if past < 2 * REMEMBERED_S else math.inf
        self._best = math.inf
        self._from = self._clock()
        if self._best_before == math.inf:
            self._times = Smoothed()
