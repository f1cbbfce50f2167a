"""What Ray Serve costs: the same tier in the server's process, and on a Ray cluster of this machine alone.

    .venv-ray/bin/python bench/ray_overhead.py     # prints JSON, and a table on standard error

Closed-loop clients with one row each, as in bench/cloud.py. Both servers are up all the time and are measured in turn,
round after round; the median over the rounds is given. `.ci/ray` makes the environment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from payloads import PAYLOADS, write_config
from processes import Server, Worker, busy_s, coe_cloud, end_with_everything, machine

CLIENTS = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--payload", choices=PAYLOADS, default="tensor")
    options = parser.parse_args()
    with end_with_everything() as processes, tempfile.TemporaryDirectory() as folder:
        start = processes.enter_context
        config = write_config(Path(folder), {"max_calls": 256})
        servers = {"embedded": start(coe_cloud(config)), "ray": start(on_ray(config))}
        result = measure(servers, start(Worker("load.py")), options)
    settings = vars(options) | {"versions": versions()}
    print(json.dumps({"machine": machine(), "settings": settings, **result}, indent=1))
    if result["errors"]:
        sys.exit(f"not every call was answered: {result['errors']}")


def on_ray(config: Path) -> Server:
    serve = ("-m", "cloud.main", "serve", "--engine", "ray", "--insecure")
    return Server(*serve, "--config", str(config), "--grpc-port", "0")


def versions() -> dict[str, str]:
    import ray

    return {"ray": ray.__version__}


def measure(servers: dict[str, Server], worker: Worker, options: Any) -> dict[str, Any]:
    """Rounds of each engine in turn, and what they come to."""
    seen: dict[int, dict[str, list[dict[str, float]]]] = {n: {name: [] for name in servers} for n in CLIENTS}
    errors: Counter[str] = Counter()
    for server in servers.values():
        _ask(worker, server, 4, 1.0, options, errors)  # both are warm
    for _ in range(options.rounds):
        for clients in CLIENTS:
            for name, server in servers.items():
                seen[clients][name].append(_ask(worker, server, clients, options.seconds, options, errors))
    by_clients = {clients: {name: _median(ones) for name, ones in of.items()} for clients, of in seen.items()}
    _print_table(by_clients)
    return {"by_clients": by_clients, "errors": errors}


def _ask(worker: Worker, server: Server, clients: int, seconds: float, options: Any, errors: Counter[str]) -> Any:
    job = {"do": "closed", "address": server.address, "payload": options.payload}
    before = busy_s()
    answer = worker.ask(**job, clients=clients, seconds=seconds, warm_s=0.5)
    busy = busy_s() - before
    errors.update(answer["errors"])
    latencies = sorted(answer["latencies_us"])
    if not latencies:
        raise SystemExit(f"{server.address}: no call was answered: {answer['errors']}")
    batches = answer["batches"]
    return {
        "requests_per_s": len(latencies) / seconds,
        "p50_s": latencies[len(latencies) // 2] / 1e6,
        "p99_s": latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)] / 1e6,
        "batch": len(batches) / sum(1 / batch for batch in batches) if batches else 1.0,
        "labels_right": answer["n_right"] / max(1, answer["n_read"]),
        "machine_cores": busy / (seconds + 0.5),
    }


def _median(ones: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in ones) for key in ones[0]}


def _print_table(by_clients: dict[int, dict[str, dict[str, float]]]) -> None:
    print("clients  engine    requests/s     p50 ms     p99 ms   batch", file=sys.stderr)
    for clients, of in by_clients.items():
        for name, row in of.items():
            figures = f"{row['requests_per_s']:10.0f} {row['p50_s'] * 1e3:10.2f} {row['p99_s'] * 1e3:10.2f}"
            print(f"{clients:7}  {name:9} {figures} {row['batch']:7.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
