"""A tier behind an injected delay, the clocks that wait, and the waits between retries.

Paper: Section 5, edge to cloud: 1 us, 10 ms, 100 ms and 1000 ms between tiers. A device injects its delay in
its own process, because no proxy can: a microsecond is a thousandth of a call through a socket.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import Protocol

from .cascade.errors import TierError
from .cascade.rule import DeferralRule
from .cascade.tier import Tier
from .cascade.types import Batch, CallCost, Vote

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


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds injected at a hop: once per round trip, as the paper charges it, or in each direction."""

    seconds: float
    one_way: bool = False

    @property
    def round_trip_s(self) -> float:
        return self.seconds * (2 if self.one_way else 1)


class DelayedTier:
    """`tier`, but far away. The delay achieved is in the vote's `call.delay_s`."""

    def __init__(self, tier: Tier, delay: Delay, clock: Clock | None = None) -> None:
        self.tier = tier
        self.delay = delay
        self.clock: Clock = clock or RealClock()
        self.name = tier.name
        self.rule = tier.rule

    @property
    def n_tiers(self) -> int:
        return self.tier.n_tiers

    @property
    def waits(self) -> bool:
        return self.tier.waits or self.delay.seconds > COARSE_S

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        waited = self.clock.wait(self.delay.seconds)
        try:
            vote = self.tier.vote(batch, rule)
        except TierError as error:
            error.call += CallCost(delay_s=waited)
            raise
        if self.delay.one_way:
            waited += self.clock.wait(self.delay.seconds)
        return replace(vote, call=vote.call + CallCost(delay_s=waited))

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return self.tier.complete(batch, vote)

    def close(self) -> None:
        self.tier.close()
