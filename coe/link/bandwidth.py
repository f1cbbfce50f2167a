"""A queue of bytes: messages leave one after another, as fast as the link has capacity at that time of the day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from .link import Bytes, Numbers, Passage, Seconds

DAY_S = 86_400.0


class Capacity(Protocol):
    """How many bytes a link can carry, by time."""

    period_s: float

    def bytes_before(self, at_s: Seconds) -> Bytes:
        """(N,) bytes that it could have carried before these times, from second 0."""
        ...

    def time_of(self, n_bytes: Bytes) -> Seconds:
        """(N,) the first seconds at which it has been able to carry as many."""
        ...


class Steps:
    """A rate that is constant for a while, then another, and again from the start after the last.

    Args:
        starts_s: (K,) from 0; each rate holds from here to the next. period_s: where the last one ends.
        rates: (K,) bytes per second; 0: nothing passes.
    """

    def __init__(self, starts_s: ArrayLike, rates: ArrayLike, period_s: float) -> None:
        self.period_s = period_s
        self._times = np.append(np.asarray(starts_s, dtype=np.float64), period_s)
        self._rates = np.asarray(rates, dtype=np.float64)
        self._carried = np.append(0.0, (np.diff(self._times) * self._rates).cumsum())

    def bytes_before(self, at_s: Seconds) -> Bytes:
        loops, at = np.divmod(at_s, self.period_s)
        before: Bytes = loops * self._carried[-1] + np.interp(at, self._times, self._carried)
        return before

    def time_of(self, n_bytes: Bytes) -> Seconds:
        loops = np.maximum(np.ceil(n_bytes / self._carried[-1]) - 1, 0)
        left = np.maximum(n_bytes - loops * self._carried[-1], 0.0)
        step = np.clip(np.searchsorted(self._carried, left) - 1, 0, len(self._rates) - 1)
        rates = np.maximum(self._rates[step], 1e-300)
        time: Seconds = loops * self.period_s + self._times[step] + (left - self._carried[step]) / rates
        return time


@dataclass(frozen=True, slots=True)
class Queue:
    """Messages wait for those before them on the same link, then for enough capacity; what nobody uses is lost."""

    capacity: Capacity

    def start(self, rng: np.random.Generator, phases: Seconds) -> Passage:
        capacity = self.capacity
        shift_s = phases * capacity.period_s
        taken = np.zeros(len(phases))  # of each link's capacity, in bytes from second 0

        def passage(sent_s: Seconds, n_bytes: Bytes, links: Numbers) -> Seconds:
            found = capacity.bytes_before(sent_s + shift_s[links])  # gone when the message comes
            ends = _first_come(found, n_bytes, links, taken)
            return np.maximum(capacity.time_of(ends) - shift_s[links], sent_s)

        return passage


def _first_come(found: Bytes, n_bytes: Bytes, links: Numbers, taken: Bytes) -> Bytes:
    """(N,) where each message ends on its link's count of bytes: the later of `found` and the end before, plus its own.

    Args:
        taken: (n_links,) where the last message ended; changed.
    """
    ends = np.empty_like(found)
    order = np.argsort(links, kind="stable")
    present, first, count = np.unique(links[order], return_index=True, return_counts=True)
    if len(present) <= count.max(initial=0):  # few links with many messages: running maxima
        for link, start, n in zip(present, first, count, strict=True):
            rows = order[start : start + n]
            sums = n_bytes[rows].cumsum()
            ends[rows] = sums + np.maximum(np.maximum.accumulate(found[rows] - sums + n_bytes[rows]), taken[link])
            taken[link] = ends[rows[-1]]
    else:  # many links with few: the first message of each, then the second
        for rank in range(count.max(initial=0)):
            rows = order[first[count > rank] + rank]
            ends[rows] = taken[links[rows]] = np.maximum(found[rows], taken[links[rows]]) + n_bytes[rows]
    return ends


def bandwidth(bytes_per_s: float, day: Sequence[float] = ()) -> Queue:
    """A constant rate; `day`: its shares in equal parts of a day (24 are hours), repeated every day."""
    shares = list(day) or [1.0]
    starts_s = [DAY_S * part / len(shares) for part in range(len(shares))]
    return Queue(Steps(starts_s, [bytes_per_s * share for share in shares], DAY_S))
