"""`coe-sim parallel`: members side by side against members one after another. Paper: Figure 8.

From the latency of every member on every example: side by side an ensemble takes as long as its slowest member, in
turn their sum, and in turn with an early end the sum until the vote is settled (a unanimous ensemble is settled by
its first disagreement). So for a cascade: an example takes what every tier takes that it reaches, `reach` or
`reach-serial`; the best model alone takes the same either way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coe.cascade import Accounting, ConfigError, average_cost
from coe.config import format_seconds
from sim import arguments
from sim.output import Figure, Part, Table
from sim.systems import BundledTask
from sim.traces import TierSpec, Trace, members_asked, parse_tiers

from .exits import default_tiers
from .replay import replay_trace

WAYS = ("side by side", "in turn", "in turn, ended early")
COLOURS = ("#0072B2", "#D55E00", "#009E73")


@dataclass(frozen=True, slots=True)
class EnsembleTiming:
    """Mean seconds of an example for the first members of the ensemble."""

    members: tuple[str, ...]
    side_by_side_s: float
    in_turn_s: float
    early_s: float
    early_asked: float

    @property
    def times_s(self) -> tuple[float, float, float]:
        return self.side_by_side_s, self.in_turn_s, self.early_s


@dataclass(frozen=True, slots=True)
class SystemTiming:
    """Mean seconds of an example through a whole system, in both modes."""

    name: str
    accuracy: float
    side_by_side_s: float
    in_turn_s: float


@dataclass(frozen=True, slots=True)
class MemberTimings:
    """Ensembles of one, two .. members; then a cascade and its last tier's model alone."""

    trace: Trace
    rows: Sequence[EnsembleTiming]
    systems: Sequence[SystemTiming] = ()

    def as_json(self) -> dict[str, Any]:
        rows, systems = ([asdict(one) for one in each] for each in (self.rows, self.systems))
        return {"trace": self.trace.name, "n": len(self.trace), "rows": rows, "systems": systems}


def run(trace: Trace, members: Sequence[str], specs: Sequence[TierSpec] = ()) -> MemberTimings:
    """Ensembles of the first one, two .. of `members`; and the cascade of these tiers.

    Raises:
        ConfigError: the trace has no latencies of one of them.
    """
    seconds = []
    for name in members:
        own = trace.models[name].latency_s
        if own is None:
            raise ConfigError([f"{trace.name}: expected latencies of {name}, got none (coe-sim record --latencies)"])
        seconds.append(own.astype(np.float64))
    times = np.stack(seconds)  # (M, B)
    ballots = np.stack([trace.models[name].predictions for name in members]).astype(np.int64)
    rows = []
    for size in range(1, len(members) + 1):
        asked = members_asked(ballots[:size], size)
        slowest, total = times[:size].max(axis=0), times[:size].sum(axis=0)  # (B,) each
        early = np.where(np.arange(size)[:, None] < asked, times[:size], 0.0).sum(axis=0)
        means = [float(values.mean()) for values in (slowest, total, early, asked)]
        rows.append(EnsembleTiming(tuple(members[:size]), *means))
    return MemberTimings(trace, rows, _systems(trace, specs) if specs else ())


def _systems(trace: Trace, specs: Sequence[TierSpec]) -> list[SystemTiming]:
    """The cascade, and its last tier's first model alone; nothing where a latency is not known."""
    names = {name for spec in specs for name in spec.members}
    of = {name: float(own.mean()) for name in names if (own := trace.models[name].latency_s) is not None}
    if len(of) < len(names):
        return []
    replayed = replay_trace(trace, specs)
    members = [[of[name] for name in spec.members] for spec in specs]
    ways = [average_cost(replayed.exits, members, kind) for kind in (Accounting.REACH, Accounting.REACH_SERIAL)]
    best = specs[-1].members[0]
    tiers = " | ".join(",".join(spec.members) for spec in specs)
    alone = SystemTiming(f"{best} alone", trace.accuracy(best), of[best], of[best])
    return [SystemTiming(f"cascade: {tiers}", replayed.accuracy, *ways), alone]


def as_part(study: MemberTimings) -> Part:
    lines = [
        [str(len(row.members)), " ".join(row.members), *map(format_seconds, row.times_s),
         f"{row.early_asked:.2f}", f"{row.in_turn_s / row.side_by_side_s:.2f}x"]
        for row in study.rows
    ]  # fmt: skip
    header = ("members", "which", *WAYS, "asked", "in turn / side by side")
    last = study.rows[-1]
    verdict = [
        f"{len(last.members)} members in turn take {last.in_turn_s / last.side_by_side_s:.2f}x as long as side by side "
        f"({format_seconds(last.in_turn_s)} against {format_seconds(last.side_by_side_s)}); ended early, "
        f"{last.early_s / last.side_by_side_s:.2f}x. Side by side supposes a core, or a device, for every member."
    ]
    tables = [Table("times", "mean time of an example", header, lines, "", 2)]
    name, content = study.trace.name, study.as_json()
    title = f"Side by side or in turn: {name}"
    if study.systems:
        cascade, best = study.systems
        verdict.append(
            f"The cascade takes {cascade.side_by_side_s / best.side_by_side_s:.2f}x the time of {best.name} side by "
            f"side and {cascade.in_turn_s / best.in_turn_s:.2f}x in turn, and is right on {cascade.accuracy:.2%} of "
            f"the examples (against {best.accuracy:.2%})."
        )
        systems = [
            [one.name, f"{one.accuracy:.2%}", *map(format_seconds, (one.side_by_side_s, one.in_turn_s))]
            for one in study.systems
        ]
        head = ("system", "accuracy", *WAYS[:2])
        tables.append(Table("systems", "the cascade against the best model", head, systems))
    return Part(f"{name}-parallel", title, verdict, tables, content, draw=lambda: _figures(study))


def _figures(study: MemberTimings) -> list[Figure]:
    from sim.charts import grouped_bars

    figure = grouped_bars(
        [f"{len(row.members)} member{'s' * (len(row.members) > 1)}" for row in study.rows],
        WAYS,
        [row.times_s for row in study.rows],
        format_seconds,
        name="times",
        title="Members side by side and in turn (Figure 8)",
        axis="mean model time per example",
        caption="From the recorded time of each member on each example; the vote is unanimity.",
        colours=COLOURS,
        value=lambda value: format_seconds(value).replace(" ", "\n"),
    )
    if not study.systems:
        return [figure]
    names = zip(("cascade", "best model"), study.systems, strict=True)
    both = grouped_bars(
        [f"{name}\n{one.accuracy:.1%} right" for name, one in names],
        WAYS[:2],
        [(one.side_by_side_s, one.in_turn_s) for one in study.systems],
        format_seconds,
        name="systems",
        title="Cascade and best model, side by side and in turn (Figure 8)",
        axis="mean model time per example",
        caption="An example takes what every tier takes that it reaches.",
        colours=COLOURS,
    )
    return [figure, both]


NAME = "parallel"
HELP = "members side by side against in turn (Figure 8)"
DESCRIPTION = "What an ensemble of one, two, .. members takes per example, from recorded latencies."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_trace(parser)
    parser.add_argument("--members", type=arguments.names, metavar="M1,M2", help="in order; default: the first five")
    parser.add_argument("--tiers", nargs="+", metavar="TIER", help="a cascade: 'a,b,c@2/3' 'd'; default: as of exits")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    trace = arguments.open_trace(options)
    members = options.members or list(trace.models)[:5]
    arguments.check_models("--members", members, trace)
    return as_part(run(trace, members, cascade_of(trace, options.tiers)))


def cascade_of(trace: Trace, tiers: Sequence[str] | None = None) -> Sequence[TierSpec]:
    """These tiers; by default a bundled task's own, else the three most accurate models but one, unanimous, then that
    one. Of fewer than three models there is none."""
    if tiers is None and trace.task is not None:
        device, cloud = BundledTask.chain_of(trace.task).tiers("cascade")
        specs = [TierSpec(tuple(one.name for one in tier.members), tier.rule) for tier in (*device, *cloud)]
        if {name for spec in specs for name in spec.members} <= set(trace.models):
            return specs
    if tiers is None and len(trace.models) < 3:
        return ()
    texts = tiers or [",".join(spec.members) for spec in default_tiers(trace)]
    return parse_tiers(texts, trace)[0]
