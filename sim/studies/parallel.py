"""`coe-sim parallel`: members side by side against members one after another. Paper: Figure 8.

From the latency of every member on every example: side by side an ensemble takes as long as its slowest member, in
turn their sum, and in turn with an early end the sum until the vote is settled (a unanimous ensemble is settled by
its first disagreement).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coe.cascade import ConfigError
from coe.config import format_seconds
from sim import arguments
from sim.output import Figure, Part, Table
from sim.traces import Trace, members_asked

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
class MemberTimings:
    trace: Trace
    rows: Sequence[EnsembleTiming]

    def as_json(self) -> dict[str, Any]:
        return {"trace": self.trace.name, "n": len(self.trace), "rows": [asdict(row) for row in self.rows]}


def run(trace: Trace, members: Sequence[str]) -> MemberTimings:
    """Ensembles of the first one, two .. of `members`.

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
    return MemberTimings(trace, rows)


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
    table = Table("times", "mean time of an example", header, lines, "", 2)
    name, content = study.trace.name, study.as_json()
    title = f"Side by side or in turn: {name}"
    return Part(f"{name}-parallel", title, verdict, [table], content, draw=lambda: _figures(study))


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
    return [figure]


NAME = "parallel"
HELP = "members side by side against in turn (Figure 8)"
DESCRIPTION = "What an ensemble of one, two, .. members takes per example, from recorded latencies."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_trace(parser)
    parser.add_argument("--members", type=arguments.names, metavar="M1,M2", help="in order; default: the first five")
    arguments.add_output(parser)


def run_command(options: argparse.Namespace) -> Part:
    trace = arguments.open_trace(options)
    members = options.members or list(trace.models)[:5]
    arguments.check_models("--members", members, trace)
    return as_part(run(trace, members))
