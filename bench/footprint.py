"""What an agent weighs: cold start to its first decision, resident memory, and what it imports.

    python bench/footprint.py       # prints JSON

Starts `coe-edge` on the bundled digits as a process of its own, several times, and times from before the process
exists to the first line on its standard output. The resident memory is read after 200 decisions, from the
process's own accounting. The cloud is not there: a device must start without it.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from coe import zoo
from coe.config import read_yaml

START_BOUND_S, MEMORY_BOUND_MB = 1.0, 120.0
HEAVY = ("torch", "scipy", "matplotlib", "pandas", "onnx", "tensorflow")

CHILD = """
import sys
from edge.main import main
code = main(sys.argv[1:])
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print({"rss_kb": int(status["VmRSS"].split()[0]), "peak_kb": int(status["VmHWM"].split()[0]),
       "heavy": [name for name in %r if name in sys.modules], "code": code}, file=sys.stderr)
""" % (HEAVY,)  # noqa: UP031 - the text is full of braces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({name: measure(options.runs, name, Path(folder)) for name in ("onnx", "tflite")}, indent=1))


def measure(runs: int, suffix: str, folder: Path) -> dict[str, object]:
    """Medians over `runs` processes with the three small models in one format."""
    config = read_yaml(zoo.find("digits/edge.yaml"))
    device = config["tiers"][0]
    device["members"] = [member.replace(".onnx", f".{suffix}") for member in device["members"]]
    config["tiers"][1]["address"] = "127.0.0.1:1"  # nobody is there
    path = folder / f"{suffix}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    starts, accounts = [], []
    for _ in range(runs):
        start_s, account = _one(path)
        starts.append(start_s)
        accounts.append(account)
    memory_mb = statistics.median(account["rss_kb"] for account in accounts) / 1024
    start_s = statistics.median(starts)
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "runs": runs,
        "start_to_first_decision_s": start_s,
        "start_within_bound": start_s < START_BOUND_S,
        "resident_mb": memory_mb,
        "peak_mb": statistics.median(account["peak_kb"] for account in accounts) / 1024,
        "memory_within_bound": memory_mb < MEMORY_BOUND_MB,
        "heavy_imports": sorted({name for account in accounts for name in account["heavy"]}),
    }


def _one(config: Path) -> tuple[float, dict[str, object]]:
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, "--config", str(config), "--limit", "200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    first_s = time.perf_counter() - started
    _, words = process.communicate()
    account = ast.literal_eval(words.strip().splitlines()[-1])
    return first_s, account


if __name__ == "__main__":
    main()
