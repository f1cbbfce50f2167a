"""Measuring the exported digit models, and REPORT.md."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from coe_zoo.networks import Network, build
from numpy.typing import NDArray

from recipes import export
from recipes.bundle import read_entries
from recipes.export import Predict
from recipes.report import by_agreement, files_table, replay_block, rules_table, write_report
from sim.traces import Answers, Trace, read_costs

from .training import Digits, Split


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


def write(folder: Path, digits: Digits) -> None:
    """Writes REPORT.md, of the manifest's files in `folder`."""
    opened_files = {
        entry.file: opened(folder / entry.file, entry.architecture)
        for entry in read_entries(folder)
        if not entry.file.endswith(".pt")
    }
    seconds = {file: latency_us(predict, digits.calibration.x()) / 1e6 for file, predict in opened_files.items()}
    calibration, test = (
        trace_of(name, split, {file: (predict(split.x()), seconds[file]) for file, predict in opened_files.items()})
        for name, split in (("calibration", digits.calibration), ("digits-test", digits.test))
    )
    tiers = {entry.file: entry.tier for entry in read_entries(folder) if entry.file.endswith(".onnx")}
    members = [[file for file in tiers if tiers[file] == number] for number in (1, 2, 3)]
    (best,) = members[-1]
    found = by_agreement(calibration, members)
    # Most right answers on calibration; between equals, the rules that keep more in the lower tiers.
    rules = max(found, key=lambda rules: (found[rules].accuracy, found[rules].exits[:2]))
    after = max(tiers, key=test.accuracy)
    onnx = test.only(list(tiers))
    lines = [
        f"Written by `python -m recipes.digits`. Trained on {len(digits.train.labels):,} digits; every choice was made",
        f"on the {len(calibration):,} calibration digits, which flatters them a little; the {len(test):,} test digits",
        "are for this page alone. One digit is 0.1%, so differences of two or three digits mean nothing.",
        "",
        *files_table(folder, calibration, test),
        "",
        *rules_table(found),
        "",
        f"The best single model, {best}, is right on {calibration.accuracy(best):.1%}.",
        f"Chosen on calibration: tier 1 {rules[0]}, tier 2 {rules[1]}.",
        "",
        "## The chosen cascade on test",
        "",
        *replay_block(onnx, members, rules, read_costs(None, onnx), "coe-sim replay test.parquet"),
        "",
        f"Known only afterwards: the best single file on test is {after}, {test.accuracy(after):.1%}.",
    ]
    write_report(folder, "Digits", lines)


def trace_of(name: str, split: Split, outputs: Mapping[str, tuple[NDArray[np.float32], float]]) -> Trace:
    """A trace of these outputs (B, 10), each with the seconds of one example."""
    n = len(split.labels)
    answers = {file: Answers.of(own, np.full(n, one_s, np.float32)) for file, (own, one_s) in outputs.items()}
    return Trace(name, tuple(map(str, range(n))), split.labels.astype(np.int32), answers)
