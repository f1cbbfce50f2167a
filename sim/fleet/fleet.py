"""A fleet in virtual time: devices, their links, and the cloud's servers, block of time after block of time.

Examples come to each device as a Poisson process. What many devices send is one again, and delays that are drawn for
each example alone leave it one (the displacement theorem): so arrivals at the cloud are drawn for the whole fleet at
once, and what happens before and behind it is measured on a sample of devices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import reduce
from multiprocessing import get_context
from typing import Any

import numpy as np

from coe.link import Link
from coe.models.loading import import_runtime

from .queues import Batchers, Floats, OneQueue, Served, Service, in_turn

BLOCK = 200_000  # requests of one block of time
MOST_COUNTED = 10_000  # of a block's requests, whose latencies are counted; the others are like them
MOST_DEVICES, SENT_SAMPLED = 1000, 20_000  # followed one by one, and what they send together
ANSWER_BYTES = 100
SHIFT, LOWEST, N_BINS = 14, (127 - 30) << 9, 50 << 9  # bits of a float32 below a bin's; the bin of 2**-30 s


@dataclass
class Histogram:
    """Times in 512 bins to each power of two, so that a quantile is right to 0.2%."""

    counts: Floats = field(default_factory=lambda: np.zeros(N_BINS))

    def add(self, seconds: Floats, weight: float = 1.0) -> None:
        bins = (np.maximum(seconds, 2.0**-30).astype(np.float32).view(np.int32) >> SHIFT) - LOWEST
        found = np.bincount(np.minimum(bins, N_BINS - 1))
        self.counts[: len(found)] += weight * found

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share is; None: nothing was counted."""
        below = np.cumsum(self.counts)
        if not below[-1]:
            return None
        place = int(np.searchsorted(below, share * below[-1]))
        low, high = ((np.array([place, place + 1], np.int32) + LOWEST) << SHIFT).view(np.float32).tolist()
        inside = (share * below[-1] - below[place] + self.counts[place]) / self.counts[place]
        return float(low + (high - low) * inside) if place else 0.0


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
    """Devices and tiers.

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
    def device_load(self) -> float:
        """Share of the time that a device computes; from 1 on it does not keep up."""
        kept, sent = (float(one.mean()) if len(one) else 0.0 for one in (self.kept_s, self.sent_s))
        return self.rate * ((1 - self.sent) * kept + self.sent * sent)

    @property
    def sent_per_s(self) -> float:
        return self.devices * self.rate * self.sent

    def loads(self) -> list[float]:
        """Of each cloud tier, the servers that full batches would keep busy all the time."""
        reach = np.cumprod([1.0, *(tier.deferred for tier in self.tiers)])
        return [self.sent_per_s * share / tier.most_per_s for share, tier in zip(reach, self.tiers, strict=False)]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time in which nothing changes.

    Args:
        rate, sent: times the usual rate, and the usual share that leaves the device.
        cut: share of the devices that cannot reach the cloud. flush: requests a second that no one waits for.
    """

    seconds: float
    servers: Sequence[int]
    rate: float = 1.0
    sent: float = 1.0
    cut: float = 0.0
    flush: float = 0.0


@dataclass
class TierTally:
    """One tier; `server_s`: seconds that its servers were there, together."""

    served: float = 0.0
    calls: float = 0.0
    busy_s: float = 0.0
    server_s: float = 0.0
    wait_s: float = 0.0
    waits: Histogram = field(default_factory=Histogram)


@dataclass
class Tally:
    """What happened in a phase: by tier, the devices first; latencies of what stayed on the device and what left it."""

    tiers: list[TierTally]
    seconds: float
    examples: float
    n_sent: float
    bytes_up: float
    degraded: float = 0.0
    kept: Histogram = field(default_factory=Histogram)
    sent: Histogram = field(default_factory=Histogram)


def added(one: Any, other: Any) -> Any:
    """Tallies, field by field."""
    if isinstance(one, list):
        return [added(*pair) for pair in zip(one, other, strict=True)]
    if is_dataclass(one):
        names = [each.name for each in fields(one)]
        return type(one)(*(added(getattr(one, name), getattr(other, name)) for name in names))  # type: ignore
    return one + other


class _Sample:
    """Some devices at one rate: seconds of what they keep, and of what they send outside the cloud."""

    def __init__(self, fleet: Fleet, phase: Phase, rng: np.random.Generator, n_kinds: int) -> None:
        self.p_sent = min(fleet.sent * phase.sent, 1.0)
        n_devices = min(fleet.devices, MOST_DEVICES)
        n = max(20, math.ceil(SENT_SAMPLED / min(n_kinds, 10) / max(self.p_sent, 0.05) / n_devices))
        shape = (n_devices, n + n // 5)
        times = np.cumsum(rng.standard_exponential(shape) / (fleet.rate * phase.rate), axis=1)
        leaves = rng.random(shape) < self.p_sent
        service = np.where(leaves, *(_drawn(rng, own, shape) for own in (fleet.sent_s, fleet.kept_s)))
        started = in_turn(times, service)
        ended, is_warm = started + service, np.arange(shape[1]) >= n // 5
        self.waits = (started - times)[:, is_warm].reshape(-1)
        self.kept = (ended - times)[~leaves & is_warm]
        device, place = np.nonzero(leaves)  # device by device, each in order
        size = _drawn(rng, fleet.sent_bytes, (len(device),))
        up, down = fleet.link.start(int(rng.integers(2**31)), n_devices)
        there = up.deliver(ended[device, place], size, device)
        order = np.lexsort((there, device))
        there[order] = down.deliver(there[order], ANSWER_BYTES, device[order])
        own = (there - times[device, place])[is_warm[place]]
        self.sent = rng.permutation(own) if len(own) else np.zeros(1)

    def next_sent(self, rng: np.random.Generator, n: int) -> Floats:
        """(n,) of what was sent, from a random place on."""
        return np.resize(np.roll(self.sent, int(rng.integers(len(self.sent)))), n)


def _drawn(rng: np.random.Generator, values: Floats, shape: tuple[int, ...]) -> Floats:
    if not len(values):
        return np.zeros(shape)
    return np.full(shape, values[0]) if values.min() == values.max() else rng.choice(values, shape)


def simulate(fleet: Fleet, phases: Sequence[Phase], seed: Sequence[int] = (0,)) -> list[Tally]:
    """Each phase's tally, one after another; the same seed gives the same numbers to the last bit."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(list(seed))))
    stations = [
        OneQueue(n, tier.service, tier.seconds)
        if tier.max_batch == 1
        else Batchers(n, tier.service, tier.max_batch, tier.max_wait_s, fleet.deadline_s)
        for tier, n in zip(fleet.tiers, phases[0].servers, strict=True)
    ]
    due = [(np.empty(0), np.empty(0)) for _ in [*stations, 0]]  # (when, born) of what is on its way to each tier
    tallies, now = [], 0.0
    samples: dict[tuple[float, float], _Sample] = {}  # of devices: the same wherever nothing changes for them
    n_kinds = len({(phase.rate, phase.sent) for phase in phases})
    for phase in phases:
        kind = phase.rate, phase.sent
        sample = samples[kind] = samples.get(kind) or _Sample(fleet, phase, rng, n_kinds)
        for station, servers in zip(stations, phase.servers, strict=True):
            station.resize(servers, now)
        tally = _on_devices(fleet, phase, sample)
        sends = tally.n_sent / phase.seconds
        comes = sends * (1 - phase.cut) + phase.flush
        n = max(math.ceil(comes * phase.seconds / BLOCK), 1)
        for number in range(n):
            since, until = (now + at * phase.seconds / n for at in (number, number + 1))
            for place, (station, tier) in enumerate(zip(stations, fleet.tiers, strict=True)):
                if place == 0:
                    served = station.serve(*station.draw(rng, comes, since, until), until)
                else:
                    (times, born), is_due = due[place], due[place][0] < until
                    due[place] = times[~is_due], born[~is_due]
                    order, counts = station.spread(rng, times[is_due])
                    served = station.serve(times[is_due][order], counts, until, born[is_due][order])
                goes = _count(tally, place, served, tier.deferred, sample, fleet.deadline_s, rng)
                due[place + 1] = tuple(map(np.concatenate, zip(due[place + 1], goes, strict=True)))  # type: ignore
        tallies.append(tally)
        now += phase.seconds
    return tallies


def _on_devices(fleet: Fleet, phase: Phase, sample: _Sample) -> Tally:
    """The tally of a phase, without what comes to the cloud."""
    device_s, n = fleet.devices * phase.seconds, fleet.devices * fleet.rate * phase.rate * phase.seconds
    n_sent, size = n * sample.p_sent, float(fleet.sent_bytes.mean()) if len(fleet.sent_bytes) else 0.0
    busy_s, wait_s = device_s * fleet.device_load * phase.rate, n * float(sample.waits.mean())
    tiers = [TierTally(n, n, busy_s, device_s, wait_s), *(TierTally(server_s=k * phase.seconds) for k in phase.servers)]
    tally = Tally(tiers, phase.seconds, n, n_sent, n_sent * size, n_sent * phase.cut)
    tiers[0].waits.add(sample.waits, n / len(sample.waits))
    if len(sample.kept):
        tally.kept.add(sample.kept, (n - n_sent) / len(sample.kept))
    if phase.cut and fleet.deadline_s < math.inf:
        tally.sent.add(np.array([fleet.deadline_s]), n_sent * phase.cut)
    return tally


def _count(
    tally: Tally, place: int, served: Served, deferred: float, sample: _Sample, deadline_s: float,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Count what a tier did, and what left the cascade there; (when there, born) of what goes on to the next."""
    n, own = served.n, tally.tiers[1 + place]
    own.served += n
    own.calls += len(served.started)
    own.busy_s += served.busy_s
    own.wait_s += served.wait_s
    rows, call = served.rows(1 if deferred else max(1, n // MOST_COUNTED))
    own.waits.add(served.started[call] - served.arrived[rows], n / max(len(rows), 1))
    ended, born = served.ended[call], served.born[rows]
    goes_on = rng.random(len(rows)) < deferred if deferred else np.zeros(len(rows), np.bool_)
    stays = ended[~goes_on] - born[~goes_on]
    if len(stays):
        total, weight = stays + sample.next_sent(rng, len(stays)), n / len(rows)
        tally.sent.add(np.minimum(total, deadline_s), weight)
        tally.degraded += weight * float((total > deadline_s).sum())
    if served.n_expired:
        tally.sent.add(np.array([deadline_s]), served.n_expired)
        tally.degraded += served.n_expired
    return ended[goes_on], born[goes_on]


def run_fleet(
    fleet: Fleet, phases: Sequence[Phase], *, n_regions: int = 1, seed: int = 0, engine: str = "local"
) -> list[Tally]:
    """The phases of a fleet cut into regions, each with its share of the devices and servers and queues of its own.

    They are simulated side by side on this machine's cores, or as Ray tasks, and added up in their order: the numbers
    are the same to the last bit.
    """
    tasks = [
        (
            replace(fleet, devices=_part(fleet.devices, n_regions, place)),
            [replace(one, servers=[max(1, _part(n, n_regions, place)) for n in one.servers]) for one in phases],
            (seed, place),
        )
        for place in range(n_regions)
    ]
    if engine == "ray":
        ray: Any = import_runtime("ray", "Ray", "pip install 'coe-cascade[ray]'")
        remote = ray.remote(_simulate)
        parts = ray.get([remote.remote(task) for task in tasks])
    elif (workers := min(n_regions, len(os.sched_getaffinity(0)))) > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            parts = list(pool.map(_simulate, tasks))
    else:
        parts = list(map(_simulate, tasks))
    return [replace(one, seconds=phase.seconds) for one, phase in zip(reduce(added, parts), phases, strict=True)]


def _simulate(task: Any) -> list[Tally]:
    return simulate(*task)


def _part(total: int, n: int, place: int) -> int:
    return total // n + (place < total % n)
