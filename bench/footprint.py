"""The footprint of an agent: cold start to its first decision, resident memory, what it imports, and installed size.

    python bench/footprint.py               # prints JSON
    python bench/footprint.py --installed   # MB of each package of pip install '.[edge]', in a fresh environment

Starts `coe-edge` on the bundled digits as a process of its own, several times, and times from before the process
exists to the first line on its standard output. The resident memory is read after 200 decisions, from the
process's own accounting. The cloud is not there: a device must start without it.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import yaml

from coe import zoo
from coe.config import read_yaml

START_BOUND_S, MEMORY_BOUND_MB, INSTALLED_BOUND_MB = 1.0, 120.0, 240.0
ROOT = Path(__file__).parents[1]
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
    parser.add_argument("--installed", action="store_true", help="measure an installation; needs a package registry")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.installed:
            print(json.dumps(installed(Path(folder)), indent=1))
            return
        print(json.dumps({name: measure(options.runs, name, Path(folder)) for name in ("onnx", "tflite")}, indent=1))


SIZES = """
import json
from importlib.metadata import distributions
sizes = {}
for one in distributions():
    found = [one.locate_file(file) for file in one.files or ()]
    sizes[one.metadata["Name"]] = sum(file.stat().st_size for file in found if file.is_file())
print(json.dumps(sizes))
"""


def installed(folder: Path) -> dict[str, object]:
    """MB of each package that `pip install '.[edge]'` brings, byte code included, the largest first."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    source = folder / "source"  # a build leaves its traces in the folder that it builds
    source.mkdir()
    for name in ("coe", "edge", "cloud", "sim", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copytree(ROOT / name, source / name) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "install", "--quiet", f"{source}[edge]"], check=True)
    sizes = json.loads(subprocess.run([python, "-c", SIZES], check=True, capture_output=True, text=True).stdout)
    packages = {
        name: round(size / 1e6, 1)
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])
        if name not in ("pip", "setuptools")  # of the environment, not of ours
    }
    total = sum(packages.values())
    return {"installed_mb": round(total, 1), "within_bound": total <= INSTALLED_BOUND_MB, "packages_mb": packages}


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
