"""A million devices for an hour: how long the simulation of their queues takes, and what memory.

    python bench/fleet.py                  # prints JSON
    python bench/fleet.py --devices 10000  # a smaller fleet
    python bench/fleet.py --life           # 50 load generators against a real coe-cloud, beside the prediction
    python bench/fleet.py --simpy          # the same queue in SimPy, for a second of it (pip install simpy)

1,000,000 devices at 5 examples a second, of which 25% are deferred: 4.5e9 requests in a simulated hour. Servers take
one request at a time in 1.01 ms, first come, first served, in `--regions` equal regions with a queue each: every
request is simulated. `seconds`, `cpu_s` and `peak_bytes` are of all processes; the wait is compared with what theory
says of M/D/c (Crommelin), and `same_bits` of regions in processes of their own with the same one by one.

`--life`: each generator sends one digit at a time as a Poisson process, to a server whose tier sleeps for 50 ms and
5 ms an example in every call. What a request takes with nobody else there, and a call with what the server does
between calls, is measured first, the latter with clients that keep it busy; latencies and batches under load are then
predicted by the same queues.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from payloads import requests, write_config
from processes import Server, machine

from coe.cascade.tier import LocalTier
from coe.protocol.service import path
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
    parser.add_argument("--life", action="store_true", help="compare with a real server")
    parser.add_argument("--seconds", type=float, default=60.0, help="of --life")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)  # the server's process: its config, and its log
    options = parser.parse_args()
    if options.serve:
        serve(*map(Path, options.serve))
        return
    if options.life:
        print(json.dumps({**life(options.seconds), "machine": machine()}, indent=1))
        return
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


GENERATORS, EACH_PER_S, SLEEP_S, SLEEP_ROW_S = 50, 1.5, 0.05, 0.005
ALONE, CLIENTS = 40, (4, 12, 24)  # requests one after another; clients that keep the server busy


def life(seconds: float) -> dict[str, Any]:
    """Measured and predicted latencies and batches of the generators' requests."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls.json"
        config = write_config(Path(folder), {"max_calls": 1024, "max_batch": 64})
        with Server(__file__, "--serve", str(config), str(log)) as server:
            alone, latencies, busy, window = asyncio.run(generate(server.address, seconds))
        calls = np.array(json.loads(log.read_text()))  # start, rows, seconds
    at, rows = calls[:, 0], calls[:, 1]
    is_busy = (at[:-1] >= busy[0]) & (at[:-1] < busy[1])  # from the start of a call to that of the next
    row_s, call_s = np.polyfit(rows[:-1][is_busy], np.diff(at)[is_busy], 1)
    own = calls[(at < busy[0]) & (rows == 1)][-ALONE:, 2]
    around_s = float(np.median(alone) - np.median(own))
    under_load = rows[(at >= window[0]) & (at < window[1])]
    fleet = Fleet(
        GENERATORS, EACH_PER_S, 1.0, np.empty(0), np.array([around_s]), np.array([800.0]),
        [CloudTier("small", Service(float(call_s), float(row_s)), max_batch=64)],
    )  # fmt: skip
    _, tally = run_fleet(fleet, [Phase(10.0, [1]), Phase(3600.0, [1])])
    measured = {
        "p50_s": float(np.quantile(latencies, 0.5)),
        "p95_s": float(np.quantile(latencies, 0.95)),
        "p99_s": float(np.quantile(latencies, 0.99)),
        "batch_mean": float(under_load.mean()),
    }
    best = tally.tiers[1]
    quantiles = [tally.sent.quantile(share) for share in (0.5, 0.95, 0.99)]
    predicted = dict(zip(measured, [*quantiles, best.served / best.calls], strict=True))
    return {
        "requests": len(latencies),
        "call_s": call_s,
        "row_s": row_s,
        "around_s": around_s,
        "measured": measured,
        "predicted": predicted,
        "off_by": {name: predicted[name] / value - 1 for name, value in measured.items()},
    }


def serve(config: Path, log: Path) -> None:
    """coe-cloud with a tier that sleeps; what its calls took is written as it stops."""
    sys.path.remove(str(Path(__file__).parent))  # where another cloud.py is
    from cloud.main import main as cloud_main

    calls, vote = [], LocalTier.vote

    def slow(self: LocalTier, batch: Any, rule: Any) -> Any:
        started = time.monotonic()
        time.sleep(SLEEP_S + SLEEP_ROW_S * len(batch))
        try:
            return vote(self, batch, rule)
        finally:
            calls.append((started, len(batch), time.monotonic() - started))

    LocalTier.vote = slow  # type: ignore[method-assign]
    cloud_main(["serve", "--config", str(config), "--grpc-port", "0"])
    log.write_text(json.dumps(calls))


Window = tuple[float, float]


async def generate(address: str, seconds: float) -> tuple[list[float], list[float], Window, Window]:
    """(seconds of single requests and of those under load; when clients kept the server busy, and when load was)."""
    made, _ = requests("tensor", 1)
    rng = np.random.default_rng(0)
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(path("ModelInfer"))

        async def timed(number: int) -> float:
            started = time.monotonic()
            await call(made[number % len(made)], timeout=60)
            return time.monotonic() - started

        alone = [await timed(number) for number in range(ALONE)]
        busy = time.monotonic()

        async def client(until: float) -> None:
            while time.monotonic() < until:
                await timed(0)

        for clients in CLIENTS:
            await asyncio.gather(*(client(time.monotonic() + seconds / 4) for _ in range(clients)))
        began = time.monotonic()
        sent: list[asyncio.Task[float]] = []

        async def generator(number: int) -> None:
            due = began
            while (due := due + rng.exponential(1 / EACH_PER_S)) < began + seconds:
                await asyncio.sleep(max(due - time.monotonic(), 0))
                sent.append(asyncio.create_task(timed(number)))

        await asyncio.gather(*map(generator, range(GENERATORS)))
        latencies = await asyncio.gather(*sent)
    return alone, latencies[len(latencies) // 10 :], (busy, began), (began + seconds / 10, began + seconds)


if __name__ == "__main__":
    main()
