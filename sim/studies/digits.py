"""`coe-sim digits`: accuracy of each bundled model and of the cascade, and its cost in three accountings.

Everything runs in this process, one example at a time, one thread, as on a device; the members of the three
tiers are asked in turn, all of them, so that every member's own time and answer is known.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from coe.cascade import Agreement
from coe.config import format_seconds
from coe.zoo.digits import N_TEST
from sim import arguments
from sim.output import Progress, aligned, finish
from sim.systems import BundledTask
from sim.traces import Costs, TierSpec

from .record import read_data, read_models, record
from .replay import replay_trace


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


def profile(n: int, progress: Progress) -> Profile:
    """The bundled models on the first `n` test digits, and the cascade on what they answer."""
    device, cloud = BundledTask.of("digits").tiers("cascade")
    tiers = [*device, *cloud]
    models = read_models(["digits"])
    trace = record(models, read_data("digits", models.task, n), progress, latencies=True, name="digits")
    members = [
        MemberProfile(spec.name, number, trace.accuracy(spec.name), spec.calibration_accuracy,
                      trace.latency_s(spec.name) or 0.0, spec.flops)
        for number, tier in enumerate(tiers, start=1)
        for spec in tier.members
    ]  # fmt: skip
    run = replay_trace(trace, [TierSpec(tuple(spec.name for spec in tier.members), tier.rule) for tier in tiers])
    best = members[-1]
    return Profile(
        n=len(trace),
        members=members,
        accuracy=run.accuracy,
        exits=run.exits,
        exit_accuracy=[
            float(run.right[run.exit_tier == number].mean()) if share else 0.0
            for number, share in enumerate(run.exits, start=1)
        ],
        agreement=[str(tier.rule.theta) if isinstance(tier.rule, Agreement) else "always" for tier in tiers],
        latency_s=run.average_costs(Costs("latency_s", {one.name: one.latency_s for one in members})),
        flops=run.average_costs(Costs("flops", {one.name: one.flops or 0.0 for one in members})),
        best_name=best.name,
        best_accuracy=best.accuracy,
        best_latency_s=best.latency_s,
        best_flops=best.flops or 0.0,
    )


MODEL_HEADER = ("model", "tier", "accuracy", "calibration", "latency", "FLOPs")
COST_HEADER = ("accounting", "latency", "against best", "FLOPs", "against best")


def model_cells(profile: Profile) -> list[list[str]]:
    """A line of each model under MODEL_HEADER."""
    return [
        [entry.name, str(entry.tier), f"{entry.accuracy:.1%}",
         "-" if entry.calibration_accuracy is None else f"{entry.calibration_accuracy:.1%}",
         format_seconds(entry.latency_s), "-" if entry.flops is None else f"{entry.flops:.2g}"]
        for entry in profile.members
    ]  # fmt: skip


def cost_cells(profile: Profile) -> list[list[str]]:
    """A line of each accounting under COST_HEADER."""
    return [
        [kind, format_seconds(time_s), f"{time_s / profile.best_latency_s:.2f}x",
         f"{profile.flops[kind]:.2g}", f"{profile.flops[kind] / profile.best_flops:.2f}x"]
        for kind, time_s in profile.latency_s.items()
    ]  # fmt: skip


def as_text(profile: Profile) -> str:
    """The profile as two tables and a sentence."""
    exits = ", ".join(f"tier {tier}: {share:.1%}" for tier, share in enumerate(profile.exits, start=1))
    cascade = f"cascade: {profile.accuracy:.1%} of {profile.n:,} examples right; exits {exits}"
    best = f"best single model ({profile.best_name}): {profile.best_accuracy:.1%}"
    models, costs = aligned(MODEL_HEADER, model_cells(profile)), aligned(COST_HEADER, cost_cells(profile))
    return f"{models}\n\n{cascade}\n{best}\n\n{costs}"


NAME = "digits"
HELP = "the bundled models: accuracy, exits, and the three accountings"
DESCRIPTION = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_output(parser, "digits.json")


def run_command(options: argparse.Namespace) -> int:
    result = profile(N_TEST, Progress(1))
    return finish(options, "digits.json", asdict(result), as_text(result))
