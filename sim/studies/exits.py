"""`coe-sim exits`: where examples exit as the threshold rises. Paper: Figure 7."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from coe.cascade import Agreement, Always, ConfigError
from sim import arguments
from sim.output import Figure, Part, Table
from sim.traces import TierSpec, Trace, parse_tiers

from .replay import Replayed, replay_trace


@dataclass(frozen=True, slots=True)
class ExitCurve:
    """One replay per threshold, low to high."""

    thetas: Sequence[Fraction]
    replays: Sequence[Replayed]


def run(trace: Trace, specs: Sequence[TierSpec]) -> ExitCurve:
    """The cascade at every share its tiers can reach from one half on; their own rules are not asked."""
    sizes = [len(spec.members) for spec in specs[:-1]]
    thetas = sorted({Fraction(count, size) for size in sizes for count in range(1, size + 1) if 2 * count > size})
    replays = []
    for theta in thetas:
        at = [*(replace(spec, rule=Agreement(theta)) for spec in specs[:-1]), specs[-1]]
        replays.append(replay_trace(trace, at))
    return ExitCurve(thetas, replays)


def as_part(study: ExitCurve) -> Part:
    trace, specs = study.replays[0].trace, study.replays[0].specs
    lines, rows = [], []
    for theta, one in zip(study.thetas, study.replays, strict=True):
        rows.append({"theta": str(theta), "accuracy": one.accuracy, "exit": one.exits, "wrong_exit": one.wrong_exits})
        for number, (share, wrong) in enumerate(zip(one.exits, one.wrong_exits, strict=True), start=1):
            left = round(share * len(trace))
            right = f"{1 - wrong / left:.1%}" if left else "-"
            lines.append([str(theta), str(number), " ".join(specs[number - 1].members), f"{share:.1%}", right])
    header = ("theta", "tier", "members", "exits", "right")
    last = specs[-1].members[0]
    note = f"right: of the examples that exit there. {last} alone: {trace.accuracy(last):.1%} of all."
    best = max(range(len(study.thetas)), key=lambda at: study.replays[at].accuracy)
    chosen = study.replays[best]
    verdict = [
        f"Most accurate at theta = {study.thetas[best]}: {chosen.accuracy:.2%}, with {chosen.exits[0]:.1%} of "
        f"{len(trace):,} examples leaving at the first tier; read on all examples, so no choice is to be made by it."
    ]
    table = Table("tiers", "exits by threshold", header, lines, note, 3)
    title, content = f"Where examples exit: {trace.name}", {"n": len(trace), "rows": rows}
    return Part(f"{trace.name}-exits", title, verdict, [table], content, draw=lambda: _figures(study))


def _figures(study: ExitCurve) -> list[Figure]:
    from sim.charts import stacked_bars

    specs = study.replays[0].specs
    figure = stacked_bars(
        [f"theta = {theta}" for theta in study.thetas],
        [f"tier {number}: {', '.join(spec.members)}" for number, spec in enumerate(specs, start=1)],
        [one.exits for one in study.replays],
        name="shares",
        title="Where examples exit (Figure 7)",
        axis="share of examples",
        caption="A tier answers where at least theta of its members agree; the last answers whatever is left.",
        ends=[f"{one.accuracy:.1%} right" for one in study.replays],
    )
    return [figure]


NAME = "exits"
HELP = "where examples exit as the threshold rises (Figure 7)"
DESCRIPTION = "The share of examples that leaves at each tier, at every threshold its members can reach."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_trace(parser)
    parser.add_argument("--tiers", nargs="+", metavar="TIER", help="'a,b,c' 'd'; default: all but the best, the best")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    trace = arguments.open_trace(options)
    specs = default_tiers(trace) if options.tiers is None else parse_tiers(options.tiers, trace)[0]
    if len(specs) < 2:
        raise ConfigError(["--tiers: expected at least two tiers, got one (the last answers everything)"])
    return as_part(run(trace, specs))


def default_tiers(trace: Trace) -> list[TierSpec]:
    """The three most accurate models but one, then that one."""
    best, *others = sorted(trace.models, key=trace.accuracy, reverse=True)
    if len(others) < 2:
        raise ConfigError(["--tiers: expected a trace of three models at least, two of them for the first tier"])
    return [TierSpec(tuple(others[:3]), Always()), TierSpec((best,), Always())]
