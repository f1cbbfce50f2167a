"""What is known of a link, as its watcher publishes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
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
    status: Status = Status.CLOSED
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
        return self.status is not Status.OPEN
