"""How many servers a fleet needs, what that costs, and what trouble does to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from coe.config import Fields, Report, read_yaml

from .fleet import Fleet, Phase, Tally, added, run_fleet

HOURS = 730  # of a month
TRIED = 40_000  # requests in one trial of a number of servers,
CALLS, ALIKE = 30, 16  # which lasts so many full calls at least; servers that stand for all, where queues are apart
FULLEST = 0.97  # of a tier's capacity that may be used: above it a queue takes very long to settle
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Slo:
    """`quantile` of the latency over all examples, at most `seconds`."""

    quantile: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars; `usd_per_hour` of one server by tier: "server" is any other tier's."""

    usd_per_hour: Mapping[str, float]
    usd_per_gb: float
    usd_per_device_month: float
    about: str

    @classmethod
    def read(cls, path: Path) -> Prices:
        """From YAML. Raises ConfigError: every finding."""
        report = Report(str(path))
        fields = Fields(read_yaml(path), report)
        section = fields.section("usd_per_hour")
        hourly = {str(name): section.number(str(name)) for name in section.content}
        data, device = fields.number("usd_per_gb", 0.0), fields.number("usd_per_device_month", 0.0)
        about = fields.text("about", "")
        fields.finish()
        report.check()
        return cls(hourly, data, device, about)

    def of_month(self, fleet: Fleet, servers: Sequence[int]) -> float:
        of = {tier.name: n for tier, n in zip(fleet.tiers, servers, strict=True)}
        usual = self.usd_per_hour.get("server", 0.0)
        hourly = sum(n * self.usd_per_hour.get(name, usual) for name, n in of.items())
        sent_bytes = fleet.sent_per_s * (float(fleet.sent_bytes.mean()) if len(fleet.sent_bytes) else 0.0)
        data = sent_bytes * 3600 / 1e9 * self.usd_per_gb
        return (hourly + data) * HOURS + fleet.devices * self.usd_per_device_month


def part_of(fleet: Fleet, servers: Sequence[int], share: float) -> tuple[Fleet, list[int]]:
    """About this share of the fleet, with at least `ALIKE` servers of each tier.

    Where servers have queues of their own they do not know of each other, so a part stands for all; else it is all.
    """
    share = max(share, ALIKE / max(min(servers, default=1), 1))
    if share >= 1 or any(tier.max_batch == 1 for tier in fleet.tiers):
        return fleet, list(servers)
    devices = max(round(fleet.devices * share), 1)
    return replace(fleet, devices=devices), [max(round(n * devices / fleet.devices), 1) for n in servers]


def trial(fleet: Fleet, servers: Sequence[int], factor: float) -> Tally:
    """Enough to judge these servers by, at `factor` times the usual rate, after a fifth of it to fill the queues."""
    rate = max(fleet.sent_per_s * factor, 1e-9)
    slowest = max((tier.service.of(tier.max_batch) for tier in fleet.tiers), default=1.0)
    seconds = max(min(TRIED / rate, 3600.0), CALLS * slowest)
    fleet, servers = part_of(fleet, servers, TRIED / (rate * seconds))
    return run_fleet(fleet, [Phase(seconds / 5, servers, factor), Phase(seconds, servers, factor)])[1]


def size(fleet: Fleet, slo: Slo, peak: float = 1.0) -> tuple[list[int], bool]:
    """(servers of each tier, True if they meet the SLO at `peak` times the usual rate).

    The fullest servers that meet it, all tiers alike; then each tier alone as few as it can do with. Where no number
    meets it, because the link or the device alone take longer, servers are half full.
    """

    def at(load: float) -> list[int]:
        return [max(1, math.ceil(own * peak / load)) for own in fleet.loads()]

    def meets(servers: Sequence[int]) -> bool:
        tally = trial(fleet, servers, peak)
        found = added(tally.kept, tally.sent).quantile(slo.quantile)
        return found is None or found <= slo.seconds

    loads = [FULLEST * 0.9**step for step in range(24)]
    low, high = 0, len(loads)  # of the steps
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(at(loads[middle])) else (middle + 1, high)
    if low == len(loads):
        return at(0.5), False
    servers, fewest = at(loads[low]), at(FULLEST)
    for place in range(len(servers)):
        least, most = fewest[place], servers[place]
        while least < most:
            tried = [*servers[:place], (least + most) // 2, *servers[place + 1 :]]
            least, most = (least, tried[place]) if meets(tried) else (tried[place] + 1, most)
        servers[place] = most
    return servers, True


def as_json(fleet: Fleet, servers: Sequence[int], tallies: Sequence[Tally], prices: Prices) -> dict[str, Any]:
    """What the fleet is like, as `--json` prints it; None where there is nothing to count, or no end to a queue."""
    tally: Tally = reduce(added, tallies)
    keeps_up = fleet.device_load < 1
    here = [("device", fleet.devices, fleet.rate / max(fleet.device_load, 1e-12))]
    there = [(tier.name, n, tier.most_per_s) for tier, n in zip(fleet.tiers, servers, strict=True)]
    latencies = {"all": added(tally.kept, tally.sent), "kept": tally.kept, "sent": tally.sent}
    return {
        "tiers": [
            {
                "name": name,
                "servers": n,
                "utilisation": own.busy_s / own.server_s,
                "load": own.served / own.server_s / most_per_s,
                "batch_mean": own.served / own.calls if own.calls else None,
                "wait_s": {
                    "mean": own.wait_s / own.served if own.served and keeps_up else None,
                    "p99": own.waits.quantile(0.99) if keeps_up else None,
                },
            }
            for (name, n, most_per_s), own in zip([*here, *there], tally.tiers, strict=True)
            if name != "device" or fleet.device_load
        ],
        "latency_s": {
            kind: {name: one.quantile(share) if keeps_up else None for name, share in QUANTILES.items()}
            for kind, one in latencies.items()
        },
        "sent_share": tally.n_sent / tally.examples,
        "bytes_up_per_day": tally.bytes_up / tally.examples * fleet.devices * fleet.rate * 86400,
        "usd_per_month": prices.of_month(fleet, servers),
        "degraded_share": tally.degraded / tally.examples,
    }


TROUBLE_S, STEP_S = 300.0, 10.0
SLOWER = 1.5  # than before: the trouble is not over
SPOOL_SHARE = 0.2  # of the time that the calls of a device's spool take at most (edge/spool/config.py)
Phases = list[Phase]


def troubles(
    fleet: Fleet, servers: Sequence[int], start_s: float, call_s: float
) -> Iterator[tuple[str, Phases, Phases]]:
    """(name, phases of it, phases after) of what happens to many at once, for `TROUBLE_S`.

    Args:
        start_s: that a new server takes to start. call_s: that a device's call takes.
    """
    usual, more = Phase(TROUBLE_S, servers), [3 * n for n in servers]
    backlog, flush = fleet.sent_per_s * TROUBLE_S / 5, fleet.devices / 5 * SPOOL_SHARE / call_s
    flushed = replace(usual, seconds=min(backlog / flush, TROUBLE_S), flush=flush)
    yield "a fifth of the devices is cut off, then sends its spools", [replace(usual, cut=0.2)], [flushed, usual]
    yield "drift: twice as much is deferred", [replace(usual, sent=2.0)], [usual]
    yield "rush hour: three times the rate", [replace(usual, rate=3.0)], [usual]
    grown = [Phase(start_s, servers, 3.0), Phase(max(TROUBLE_S - start_s, STEP_S), more, 3.0)]
    yield f"rush hour, three times the servers after {start_s:g} s", grown, [usual]
    fewer = [max(n - 1, 1) for n in servers]
    yield "a server of each tier dies", [Phase(TROUBLE_S, fewer, cut=float(1 in servers))], [usual]


def through(fleet: Fleet, during: Phases, after: Phases, seed: int) -> dict[str, float | None]:
    """p99 of what is sent before and at worst, the degraded share during, and seconds until p99 is as before."""

    step_s = min(max(STEP_S, 1000 / fleet.sent_per_s), TROUBLE_S / 5)

    def steps(phases: Phases) -> Phases:
        cut = [(one, max(1, round(one.seconds / step_s))) for one in phases]
        return [replace(one, seconds=one.seconds / n) for one, n in cut for _ in range(n)]

    calm, n = replace(after[-1], seconds=TROUBLE_S / 5), len(steps(during))
    _, before, *found = run_fleet(fleet, [calm, calm, *steps(during), *steps(after)], seed=seed)
    p99 = [one.sent.quantile(0.99) or 0.0 for one in (before, *found)]
    slow = [place for place, value in enumerate(p99[1 + n :], start=1) if value > SLOWER * p99[0]]
    over = sum(one.seconds for one in found[n : n + max(slow, default=0)])
    return {
        "p99_before_s": p99[0],
        "p99_worst_s": max(p99),
        "degraded_share": sum(one.degraded for one in found[:n]) / sum(one.examples for one in found[:n]),
        "recovered_s": None if p99[-1] > SLOWER * p99[0] else over,
    }
