"""A fleet in virtual time: devices, their links, and the cloud's servers, block of time after block of time.

Examples come to each device as a Poisson process. What many devices send is one again, and delays that are drawn for
each example alone leave it one (the displacement theorem): so arrivals at the cloud are drawn for the whole fleet at
once, and what happens before and behind it is measured on a sample of devices. What is alike everywhere is exact.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np

from coe.link import Link
from coe.models.loading import import_runtime

from .queues import Batchers, Floats, OneQueue, Served, Service, Station, in_turn

BLOCK = 200_000  # requests of one block of time
MOST_SAMPLED = 20_000  # of a block's requests, whose latencies are counted
MOST_DEVICES, SENT_SAMPLED = 1000, 50_000  # followed one by one, and what they send together
ANSWER_BYTES = 100
BITS, LOW, N_BINS = 14, -30, 50 << 9  # of a float32 that tell bins apart: 512 in each power of two, from 2**-30 s


class Histogram:
    """Times in 512 bins to each power of two, so that a quantile is right to 0.2%."""

    def __init__(self) -> None:
        self.counts = np.zeros(N_BINS)

    def add(self, seconds: Floats, weight: float = 1.0) -> None:
        bins = np.maximum(seconds.astype(np.float32), np.float32(2.0**LOW)).view(np.int32) >> BITS
        bins -= (LOW + 127) << (23 - BITS)
        self.counts += weight * np.bincount(np.minimum(bins, N_BINS - 1), minlength=N_BINS)

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share is; None: nothing was counted."""
        below = np.cumsum(self.counts)
        if not below[-1]:
            return None
        place = int(np.searchsorted(below, share * below[-1]))
        edges = (np.array([place, place + 1], np.int32) + ((LOW + 127) << (23 - BITS))) << BITS
        low, high = edges.view(np.float32).astype(float)
        if not place:
            return 0.0
        inside = (share * below[-1] - below[place - 1]) / self.counts[place]
        return float(low + (high - low) * inside)

    def quantiles(self) -> dict[str, float | None]:
        return {"p50": self.quantile(0.5), "p95": self.quantile(0.95), "p99": self.quantile(0.99)}

    def __add__(self, other: Histogram) -> Histogram:
        both = Histogram()
        both.counts = self.counts + other.counts
        return both


@dataclass(frozen=True, slots=True)
class CloudTier:
    """One tier's servers.

    Args:
        deferred: share of what comes here that goes on to the next tier.
        seconds: to draw the service times of single requests from; None: they are all `service`'s.
    """

    name: str
    service: Service
    max_batch: int = 64
    max_wait_s: float = 0.0
    deferred: float = 0.0
    seconds: Floats | None = None

    @property
    def most_per_s(self) -> float:
        """Requests a second that one server can take at most."""
        return self.max_batch / self.service.of(self.max_batch)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices and tiers, in one place.

    Args:
        rate: examples a second of each device. sent: share that leaves the device.
        kept_s, sent_s: seconds on the device, to draw from, of examples that stay and of those that leave.
        sent_bytes: of the latter. deadline_s: a device that has waited so long answers by itself.
    """

    devices: int
    rate: float
    sent: float
    kept_s: Floats
    sent_s: Floats
    sent_bytes: Floats
    tiers: Sequence[CloudTier]
    link: Link = field(default_factory=Link)
    deadline_s: float = math.inf

    @property
    def on_device(self) -> bool:
        """True if the device decides anything: else it sends all it has."""
        return bool(self.device_load)

    @property
    def device_load(self) -> float:
        """Share of the time that a device computes; from 1 on it does not keep up."""
        means = [float(one.mean()) if len(one) else 0.0 for one in (self.kept_s, self.sent_s)]
        return self.rate * ((1 - self.sent) * means[0] + self.sent * means[1])

    def loads(self) -> list[float]:
        """Of each cloud tier, the servers that would be busy all the time with full batches."""
        rate, loads = self.devices * self.rate * self.sent, []
        for tier in self.tiers:
            loads.append(rate / tier.most_per_s)
            rate *= tier.deferred
        return loads


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time in which nothing changes.

    Args:
        weight: how often it counts; 0: not at all, as while queues fill at the start.
        rate: times the usual rate; sent: times the usual share that leaves the device.
        cut: share of the devices that cannot reach the cloud. flush: requests a second that no one waits for.
    """

    seconds: float
    servers: Sequence[int]
    weight: float = 1.0
    rate: float = 1.0
    sent: float = 1.0
    cut: float = 0.0
    flush: float = 0.0


@dataclass
class TierTally:
    served: float = 0.0
    calls: float = 0.0
    busy_s: float = 0.0
    server_s: float = 0.0
    wait_s: float = 0.0
    waits: Histogram = field(default_factory=Histogram)

    def __add__(self, other: TierTally) -> TierTally:
        names = ("served", "calls", "busy_s", "server_s", "wait_s", "waits")
        return TierTally(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass
class Tally:
    """What happened. `slots`: p99 of what was sent, its number, and what was degraded, of each block, for pictures."""

    tiers: list[TierTally]
    device: TierTally = field(default_factory=TierTally)
    kept: Histogram = field(default_factory=Histogram)
    sent: Histogram = field(default_factory=Histogram)
    examples: float = 0.0
    n_sent: float = 0.0
    degraded: float = 0.0
    bytes_up: float = 0.0
    seconds: float = 0.0
    slots: list[tuple[float, Histogram, float]] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        """Two regions of one fleet, over the same time."""
        names = ("device", "kept", "sent", "examples", "n_sent", "degraded", "bytes_up")
        both = {name: getattr(self, name) + getattr(other, name) for name in names}
        slots = [
            (at, mine + theirs, late + later)
            for (at, mine, late), (_, theirs, later) in zip(self.slots, other.slots, strict=True)
        ]
        tiers = [mine + theirs for mine, theirs in zip(self.tiers, other.tiers, strict=True)]
        return Tally(tiers, **both, seconds=self.seconds, slots=slots)


class _Sample:
    """Some devices in one phase: seconds of what they keep, and of what they send outside the cloud."""

    def __init__(self, fleet: Fleet, phase: Phase, rng: np.random.Generator, n_phases: int) -> None:
        self.p_sent = min(fleet.sent * phase.sent, 1.0) if len(fleet.sent_s) else 0.0
        rate = fleet.rate * phase.rate
        n_devices = min(fleet.devices, MOST_DEVICES)
        wanted = SENT_SAMPLED / min(n_phases, 10) / max(self.p_sent, 0.05)
        n = max(20, math.ceil(wanted / n_devices))
        shape = (n_devices, n + n // 5)
        times = np.cumsum(rng.standard_exponential(shape) / rate, axis=1)
        leaves = rng.random(shape) < self.p_sent
        service = np.where(leaves, *(_drawn(rng, own, shape) for own in (fleet.sent_s, fleet.kept_s)))
        started = in_turn(times, service)
        ended = started + service
        is_warm = np.arange(shape[1]) >= n // 5
        self.waits = (started - times)[:, is_warm].reshape(-1)
        self.kept = (ended - times)[~leaves & is_warm]
        self.bytes = float(fleet.sent_bytes.mean()) if len(fleet.sent_bytes) else 0.0
        device, place = np.nonzero(leaves)  # of each device in order
        at, size = ended[device, place], _drawn(rng, fleet.sent_bytes, (len(device),))
        up, down = fleet.link.start(int(rng.integers(2**31)), n_devices)
        there = up.deliver(at, size, device)
        order = np.lexsort((there, device))
        back = np.empty_like(there)
        back[order] = down.deliver(there[order], ANSWER_BYTES, device[order])
        before = (back - times[device, place])[is_warm[place]]
        self.sent = rng.permutation(before)

    def next_sent(self, rng: np.random.Generator, n: int) -> Floats:
        """(n,) of what was sent, from a random place on."""
        return np.resize(np.roll(self.sent, int(rng.integers(len(self.sent)))), n)


def _drawn(rng: np.random.Generator, values: Floats, shape: tuple[int, ...]) -> Floats:
    if not len(values):
        return np.zeros(shape)
    return np.full(shape, values[0]) if values.min() == values.max() else rng.choice(values, shape)


def simulate(fleet: Fleet, phases: Sequence[Phase], seed: Sequence[int] = (0,), n_slots: int = 0) -> Tally:
    """The fleet through the phases, one after another; the same seed gives the same numbers to the last bit.

    Args:
        n_slots: of about as many stretches of time `slots` are kept.
    """
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(list(seed))))
    stations = [_station(fleet, tier, n, rng) for tier, n in zip(fleet.tiers, phases[0].servers, strict=True)]
    waiting = [(np.empty(0), np.empty(0)) for _ in fleet.tiers]  # on the way to each tier: (when there, born)
    tally = Tally([TierTally() for _ in fleet.tiers])
    slot_s = sum(phase.seconds for phase in phases) / n_slots if n_slots else math.inf
    now = 0.0
    for phase in phases:
        sample = _Sample(fleet, phase, rng, len(phases))
        for station, n in zip(stations, phase.servers, strict=True):
            station.resize(n, now)
        rate = fleet.devices * fleet.rate * phase.rate * sample.p_sent
        arrive = rate * (1 - phase.cut) + phase.flush
        n_blocks = max(math.ceil(arrive * phase.seconds / BLOCK), math.ceil(phase.seconds / slot_s), 1)
        block_s = phase.seconds / n_blocks
        for number in range(n_blocks):
            since, until = now + number * block_s, now + (number + 1) * block_s
            block = _Block(fleet, phase, tally, sample, rng, is_shown=n_slots > 0, since=since)
            if stations:
                served = stations[0].serve(*stations[0].draw(rng, arrive, since, until), until)
                for place, tier in enumerate(fleet.tiers):
                    go_on = block.take(place, served, tier.deferred)
                    if place + 1 < len(fleet.tiers):
                        due, born = (np.concatenate(pair) for pair in zip(waiting[place + 1], go_on, strict=True))
                        now_due = due < until
                        waiting[place + 1] = due[~now_due], born[~now_due]
                        times, order, counts = stations[place + 1].spread(rng, due[now_due])
                        served = stations[place + 1].serve(times, counts, until, born[now_due][order])
            block.close(rate, block_s)
        now += phase.seconds
    return tally


def _station(fleet: Fleet, tier: CloudTier, servers: int, rng: np.random.Generator) -> Station:
    if tier.max_batch == 1:
        return OneQueue(servers, tier.service, rng, tier.seconds)
    return Batchers(servers, tier.service, tier.max_batch, tier.max_wait_s, fleet.deadline_s)


class _Block:
    """One block's share of the tally."""

    def __init__(
        self, fleet: Fleet, phase: Phase, tally: Tally, sample: _Sample, rng: np.random.Generator, *,
        is_shown: bool, since: float,
    ) -> None:  # fmt: skip
        self.fleet, self.phase, self.tally, self.sample, self.rng = fleet, phase, tally, sample, rng
        self.sent, self.late = Histogram(), 0.0
        self.is_shown, self.since = is_shown, since

    def take(self, place: int, served: Served, deferred: float) -> tuple[Floats, Floats]:
        """Count what a tier did; (when there, born) of what goes on to the next."""
        weight, own, n = self.phase.weight, self.tally.tiers[place], served.n
        step = max(1, n // MOST_SAMPLED) if not deferred else 1
        rows, call = served.rows(step, int(self.rng.integers(step)) if n >= step else 0)
        wait_s = served.started[call] - served.arrived[rows]
        every = max(1, len(rows) // MOST_SAMPLED)
        if weight and n:
            own.served += weight * n
            own.calls += weight * len(served.count)
            own.busy_s += weight * served.busy_s
            own.wait_s += weight * served.wait_s
            own.waits.add(wait_s[::every], weight * n / len(wait_s[::every]))
        ended = served.ended[call]
        goes_on = self.rng.random(len(rows)) < deferred if deferred else np.zeros(len(rows), dtype=np.bool_)
        exits = ended - served.born[rows]
        exits = exits[~goes_on] if deferred else exits
        if len(exits):
            total = exits + self.sample.next_sent(self.rng, len(exits))
            share = n * (1.0 if not deferred else len(exits) / len(rows)) / len(exits)
            self.late += share * float((total > self.fleet.deadline_s).sum()) + served.n_expired
            self.sent.add(np.minimum(total, self.fleet.deadline_s), share)
        if served.n_expired:
            self.sent.add(np.array([self.fleet.deadline_s]), served.n_expired)
        return ended[goes_on], served.born[rows][goes_on]

    def close(self, rate: float, seconds: float) -> None:
        """Count what never came to the cloud, too."""
        tally, phase, fleet, weight = self.tally, self.phase, self.fleet, self.phase.weight
        cut = rate * phase.cut * seconds
        if cut and fleet.deadline_s < math.inf:
            self.sent.add(np.array([fleet.deadline_s]), cut)
        self.late += cut
        if self.is_shown:
            tally.slots.append((self.since, self.sent, self.late / max(rate * seconds, 1e-9)))
        if not weight:
            return
        for tier, servers in zip(tally.tiers, phase.servers, strict=True):
            tier.server_s += weight * servers * seconds
        examples = fleet.devices * fleet.rate * phase.rate * seconds * weight
        kept = examples * (1 - self.sample.p_sent)
        if len(self.sample.kept):
            tally.kept.add(self.sample.kept, kept / len(self.sample.kept))
        tally.sent.counts += weight * self.sent.counts
        tally.examples += examples
        tally.n_sent += weight * rate * seconds
        tally.degraded += weight * self.late
        tally.bytes_up += weight * rate * seconds * self.sample.bytes
        tally.seconds += weight * seconds
        own, waits = tally.device, self.sample.waits
        own.served, own.calls, own.server_s = own.served + examples, own.calls + examples, tally.seconds * fleet.devices
        own.busy_s += weight * seconds * fleet.device_load * phase.rate * fleet.devices
        own.wait_s += examples * float(waits.mean())
        own.waits.add(waits, examples / len(waits))


Task = tuple[Fleet, Sequence[Phase], Sequence[int], int]


def run(tasks: Sequence[Task], engine: str = "local") -> list[Tally]:
    """Each task's tally, side by side on this machine's cores, or as Ray tasks."""
    if engine == "ray":
        ray: Any = import_runtime("ray", "Ray", "pip install 'coe-cascade[ray]'")
        remote = ray.remote(_run)
        return list(ray.get([remote.remote(task) for task in tasks]))
    workers = min(len(tasks), len(os.sched_getaffinity(0)))
    if workers == 1:
        return [_run(task) for task in tasks]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(_run, tasks))


def _run(task: Task) -> Tally:
    return simulate(*task)


def regions(fleet: Fleet, phases: Sequence[Phase], n: int, seed: int, n_slots: int = 0) -> list[Task]:
    """The fleet cut into `n` regions, each with its share of the devices and servers, and queues of its own."""
    tasks: list[Task] = []
    for place in range(n):
        own = replace(fleet, devices=_part(fleet.devices, n, place))
        cut = [replace(phase, servers=[max(1, _part(k, n, place)) for k in phase.servers]) for phase in phases]
        tasks.append((own, cut, (seed, place), n_slots))
    return tasks


def _part(total: int, n: int, place: int) -> int:
    return total // n + (place < total % n)


def run_fleet(
    fleet: Fleet, phases: Sequence[Phase], *, n_regions: int = 1, seed: int = 0, engine: str = "local", n_slots: int = 0
) -> Tally:
    """The whole fleet: its regions' tallies, added up in their order."""
    tallies = run(regions(fleet, phases, n_regions, seed, n_slots), engine)
    return reduce(lambda one, other: one + other, tallies)
