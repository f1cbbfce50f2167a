"""Measuring the exported digit models, and REPORT.md.

The rules of the cascade are chosen on calibration; test is looked at once, here, after everything is trained.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coe.cascade import Decisions
from coe.models.recorded import AGREEMENTS, decide
from coe.zoo.networks import Network, build
from recipes import export
from recipes.export import Predict

from .training import Split


def opened(path: Path, architecture: str) -> Predict:
    """The file as a function from digits (B, 1, 28, 28) to probabilities (B, 10), run on one thread."""
    if path.suffix != ".pt":
        return export.opened(path)
    network = build(architecture).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    return lambda x: probabilities_of(network, x)


def probabilities_of(network: Network, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's own answers, (B, 10)."""
    with torch.no_grad():
        out: NDArray[np.float32] = network(torch.from_numpy(x)).numpy()
        return out


def latency_us(predict: Predict, x: NDArray[np.float32], runs: int = 2000) -> float:
    """Median time of one example, in microseconds."""
    one = np.ascontiguousarray(x[:1])
    for _ in range(100):
        predict(one)
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        predict(one)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


Probabilities = NDArray[np.float32]  # (B, 10)


@dataclass(frozen=True, slots=True)
class Measured:
    """One file on the two held-out splits."""

    name: str
    tier: int
    size_bytes: int
    flops: int
    latency_us: float
    calibration: Probabilities
    test: Probabilities


def accuracy(outputs: Probabilities, split: Split) -> float:
    return float((outputs.argmax(axis=1) == split.labels).mean())


def shares(run: Decisions) -> list[float]:
    """The share of the examples that leave at each of the three tiers."""
    return [float((run.exit_tier == number).mean()) for number in (1, 2, 3)]


def render(measured: Sequence[Measured], calibration: Split, test: Split) -> str:
    """The report, as Markdown."""
    onnx = [one for one in measured if one.name.endswith(".onnx")]
    on_calibration = [{m.name: m.calibration for m in onnx if m.tier == number} for number in (1, 2, 3)]
    on_test = [{m.name: m.test for m in onnx if m.tier == number} for number in (1, 2, 3)]
    best = next(m for m in onnx if m.tier == 3)
    after = max(onnx, key=lambda one: accuracy(one.test, test))
    pairs = [(first, second) for first in AGREEMENTS for second in AGREEMENTS]
    runs = {pair: decide(on_calibration, pair) for pair in pairs}
    # Most right answers on calibration; between equals, the pair that keeps more in the lower tiers.
    chosen = max(pairs, key=lambda pair: (_accuracy(runs[pair], calibration), shares(runs[pair])[:2]))
    run = decide(on_test, chosen)
    saves = "and " if _accuracy(run, test) >= accuracy(best.test, test) else "but "
    return "\n".join(
        [
            "# Digits: what the bundled models do",
            "",
            "Written by `python -m recipes.digits`. Trained on 3,000 digits; every choice was made on the",
            "1,000 calibration digits, which flatters them a little; the 1,000 test digits are for this page",
            "alone. One digit is 0.1%, so differences of two or three digits mean nothing. Latency: median of",
            "one example on one thread of the machine that trained them; compare, do not quote.",
            "",
            "| file | tier | bytes | FLOPs | calibration | test | latency |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {m.name} | {m.tier} | {m.size_bytes:,} | {m.flops:,} "
                f"| {accuracy(m.calibration, calibration):.1%} | {accuracy(m.test, test):.1%} "
                f"| {m.latency_us:.1f} us |"
                for m in measured
            ),
            "",
            "## Tier 1 alone: examples that leave there, and how many of them are right",
            "",
            "| agreement | leave, calibration | right | leave, test | right |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(
                f"| {name} | {_leaves(on_calibration, name, calibration)} | {_leaves(on_test, name, test)} |"
                for name in AGREEMENTS
            ),
            "",
            "## The cascade on calibration",
            "",
            "| tier 1 | tier 2 | accuracy | leave at 1 / 2 / 3 |",
            "| --- | --- | ---: | ---: |",
            *(
                f"| {first} | {second} | {_accuracy(runs[first, second], calibration):.1%}"
                f" | {_shares(runs[first, second])} |"
                for first, second in pairs
            ),
            "",
            f"The best single model, {best.name}, is right on {accuracy(best.calibration, calibration):.1%}.",
            f"Chosen on calibration: tier 1 {chosen[0]}, tier 2 {chosen[1]}.",
            "",
            "## The chosen cascade on test",
            "",
            f"{_accuracy(run, test):.1%} right, {_shares(run)} leave at tier 1 / 2 / 3;",
            f"{saves}{best.name} alone is right on {accuracy(best.test, test):.1%}.",
            f"Known only afterwards: the best single file on test is {after.name}, {accuracy(after.test, test):.1%}.",
            "",
        ]
    )


def _leaves(tiers: Sequence[Mapping[str, Probabilities]], agreement: str, split: Split) -> str:
    run = decide(tiers, (agreement, "unanimous"))
    leaves = run.exit_tier == 1  # (B,)
    right = (run.labels == split.labels)[leaves].mean()
    return f"{leaves.mean():.1%} | {right:.2%}"


def _accuracy(run: Decisions, split: Split) -> float:
    return float((run.labels == split.labels).mean())


def _shares(run: Decisions) -> str:
    return " / ".join(f"{share:.1%}" for share in shares(run))
