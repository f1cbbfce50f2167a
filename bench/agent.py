"""The whole agent against a plain loop that does the same: reads, decodes, infers with the same models, and writes.

    python bench/agent.py [--files 10000 --rounds 7]     # prints JSON
    python bench/agent.py --watched 100000               # what a watched folder costs while nothing happens

Real processes, in turn: a plain loop of ONNX Runtime, Pillow and `json`; and `coe-edge` on the same folder of small
PNGs with the same three members, each asked about each example (`early: false`), with JSON lines, with SQLite, and with
JSON lines and the status page. Each round runs each of them on one file, too: what is left without that time is for the
examples, and not for the start. Ratios are within a round, of the time that passed and of the CPU time; the medians
count.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from processes import cpu_s, machine, resident_bytes

from coe.zoo import digits

MEMBERS = ("stroke", "loom", "mosaic")
BOUNDS = {"jsonlines": 1.15, "sqlite": 1.3, "page": 1.3}
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--watched", type=int, metavar="FILES", help="a watched folder of so many files instead")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long a watched folder is left alone")
    parser.add_argument("--plain", nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain(*map(Path, options.plain))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = watched if options.watched else compare
        print(json.dumps(run(Path(folder), options), indent=1))


def plain(folder: Path, out: Path) -> None:
    """The loop as anybody would write it."""
    import onnxruntime
    from PIL import Image

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(digits.FOLDER / f"{name}.onnx", settings) for name in MEMBERS]
    names = [session.get_inputs()[0].name for session in sessions]
    with out.open("w", encoding="utf-8") as file:
        for path in sorted(folder.iterdir()):
            started = time.perf_counter()
            image = Image.open(io.BytesIO(path.read_bytes())).convert("L")
            x = (np.asarray(image, dtype=np.float32) / 255)[None, None]
            answers = np.stack(
                [session.run(None, {name: x})[0][0] for session, name in zip(sessions, names, strict=True)]
            )
            votes = np.bincount(answers.argmax(axis=1), minlength=answers.shape[1])
            label = int(votes.argmax())
            record = {
                "id": path.name,
                "label": label,
                "vote": float(votes[label] / len(sessions)),
                "score": float(answers[:, label].mean()),
                "latency_s": time.perf_counter() - started,
                "at": time.time(),
            }
            file.write(json.dumps(record) + "\n")
            file.flush()


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    many, one = folder / "many", folder / "one"
    write_pngs(many, options.files)
    write_pngs(one, 1)
    rounds = []
    for number in range(options.rounds):
        times = {}
        for way in _order(number):
            (wall_s, cpu), (start_s, start_cpu) = (_run(way, source, folder) for source in (many, one))
            times[way] = {
                "us_each": (wall_s - start_s) / (options.files - 1) * 1e6,
                "cpu_us_each": (cpu - start_cpu) / (options.files - 1) * 1e6,
                "start_s": start_s,
            }
        rounds.append(times)
    ratios = {
        way: {
            key: statistics.median(times[way][key] / times["plain"][key] for times in rounds)
            for key in ("us_each", "cpu_us_each")
        }
        for way in BOUNDS
    }
    return {
        "machine": machine(),
        "files": options.files,
        "rounds": rounds,
        "ratio_to_plain": ratios,
        "bounds": BOUNDS,
        "within_bounds": {way: ratios[way]["us_each"] <= bound for way, bound in BOUNDS.items()},
    }


def _order(number: int) -> list[str]:
    """Each goes first in its turn, with the plain loop beside it."""
    ways = ["plain", *BOUNDS]
    return ways[number % len(ways) :] + ways[: number % len(ways)]


def write_pngs(folder: Path, n: int) -> None:
    """Digits, each moved and with some noise of its own."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    pictures = [np.asarray(Image.open(io.BytesIO(png))) for _, png, _ in digits.test_examples()]
    for number in range(n):
        picture = np.roll(pictures[number % len(pictures)], rng.integers(-1, 2, size=2), (0, 1)).astype(np.int16)
        noisy = np.clip(picture + rng.integers(-4, 5, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:06}.png")


def config_of(way: str, source: Path, folder: Path, **more: Any) -> Path:
    sink = {"kind": "sqlite", "path": f"{folder}/out.db"} if way == "sqlite" else {"path": f"{folder}/out.jsonl"}
    content: dict[str, Any] = {
        "task": "zoo:digits",
        "tiers": [{"name": "device", "members": [f"zoo:digits/{name}.onnx" for name in MEMBERS], "early": False}],
        "source": {"kind": "folder", "path": str(source), **more},
        "sink": sink,
        "state": f"{folder}/state",
    }
    if way == "page":
        content["watch"] = {"address": "127.0.0.1:0"}
    path = folder / f"{way}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _run(way: str, source: Path, folder: Path) -> tuple[float, float]:
    """Seconds that passed, and CPU seconds, of one process on the files of `source`."""
    for left in (folder / "out.jsonl", *folder.glob("out.db*")):
        left.unlink(missing_ok=True)
    if way == "plain":
        command = [__file__, "--plain", str(source), str(folder / "out.jsonl")]
    else:
        command = ["-m", "edge.main", "--config", str(config_of(way, source, folder))]
    started = time.perf_counter()
    process = _start(command)
    _, code, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"{way}: exit {process.returncode}")
    return took_s, usage.ru_utime + usage.ru_stime


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": _python_path()})


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def watched(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """CPU share and memory of an agent whose watched folder has many files, all of them decided, beside one of few."""
    results = {}
    for n in (100, options.watched):
        for way in ("reported", "polled"):
            place = folder / f"{way}-{n}"
            place.mkdir()
            write_pngs(place / "in", 1)
            png = (place / "in" / "000000.png").read_bytes()
            for number in range(1, n):
                (place / "in" / f"IMG_20261128_204500_{number:06}.png").write_bytes(png)
            process = _start(["-m", "edge.main", "--config", str(
                config_of("jsonlines", place / "in", place, watch=True, poll=way == "polled")
            )])  # fmt: skip
            while not (place / "out.jsonl").exists() or (place / "out.jsonl").read_bytes().count(b"\n") < n:
                time.sleep(1.0)
            time.sleep(10.0)
            before, started = cpu_s(process.pid), time.monotonic()
            time.sleep(options.seconds)
            share = (cpu_s(process.pid) - before) / (time.monotonic() - started)
            results[way, n] = {"cpu_share": share, "resident_bytes": resident_bytes(process.pid)}
            process.send_signal(signal.SIGTERM)
            process.wait()
    return {
        "machine": machine(),
        "seconds": options.seconds,
        "files": options.watched,
        **{
            way: {
                "cpu_share": results[way, options.watched]["cpu_share"],
                "cpu_share_of_100_files": results[way, 100]["cpu_share"],
                "bytes_a_file": (
                    results[way, options.watched]["resident_bytes"] - results[way, 100]["resident_bytes"]
                ) / (options.watched - 100),
            }
            for way in ("reported", "polled")
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
