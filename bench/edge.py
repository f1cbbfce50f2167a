"""Batch-1 decisions on a device: what is around the models' own time, and what stopping early saves.

    python bench/edge.py            # prints JSON

In one run and in turn, on the same inputs: a bare loop as anybody would write it, which calls every member's runtime
(ONNX Runtime: `session.run`); the same by the members' own calls, which for ONNX go through memory bound once, and
whose time counts as the models' own; the cascade's decision asking every member; and the decision that stops as soon
as the vote is settled, at 2 of 3 and at unanimity; and the same by a calibrated vote, with made-up weights that keep
about as many examples. Ratios are within a round, and the median over rounds is given, so
that the machine is compared with itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from coe import zoo
from coe.calibration import CalibratedVote, StageVote
from coe.cascade import Agreement, Batch, Cascade, LocalTier
from coe.cascade.types import Array
from coe.config import read_yaml
from coe.config.manifest import read_manifest
from coe.models import InputDecoder, LoadedMember, load
from coe.models.onnx import OnnxMember
from coe.models.pool import cheapest_first, seconds_each
from coe.zoo import digits

Call = Callable[[Array], Array]

BOUND_S, BOUND_SHARE = 15e-6, 0.05  # around the models' own time
CALIBRATED_S = 10e-6  # that a calibrated vote may take more than plain agreement


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
    whole = InputDecoder(manifest.task.input_spec).batch(names, images)
    batches = [Batch((name,), whole.x[row : row + 1]) for row, name in enumerate(names)]
    ready = [members[0].prepare(batch.x) for batch in batches]
    plain, own = [_plain(member) for member in members], [member._run for member in members]
    ways: dict[str, Callable[[], None]] = {
        "bare_all_members": lambda: _bare(plain, ready),
        "models_own": lambda: _bare(own, ready),
    }
    two_of_three, unanimous = Fraction(2, 3), Fraction(1)
    order = cheapest_first(seconds_each(members, batches[0].x))
    measured = [members[index] for index in order]
    cascades = {
        "decide_all_members": _cascade(members, two_of_three, early=False),
        "decide_calibrated_all_members": _cascade(members, _calibrated(), early=False),
        "decide_calibrated_early": _cascade(members, _calibrated()),
        "decide_early_two_of_three": _cascade(members, two_of_three),
        "decide_early_unanimous": _cascade(members, unanimous),
        "decide_early_two_of_three_measured_order": _cascade(measured, two_of_three),
        "decide_early_unanimous_measured_order": _cascade(measured, unanimous),
    }
    for name, cascade in cascades.items():
        ways[name] = lambda cascade=cascade: _decide(cascade, batches)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / n)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    bare, models_own = times["bare_all_members"], times["models_own"]
    allowed = BOUND_S + BOUND_SHARE * seconds["models_own"]
    overhead = statistics.median(
        all_of - at for all_of, at in zip(times["decide_all_members"], models_own, strict=True)
    )
    calibrated = zip(times["decide_calibrated_all_members"], times["decide_all_members"], strict=True)
    more = statistics.median(own - plain for own, plain in calibrated)
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "format": suffix,
        "examples": n,
        "rounds": rounds,
        "seconds_per_example": seconds,
        "overhead_s": overhead,
        "overhead_allowed_s": allowed,
        "overhead_within_bound": overhead <= allowed,
        "calibrated_more_s": more,
        "calibrated_within_bound": more <= CALIBRATED_S,
        "ratio_models_own": _ratio(models_own, bare),
        "ratio_all_members": _ratio(times["decide_all_members"], bare),
        "ratio_early_two_of_three": _ratio(times["decide_early_two_of_three"], bare),
        "ratio_early_unanimous": _ratio(times["decide_early_unanimous"], bare),
        "measured_order": [files[index] for index in order],
        "ratio_early_two_of_three_measured_order": _ratio(times["decide_early_two_of_three_measured_order"], bare),
        "ratio_early_unanimous_measured_order": _ratio(times["decide_early_unanimous_measured_order"], bare),
        "same_decisions_in_either_order": all(
            _outcomes(cascades[name], batches) == _outcomes(cascades[f"{name}_measured_order"], batches)
            for name in ("decide_early_two_of_three", "decide_early_unanimous")
        ),
    }


def _ratio(way: list[float], bare: list[float]) -> float:
    """Median over rounds of the ratio within a round: a machine that drifts takes both along."""
    return statistics.median(own / at for own, at in zip(way, bare, strict=True))


def _plain(member: Any) -> Call:
    """The runtime's call, as its documentation shows it."""
    if isinstance(member, OnnxMember):
        session, output, name = member._session, member._output, member._input
        return lambda x: session.run([output], {name: x})[0]
    return member._run  # type: ignore[no-any-return]


def _bare(calls: list[Call], ready: list[Array]) -> None:
    """Every member's runtime call, and nothing else."""
    for x in ready:
        for call in calls:
            call(x)


def _cascade(members: Sequence[LoadedMember], rule: Fraction | CalibratedVote, *, early: bool = True) -> Cascade:
    last = LocalTier("last", members[:1], Agreement(Fraction(1)))  # never runs far: few examples reach it
    rule = Agreement(rule) if isinstance(rule, Fraction) else rule
    return Cascade([LocalTier("device", members, rule, early=early), last])


def _calibrated() -> CalibratedVote:
    """Weights and quantiles of scores as a fit gives them, for three members and ten labels."""
    grid = tuple(round(1 - 0.5**rank, 6) for rank in range(17))
    return CalibratedVote((StageVote((2.5, 3.0, 3.5), (1.0,) * 3, (0.5,) * 3, 1.0, (0.1,) * 10, (grid,) * 3, 10, 0.9),))


def _outcomes(cascade: Cascade, batches: list[Batch]) -> list[tuple[int, int]]:
    """Where each example leaves, and with which label where that is the first tier."""
    decided = [next(iter(cascade.decide(batch))) for batch in batches]
    return [(one.exit_tier, one.label if one.exit_tier == 1 else -1) for one in decided]


def _decide(cascade: Cascade, batches: list[Batch]) -> None:
    for batch in batches:
        cascade.decide(batch)


if __name__ == "__main__":
    main()
