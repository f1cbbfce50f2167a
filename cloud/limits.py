"""Admission limits: calls under way, the size of a request, and a quota of examples for each device."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from coe.cascade.errors import InputError, OverQuota, TierRejected, TooManyCalls
from coe.config.settings import REQUIRED, setting
from coe.models.inputs import MAX_PIXELS, suffix_of
from coe.protocol.core import Request

LEAST_RETRY_S, MOST_RETRY_S = 0.05, 5.0  # bounds of the hint when to retry
GROWS, SHRINKS = 1.5, 0.8  # each second, while more than MANY are refused, or fewer
MANY = 0.05


@dataclass(frozen=True)
class Limits:
    """The server's limits. A tier's own are `max_batch`, `max_delay_s` and `max_queued`."""

    max_batch: int = setting(64, "Most rows that a tier decides in one call.", low=1, high=65536)
    max_delay_s: float = setting(
        0, "Longest time that such a call waits for more rows.", unit="ms", key="max_queue_delay_ms", high=10_000
    )
    max_queued: int = setting(1024, "Most rows that wait for a tier; more are refused.", low=1)
    max_calls: int = setting(256, "Most calls under way at once.", low=1, high=65536)
    max_calls_per_connection: int = setting(
        128, "Calls under way of one connection; its client holds back the others.", low=1, high=65536
    )
    max_rows: int = setting(1024, "Most rows of one request.", low=1, high=2**20)
    max_message_bytes: int = setting(64, "Largest request in MiB.", unit="MiB", low=0.01, high=2047)
    max_pixels: int = setting(MAX_PIXELS, "Most pixels of one request's images together.", low=1)
    max_text_bytes: int = setting(2**16, "Longest text in bytes.", low=1)
    max_s: float = setting(
        60, "Longest time for a call, whatever its deadline.", unit="seconds", low=0.001, high=86_400
    )


class CallGate:
    """The gate that counts calls under way.

    The hint when to retry grows while many calls are refused and shrinks again after, so that callers who keep to it
    together send about as much as the server can do. It is spread, so that they do not retry all at once.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.n_inside = 0
        self.retry_s = LEAST_RETRY_S
        self._clock = clock
        self._since = 0.0
        self._n_taken = self._n_refused = 0  # since then
        self._dice = random.Random(0)

    def enter(self, request: Request) -> None:
        if self.n_inside >= self.limits.max_calls:
            message = f"{self.n_inside} calls are under way, at most {self.limits.max_calls} may be"
            raise TooManyCalls(request.model[:64], message, retry_after_s=self._hint())
        self._check_texts(request)
        if request.remaining_s is None or request.remaining_s > self.limits.max_s:
            request.remaining_s = self.limits.max_s
        self.n_inside += 1
        self._n_taken += 1

    def _hint(self) -> float:
        """Seconds, anew for each caller."""
        self._n_refused += 1
        now = self._clock()
        if now - self._since >= 1.0:
            many = self._n_refused > MANY * (self._n_refused + self._n_taken)
            quiet_s = now - self._since  # each second without a refusal counts as one with few
            factor = GROWS if many and quiet_s < 3.0 else SHRINKS ** min(quiet_s, 30.0)
            self.retry_s = min(max(self.retry_s * factor, LEAST_RETRY_S), MOST_RETRY_S)
            self._since, self._n_taken, self._n_refused = now, 0, 0
        return self.retry_s * self._dice.uniform(0.5, 1.5)

    def leave(self, request: Request) -> None:
        self.n_inside -= 1

    def _check_texts(self, request: Request) -> None:
        """Refuse BYTES longer than a text may be, unless they are an encoded image (see max_pixels)."""
        most = self.limits.max_text_bytes
        for values in request.inputs.values():
            if values.dtype == object:
                for row, value in enumerate(values):
                    if len(value) > most and suffix_of(value) == ".bin":
                        raise InputError(f"row {row}: expected a text of at most {most} bytes, got {len(value)}")


MOST_DEVICES = 65_536
SWEEP_EVERY_S = 1.0
ROUNDING = 1e-9  # examples


@dataclass(frozen=True)
class Rate:
    """Examples a second, and `burst` of them at once after a pause."""

    examples_per_s: float = setting(
        REQUIRED, "Examples a second that a device may send for good.", low=0.001, high=1e9, example="50"
    )
    burst: int = setting(
        None, "Examples that may come at once after a pause.", usual="a second's worth", low=1, example="200"
    )

    def __post_init__(self) -> None:
        if not self.burst:
            object.__setattr__(self, "burst", max(1, math.ceil(self.examples_per_s)))


@dataclass(slots=True)
class Bucket:
    """The examples that one device has left (`level`), as of `at`."""

    rate: Rate
    level: float
    at: float

    def level_at(self, rate: Rate, now: float) -> float:
        return min(self.level + max(now - self.at, 0.0) * rate.examples_per_s, float(rate.burst))


class Quota:
    """A token bucket for each caller, which has at most `burst + examples_per_s * t` examples within any t seconds.

    For one thread (the event loop). A full bucket is as good as none, so those are dropped where room is needed.

    Args:
        rate: of every device that has none of its own; None: no limit.
        rate_of: a device's own rate, where it has one.
        n_devices: buckets kept at most; while that many devices are busy at once, others are refused.
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
        """`take` for the request's caller, now."""
        self.take(request.caller, request.n_rows, time.monotonic(), request.model[:64])

    def leave(self, request: Request) -> None:
        """Nothing: the examples stay charged."""

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
            if len(self._buckets) >= self.n_devices and now >= self._next_sweep:
                self._next_sweep = now + SWEEP_EVERY_S
                self._buckets = {
                    name: one for name, one in self._buckets.items() if one.level_at(one.rate, now) < one.rate.burst
                }
            if len(self._buckets) >= self.n_devices:
                message = f"{self.n_devices} devices are busy already: try again in {SWEEP_EVERY_S:g} s"
                raise OverQuota(tier, message, retry_after_s=SWEEP_EVERY_S)
            bucket = self._buckets[caller] = Bucket(rate, float(rate.burst), now)
        bucket.level, bucket.at, bucket.rate = bucket.level_at(rate, now), max(now, bucket.at), rate
        return bucket
