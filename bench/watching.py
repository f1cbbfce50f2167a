"""What watching the server costs: its requests per second with metrics and status page, and without.

    python bench/watching.py [--rounds 7 --seconds 2]     # prints JSON

Two `coe-cloud` processes are up at once, one with the HTTP port (which counts, for /metrics and the status page) and
one without; 32 closed-loop clients with one row each ask them in turn. The ratio is within a round; the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml
from payloads import write_config
from processes import Server, Worker, coe_cloud, end_with_everything, machine

CLIENTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    with end_with_everything() as processes, tempfile.TemporaryDirectory() as folder:
        servers = {
            name: processes.enter_context(coe_cloud(_config(Path(folder) / name, http)))
            for name, http in (("watched", True), ("unwatched", False))
        }
        worker = processes.enter_context(Worker("load.py"))
        rounds = [
            {name: ask(worker, servers[name], options.seconds) for name in _order(servers, number)}
            for number in range(options.rounds)
        ]
    ratios = [one["watched"]["per_s"] / one["unwatched"]["per_s"] for one in rounds]
    cpu = [one["watched"]["server_us"] / one["unwatched"]["server_us"] for one in rounds]
    result = {
        "machine": machine(),
        "clients": CLIENTS,
        "rounds": rounds,
        "throughput_watched_of_unwatched": statistics.median(ratios),
        "server_cpu_watched_of_unwatched": statistics.median(cpu),
    }
    print(json.dumps(result, indent=1))


def _order(servers: dict[str, Server], number: int) -> list[str]:
    """Each goes first every other round."""
    names = list(servers)
    return names if number % 2 else names[::-1]


def _config(folder: Path, http: bool) -> Path:
    folder.mkdir()
    path = write_config(folder, {})
    if http:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content.setdefault("server", {})["http_port"] = 0
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def ask(worker: Worker, server: Server, seconds: float) -> dict[str, Any]:
    job = {"do": "closed", "address": server.address, "pid": server.pid, "seconds": seconds, "clients": CLIENTS}
    told = worker.ask(**job, payload="tensor", channels=1, is_echo=False, is_streamed=False)
    n = len(told["latencies_us"])
    return {"per_s": n / told["seconds"], "server_us": told["server_cpu_s"] / n * 1e6, "errors": told["errors"]}


if __name__ == "__main__":
    main()
