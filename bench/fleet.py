"""A million devices for an hour: how long the simulation of their queues takes, and what memory.

    python bench/fleet.py                  # prints JSON
    python bench/fleet.py --devices 10000  # a smaller fleet
    python bench/fleet.py --simpy          # the same queue in SimPy, for a second of it (pip install simpy)

1,000,000 devices at 5 examples a second, of which 25% are deferred: 4.5e9 requests in a simulated hour. Servers take
one request at a time in 1.01 ms, first come, first served, in `--regions` equal regions with a queue each: every
request is simulated. `seconds`, `cpu_s` and `peak_bytes` are of all processes; the wait is compared with what theory
says of M/D/c (Crommelin), and `same_bits` of regions in processes of their own with the same one by one.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from typing import Any

import numpy as np
from processes import machine

from sim.fleet.fleet import CloudTier, Fleet, Phase, run_fleet, simulate
from sim.fleet.queues import Service

SERVICE_S, LOAD, RATE, DEFERRED = 1.01e-3, 0.9, 5.0, 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--regions", type=int, default=2)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--simpy", action="store_true", help="time SimPy on a part as well")
    options = parser.parse_args()
    fleet = Fleet(
        options.devices, RATE, DEFERRED, np.array([2e-3]), np.array([2e-3]), np.array([900.0]),
        [CloudTier("best", Service(SERVICE_S), max_batch=1)],
    )  # fmt: skip
    servers = [options.regions * math.ceil(fleet.loads()[0] / LOAD / options.regions)]
    phases = [Phase(1.0, servers), Phase(3600 * options.hours, servers)]
    started = time.perf_counter()
    _, tally = run_fleet(fleet, phases, n_regions=options.regions, engine=options.engine)
    seconds = time.perf_counter() - started
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own, largest = (resource.getrusage(one).ru_maxrss * 1024 for one in who)
    cpu_s = sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))
    best, c = tally.tiers[1], servers[0] // options.regions
    result = {
        "devices": options.devices,
        "simulated_s": 3600 * options.hours,
        "requests": best.served,
        "servers": servers[0],
        "seconds": seconds,
        "cpu_s": cpu_s,
        "ns_per_request": seconds / best.served * 1e9,
        "peak_bytes": own + largest * min(options.regions, 2),  # two processes at a time on two cores
        "wait_mean_s": best.wait_s / best.served,
        "wait_theory_s": m_d_c_wait(best.served / (3600 * options.hours) / options.regions, SERVICE_S, c),
        "sent_p99_s": tally.sent.quantile(0.99),
        "same_bits": same_bits(options),
        "machine": machine(),
    }
    if options.simpy:
        result["simpy_ns_per_request"] = simpy_s(fleet.sent_per_s / options.regions, c, 0.2) * 1e9
    print(json.dumps(result, indent=1))
    within = seconds < 60 and result["peak_bytes"] < 2e9
    print(f"under 60 s and 2 GB: {'yes' if within else 'no'}", file=sys.stderr)


def m_d_c_wait(rate: float, service_s: float, servers: int) -> float:
    """Mean wait in M/D/c: the number there is a chain from one service time to the next (Crommelin)."""
    a, most = rate * service_s, 2 * servers + 200
    arrivals = np.array([math.exp(-a + k * math.log(a) - math.lgamma(k + 1)) for k in range(most)])
    there = np.zeros(most)
    there[0] = 1.0
    for _ in range(2000):
        left = np.concatenate([[there[: servers + 1].sum()], there[servers + 1 :]])
        there = np.convolve(left, arrivals)[:most]
    return float((np.maximum(np.arange(most) - servers, 0) * there).sum() / there.sum() / rate)


def same_bits(options: argparse.Namespace) -> bool:
    """True if regions in processes of their own, or Ray tasks, give what they give one by one in this process."""
    tier = CloudTier("best", Service(4e-3, 1e-3), max_batch=32)
    fleet = Fleet(4000, RATE, DEFERRED, np.array([2e-3]), np.array([2e-3]), np.array([900.0]), [tier])
    phases = [Phase(1.0, [8]), Phase(20.0, [8])]
    (_, apart), alone = run_fleet(fleet, phases, n_regions=4, seed=1, engine=options.engine), [
        simulate(Fleet(1000, RATE, DEFERRED, fleet.kept_s, fleet.sent_s, fleet.sent_bytes, [tier]),
                 [Phase(1.0, [2]), Phase(20.0, [2])], (1, number))[1]
        for number in range(4)
    ]  # fmt: skip
    waits = 0.0
    for one in alone:
        waits += one.tiers[1].wait_s
    counts = sum((one.sent.counts for one in alone[1:]), alone[0].sent.counts)
    return bool(np.array_equal(apart.sent.counts, counts) and apart.tiers[1].wait_s == waits)


def simpy_s(rate: float, servers: int, length: float) -> float:
    """Seconds that SimPy takes for one request of the same queue."""
    import simpy

    world, rng = simpy.Environment(), np.random.default_rng(0)
    resource_ = simpy.Resource(world, servers)

    def request() -> Any:
        with resource_.request() as turn:
            yield turn
            yield world.timeout(SERVICE_S)

    def arrive() -> Any:
        for gap in rng.exponential(1 / rate, int(rate * length)):
            yield world.timeout(gap)
            world.process(request())

    world.process(arrive())
    started = time.perf_counter()
    world.run()
    return (time.perf_counter() - started) / int(rate * length)


if __name__ == "__main__":
    main()
