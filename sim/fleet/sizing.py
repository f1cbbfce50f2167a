"""How many servers a fleet needs, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coe.config import Fields, Report, read_yaml

from .fleet import Fleet, Histogram, Phase, Tally, run_fleet

HOURS = 730  # of a month
TRIED = 40_000  # requests in one trial of a number of servers
ALIKE = 8  # servers of one tier that stand for all where each has a queue of its own
CALLS = 30  # full calls, at least, that a trial lasts
FULLEST = 0.97  # of a tier's capacity that may be used: above it a queue takes very long to settle


@dataclass(frozen=True, slots=True)
class Slo:
    """`quantile` of the latency over all examples, at most `seconds`."""

    quantile: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars.

    Args:
        usd_per_hour: of one server, by tier; "server" is any other tier's.
    """

    usd_per_hour: Mapping[str, float]
    usd_per_gb: float = 0.0
    usd_per_device_month: float = 0.0
    about: str = ""

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

    def of_month(self, fleet: Fleet, servers: Sequence[int], bytes_per_day: float) -> float:
        default = self.usd_per_hour.get("server", 0.0)
        hourly = sum(
            n * self.usd_per_hour.get(tier.name, default) for tier, n in zip(fleet.tiers, servers, strict=True)
        )
        data = bytes_per_day * HOURS / 24 / 1e9 * self.usd_per_gb
        return hourly * HOURS + data + fleet.devices * self.usd_per_device_month


def overall(tally: Tally) -> Histogram:
    """Latencies of all examples."""
    return tally.kept + tally.sent


def trial(fleet: Fleet, servers: Sequence[int], factor: float) -> tuple[Fleet, list[Phase]]:
    """Enough to judge these servers by, at `factor` times the usual rate, after a fifth of it to fill the queues.

    Where servers have queues of their own they do not know of each other, so a part of the fleet stands for all.
    """
    rate = max(fleet.devices * fleet.rate * factor * fleet.sent, 1e-9)
    slowest = max((tier.service.of(tier.max_batch) for tier in fleet.tiers), default=1.0)
    seconds = max(min(TRIED / rate, 3600.0), CALLS * slowest)
    part = max(TRIED / (rate * seconds), ALIKE / max(min(servers, default=1), 1))
    if part < 1 and all(tier.max_batch > 1 for tier in fleet.tiers):
        devices = max(round(fleet.devices * part), 1)
        servers = [max(round(n * devices / fleet.devices), 1) for n in servers]
        fleet = replace(fleet, devices=devices)
    return fleet, [Phase(seconds / 5, servers, 0.0, factor), Phase(seconds, servers, 1.0, factor)]


def size(fleet: Fleet, slo: Slo, *, peak: float = 1.0, seed: int = 0) -> tuple[list[int], bool]:
    """(servers of each tier, True if they meet the SLO at `peak` times the usual rate).

    The fullest servers that meet it, all tiers alike; then each tier alone as few as it can do with. Where no number
    meets it, because the link or the device alone take longer, servers are half full.
    """

    def at(load: float) -> list[int]:
        return [max(1, math.ceil(own * peak / load)) for own in fleet.loads()]

    def meets(servers: Sequence[int]) -> bool:
        tally = run_fleet(*trial(fleet, servers, peak), seed=seed)
        found = overall(tally).quantile(slo.quantile)
        return found is None or found <= slo.seconds

    loads = [FULLEST * 0.9**step for step in range(24)]
    if not fleet.tiers:
        return [], meets([])
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


def as_json(fleet: Fleet, servers: Sequence[int], tally: Tally, prices: Prices) -> dict[str, Any]:
    """What the fleet is like, as `--json` prints it; None where there is nothing to count, or no end to a queue."""
    bytes_per_day = tally.bytes_up / tally.seconds * 86400
    keeps_up = fleet.device_load < 1
    here = (
        [("device", fleet.devices, fleet.rate / max(fleet.device_load, 1e-12), tally.device)] if fleet.on_device else []
    )
    there = [
        (tier.name, n, tier.most_per_s, own) for tier, n, own in zip(fleet.tiers, servers, tally.tiers, strict=True)
    ]
    latencies = {"all": overall(tally), "kept": tally.kept, "sent": tally.sent}
    return {
        "tiers": [
            {
                "name": name,
                "servers": n,
                "utilisation": own.busy_s / own.server_s,
                "load": own.served / tally.seconds / (n * most_per_s),
                "batch_mean": own.served / own.calls if own.calls else None,
                "wait_s": {
                    "mean": own.wait_s / own.served if own.served and keeps_up else None,
                    "p99": own.waits.quantile(0.99) if keeps_up else None,
                },
            }
            for name, n, most_per_s, own in [*here, *there]
        ],
        "latency_s": {
            name: one.quantiles() if keeps_up else dict.fromkeys(("p50", "p95", "p99"))
            for name, one in latencies.items()
        },
        "sent_share": tally.n_sent / tally.examples,
        "bytes_up_per_day": bytes_per_day,
        "usd_per_month": prices.of_month(fleet, servers, bytes_per_day),
        "degraded_share": tally.degraded / tally.examples,
    }
