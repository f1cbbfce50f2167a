"""Servers and their queues in virtual time, for many requests at once.

Each station serves one block of time after another: what has not begun by a block's end waits for the next. Times are
float64 seconds from any start. A block's requests are a flat array in the order of `rows`: server by server where each
server has a queue of its own, else in the order of arrival.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.intp]
Calls = tuple[
    Counts, Counts, Floats, Floats, Counts
]  # first, count, started, ended of each; each server's next request
NO_TIMES = (np.empty(0), np.empty(0))
FEW_SERVERS = 32


@dataclass(frozen=True, slots=True)
class Service:
    """Seconds of one call of a tier: `call_s`, and `row_s` for each of its examples."""

    call_s: float
    row_s: float = 0.0

    def of(self, n_rows: int) -> float:
        return self.call_s + self.row_s * n_rows


@dataclass(frozen=True, slots=True)
class Served:
    """What began in a block, call by call: requests `first[i]` up to `first[i] + count[i]` of `arrived`.

    Args:
        arrived: (N,) of all requests of the block, those that did not begin among them; born: (N,) when each came
            to the first tier, where that is another. wait_s: of all that began, together.
        started, ended: (C,) of each call. n_expired: requests whose patience ended in the queue.
    """

    arrived: Floats
    first: Counts
    count: Counts
    started: Floats
    ended: Floats
    born: Floats
    wait_s: float
    n_expired: int = 0

    @property
    def n(self) -> int:
        return int(self.count.sum())

    @property
    def busy_s(self) -> float:
        return float((self.ended - self.started).sum())

    def rows(self, step: int = 1, offset: int = 0) -> tuple[Counts, Counts]:
        """(request, call) of every `step`-th request that began."""
        ends = np.cumsum(self.count)
        order = np.arange(offset, int(ends[-1]) if len(ends) else 0, step)
        call = np.searchsorted(ends, order, side="right") if step > 1 else np.repeat(np.arange(len(ends)), self.count)
        return self.first[call] + order - (ends[call] - self.count[call]), call


class Station(Protocol):
    """Servers that take requests."""

    def spread(self, rng: np.random.Generator, arrived: Floats) -> tuple[Floats, Counts, Counts]:
        """(times, order, counts): requests as `serve` takes them, arrived[order], and how many each queue gets."""
        ...

    def draw(self, rng: np.random.Generator, rate: float, since: float, until: float) -> tuple[Floats, Counts]:
        """(times, counts) of Poisson arrivals at `rate` a second in all."""
        ...

    def serve(self, arrived: Floats, counts: Counts, until: float, born: Floats | None = None) -> Served:
        """What begins before `until`; `born`, if given once, is to be given always."""
        ...

    def resize(self, servers: int, now: float) -> None:
        """Take or drop servers; what waits stays, and is spread anew."""
        ...


def poisson(rng: np.random.Generator, rate: float, length: float) -> Floats:
    """(N,) sorted times in [0, length) of a Poisson process."""
    gaps = rng.standard_exponential(int(rng.poisson(rate * length)) + 1)
    np.cumsum(gaps, out=gaps)
    gaps *= length / gaps[-1]
    return gaps[:-1]


def first_come(arrived: Floats, service_s: float, free: Floats) -> Floats:
    """(N,) when each request starts on the first free of equal servers: exact G/D/c.

    All take the same time, so they end in the order in which they came, and request n takes the server of n - c:
    a running maximum for each server.

    Args:
        arrived: (N,) sorted. free: (c,) sorted, when each server is free; as after any such run, no two are further
            apart than one service.
    """
    n, c = len(arrived), len(free)
    turns = math.ceil(n / c)
    lag = np.arange(turns)[:, None] * service_s
    start = np.full((turns, c), np.inf)
    start.reshape(-1)[:n] = arrived
    start -= lag
    if turns:
        np.maximum(start[0], free, out=start[0])
    np.maximum.accumulate(start, axis=0, out=start)
    start += lag
    return start.reshape(-1)[:n]


def first_come_any(arrived: Floats, service_s: Floats, free: Sequence[float]) -> Floats:
    """(N,) when each request starts where each takes its own time: G/G/c, by a heap of servers."""
    heap = list(free)
    heapq.heapify(heap)
    started = np.empty(len(arrived))
    for place, (at, takes) in enumerate(zip(arrived.tolist(), service_s.tolist(), strict=True)):
        begin = max(at, heap[0])
        started[place] = begin
        heapq.heapreplace(heap, begin + takes)
    return started


def in_turn(arrived: Floats, service_s: Floats) -> Floats:
    """(D, N) when each request of each device starts there: G/G/1, one device a row.

    Args:
        arrived: (D, N) sorted along the rows; service_s: (D, N).
    """
    before = np.cumsum(service_s, axis=1) - service_s
    return np.maximum.accumulate(arrived - before, axis=1) + before


class OneQueue:
    """Equal servers behind one queue, one request a call: G/D/c, or G/G/c where `seconds` are drawn."""

    def __init__(self, servers: int, service: Service, rng: np.random.Generator, seconds: Floats | None = None) -> None:
        self.free = np.full(servers, -np.inf)
        self._service_s = service.of(1)
        self._seconds = seconds
        self._rng = rng
        self._left = self._left_born = np.empty(0)

    def spread(self, rng: np.random.Generator, arrived: Floats) -> tuple[Floats, Counts, Counts]:
        order = np.argsort(arrived)
        return arrived[order], order, np.array([len(arrived)])

    def draw(self, rng: np.random.Generator, rate: float, since: float, until: float) -> tuple[Floats, Counts]:
        times = poisson(rng, rate, until - since) + since
        return times, np.array([len(times)])

    def serve(self, arrived: Floats, counts: Counts, until: float, born: Floats | None = None) -> Served:
        if len(self._left):
            arrived = np.concatenate([self._left, arrived])
            born = None if born is None else np.concatenate([self._left_born, born])
        born = arrived if born is None else born
        if self._seconds is None:
            started = first_come(arrived, self._service_s, self.free)
            n = int(np.searchsorted(started, until))
            ended = started[:n] + self._service_s
            self.free = np.concatenate([self.free, ended])[-len(self.free) :]
        else:
            started, ended = self._serve_any(arrived, until)
            n = len(ended)
        self._left, self._left_born = arrived[n:], born[n:]
        wait_s = float((started[:n] - arrived[:n]).sum())
        return Served(arrived, np.arange(n), np.ones(n, dtype=np.intp), started[:n], ended, born, wait_s)

    def _serve_any(self, arrived: Floats, until: float) -> tuple[Floats, Floats]:
        assert self._seconds is not None
        takes = self._rng.choice(self._seconds, len(arrived))
        started = first_come_any(arrived, takes, self.free.tolist())
        n = int(np.searchsorted(started, until))
        ended = started[:n] + takes[:n]
        heap = self.free.tolist()
        heapq.heapify(heap)
        for end in ended.tolist():
            heapq.heapreplace(heap, end)
        self.free = np.array(sorted(heap))
        return started, ended

    def resize(self, servers: int, now: float) -> None:
        more = servers - len(self.free)
        kept = self.free if more >= 0 else self.free[:servers]
        self.free = np.sort(np.concatenate([kept, np.full(max(more, 0), now)]))


class Batchers:
    """Servers that each have a queue, and call their tier as `cloud.tier_batcher` does, one call at a time.

    A free server whose queue is not full waits until its oldest request has waited `max_wait_s`; then it takes
    all that wait, at most `max_batch`. All servers are advanced together, one call each a step.

    Args:
        patience_s: a request that has waited so long is dropped.
    """

    def __init__(
        self, servers: int, service: Service, max_batch: int, max_wait_s: float = 0.0, patience_s: float = math.inf
    ) -> None:
        self.free = np.full(servers, -np.inf)
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.patience_s = patience_s
        self._takes = np.array([service.of(n) for n in range(max_batch + 1)])
        self._left = self._left_born = np.empty(0)
        self._n_left = np.zeros(servers, dtype=np.intp)

    def draw(self, rng: np.random.Generator, rate: float, since: float, until: float) -> tuple[Floats, Counts]:
        """One long process, cut into as many pieces as there are servers."""
        c, length = len(self.free), until - since
        times = poisson(rng, rate / c, length * c)
        ends = np.searchsorted(times, np.arange(1, c + 1) * length)
        counts = np.diff(ends, prepend=0)
        times -= np.repeat(np.arange(c) * length - since, counts)
        return times, counts

    def spread(self, rng: np.random.Generator, arrived: Floats) -> tuple[Floats, Counts, Counts]:
        server = rng.integers(len(self.free), size=len(arrived))
        order = np.lexsort((arrived, server))
        return arrived[order], order, np.bincount(server, minlength=len(self.free))

    def serve(self, arrived: Floats, counts: Counts, until: float, born: Floats | None = None) -> Served:
        if len(self._left):
            places = np.repeat(np.cumsum(counts) - counts, self._n_left)
            arrived = np.insert(arrived, places, self._left)
            born = None if born is None else np.insert(born, places, self._left_born)
            counts = counts + self._n_left
        born = arrived if born is None else born
        ends = np.cumsum(counts)
        run = self._one_by_one if len(counts) < FEW_SERVERS else self._together
        first, size, start, ended, head = run(arrived, counts, ends, until)
        n_expired = int((head - ends + counts).sum() - size.sum())
        self._n_left = ends - head
        left = np.repeat(head - np.cumsum(self._n_left) + self._n_left, self._n_left) + np.arange(self._n_left.sum())
        self._left, self._left_born = arrived[left], born[left]
        served = Served(arrived, first, size, start, ended, born, 0.0, n_expired)
        at = arrived[served.rows()[0]] if n_expired else arrived
        came = float(at.sum()) - (0.0 if n_expired else float(self._left.sum()))
        return replace(served, wait_s=float((start * size).sum()) - came)

    def _together(self, arrived: Floats, counts: Counts, ends: Counts, until: float) -> Calls:
        """All servers side by side, one call of each a step."""
        line = _Line(arrived, counts, until)
        head, free, batch = ends - counts, self.free, self.max_batch
        active = np.flatnonzero(head < ends)
        steps: list[tuple[Counts, Counts, Floats, Floats]] = []
        while len(active):
            at, end = head[active], ends[active]
            start = np.maximum(free[active], arrived[at])
            if self.max_wait_s:
                full = np.where(at + batch <= end, arrived[np.minimum(at + batch, end) - 1], np.inf)
                start = np.maximum(start, np.minimum(arrived[at] + self.max_wait_s, full))
            goes = start < until
            if not goes.all():
                active, at, end, start = active[goes], at[goes], end[goes], start[goes]
            if self.patience_s < math.inf:
                alive = line.count(active, start - self.patience_s, at, end)
                if (alive > at).any():
                    head[active] = alive
                    active = active[alive < end]
                    continue
            stop = np.minimum(line.count(active, start, at + 1, end), at + batch)
            size = stop - at
            ended = start + self._takes[size]
            steps.append((at, size, start, ended))
            head[active], free[active] = stop, ended
            active = active[stop < end]
        nothing = np.empty(0, np.intp)
        first, size, start, ended = map(np.concatenate, zip((nothing, nothing, *NO_TIMES), *steps, strict=True))
        return first, size, start, ended, head

    def _one_by_one(self, arrived: Floats, counts: Counts, ends: Counts, until: float) -> Calls:
        """The same, a server after another: for few servers, where a step of many is not worth its price."""
        takes, batch, wait_s = self._takes.tolist(), self.max_batch, self.max_wait_s
        head, times = ends - counts, arrived.tolist()
        calls: list[tuple[int, int, float, float]] = []
        for server, (at, end, free) in enumerate(zip(head.tolist(), ends.tolist(), self.free.tolist(), strict=True)):
            while at < end:
                start = max(free, times[at])
                if wait_s:
                    full = times[at + batch - 1] if at + batch <= end else math.inf
                    start = max(start, min(times[at] + wait_s, full))
                if start >= until:
                    break
                if times[at] <= start - self.patience_s:
                    at = bisect_right(times, start - self.patience_s, at, end)
                    continue
                stop = bisect_right(times, start, at + 1, min(at + batch, end))
                free = start + takes[stop - at]
                calls.append((at, stop - at, start, free))
                at = stop
            head[server], self.free[server] = at, free
        first, size, start, ended = zip(*calls, strict=True) if calls else ((), (), (), ())
        return np.array(first, np.intp), np.array(size, np.intp), np.array(start), np.array(ended), head

    def resize(self, servers: int, now: float) -> None:
        more = servers - len(self.free)
        self.free = np.concatenate([self.free[:servers], np.full(max(more, 0), now)])
        server = np.arange(len(self._left)) % servers  # what waits is dealt out in turn
        order = np.argsort(self._left)
        order = order[np.argsort(server, kind="stable")]
        self._left, self._left_born = self._left[order], self._left_born[order]
        self._n_left = np.bincount(server, minlength=servers)


class _Line:
    """The queues of all servers one after another on one axis of time, so that one search counts in all of them."""

    def __init__(self, arrived: Floats, counts: Counts, until: float) -> None:
        since = float(arrived.min()) if len(arrived) else until
        self._length = 2 * (until - since) + 1.0
        self._base = np.arange(len(counts)) * self._length - since
        self._times = arrived + np.repeat(self._base, counts)

    def count(self, servers: Counts, at: Floats, low: Counts, high: Counts) -> Counts:
        """(A,) requests of all that came up to `at` in these servers' queues, between low and high."""
        places = np.searchsorted(self._times, at + self._base[servers], side="right")
        return np.minimum(np.maximum(places, low), high)
