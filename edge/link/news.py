"""Links that go down and come back, in a line each for the journal."""

from __future__ import annotations

import time
from collections.abc import Callable

from .state import LinkState, Status

QUIET_S = 60.0  # after a line that a link is down: one that comes and goes is told of once in a while


class LinkNews:
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
        if state.status is Status.OPEN and state.tier not in self._down:
            if now - self._told.get(state.tier, -QUIET_S) >= QUIET_S:
                self._told[state.tier] = self._down[state.tier] = now
                why = state.error.removeprefix(f"tier {state.tier}: ") or "its probes fail"
                self._tell(f"warning: the link to tier {state.tier} is down, the device answers by itself: {why}")
        elif state.status is Status.CLOSED and state.tier in self._down:
            away_s = now - self._down.pop(state.tier)
            self._tell(f"the link to tier {state.tier} is up again, after {away_s:.1f} s")
