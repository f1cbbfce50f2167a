"""REPORT.md: how good the bundled files are, alone and as a cascade, on calibration and on test.

The rules of the cascade are chosen on calibration; test is looked at once, here, after everything is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Decisions
from coe.zoo.digits.data import Split
from coe.zoo.recorded import AGREEMENTS, decide

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
            "Written by `python -m coe.zoo.digits`. Trained on 3,000 digits; every choice was made on the",
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
