"""How much a device may ask: a token bucket of examples for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from coe.cascade.errors import OverQuota, TierRejected
from coe.settings import Fields
from coe.wire.plane import Request

MOST_DEVICES = 65_536
SWEEP_EVERY_S = 1.0
ROUNDING = 1e-9  # examples


@dataclass(frozen=True)
class Rate:
    """Examples a second for as long as one likes, and `burst` of them at once after a pause."""

    examples_per_s: float
    burst: int


class Bucket:
    """What one device has left, as of `at`."""

    __slots__ = ("at", "level", "rate")

    def __init__(self, rate: Rate, at: float) -> None:
        self.rate = rate
        self.level = float(rate.burst)
        self.at = at

    def refill(self, rate: Rate, now: float) -> None:
        if now > self.at:
            self.level += (now - self.at) * rate.examples_per_s
            self.at = now
        self.level = min(self.level, float(rate.burst))
        self.rate = rate

    def is_full(self, now: float) -> bool:
        return self.level + (now - self.at) * self.rate.examples_per_s >= self.rate.burst


class Quota:
    """A bucket per caller. Within any t seconds a caller is given at most `burst + examples_per_s * t` examples.

    For one thread (the event loop). A full bucket is as good as none, so those are dropped where room is needed.

    Args:
        rate: of every device that has none of its own; None: no limit.
        rate_of: a device's own rate, where it has one.
        n_devices: buckets kept at most; while that many devices are busy at once, another one has to wait.
    """

    def __init__(
        self,
        rate: Rate | None,
        rate_of: Callable[[str], Rate | None] = lambda caller: None,
        n_devices: int = MOST_DEVICES,
    ) -> None:
        self.rate = rate
        self.rate_of = rate_of
        self.n_devices = n_devices
        self._buckets: dict[str, Bucket] = {}
        self._next_sweep = -math.inf

    def __len__(self) -> int:
        """Devices tracked at the moment."""
        return len(self._buckets)

    def enter(self, request: Request) -> None:
        """As a gate of the plane: `take` for the request's caller, now."""
        self.take(request.caller, request.n_rows, time.monotonic(), request.model[:64])

    def leave(self, request: Request) -> None:
        """Nothing comes back: what a device asked, it asked."""

    def take(self, caller: str, n_rows: int, now: float, tier: str = "server") -> None:
        """Charge `n_rows` examples to `caller` at `now` seconds of a monotonic clock.

        Raises:
            TierOverloaded: it has too few left; `retry_after_s` says when it will have enough. Nothing is charged.
            TierRejected: more than `burst`, which it will never have.
        """
        rate = self.rate_of(caller) or self.rate
        if rate is None or n_rows <= 0:
            return
        who = f'device "{caller}"' if caller else "callers without an identity"
        if n_rows > rate.burst:
            raise TierRejected(
                tier,
                f"expected at most {rate.burst} examples in one request, the burst of the quota of {who}, "
                f"got {n_rows} (send fewer at once)",
            )
        bucket = self._bucket(caller, rate, now, tier)
        if bucket.level + ROUNDING < n_rows:
            wait_s = (n_rows - bucket.level) / rate.examples_per_s
            allowed = f"{rate.examples_per_s:g} examples/s with a burst of {rate.burst}"
            message = f"the quota of {who} ({allowed}) is used up: try again in {wait_s:.3g} s"
            raise OverQuota(tier, message, retry_after_s=wait_s)
        bucket.level = max(0.0, bucket.level - n_rows)

    def _bucket(self, caller: str, rate: Rate, now: float, tier: str) -> Bucket:
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= self.n_devices:
                self._sweep(now)
            if len(self._buckets) >= self.n_devices:
                message = f"{self.n_devices} devices are busy already: try again in {SWEEP_EVERY_S:g} s"
                raise OverQuota(tier, message, retry_after_s=SWEEP_EVERY_S)
            bucket = self._buckets[caller] = Bucket(rate, now)
        bucket.refill(rate, now)
        return bucket

    def _sweep(self, now: float) -> None:
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_EVERY_S
            self._buckets = {caller: bucket for caller, bucket in self._buckets.items() if not bucket.is_full(now)}


def read_rate(fields: Fields) -> Rate:
    """`examples_per_s` and `burst`; a second's worth where no burst is said."""
    examples_per_s = fields.number("examples_per_s", low=0.001, high=1e9)
    burst = fields.integer("burst", max(1, math.ceil(examples_per_s)), 1)
    fields.finish()
    return Rate(examples_per_s, burst)
