"""Servers and their queues in virtual time, for many requests at once.

A station serves one block of time after another: what has not begun by a block's end waits for the next. Times are
float64 seconds; the requests of a block are a flat array, queue by queue.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.intp]
Steps = Iterator[tuple[Counts, Counts, Floats, Floats]]  # first, count, started, ended of some calls
SIDE_BY_SIDE, WIDE = 32, 256  # servers from which it is quicker to advance them together


@dataclass(frozen=True, slots=True)
class Service:
    """Seconds of one call of a tier: `call_s`, and `row_s` for each of its examples."""

    call_s: float
    row_s: float = 0.0

    def of(self, n_rows: int) -> float:
        return self.call_s + self.row_s * n_rows


@dataclass(frozen=True, slots=True)
class Served:
    """What began in a block: call i is of the requests `first[i]` up to `first[i] + count[i]`.

    Args:
        arrived: (N,) of all requests of the block; born: (N,) when each came to the first tier.
        n: requests that began. started, ended: (C,) of each call. wait_s, busy_s: of all requests, of all calls.
        first, count: None: request i is call i.
        n_expired: requests that left because their patience ended.
    """

    arrived: Floats
    born: Floats
    n: int
    started: Floats
    ended: Floats
    wait_s: float
    busy_s: float
    first: Counts | None = None
    count: Counts | None = None
    n_expired: int = 0

    def rows(self, step: int = 1) -> tuple[Counts, Counts]:
        """(request, call) of every `step`-th request that began."""
        order = np.arange(0, self.n, step)
        if self.first is None or self.count is None:
            return order, order
        ends = np.cumsum(self.count)
        call = np.repeat(np.arange(len(ends)), self.count) if step == 1 else np.searchsorted(ends, order, side="right")
        return self.first[call] + order - (ends[call] - self.count[call]), call


def poisson(rng: np.random.Generator, rate: float, since: float, until: float) -> Floats:
    """(N,) sorted times in [since, until) of a Poisson process.

    Its gaps are exponential to a 2**-24th of their mean, as single precision has them: a third of the time.
    """
    mean = rate * (until - since)
    gaps = rng.random(int(mean + 8 * math.sqrt(mean) + 20), dtype=np.float32)
    np.negative(np.log(np.subtract(np.float32(1.0), gaps, out=gaps), out=gaps), out=gaps)
    times = np.cumsum(gaps, dtype=np.float64)
    times = times[: np.searchsorted(times, mean)]
    times *= 1 / rate if rate else 0.0
    times += since
    return times


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
    start = np.full((turns, c), np.inf)
    start.reshape(-1)[:n] = arrived
    if n:
        np.maximum(start[0], free, out=start[0])
    if c >= WIDE:
        free = np.empty(c)
        for turn in range(1, turns):
            np.maximum(start[turn], np.add(start[turn - 1], service_s, out=free), out=start[turn])
    else:
        lag = np.arange(turns)[:, None] * service_s
        start -= lag
        np.maximum.accumulate(start, axis=0, out=start)
        start += lag
    return start.reshape(-1)[:n]


def first_come_any(arrived: Floats, service_s: Floats, free: list[float], until: float = math.inf) -> Floats:
    """(K,) when requests start where each takes its own time, up to `until`: G/G/c. `free` is a heap, and kept one."""
    started = []
    for at, takes in zip(arrived.tolist(), service_s.tolist(), strict=True):
        begin = max(at, free[0])
        if begin >= until:
            break
        started.append(begin)
        heapq.heapreplace(free, begin + takes)
    return np.array(started)


def in_turn(arrived: Floats, service_s: Floats) -> Floats:
    """(D, N) when each request of each device starts there, of both (D, N): G/G/1, one device a row."""
    before = np.cumsum(service_s, axis=1) - service_s
    return np.maximum.accumulate(arrived - before, axis=1) + before


class OneQueue:
    """Servers behind one queue, one request a call: G/D/c, or G/G/c where `seconds` are given to draw from."""

    def __init__(self, servers: int, service: Service, seconds: Floats | None = None) -> None:
        self.free = np.full(servers, -np.inf)
        self._service_s, self._seconds, self._rng = service.of(1), seconds, np.random.default_rng(0)
        self._left = self._born = np.empty(0)

    def draw(self, rng: np.random.Generator, rate: float, since: float, until: float) -> tuple[Floats, Counts]:
        """(times, how many in each queue) of Poisson arrivals at `rate` a second in all."""
        times = poisson(rng, rate, since, until)
        return times, np.array([len(times)])

    def spread(self, rng: np.random.Generator, arrived: Floats) -> tuple[Counts, Counts]:
        """(order, how many in each queue): requests as `serve` takes them are arrived[order]."""
        return np.argsort(arrived), np.array([len(arrived)])

    def serve(self, arrived: Floats, counts: Counts, until: float, born: Floats | None = None) -> Served:
        """What begins before `until`; `born`, where it is another time, is to be given always."""
        born = None if born is None else np.concatenate([self._born, born])
        arrived = np.concatenate([self._left, arrived]) if len(self._left) else arrived
        born = arrived if born is None else born
        if self._seconds is None:
            started = first_come(arrived, self._service_s, self.free)
            started = started[: np.searchsorted(started, until)]
            ended = started + self._service_s
            self.free = np.concatenate([self.free, ended[-len(self.free) :]])[-len(self.free) :]
        else:
            takes, heap = self._rng.choice(self._seconds, len(arrived)), self.free.tolist()
            started = first_come_any(arrived, takes, heap, until)
            ended, self.free = started + takes[: len(started)], np.sort(heap)
        n = len(started)
        self._left, self._born = arrived[n:], born[n:]
        wait_s, busy_s = (float(one.sum() - other.sum()) for one, other in ((started, arrived[:n]), (ended, started)))
        return Served(arrived, born, n, started, ended, wait_s, busy_s)

    def resize(self, servers: int, now: float) -> None:
        """Take or drop servers; what waits stays."""
        more = np.full(max(servers - len(self.free), 0), now)
        self.free = np.sort(np.concatenate([self.free[:servers], more]))


class Batchers:
    """Servers that each have a queue, and call their tier as `cloud.tier_batcher` does, one call at a time.

    A free server whose queue is not full waits until its oldest request has waited `max_wait_s`; then it takes all
    that wait, at most `max_batch`.

    Args:
        patience_s: a request that has waited so long leaves.
    """

    def __init__(
        self, servers: int, service: Service, max_batch: int, max_wait_s: float = 0.0, patience_s: float = math.inf
    ) -> None:
        self.free = np.full(servers, -np.inf)
        self.max_batch, self.max_wait_s, self.patience_s = max_batch, max_wait_s, patience_s
        self._takes = np.array([service.of(n) for n in range(max_batch + 1)])
        self._left = self._born = np.empty(0)
        self._n_left = np.zeros(servers, np.intp)

    def draw(self, rng: np.random.Generator, rate: float, since: float, until: float) -> tuple[Floats, Counts]:
        """One long process, cut into as many pieces as there are servers."""
        c, length = len(self.free), until - since
        times = poisson(rng, rate / c, 0.0, length * c)
        counts = np.diff(np.searchsorted(times, np.arange(1, c + 1) * length), prepend=0)
        times -= np.repeat(np.arange(c) * length - since, counts)
        return times, counts

    def spread(self, rng: np.random.Generator, arrived: Floats) -> tuple[Counts, Counts]:
        server = rng.integers(len(self.free), size=len(arrived))
        return np.lexsort((arrived, server)), np.bincount(server, minlength=len(self.free))

    def serve(self, arrived: Floats, counts: Counts, until: float, born: Floats | None = None) -> Served:
        if len(self._left):
            places = np.repeat(np.cumsum(counts) - counts, self._n_left)
            born = None if born is None else np.insert(born, places, self._born)
            arrived, counts = np.insert(arrived, places, self._left), counts + self._n_left
        born = arrived if born is None else born
        ends, nothing = np.cumsum(counts), np.empty(0, np.intp)
        head = ends - counts
        calls = self._side_by_side if len(counts) >= SIDE_BY_SIDE else self._one_by_one
        steps = [(nothing, nothing, np.empty(0), np.empty(0)), *calls(arrived, head, ends, until)]
        first, count, started, ended = map(np.concatenate, zip(*steps, strict=True))
        self._n_left = ends - head
        left = np.repeat(head - np.cumsum(self._n_left) + self._n_left, self._n_left) + np.arange(self._n_left.sum())
        self._left, self._born = arrived[left], born[left]
        n, busy_s = int(count.sum()), float((ended - started).sum())
        n_expired = len(arrived) - len(left) - n
        served = Served(arrived, born, n, started, ended, 0.0, busy_s, first, count, n_expired)
        came = arrived[served.rows()[0]].sum() if n_expired else arrived.sum() - self._left.sum()
        return replace(served, wait_s=float((started * count).sum() - came))

    def _one_by_one(self, arrived: Floats, head: Counts, ends: Counts, until: float) -> Steps:
        """The calls of few servers, one server after another; moves each server's head on."""
        takes, batch, times = self._takes.tolist(), self.max_batch, arrived.tolist()
        for server, (at, end, free) in enumerate(zip(head.tolist(), ends.tolist(), self.free.tolist(), strict=True)):
            calls = []
            while at < end:
                start = max(free, times[at])
                if self.max_wait_s:
                    full = times[at + batch - 1] if at + batch <= end else math.inf
                    start = max(start, min(times[at] + self.max_wait_s, full))
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
            if calls:
                first, count, started, ended = zip(*calls, strict=True)
                yield np.array(first, np.intp), np.array(count, np.intp), np.array(started), np.array(ended)

    def _side_by_side(self, arrived: Floats, head: Counts, ends: Counts, until: float) -> Steps:
        """The same of many servers, one call of each a step."""
        counts = np.diff(ends, prepend=0)
        since = float(arrived.min()) if len(arrived) else until
        base = np.arange(len(counts)) * (2 * (until - since) + 1.0) - since
        line = arrived + np.repeat(base, counts)  # all queues one after another in time: one search counts in all

        def came(servers: Counts, at: Floats, low: Counts, high: Counts) -> Counts:
            places = np.searchsorted(line, at + base[servers], side="right")
            return np.minimum(np.maximum(places, low), high)

        batch, active = self.max_batch, np.flatnonzero(head < ends)
        while len(active):
            at, end = head[active], ends[active]
            start = np.maximum(self.free[active], arrived[at])
            if self.max_wait_s:
                full = np.where(at + batch <= end, arrived[np.minimum(at + batch, end) - 1], np.inf)
                start = np.maximum(start, np.minimum(arrived[at] + self.max_wait_s, full))
            goes = start < until
            active, at, end, start = active[goes], at[goes], end[goes], start[goes]
            if (arrived[at] <= start - self.patience_s).any():
                head[active] = alive = came(active, start - self.patience_s, at, end)
                active = active[alive < end]
                continue
            stop = np.minimum(came(active, start, at + 1, end), at + batch)
            ended = start + self._takes[stop - at]
            yield at, stop - at, start, ended
            head[active], self.free[active] = stop, ended
            active = active[stop < end]

    def resize(self, servers: int, now: float) -> None:
        if servers == len(self.free):
            return
        self.free = np.concatenate([self.free[:servers], np.full(max(servers - len(self.free), 0), now)])
        server = np.arange(len(self._left)) % servers  # what waits is dealt out in turn
        order = np.argsort(self._left)[np.argsort(server, kind="stable")]
        self._left, self._born = self._left[order], self._born[order]
        self._n_left = np.bincount(server, minlength=servers)
