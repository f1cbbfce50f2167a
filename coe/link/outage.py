"""A link that is up for a while and down for a while."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .link import Bytes, Numbers, Passage, Seconds

CYCLES = 4096  # drawn; then they repeat


@dataclass(frozen=True, slots=True)
class Outage:
    """Messages sent while the link is down wait until it is up. Both take exponential times of these means.

    The times drawn have exactly these means. Links have the same outages, each from a place of its own.
    """

    up_s: float
    down_s: float

    def start(self, rng: np.random.Generator, phases: Seconds) -> Passage:
        times = rng.exponential(size=(2, CYCLES))
        up, down = times / times.mean(axis=1, keepdims=True) * [[self.up_s], [self.down_s]]
        ends = (up + down).cumsum()  # of each outage
        starts = ends - down
        period_s = ends[-1]
        shift_s = phases * period_s

        def passage(sent_s: Seconds, n_bytes: Bytes, links: Numbers) -> Seconds:
            at = np.mod(sent_s + shift_s[links], period_s)
            cycle = np.searchsorted(ends, at, side="right") % CYCLES
            found: Seconds = sent_s + np.where(at >= starts[cycle], ends[cycle] - at, 0.0)
            return found

        return passage
