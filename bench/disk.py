"""Bytes written to disk a decision, by /proc/PID/io, for an agent that watches a folder; and while it is idle.

    python bench/disk.py [--rate 10] [--seconds 60] [--idle 20] [--folder DIR]

Prints JSON: for each kind of sink, write_bytes a decision at that rate, and write_bytes in all while nothing comes. DIR
must be on a disk: a tmpfs writes nothing. The kernel counts a page as it is first changed since it was last written, so
a run spans several of its intervals (5 s).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from coe.zoo import digits

CONFIG = """
task: zoo:digits
tiers: [{members: [zoo:digits/stroke.onnx, zoo:digits/loom.onnx, zoo:digits/mosaic.onnx]}]
source: {kind: folder, path: in, watch: true}
state: state
"""
SINKS = {
    "jsonlines": "sink: {path: out.jsonl}",
    "sqlite": "sink: {kind: sqlite, path: out.db}",
    "both": "sinks: [{path: out.jsonl}, {kind: sqlite, path: out.db}]",
}
SETTLE_S = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=10.0, help="examples a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds without any")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    options = parser.parse_args()
    found = {}
    for name, sink in SINKS.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found[name] = measure(Path(folder), sink, options)
    print(json.dumps({"rate": options.rate, "seconds": options.seconds, "sinks": found}, indent=1))


def measure(folder: Path, sink: str, options: argparse.Namespace) -> dict[str, float]:
    (folder / "in").mkdir()
    config = folder / "edge.yaml"
    config.write_text(CONFIG + sink + "\n")
    with subprocess.Popen([sys.executable, "-m", "edge.main", "--config", config], cwd=folder) as agent:
        n = 0
        try:
            put(folder, n, 5, 0.0)
            time.sleep(SETTLE_S + 8)
            start = written(agent.pid)
            n = round(options.rate * options.seconds)
            put(folder, 5, n, 1 / options.rate)
            time.sleep(SETTLE_S + 8)  # what is left is committed
            a_decision = (written(agent.pid) - start) / n
            start = written(agent.pid)
            time.sleep(options.idle)
            idle = written(agent.pid) - start
        finally:
            agent.send_signal(signal.SIGTERM)
    return {"bytes_a_decision": round(a_decision), "idle_bytes": idle}


def put(folder: Path, first: int, n: int, every_s: float) -> None:
    """Put so many digits into the watched folder, each whole when it has its name."""
    examples = digits.test_examples()
    next_at = time.monotonic()
    for number in range(first, first + n):
        part = folder / f"{number:06d}.part"
        part.write_bytes(examples[number % len(examples)][1])
        part.rename(folder / "in" / f"{number:06d}.png")
        next_at += every_s
        time.sleep(max(next_at - time.monotonic(), 0.0))


def written(process: int) -> int:
    lines = Path(f"/proc/{process}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


if __name__ == "__main__":
    main()
