"""State of the link to a remote tier: its settings, round-trip times, circuit breaker and log lines.

The circuit breaker is Michael Nygard's, "Release It!": closed (calls pass), open (none does), half-open (one passes as
a trial). Nothing here makes a call: who does asks the breaker first, and reports the result.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from coe.cascade.errors import TierError, TierOverloaded, TierRefused, TierTimeout, TierUnavailable
from coe.config import Fields, format_seconds
from coe.config.settings import read_settings, setting
from coe.link import Backoff

LONGEST_MS = 3_600_000


@dataclass(frozen=True)
class LinkConfig:
    """When a link counts as down, and how it is tried again."""

    failures: int = setting(3, "Failures in a row after which the link counts as down.", low=1, high=1000)
    rebuild_after: int = setting(3, "Deadlines missed in a row before a new connection.", low=1, high=1000)
    backoff_s: tuple[float, float] = setting(
        (200, 30_000), "First and longest wait between probes of a link that is down.", unit="ms"
    )
    probe_s: float | None = setting(
        None, "Deadline of a probe.", usual="the tier's, at least 1000", unit="ms", low=10, high=600_000, example="2000"
    )
    reserve_s: float = setting(
        5, "Part of an example's deadline kept for the device's own answer.", unit="ms", high=60_000
    )
    max_bytes_per_month: float | None = setting(
        None,
        "Most bytes of calls in a calendar month (UTC), in 10^6.",
        usual="no limit",
        unit="MB",
        key="max_mb_per_month",
        low=0.001,
        high=1e9,
        example="500",
    )
    max_examples_per_hour: int | None = setting(
        None, "Most examples sent in an hour.", usual="no limit", low=1, high=1_000_000_000, example="100"
    )


def read_link(fields: Fields) -> LinkConfig:
    """The section `link:` of an agent's config."""
    return read_settings(LinkConfig, fields, backoff_s=_read_backoff(fields))


def _read_backoff(fields: Fields) -> tuple[float, float]:
    n_before = len(fields.report.findings)
    usual = LinkConfig().backoff_s
    waits = fields.numbers("backoff_ms", usual)
    if len(fields.report.findings) > n_before or not fields.has("backoff_ms"):
        return usual
    if len(waits) != 2 or not 1 <= waits[0] <= waits[1] <= LONGEST_MS:
        got = f"[{', '.join(f'{wait:g}' for wait in waits)}]"
        expected = f"expected two waits from 1 to {LONGEST_MS}, the first no longer than the second"
        fields.wrong("backoff_ms", f"{expected}, got {got} (write [200, 30000])")
        return usual
    return waits[0] / 1000, waits[1] / 1000


log = logging.getLogger(__name__)


class LinkStatus(StrEnum):
    """Of a circuit breaker: calls pass; none does; one passes as a trial."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link at one moment. Times are seconds of the breaker's clock (`time.monotonic`).

    Args:
        tier: at the link's other end.
        since: when the status last changed.
        failures: of the link in a row.
        misses: deadlines missed in a row, on the present connection.
        error: the latest failure, in words; stays when the link is up again.
        is_draining: the server answered the latest probe that it takes no calls.
        is_refused: the link works, and the server refuses this device or its task.
        held_until: no calls before: an overloaded server said when to try again.
        next_probe_at: inf where no probe is due: the breaker is not open.
        n_opened, n_probes, n_rebuilds: since the start: how often the link went down, was probed, was reconnected.
        n_refused: calls since the start that the server refused, or whose answer could not be read.
        round_trip_s: moving average of a call's time, the server's own work and an injected delay included; NaN
            while not known.
        best_s: the shortest of the minute before the latest call; NaN while not known.
    """

    tier: str
    status: LinkStatus = LinkStatus.CLOSED
    since: float = 0.0
    failures: int = 0
    misses: int = 0
    error: str = ""
    is_draining: bool = False
    is_refused: bool = False
    held_until: float = -math.inf
    next_probe_at: float = math.inf
    n_opened: int = 0
    n_probes: int = 0
    n_rebuilds: int = 0
    n_refused: int = 0
    round_trip_s: float = math.nan
    best_s: float = math.nan

    @property
    def is_up(self) -> bool:
        """True if calls pass, or one as a trial: what waits for the link can start."""
        return self.status is not LinkStatus.OPEN


WEIGHT = 0.125  # of the latest in the mean, and twice that in the deviation: TCP's, RFC 6298
REMEMBERED_S = 30.0  # the best is that of this period and the one before


class MovingAverage:
    """A moving average and the mean deviation from it. One thread at a time may add to it."""

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
        """A bound that is rarely exceeded: the mean and four deviations, as TCP's timeout; 0 while nothing is known."""
        return 0.0 if math.isnan(self.mean) else self.mean + 4 * self.deviation


class RoundTrips:
    """Times of calls that were answered. Old ones are forgotten: a device may have moved to a better network.

    One thread at a time may add to it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times = MovingAverage()
        self._best = self._best_before = math.inf
        self._from = clock()  # when the present period began

    def add(self, seconds: float) -> None:
        self._roll_period()
        self._times.add(seconds)
        self._best = min(self._best, seconds)

    @property
    def mean_s(self) -> float:
        """NaN while nothing is known."""
        return self._times.mean

    @property
    def best_s(self) -> float:
        """The shortest of the last 30 to 60 seconds; NaN where nothing was answered in them."""
        self._roll_period()
        best = min(self._best, self._best_before)
        return math.nan if best == math.inf else best

    def _roll_period(self) -> None:
        past = self._clock() - self._from
        if past < REMEMBERED_S:
            return
        self._best_before = self._best if past < 2 * REMEMBERED_S else math.inf
        self._best = math.inf
        self._from = self._clock()
        if self._best_before == math.inf:
            self._times = MovingAverage()


SPREAD = (0.75, 1.25)  # each wait between probes is varied by this, so that a fleet does not come back all at once


class CircuitBreaker:
    """Decides which calls pass, and when to probe. Thread-safe; `state` is read without a lock.

    A call is admitted with a ticket, and its result reported with it: `answered`, `overloaded`, `failed` or
    `undecided`. A failure that began before the latest change of status, or on an earlier connection, is not counted.
    An answer always closes.

    Args:
        tier: whose calls these are, for errors.
        changed: called with each new status, and where a link that is down turns out to be refused, with the lock
            held: it must only pass it on.
        rng: varies the waits between probes.
    """

    def __init__(
        self,
        tier: str,
        config: LinkConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        changed: Callable[[LinkState], None] = lambda state: None,
    ) -> None:
        self.tier = tier
        self.config = config or LinkConfig()
        self._clock = clock
        self._changed = changed
        self._lock = threading.Lock()  # over all below
        self._backoff = Backoff(*self.config.backoff_s, SPREAD, rng)  # since it was closed
        self._ticket = 0
        self._is_tried = False  # half-open: a call is under way
        self._round_trips = RoundTrips(clock)
        self.state = LinkState(tier, since=clock())

    @property
    def best_s(self) -> float:
        """The quickest answer of the last minute, now; NaN where there was none."""
        with self._lock:
            return self._round_trips.best_s

    def admit(self) -> int:
        """A ticket for one call.

        Raises:
            TierUnavailable: the link is down, or another call is trying it.
            TierRefused: the server refused the latest call or probe.
            TierOverloaded: the server asked for no calls until later.
        """
        with self._lock:
            now, state = self._clock(), self.state
            if state.status is LinkStatus.OPEN:
                wait_s = state.next_probe_at - now
                probe = f"next probe in {format_seconds(wait_s)}" if wait_s > 0 else "a probe is under way"
                if state.is_refused:
                    raise TierRefused(self.tier, f"{state.error.removeprefix(f'tier {self.tier}: ')}; {probe}")
                raise TierUnavailable(self.tier, f"the link is down, {probe}")
            if now < state.held_until:
                left_s = state.held_until - now
                text = f"it asked to be left alone for another {format_seconds(left_s)}"
                raise TierOverloaded(self.tier, text, retry_after_s=left_s)
            if state.status is LinkStatus.HALF_OPEN:
                if self._is_tried:
                    raise TierUnavailable(self.tier, "the link was down, and another call is trying it")
                self._is_tried = True
            return self._ticket

    def answered(self, seconds: float) -> None:
        """A call had its answer, after so many seconds."""
        with self._lock:
            self._round_trips.add(seconds)
            self._close()

    def overloaded(self, retry_after_s: float | None) -> None:
        """The server answered that it has too much to do; no call is made before the time it named."""
        with self._lock:
            if retry_after_s is None:
                self._close()
            else:
                self._close(held_until=self._clock() + min(retry_after_s, self.config.backoff_s[1]))

    def failed(self, ticket: int, error: TierError) -> bool:
        """A call failed by the link's fault, or was refused. True: one deadline miss too many, so reconnect."""
        with self._lock:
            if ticket != self._ticket:
                return False
            state, is_refused = self.state, isinstance(error, TierRefused)
            failures = state.failures + 1
            misses = state.misses + 1 if isinstance(error, TierTimeout) else 0
            if is_refused or state.status is LinkStatus.HALF_OPEN or failures >= self.config.failures:
                n_opened = state.n_opened + (state.status is LinkStatus.CLOSED)
                facts = {"failures": failures, "misses": misses, "error": str(error), "is_refused": is_refused}
                self._set(LinkStatus.OPEN, n_opened=n_opened, **facts)
                return False  # the probe reconnects
            self._update(failures=failures, misses=misses, error=str(error))
            return misses == self.config.rebuild_after

    def undecided(self, ticket: int) -> None:
        """The call's result says nothing about the link; another call may try it."""
        with self._lock:
            if ticket == self._ticket:
                self._is_tried = False

    def refused(self, error: TierRefused) -> None:
        """The server refused a question that was not a call."""
        self.failed(self._ticket, error)

    def count_refusal(self) -> None:
        """The server refused a call, or its answer could not be read."""
        with self._lock:
            self._update(n_refused=self.state.n_refused + 1)

    def probed(self, is_up: bool, error: str = "", *, is_draining: bool = False, is_refused: bool = False) -> None:
        """A probe was answered (`is_up`), or was not, or only to say that the server is draining, or refuses."""
        with self._lock:
            state = self.state
            facts: dict[str, Any] = {"is_draining": is_draining, "is_refused": is_refused}
            facts |= {"n_probes": state.n_probes + 1, "error": error or state.error}
            if state.status is LinkStatus.OPEN:
                self._set(LinkStatus.HALF_OPEN if is_up else LinkStatus.OPEN, **facts)
            else:  # a late answer has closed it
                self._update(**facts)

    def hasten(self) -> None:
        """The device's own network changed: the next probe is due after the first wait again."""
        with self._lock:
            if self.state.status is LinkStatus.OPEN:
                self._backoff.reset()
                probe_at = self._clock() + self._backoff.next_s()
                self._update(next_probe_at=min(self.state.next_probe_at, probe_at))

    def rebuilt(self) -> None:
        """Calls use a new connection; results of calls on the old one no longer count."""
        with self._lock:
            if self.state.status is LinkStatus.CLOSED:
                self._ticket += 1
            self._update(n_rebuilds=self.state.n_rebuilds + 1, misses=0)

    def _close(self, **facts: Any) -> None:
        self._backoff.reset()
        self._set(LinkStatus.CLOSED, failures=0, misses=0, is_draining=False, is_refused=False, **facts)

    def _set(self, status: LinkStatus, **facts: Any) -> None:
        """Change the status, and what else is given; OPEN plans the next probe, after a longer wait each time."""
        before, is_new = self.state, status is not self.state.status
        if is_new:
            facts["since"] = self._clock()
            self._ticket += 1
            self._is_tried = False
        probe_at = self._clock() + self._backoff.next_s() if status is LinkStatus.OPEN else math.inf
        self._update(status=status, next_probe_at=probe_at, **facts)
        if is_new or self.state.is_refused != before.is_refused:
            self._changed(self.state)

    def _update(self, **facts: Any) -> None:
        times = self._round_trips
        self.state = replace(self.state, round_trip_s=times.mean_s, best_s=times.best_s, **facts)


QUIET_S = 60.0  # after a line that a link is down: an unsteady link is logged once in a while


class LinkLog:
    """Logs that a link is down, that a server refuses, or that it answers again; called from the links' threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._down: dict[str, float] = {}  # links that were logged as down, and since when
        self._refused: set[str] = set()  # of these, whose refusal was logged
        self._logged: dict[str, float] = {}  # when a link was last logged as down

    def changed(self, state: LinkState) -> None:
        now = self._clock()
        tier, is_down = state.tier, state.status is LinkStatus.OPEN
        if is_down and (tier not in self._down or (state.is_refused and tier not in self._refused)):
            if tier not in self._down and now - self._logged.get(tier, -QUIET_S) < QUIET_S:
                return
            self._logged[tier] = now
            self._down.setdefault(tier, now)
            reason = state.error.removeprefix(f"tier {tier}: ") or "its probes fail"
            if state.is_refused:
                self._refused.add(tier)
                log.warning("tier %s refuses, the device answers by itself and asks again later: %s", tier, reason)
            else:
                log.warning("the link to tier %s is down, the device answers by itself: %s", tier, reason)
        elif state.status is LinkStatus.CLOSED and tier in self._down:
            self._refused.discard(tier)
            log.info("the link to tier %s is up again, after %.1f s", tier, now - self._down.pop(tier))
