"""State of the link to a remote tier: its settings, round-trip times, circuit breaker and log lines.

Michael Nygard, "Release It!": closed (calls pass), open (none does), half-open (one may, to see). Knows no network and
waits for nobody: it is asked, and told what came of it.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from coe.cascade.errors import TierError, TierOverloaded, TierTimeout, TierUnavailable
from coe.config import Fields, format_seconds
from coe.config.settings import read_settings, setting

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


class LinkStatus(StrEnum):
    """Of a circuit breaker: calls pass; none does; one may, to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link at one moment; whole, and never changed. Times are seconds of the watcher's clock (`time.monotonic`).

    Args:
        tier: at the link's other end.
        since: when the status became what it is.
        failures: of the link in a row.
        misses: deadlines missed in a row, on the present connection.
        error: the latest failure, in words; stays when the link is up again.
        is_draining: the server answered the latest probe, that it takes no calls.
        held_until: no calls before: an overloaded server said when to come again.
        next_probe_at: inf where none is due: the link is not open.
        n_opened, n_probes, n_rebuilds: since the start: how often the link went down, was probed, was connected anew.
        round_trip_s: moving average of a call's time, the server's own work and an injected delay included; NaN
            while not known.
        best_s: the least of the minute before the latest call; NaN while not known.
    """

    tier: str
    status: LinkStatus = LinkStatus.CLOSED
    since: float = 0.0
    failures: int = 0
    misses: int = 0
    error: str = ""
    is_draining: bool = False
    held_until: float = -math.inf
    next_probe_at: float = math.inf
    n_opened: int = 0
    n_probes: int = 0
    n_rebuilds: int = 0
    round_trip_s: float = math.nan
    best_s: float = math.nan

    @property
    def is_up(self) -> bool:
        """Whether calls pass, or one may: what waits for the link can begin."""
        return self.status is not LinkStatus.OPEN


WEIGHT = 0.125  # of the latest in the mean, and twice that in the deviation: TCP's, RFC 6298
REMEMBERED_S = 30.0  # the best is that of this period and the one before


class MovingAverage:
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
        """The least of the last 30 to 60 seconds; NaN where nothing was answered in them."""
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


GROWTH = 2.0  # of the wait, from one probe to the next
JITTER = 0.25  # each wait is varied by up to this share, so that a fleet does not come back all at once


class CircuitBreaker:
    """Who may call, and when to probe. Thread-safe; `state` is read without a lock.

    A call is admitted with a ticket, and handed back with it: `answered`, `overloaded`, `failed` or `undecided`.
    A failure that began before the latest change of status, or on an earlier connection, tells of the past and is not
    counted. An answer always closes.

    Args:
        tier: whose calls these are, for errors.
        changed: told of each change of status, with the lock held: it must only pass it on.
        rng: varies the waits; Python's own, since NumPy's is not loaded on a device.
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
        self._rng = rng or random.Random()
        self._changed = changed
        self._lock = threading.Lock()  # over all below
        self._status = LinkStatus.CLOSED
        self._since = clock()
        self._failures = self._misses = 0
        self._error = ""
        self._is_draining = False
        self._held_until = -math.inf
        self._next_probe_at = math.inf
        self._n_opened = self._n_probes = self._n_rebuilds = 0
        self._n_waits = 0  # since it was closed
        self._ticket = 0
        self._is_tried = False  # half-open: a call is under way
        self._round_trips = RoundTrips(clock)
        self.state = self._snapshot()

    @property
    def best_s(self) -> float:
        """The quickest answer of the last minute, now; NaN where there was none."""
        with self._lock:
            return self._round_trips.best_s

    def admit(self) -> int:
        """A ticket for one call.

        Raises:
            TierUnavailable: the link is down, or another call is trying it.
            TierOverloaded: the server asked to be left alone.
        """
        with self._lock:
            now = self._clock()
            if self._status is LinkStatus.OPEN:
                wait_s = self._next_probe_at - now
                probe = f"next probe in {format_seconds(wait_s)}" if wait_s > 0 else "a probe is under way"
                raise TierUnavailable(self.tier, f"the link is down, {probe}")
            if now < self._held_until:
                left_s = self._held_until - now
                text = f"it asked to be left alone for another {format_seconds(left_s)}"
                raise TierOverloaded(self.tier, text, retry_after_s=left_s)
            if self._status is LinkStatus.HALF_OPEN:
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
        """The server answered a call that it has too much to do; no call is made until it said."""
        with self._lock:
            if retry_after_s is not None:
                self._held_until = self._clock() + min(retry_after_s, self.config.backoff_s[1])
            self._close()

    def failed(self, ticket: int, error: TierError) -> bool:
        """A call failed by the link's fault. True: it was one deadline miss too many, so connect anew."""
        with self._lock:
            if ticket != self._ticket:
                return False
            self._failures += 1
            self._misses = self._misses + 1 if isinstance(error, TierTimeout) else 0
            self._error = str(error)
            if self._status is LinkStatus.HALF_OPEN or self._failures >= self.config.failures:
                if self._status is LinkStatus.CLOSED:
                    self._n_opened += 1
                self._set_status(LinkStatus.OPEN)
                return False  # the probe does
            self.state = self._snapshot()
            return self._misses == self.config.rebuild_after

    def undecided(self, ticket: int) -> None:
        """What came of a call tells nothing of the link; another may try it."""
        with self._lock:
            if ticket == self._ticket:
                self._is_tried = False

    def probed(self, is_up: bool, error: str = "", *, is_draining: bool = False) -> None:
        """A probe was answered (`is_up`), or was not, or only to say that the server is draining."""
        with self._lock:
            self._n_probes += 1
            self._is_draining = is_draining
            self._error = error or self._error
            if self._status is LinkStatus.OPEN:
                self._set_status(LinkStatus.HALF_OPEN if is_up else LinkStatus.OPEN)
            else:  # an answer that was late has closed it
                self.state = self._snapshot()

    def hasten(self) -> None:
        """The device's own network changed: the next probe is due after the first wait again."""
        with self._lock:
            if self._status is LinkStatus.OPEN:
                self._n_waits = 0
                self._next_probe_at = min(self._next_probe_at, self._clock() + self._wait_s())
                self.state = self._snapshot()

    def rebuilt(self) -> None:
        """Calls go on a new connection; what comes of those on the old one is of the past."""
        with self._lock:
            self._n_rebuilds += 1
            self._misses = 0
            if self._status is LinkStatus.CLOSED:
                self._ticket += 1
            self.state = self._snapshot()

    def _close(self) -> None:
        self._failures = self._misses = 0
        self._n_waits = 0
        self._is_draining = False
        if self._status is LinkStatus.CLOSED:
            self.state = self._snapshot()
        else:
            self._set_status(LinkStatus.CLOSED)

    def _set_status(self, status: LinkStatus) -> None:
        """The status from here on; OPEN plans the next probe, after a longer wait each time."""
        is_new = status is not self._status
        if is_new:
            self._status, self._since = status, self._clock()
            self._ticket += 1
            self._is_tried = False
        self._next_probe_at = self._clock() + self._wait_s() if status is LinkStatus.OPEN else math.inf
        self.state = self._snapshot()
        if is_new:
            self._changed(self.state)

    def _wait_s(self) -> float:
        first, longest = self.config.backoff_s
        wait = min(longest, first * GROWTH ** min(self._n_waits, 60))
        self._n_waits += 1
        return wait * (1 + JITTER * (2 * self._rng.random() - 1))

    def _snapshot(self) -> LinkState:
        return LinkState(
            tier=self.tier,
            status=self._status,
            since=self._since,
            failures=self._failures,
            misses=self._misses,
            error=self._error,
            is_draining=self._is_draining,
            held_until=self._held_until,
            next_probe_at=self._next_probe_at,
            n_opened=self._n_opened,
            n_probes=self._n_probes,
            n_rebuilds=self._n_rebuilds,
            round_trip_s=self._round_trips.mean_s,
            best_s=self._round_trips.best_s,
        )


QUIET_S = 60.0  # after a line that a link is down: one that comes and goes is told of once in a while


class LinkLog:
    """Told of each change of a link, from that link's threads.

    Args:
        tell: told what a user must know.
    """

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._down: dict[str, float] = {}  # links of which it was told that they are down, and since when
        self._told: dict[str, float] = {}  # when a link was last said to be down

    def changed(self, state: LinkState) -> None:
        now = self._clock()
        if state.status is LinkStatus.OPEN and state.tier not in self._down:
            if now - self._told.get(state.tier, -QUIET_S) >= QUIET_S:
                self._told[state.tier] = self._down[state.tier] = now
                why = state.error.removeprefix(f"tier {state.tier}: ") or "its probes fail"
                self._tell(f"warning: the link to tier {state.tier} is down, the device answers by itself: {why}")
        elif state.status is LinkStatus.CLOSED and state.tier in self._down:
            away_s = now - self._down.pop(state.tier)
            self._tell(f"the link to tier {state.tier} is up again, after {away_s:.1f} s")
