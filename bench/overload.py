"""Four times as many calls as the server can answer, for a minute.

    python bench/overload.py          # prints JSON, and a summary on standard error

First the peak: a closed loop of more and more calls under way, the best of which counts. Then an open loop offers
four times that, every call with a deadline, and the server's memory is read each second. Then the peak once more.
Asked for: answers within their deadline at 90% of the peak or more, a 99th percentile of the calls answered that is
bounded, and memory that does not grow.

A call that the server has no place for (HTTP/2: so many streams of one connection at a time) waits at its own end,
where its deadline runs on; `p99_s` counts from when a call was due, `accepted_p99_s` from when it was sent, which is
what the bound is of.

Server and generator share the machine, so the generator is made to be cheap (bench/frames.py: frames built beforehand,
a fraction of a gRPC client's cost), runs at a lower priority than the server, and is the same in all phases; the
share of a core that it took is in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from payloads import PAYLOADS, write_config
from processes import QUIET_CORES, Server, Worker, coe_cloud, end_with_everything, machine, resident_bytes

TIMES = 4.0
GOODPUT_SHARE = 0.9  # of the peak
P99_TIMES = 5.0  # of the peak's own 99th percentile
GROWTH_SHARE = 0.05  # of resident memory over the whole run, by a line fitted after the warm-up
WARM_SHARE = 0.25  # of the run, until memory has found its level
IN_FLIGHT = (8, 16, 32, 64, 128)

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--peak-seconds", type=float, default=5.0, help="of each look for the peak")
    parser.add_argument("--times", type=float, default=TIMES, help="the peak that is offered")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds of each call")
    parser.add_argument("--payload", choices=PAYLOADS, default="tensor")
    parser.add_argument("--rows", type=int, default=1, help="of each request")
    parser.add_argument("--devices", type=int, default=1000, help="that the calls are of, in turn")
    parser.add_argument("--polite", type=float, default=0.0, help="share of the devices that honour push-back")
    parser.add_argument("--connections", type=int, default=16, help="of each client process")
    parser.add_argument("--client-processes", type=int, default=1)
    parser.add_argument("--nice", type=int, default=5, help="of the generator, below the server's 0")
    parser.add_argument("--pin", action="store_true", help="the generator to the last core, the server to the others")
    parser.add_argument("--limits", type=json.loads, default={}, help="the server's, as JSON; default: its own")
    options = parser.parse_args()
    with end_with_everything() as processes, tempfile.TemporaryDirectory() as folder:
        server = processes.enter_context(coe_cloud(write_config(Path(folder), options.limits)))
        workers = [processes.enter_context(Worker("flood.py")) for _ in range(options.client_processes)]
        _place(server, workers, options)
        result = measure(server, workers, options)
    print(json.dumps({"machine": machine(), "settings": vars(options), **result}, indent=1))


def _place(server: Server, workers: list[Worker], options: Any) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for worker in workers:
        os.setpriority(os.PRIO_PROCESS, worker.pid, options.nice)
    if options.pin and len(cores) > 1:
        for worker in workers:
            os.sched_setaffinity(worker.pid, cores[-1:])
        for thread in os.listdir(f"/proc/{server.pid}/task"):
            os.sched_setaffinity(int(thread), cores[:-1])


def measure(server: Server, workers: list[Worker], options: Any) -> Row:
    """The peak, the overload, the peak again, and what they say."""
    for worker in workers:  # one by one, each as soon as it is ready: builds its requests, and warms the server
        flood(server, [worker], options, 0.5, start_in_s=None, in_flight=IN_FLIGHT[1])
    peaks = {n: flood(server, workers, options, options.peak_seconds, in_flight=n) for n in IN_FLIGHT}
    best = max(peaks, key=lambda n: peaks[n]["goodput_per_s"])
    peak = peaks[best]
    offered_per_s = options.times * peak["goodput_per_s"]
    memory: list[tuple[float, int]] = []
    over = flood(server, workers, options, options.seconds, memory, rate=offered_per_s)
    after = flood(server, workers, options, options.peak_seconds, in_flight=best)
    result = {
        "peak_by_calls_under_way": {n: row["goodput_per_s"] for n, row in peaks.items()},
        "peak": {"calls_under_way": best, **peak},
        "offered_per_s": offered_per_s,
        "overload": over,
        "peak_after": after,
        "memory": _memory(memory),
    }
    result["checks"] = _checks(result, options)
    _print(result)
    return result


def flood(
    server: Server,
    workers: list[Worker],
    options: Any,
    seconds: float,
    memory: list[tuple[float, int]] | None = None,
    start_in_s: float | None = 0.3,
    **how: float,
) -> Row:
    """One phase, shared out over the workers, which start together; `how` is `rate` or `in_flight`.

    Args:
        memory: collects (seconds, bytes) each second.
        start_in_s: None: as soon as a worker is ready.
    """
    at = 0.0 if start_in_s is None else time.monotonic() + start_in_s
    n = len(workers)
    share = {key: max(1, value // n) if key == "in_flight" else value / n for key, value in how.items()}
    for number, worker in enumerate(workers):
        worker.send(
            address=server.address,
            pid=server.pid,
            seconds=seconds,
            at=at,
            payload=options.payload,
            rows=options.rows,
            deadline_s=options.deadline,
            connections=options.connections,
            devices=max(1, options.devices // n),
            polite=options.polite,
            seed=number,
            **share,
        )
    if memory is not None:
        while (passed := time.monotonic() - at) < seconds:
            memory.append((passed, resident_bytes(server.pid)))
            time.sleep(min(1.0, seconds / 8))
    return _merged([worker.receive() for worker in workers])


def _merged(answers: list[Row]) -> Row:
    counts: Counter[str] = sum((Counter(answer["counts"]) for answer in answers), Counter())
    latencies = sorted(latency for answer in answers for latency in answer["latencies_us"])
    accepted = sorted(latency for answer in answers for latency in answer["accepted_us"])
    if not latencies:
        raise SystemExit(f"no call was answered in a whole phase: {dict(counts)}")
    server, generator = answers[0]["server_cores"], sum(answer["client_cores"] for answer in answers)
    n, seconds = len(latencies), answers[0]["seconds"]
    per_second = [sum(column) for column in zip(*(answer["ok_by_second"] for answer in answers), strict=True)]
    return {
        "goodput_per_s": n / seconds,
        "goodput_worst_second_per_s": min(per_second, default=0),
        "due_per_s": sum(answer["due"] for answer in answers) / seconds,
        "p50_s": latencies[n // 2] / 1e6,
        "p99_s": latencies[min(n - 1, n * 99 // 100)] / 1e6,
        "accepted_p99_s": accepted[min(n - 1, n * 99 // 100)] / 1e6,
        "counts": dict(counts),
        "words": answers[0]["words"],
        "sent_late_p99_s": max(answer["sent_late_p99_s"] for answer in answers),
        "server_cores": server,
        "generator_cores": generator,
        "others_cores": max(0.0, answers[0]["machine_cores"] - server - generator),
    }


def _memory(samples: list[tuple[float, int]]) -> Row:
    """Resident memory after the warm-up: its range, and a line fitted through it."""
    kept = [sample for sample in samples if sample[0] >= WARM_SHARE * samples[-1][0]]
    at, size = np.array(kept, dtype=float).T
    slope = float(np.polyfit(at, size, 1)[0]) if len(kept) > 1 else 0.0
    return {
        "at_start_bytes": samples[0][1],
        "after_warm_up_bytes": kept[0][1],
        "at_end_bytes": kept[-1][1],
        "range_bytes": int(size.max() - size.min()),
        "slope_bytes_per_s": slope,
        "fitted_growth_share": slope * float(at[-1] - at[0]) / kept[0][1],
    }


def _checks(result: Row, options: Any) -> Row:
    peak, over, memory = result["peak"], result["overload"], result["memory"]
    p99_bound_s = min(P99_TIMES * peak["p99_s"], options.deadline)
    goodput = over["goodput_per_s"] / peak["goodput_per_s"]
    refused = over["counts"].get("RESOURCE_EXHAUSTED", 0)
    others = {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "unanswered_in_time", "ok_too_late"}
    others |= {"held_back", "with_push_back", "refused_stream"}
    phases = [result[name] for name in ("peak", "overload", "peak_after")]
    return {
        "machine_was_quiet": max(phase["others_cores"] for phase in phases) <= QUIET_CORES,
        "offered_in_time": over["sent_late_p99_s"] < 0.1 * options.deadline,
        "goodput_of_peak": goodput,
        "goodput_holds": goodput >= GOODPUT_SHARE,
        "p99_bound_s": p99_bound_s,
        "p99_is_bounded": over["accepted_p99_s"] <= p99_bound_s,
        "memory_does_not_grow": memory["fitted_growth_share"] <= GROWTH_SHARE,
        "refused_with_push_back": over["counts"].get("with_push_back", 0) / refused if refused else None,
        "peak_after_of_peak": result["peak_after"]["goodput_per_s"] / peak["goodput_per_s"],
        "unexpected": {code: n for code, n in over["counts"].items() if code not in others},
    }


def _print(result: Row) -> None:
    for name in ("peak", "overload", "peak_after"):
        row = result[name]
        cores = ", ".join(f"{who} {row[f'{who}_cores']:.2f}" for who in ("server", "generator", "others"))
        print(
            f"{name:>10}: {row['due_per_s']:.0f}/s due, {row['goodput_per_s']:.0f}/s answered in time, p50 "
            f"{row['p50_s'] * 1e3:.1f} ms, p99 {row['p99_s'] * 1e3:.1f} ms, from when sent "
            f"{row['accepted_p99_s'] * 1e3:.1f} ms; cores: {cores}; {row['counts']}",
            file=sys.stderr,
        )
    memory = result["memory"]
    grown = f"{memory['fitted_growth_share']:+.1%} over the run"
    print(f"    memory: {memory['after_warm_up_bytes'] / 2**20:.1f} MB, {grown}", file=sys.stderr)
    for name, value in result["checks"].items():
        print(f"{name:>24}: {value if not isinstance(value, float) else round(value, 4)}", file=sys.stderr)


if __name__ == "__main__":
    main()
