"""`coe-sim replay`: one cascade over a trace: accuracy, exits, and cost in three accountings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.calibration import Calibration
from coe.calibration.bound import difference_interval, share_interval
from coe.calibration.rule import CalibratedVote
from coe.cascade import Accounting, Agreement, Confidence, DeferralRule
from sim import arguments
from sim.output import Part, Table, log
from sim.traces import Costs, TierSpec, Trace, calibrated_tiers, exact, parse_tiers, read_costs, to_cascade
from sim.traces.tiers import LowEntropy

from .candidates import cost_interval


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the cascade decided.

    Args:
        exit_tier: (B,) from 1; right: (B,).
    """

    trace: Trace
    specs: Sequence[TierSpec]
    exit_tier: NDArray[np.int64]
    right: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def exits(self) -> list[float]:
        """Share of the examples that left at each tier."""
        return [float((self.exit_tier == tier).mean()) for tier in range(1, len(self.specs) + 1)]

    @property
    def wrong_exits(self) -> list[int]:
        return [int((~self.right & (self.exit_tier == tier)).sum()) for tier in range(1, len(self.specs) + 1)]

    @property
    def counts(self) -> list[int]:
        """Examples that left at each tier."""
        counts: list[int] = np.bincount(self.exit_tier - 1, minlength=len(self.specs)).tolist()
        return counts

    def limits(self) -> tuple[float, float]:
        """Of the accuracy, 95%."""
        return share_interval(int(self.right.sum()), len(self.trace))

    def cost_limits(self, costs: Costs) -> dict[str, tuple[float, float]]:
        """Per accounting, of the average cost, 95%."""
        return {kind.value: cost_interval(self._charges(costs, kind), self.counts) for kind in Accounting}

    def average_costs(self, costs: Costs) -> dict[str, float]:
        """Per accounting, of one example."""
        return {kind.value: float(self.exits @ self._charges(costs, kind)) for kind in Accounting}

    def _charges(self, costs: Costs, kind: Accounting) -> NDArray[np.float64]:
        return costs.charges([spec.members for spec in self.specs], kind)

    def sent_bytes(self) -> tuple[float, float] | None:
        """Mean payload that leaves the first tier, and what sending every example would take; None: not recorded."""
        payload = self.trace.payload_bytes
        if payload is None:
            return None
        return float(np.where(self.exit_tier > 1, payload, 0).mean()), float(payload.mean())


def replay_trace(trace: Trace, specs: Sequence[TierSpec]) -> Replayed:
    """Every example of the trace, in order, through the cascade."""
    decisions = to_cascade(specs, trace).decide(trace.batch())
    return Replayed(trace, specs, decisions.exit_tier, decisions.labels == trace.labels)


def lead(mine: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float, float]:
    """How much more accurate, and the 95% interval of that: the same examples, so only where they differ."""
    gains, losses, n = int((mine & ~other).sum()), int((other & ~mine).sum()), len(mine)
    return (gains - losses) / n, *difference_interval(gains, losses, n)


def with_limits(value: float, limits: tuple[float, float], form: str = ".2%") -> str:
    """'82.45% (81.80% to 83.10%)'."""
    return f"{value:{form}} ({limits[0]:{form}} to {limits[1]:{form}})"


def rule_text(rule: DeferralRule, n_members: int) -> str:
    if isinstance(rule, Agreement):
        return f"{rule.needed(n_members)} of {n_members}"
    if isinstance(rule, Confidence):
        return f"confidence >= {exact(rule.threshold)}"
    if isinstance(rule, CalibratedVote):
        return "always" if rule.threshold is None else f"p >= {rule.threshold:.4g}"
    if isinstance(rule, LowEntropy):
        return f"entropy <= {exact(rule.most)}"
    return {"AtRandom": "at random", "Ideal": "where right"}.get(type(rule).__name__, "always")


def as_part(result: Replayed, costs: Sequence[Costs]) -> Part:
    single = {name: result.trace.accuracy(name) for name in result.trace.models}
    best = max(single, key=single.__getitem__)
    gain, *limits = lead(result.right, result.trace.right(best))
    n = len(result.trace)
    content: dict[str, Any] = {
        "n": n,
        "accuracy": result.accuracy,
        "accuracy_low_high": result.limits(),
        "difference": gain,
        "difference_low_high": limits,
        "exit": result.exits,
        "exit_low_high": [share_interval(count, n) for count in result.counts],
        "wrong_exit": result.wrong_exits,
        "single": single,
    }
    lines = [
        [str(number), " ".join(spec.members), rule_text(spec.rule, len(spec.members)),
         with_limits(count / n, share_interval(count, n), ".1%"), f"{wrong:,}",
         with_limits(1 - wrong / count, share_interval(count - wrong, count), ".1%") if count else "-"]
        for number, (spec, count, wrong) in enumerate(
            zip(result.specs, result.counts, result.wrong_exits, strict=True), start=1
        )
    ]  # fmt: skip
    tables = [
        Table("tiers", "tiers", ("tier", "members", "answers at", "exits", "wrong exits", "right"), lines, "", 3),
        Table(
            "single",
            "single models",
            ("model", "accuracy"),
            [[name, with_limits(at, share_interval(round(at * n), n))] for name, at in single.items()],
        ),
    ]
    verdict = [
        f"cascade: {with_limits(result.accuracy, result.limits())} of {n:,} examples right; best single model "
        f"({best}): {single[best]:.2%}; difference {with_limits(gain, (limits[0], limits[1]), '+.2%')}; intervals: 95%"
    ]
    if costs:
        content["costs"] = {one.kind: {**result.average_costs(one), "single": dict(one.of)} for one in costs}
        content["costs_low_high"] = {one.kind: result.cost_limits(one) for one in costs}
        tables.append(_cost_table(result, costs, best))
    if (sent := result.sent_bytes()) is not None:
        content["sent_bytes"] = {"cascade": sent[0], "all": sent[1]}
        verdict.append(f"sent per example, if the first tier is on the device: {sent[0]:.0f} B of {sent[1]:.0f} B")
    return Part(f"{result.trace.name}-replay", f"One cascade: {result.trace.name}", verdict, tables, content)


def _cost_table(result: Replayed, costs: Sequence[Costs], best: str) -> Table:
    lines = []
    for one in costs:
        for accounting, value in result.average_costs(one).items():
            low, high = result.cost_limits(one)[accounting]
            of = one.of[best]
            ratio = f"{value / of:.2f}x ({low / of:.2f} to {high / of:.2f})" if of else "-"
            lines.append([one.axis, accounting, one.text(value), one.text(one.of[best]), ratio])
    header = ("cost", "accounting", "cascade", best, "against it")
    return Table("costs", "average cost", header, lines, costs[0].note, 2)


NAME = "replay"
HELP = "one cascade over recorded predictions"
DESCRIPTION = "Decide every example of a trace with a cascade, through the same code as the edge and the cloud."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_trace(parser)
    cascade = parser.add_mutually_exclusive_group(required=True)
    cascade.add_argument(
        "--calibration", type=Path, metavar="FILE", help="the cascade that coe-sim plan chose: its calibration.json"
    )
    cascade.add_argument(
        "--tiers",
        nargs="+",
        metavar="TIER",
        help="first to last, each 'member,member@agreement': 'a,b,c@2/3' 'd'; unanimous where no rule is given; "
        "'a@confidence>=0.8' defers by score; every system that pareto prints is read, tiers as it writes them (but a "
        "calibrated vote, whose table it writes with --out)",
    )
    arguments.add_costs(parser)
    arguments.add_output(parser, "CSV and a chapter of report.html")


def run_command(options: argparse.Namespace) -> Part:
    trace = arguments.open_trace(options)
    if options.calibration is not None:
        specs = calibrated_tiers(Calibration.read(options.calibration), trace)
    else:
        specs, warnings = parse_tiers(options.tiers, trace)
        for warning in warnings:
            log(warning)
    costs = read_costs(options.costs, trace)
    return as_part(replay_trace(trace, specs), costs)
