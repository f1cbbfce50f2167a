"""A circuit breaker: after some failures of the link in a row no call is made, until a probe says that it may work.

Michael Nygard, "Release It!": closed (calls pass), open (none does), half-open (one may, to see). Knows no network and
waits for nobody: it is asked, and told what came of it.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

from coe.cascade.errors import TierError, TierOverloaded, TierTimeout, TierUnavailable
from coe.settings import format_seconds

from .config import LinkConfig
from .round_trips import RoundTrips
from .state import LinkState, Status

GROWTH = 2.0  # of the wait, from one probe to the next
JITTER = 0.25  # each wait is varied by up to this share, so that a fleet does not come back all at once


class Breaker:
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
        self._status = Status.CLOSED
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
            if self._status is Status.OPEN:
                wait_s = self._next_probe_at - now
                probe = f"next probe in {format_seconds(wait_s)}" if wait_s > 0 else "a probe is under way"
                raise TierUnavailable(self.tier, f"the link is down, {probe}")
            if now < self._held_until:
                left_s = self._held_until - now
                text = f"it asked to be left alone for another {format_seconds(left_s)}"
                raise TierOverloaded(self.tier, text, retry_after_s=left_s)
            if self._status is Status.HALF_OPEN:
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
            if self._status is Status.HALF_OPEN or self._failures >= self.config.failures:
                if self._status is Status.CLOSED:
                    self._n_opened += 1
                self._turn(Status.OPEN)
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
            if self._status is Status.OPEN:
                self._turn(Status.HALF_OPEN if is_up else Status.OPEN)
            else:  # an answer that was late has closed it
                self.state = self._snapshot()

    def hasten(self) -> None:
        """The device's own network changed: the next probe is due after the first wait again."""
        with self._lock:
            if self._status is Status.OPEN:
                self._n_waits = 0
                self._next_probe_at = min(self._next_probe_at, self._clock() + self._wait_s())
                self.state = self._snapshot()

    def rebuilt(self) -> None:
        """Calls go on a new connection; what comes of those on the old one is of the past."""
        with self._lock:
            self._n_rebuilds += 1
            self._misses = 0
            if self._status is Status.CLOSED:
                self._ticket += 1
            self.state = self._snapshot()

    def _close(self) -> None:
        self._failures = self._misses = 0
        self._n_waits = 0
        self._is_draining = False
        if self._status is Status.CLOSED:
            self.state = self._snapshot()
        else:
            self._turn(Status.CLOSED)

    def _turn(self, status: Status) -> None:
        """The status from here on; OPEN plans the next probe, after a longer wait each time."""
        is_new = status is not self._status
        if is_new:
            self._status, self._since = status, self._clock()
            self._ticket += 1
            self._is_tried = False
        self._next_probe_at = self._clock() + self._wait_s() if status is Status.OPEN else math.inf
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
