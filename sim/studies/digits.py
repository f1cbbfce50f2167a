"""`coe-sim digits`: accuracy of each bundled model and of the cascade, and its cost in three accountings.

Everything runs in this process, one example at a time, one thread, as on a device; the members of the three
tiers are asked in turn, all of them, so that every member's own time and answer is known.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coe import zoo
from coe.cascade import Accounting, Agreement, Batch, Cascade, LocalTier, Member, average_cost
from coe.cascade.types import Array
from coe.config import Fields, Report, format_seconds, read_yaml
from coe.config.cascade import CascadeConfig, LocalTierConfig, read_cascade
from coe.models import InputDecoder, ModelSpec, TableMember, load
from coe.zoo import digits
from coe.zoo.digits import N_TEST
from sim import arguments
from sim.output import Progress, aligned, finish

REPEATS = 3  # of each timing; the median over examples of the best of these


@dataclass(frozen=True, slots=True)
class MemberProfile:
    """One model: its accuracy on these examples, and batch-1 latency (median, one thread)."""

    name: str
    tier: int
    accuracy: float
    calibration_accuracy: float | None
    latency_s: float
    flops: float | None


@dataclass(frozen=True, slots=True)
class Profile:
    """The cascade from recorded member outputs, and its average cost beside the best single model's.

    `latency_s` and `flops`: accounting -> average per example; `best_*`: the last tier alone.
    """

    n: int
    members: list[MemberProfile]
    accuracy: float
    exits: list[float]
    exit_accuracy: list[float]
    agreement: list[str]
    latency_s: dict[str, float]
    flops: dict[str, float]
    best_name: str
    best_accuracy: float
    best_latency_s: float
    best_flops: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def bundled_tiers() -> list[LocalTierConfig]:
    """Every local tier of the bundled edge and cloud configs, in order."""
    tiers: list[LocalTierConfig] = []
    for name in ("edge", "cloud"):
        path = zoo.find(f"digits/{name}.yaml")
        report = Report(str(path))
        config: CascadeConfig = read_cascade(Fields(read_yaml(path), report), path.parent)
        report.check()
        tiers += [tier for tier in config.tiers if isinstance(tier, LocalTierConfig)]
    return tiers


def profile(n: int, progress: Progress) -> Profile:
    """Run every bundled model on the first `n` test digits, and the cascade on what they said."""
    tiers = bundled_tiers()
    specs = [(number, spec) for number, tier in enumerate(tiers, start=1) for spec in tier.members]
    names, images, truths = zip(*digits.test_examples(n), strict=True)
    truth = np.array(truths)
    batch = InputDecoder(specs[0][1].input_spec).batch(names, images)
    progress.start("the bundled models", len(specs) * n)
    outputs: dict[str, Array] = {}
    members: list[MemberProfile] = []
    for done, (number, spec) in enumerate(specs):
        member = load(spec)
        outputs[spec.name], latency_s = _run(member, batch)
        member.close()
        accuracy = float((outputs[spec.name].argmax(axis=1) == truth).mean())
        members.append(_describe(spec, number, accuracy, latency_s))
        progress.show((done + 1) * n)
    progress.end()
    return _cascade_profile(tiers, members, outputs, truth)


def _run(member: Member, batch: Batch) -> tuple[Array, float]:
    """Outputs (B, L), and the median over examples of the best of REPEATS timings, preparation included."""
    rows = [batch.x[row : row + 1] for row in range(len(batch))]
    times = np.empty((REPEATS, len(rows)))
    for repeat in range(REPEATS):
        outputs = []
        for row, x in enumerate(rows):
            started = time.perf_counter()
            outputs.append(member.predict(member.prepare(x)))
            times[repeat, row] = time.perf_counter() - started
    return np.concatenate(outputs), float(np.median(times.min(axis=0)))


def _describe(spec: ModelSpec, tier: int, accuracy: float, latency_s: float) -> MemberProfile:
    return MemberProfile(spec.name, tier, accuracy, spec.calibration_accuracy, latency_s, spec.flops)


def _cascade_profile(
    tiers: Sequence[LocalTierConfig], members: list[MemberProfile], outputs: dict[str, Array], truth: Array
) -> Profile:
    cascade = Cascade(
        [
            LocalTier(tier.name, [TableMember(outputs[spec.name], spec.name) for spec in tier.members], tier.rule)
            for tier in tiers
        ]
    )
    rows = np.arange(len(truth))
    decisions = cascade.decide(Batch(tuple(map(str, rows)), rows[:, None]))
    right = decisions.labels == truth
    exits = decisions.exit_shares(len(tiers))
    by_tier = [[entry for entry in members if entry.tier == number] for number in range(1, len(tiers) + 1)]
    latencies = [[entry.latency_s for entry in tier] for tier in by_tier]
    flops = [[entry.flops or 0.0 for entry in tier] for tier in by_tier]
    best = by_tier[-1][0]
    return Profile(
        n=len(truth),
        members=members,
        accuracy=float(right.mean()),
        exits=[float(share) for share in exits],
        exit_accuracy=[
            float(right[decisions.exit_tier == t + 1].mean()) if exits[t] else 0.0 for t in range(len(tiers))
        ],
        agreement=[str(tier.rule.theta) if isinstance(tier.rule, Agreement) else "always" for tier in tiers],
        latency_s={kind.value: average_cost(exits, latencies, kind) for kind in Accounting},
        flops={kind.value: average_cost(exits, flops, kind) for kind in Accounting},
        best_name=best.name,
        best_accuracy=best.accuracy,
        best_latency_s=best.latency_s,
        best_flops=best.flops or 0.0,
    )


def as_text(profile: Profile) -> str:
    """The profile as two tables and a sentence."""
    models = aligned(
        ("model", "tier", "accuracy", "calibration", "latency", "FLOPs"),
        [
            [
                entry.name,
                str(entry.tier),
                f"{entry.accuracy:.1%}",
                "-" if entry.calibration_accuracy is None else f"{entry.calibration_accuracy:.1%}",
                format_seconds(entry.latency_s),
                "-" if entry.flops is None else f"{entry.flops:.2g}",
            ]
            for entry in profile.members
        ],
    )
    costs = aligned(
        ("accounting", "latency", "against best", "FLOPs", "against best"),
        [
            [
                kind,
                format_seconds(profile.latency_s[kind]),
                f"{profile.latency_s[kind] / profile.best_latency_s:.2f}x",
                f"{profile.flops[kind]:.2g}",
                f"{profile.flops[kind] / profile.best_flops:.2f}x",
            ]
            for kind in profile.latency_s
        ],
    )
    exits = ", ".join(f"tier {tier}: {share:.1%}" for tier, share in enumerate(profile.exits, start=1))
    return "\n".join(
        [
            models,
            "",
            f"cascade: {profile.accuracy:.1%} of {profile.n:,} examples right; exits {exits}",
            f"best single model ({profile.best_name}): {profile.best_accuracy:.1%}",
            "",
            costs,
        ]
    )


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser("digits", help="the bundled models: accuracy, exits, and the three accountings")
    arguments.add_output(parser, "json")
    parser.set_defaults(run=run_command)


def run_command(options: argparse.Namespace) -> int:
    from sim.output import Progress

    result = profile(N_TEST, Progress(1))
    return finish(options, "json", result.as_json(), as_text(result))
