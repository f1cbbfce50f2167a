"""Batch-1 decisions on a device: what is around the models' own time, and what stopping early saves.

    python bench/edge.py            # prints JSON

In one run and in turn, on the same inputs: a bare loop that calls every member's session; the cascade's decision
asking every member; and the decision that stops as soon as the vote is settled, at 2 of 3 and at unanimity.
Ratios are within a round, and the median over rounds is given, so that the machine is compared with itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from coe import zoo
from coe.cascade import Agreement, Batch, Cascade, LocalTier
from coe.models import Door, load, read_manifest
from coe.settings import read_yaml
from coe.zoo import digits

BOUND_S, BOUND_SHARE = 15e-6, 0.05  # around the models' own time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--format", choices=("onnx", "tflite", "int8.tflite"), default="onnx")
    options = parser.parse_args()
    result = measure(options.rounds, options.examples, options.format)
    print(json.dumps(result, indent=1))


def measure(rounds: int, n: int, suffix: str) -> dict[str, object]:
    """Seconds per example for each way, and the ratios."""
    manifest = read_manifest(digits.FOLDER)
    device = read_yaml(zoo.find("digits/edge.yaml"))["tiers"][0]  # the bundled ensemble, in its own order
    files = [Path(member).name.replace(".onnx", f".{suffix}") for member in device["members"]]
    members = [load(manifest.models[file]) for file in files]
    names, images, _ = zip(*digits.test_examples(n), strict=True)
    whole = Door(manifest.task.contract).batch(names, images)
    batches = [Batch((name,), whole.x[row : row + 1]) for row, name in enumerate(names)]
    ready = [members[0].prepare(batch.x) for batch in batches]
    ways: dict[str, Callable[[], None]] = {"bare_all_members": lambda: _bare(members, ready)}
    for name, theta, early in (
        ("decide_all_members", Fraction(2, 3), False),
        ("decide_early_two_of_three", Fraction(2, 3), True),
        ("decide_early_unanimous", Fraction(1), True),
    ):
        last = LocalTier("last", members[:1], Agreement(Fraction(1)))  # never runs far: few examples reach it
        cascade = Cascade([LocalTier("device", members, Agreement(theta), early=early), last])
        ways[name] = lambda cascade=cascade: _decide(cascade, batches)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / n)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    bare = times["bare_all_members"]
    allowed = BOUND_S + BOUND_SHARE * seconds["bare_all_members"]
    overhead = statistics.median(own - at for own, at in zip(times["decide_all_members"], bare, strict=True))
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "format": suffix,
        "examples": n,
        "rounds": rounds,
        "seconds_per_example": seconds,
        "overhead_s": overhead,
        "overhead_allowed_s": allowed,
        "overhead_within_bound": overhead <= allowed,
        "ratio_early_two_of_three": _ratio(times["decide_early_two_of_three"], bare),
        "ratio_early_unanimous": _ratio(times["decide_early_unanimous"], bare),
    }


def _ratio(way: list[float], bare: list[float]) -> float:
    """Median over rounds of the ratio within a round: a machine that drifts takes both along."""
    return statistics.median(own / at for own, at in zip(way, bare, strict=True))


def _bare(members: list[object], ready: list[object]) -> None:
    """Every member's own runtime call, and nothing else."""
    calls = [member._run for member in members]  # type: ignore[attr-defined]
    for x in ready:
        for call in calls:
            call(x)


def _decide(cascade: Cascade, batches: list[Batch]) -> None:
    for batch in batches:
        cascade.decide(batch)


if __name__ == "__main__":
    main()
