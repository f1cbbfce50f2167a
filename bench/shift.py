"""What a device keeps as its inputs change, and how much of it is wrong: plain agreement, calibrated votes, on_drift.

    python -m bench.shift DATA/traces_shift_uniform-noise.parquet DATA/traces_shift_contrast.parquet

GoogLeNet and VGG-19 on the device, ResNet-152 beyond it, on images at eight levels of distortion (Geirhos et al.,
2018).
Half of the undistorted images fit the vote, its two thresholds and the bands of drift; nothing else is known. Then, for
each level, a device decides the other half, which is as it was calibrated, and after it the level's images: numbers are
of these alone, from the first on, before the alarm as well. A level of 0 is the other half itself, twice. "calibrated"
keeps as many undistorted images as plain agreement, "calibrated-5" five points fewer; a gate costs ten points more.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from coe.calibration import CalibratedVote
from coe.calibration.fit import fit, out_of_fold, with_share
from coe.cascade import Agreement, Batch, Cascade, DeferralRule, LocalTier
from coe.models import TableMember
from edge.field.config import Baseline, DriftConfig
from edge.field.drift import Drift, DriftResponse, category
from edge.sinks import Outcome
from edge.sources import Example

DEVICE, BEYOND = ("GoogLeNet", "VGG-19"), "ResNet-152"
WINDOW = 100
SYSTEMS = (
    ("plain", "report"),
    ("plain", "defer"),
    ("calibrated", "report"),
    ("calibrated", "gate"),
    ("calibrated-5", "report"),
    ("calibrated-5", "gate"),
    ("calibrated-5", "hold"),
)


@dataclass(frozen=True)
class Images:
    """(M, N) each model's label and score, (N,) true labels and levels."""

    labels: np.ndarray
    scores: np.ndarray
    truth: np.ndarray
    level: np.ndarray
    n_labels: int


def read(path: Path) -> Images:
    columns = parquet.read_table(path).to_pydict()
    model = np.array(columns["model"])
    names = sorted(set(columns["label"]))

    def of(column: str, name: str) -> np.ndarray:
        values = np.array(columns[column])[model == name]
        return np.searchsorted(names, values) if values.dtype.kind == "U" else values

    models = (*DEVICE, BEYOND)
    labels, scores = (np.stack([of(column, name) for name in models]) for column in ("prediction_max", "score_max"))
    return Images(labels, scores, of("label", BEYOND), of("severity", BEYOND), len(names))


def members(images: Images) -> list[TableMember]:
    """Members whose row b says what the model said of image b, as sure as it was."""
    found = []
    for labels, scores, name in zip(images.labels, images.scores, (*DEVICE, BEYOND), strict=True):
        table = np.zeros((len(labels), images.n_labels), dtype=np.float32)
        table[np.arange(len(labels)), labels] = scores
        found.append(TableMember(table, name))
    return found


class Device:
    """A device with one rule and one `on_drift`, as it comes from calibration."""

    def __init__(self, images: Images, known: np.ndarray, rule: str, on_drift: str) -> None:
        own = members(images)
        rules: list[DeferralRule] = [Agreement(1), Agreement(1)]
        if rule != "plain":  # keeps as many of the examples it was fitted on as plain agreement does, less the points
            labels, scores, truth = images.labels[:, known], images.scores[:, known], images.truth[known]
            share = float((labels[0] == labels[1]).mean()) - float(rule.partition("-")[2] or 0) / 100
            _, p = out_of_fold(labels[:2], scores[:2], truth, images.n_labels, np.arange(len(known)) % 2)
            first = with_share(fit(labels[:2], scores[:2], truth, images.n_labels), p, share)
            rules = [CalibratedVote((first,)), CalibratedVote((fit(labels, scores, truth, images.n_labels),), 2)]
        tiers = [LocalTier("device", own[:2], rules[0]), LocalTier("beyond", own[2:], rules[1])]
        shares: Counter[str | None] = Counter()
        usual = Cascade(tiers)
        for row in known:
            shares[category(self.outcome(usual, row))] += 1
        baselines = tuple(Baseline(str(what), n / len(known), len(known)) for what, n in shares.items())
        self.response = DriftResponse(on_drift)
        self.response.attach(tiers[:1])
        self.cascade = Cascade(tiers)
        self.drift = Drift(DriftConfig(WINDOW, baselines=baselines), lambda event: None, self.response)

    @staticmethod
    def outcome(cascade: Cascade, row: int) -> Outcome:
        decisions = cascade.decide(Batch((str(row),), np.array([[row]])))
        decision = decisions[0]
        return Outcome(decision.id, decision, 0.0, deferred=decision.exit_tier > 1, decisions=decisions)

    def keeps(self, row: int) -> int | None:
        """The label of an example that the device answers for sure; None where it does not."""
        outcome = self.outcome(self.cascade, row)
        self.drift.on_outcome(Example(outcome.id, None), outcome)
        assert outcome.decision is not None
        return None if outcome.deferred or self.response.is_uncertain else outcome.decision.label


def study(images: Images, seed: int) -> dict[str, list[tuple[int, int, int]]]:
    """By system: at each level (images, kept, of these wrong)."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(images.level == 0))
    known, unseen = np.array_split(order, 2)
    found: dict[str, list[tuple[int, int, int]]] = {}
    for rule, on_drift in SYSTEMS:
        counts = []
        for level in range(int(images.level.max()) + 1):
            device = Device(images, known, rule, on_drift)
            for row in unseen:
                device.keeps(row)
            rows = np.flatnonzero(images.level == level) if level else unseen
            answers = [device.keeps(row) for row in rows]
            kept = [(label, row) for label, row in zip(answers, rows, strict=True) if label is not None]
            counts.append((len(rows), len(kept), sum(label != images.truth[row] for label, row in kept)))
        found[f"{rule}, {on_drift}"] = counts
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--draws", type=int, default=3, help="of the calibration half")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, dict[str, Any]] = {}
    for path in options.traces:
        images = read(path)
        draws = [study(images, seed) for seed in range(options.draws)]
        own = result[path.stem] = {}
        for system in draws[0]:
            counts = np.sum([draw[system] for draw in draws], axis=0)  # (levels, 3)
            n, kept, wrong = counts.T
            own[system] = {
                "kept": (kept / n).round(4).tolist(),
                "wrong_of_kept": (wrong / np.maximum(kept, 1)).round(4).tolist(),
                "pooled_wrong_of_kept": round(float(wrong.sum() / max(kept.sum(), 1)), 4),
            }
        if not options.json:
            print(path.stem)
            for system, one in own.items():
                levels = "  ".join(f"{k:.0%}/{w:.1%}" for k, w in zip(one["kept"], one["wrong_of_kept"], strict=True))
                print(f"  {system:<20} {one['pooled_wrong_of_kept']:6.1%}   {levels}")
    if options.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
