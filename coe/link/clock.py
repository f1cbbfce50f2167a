"""The clocks that wait for a link, and the waits between retries."""

from __future__ import annotations

import random
import time
from typing import Protocol

SPIN_S = 0.0004  # sleep() may come back this late; the rest of a wait is spun
COARSE_S = 0.0001  # waits below this are spun alone


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, from any start."""
        ...

    def wait(self, seconds: float) -> float:
        """Wait, and return the seconds it really took."""
        ...


class RealClock:
    """Sleeps until shortly before the end and spins the rest: 1 us costs microseconds, not a tick."""

    def now(self) -> float:
        return time.perf_counter()

    def wait(self, seconds: float) -> float:
        started = time.perf_counter()
        end = started + seconds
        if seconds > COARSE_S:
            if seconds > SPIN_S:
                time.sleep(seconds - SPIN_S)
            while time.perf_counter() < end:
                time.sleep(0)  # other threads run meanwhile
        else:
            while time.perf_counter() < end:
                pass
        return time.perf_counter() - started


class VirtualClock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> float:
        self.seconds += seconds
        return seconds


class Backoff:
    """Waits between retries: `first_s`, then twice as long each time up to `longest_s`, each varied at random so that
    many clients do not come back at once.

    Args:
        spread: each wait is multiplied by a number drawn from this range.
        rng: Python's own generator: NumPy's is not loaded on a device.
    """

    def __init__(
        self,
        first_s: float,
        longest_s: float,
        spread: tuple[float, float] = (0.5, 1.0),
        rng: random.Random | None = None,
    ) -> None:
        self.first_s, self.longest_s = first_s, longest_s
        self._spread = spread
        self._rng = rng or random.Random()
        self._wait_s = min(first_s, longest_s)

    def next_s(self) -> float:
        """Seconds to wait now; the next wait is longer."""
        wait_s = self._wait_s
        self._wait_s = min(2 * wait_s, self.longest_s)
        return wait_s * self._rng.uniform(*self._spread)

    def reset(self) -> None:
        """Start with the first wait again."""
        self._wait_s = min(self.first_s, self.longest_s)
