"""`coe-sim report`: every study of one or more traces, as one page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from coe.cascade import ConfigError
from sim import arguments
from sim.output import Part, Progress, finish_parts, require_matplotlib
from sim.traces import Trace, read_costs, read_trace

from . import errors, exits, parallel, pareto

NAME = "report"
HELP = "all studies of one or more traces, as one page"
DESCRIPTION = "The Pareto study, wrong agreements, exits and, where known, latencies of each trace, in one page."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE")
    arguments.add_costs(parser)
    arguments.add_choices(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="where report.html goes, with PNG and CSV"
    )
    parser.add_argument("--json", action="store_true", help="only JSON on standard output")


def run_command(options: argparse.Namespace) -> int:
    require_matplotlib(options)
    parts = [part for trace in distinct(options.traces) for part in _parts(options, trace)]
    return finish_parts(options, parts, {part.name: part.content for part in parts})


def distinct(paths: Sequence[Path]) -> Iterator[Trace]:
    """The traces, each with a name of its own: of those of one name the folder comes first, then a number."""
    traces = [read_trace(path) for path in paths]
    names = [trace.name for trace in traces]
    names = [
        f"{path.absolute().parent.name}-{name}" if names.count(name) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]
    for at, trace in enumerate(traces):
        again = names[:at].count(names[at])
        yield replace(trace, name=f"{names[at]}-{again + 1}" if again else names[at])


def _parts(options: argparse.Namespace, trace: Trace) -> Iterator[Part]:
    """The studies that this trace has the columns for, in the order of the paper."""
    if len(trace.models) < 3:
        raise ConfigError([f"{trace.name}: expected at least three models, got {len(trace.models)}"])
    if read_costs(options.costs, trace):
        yield pareto.as_part(pareto.run(trace, pareto.choices(options, trace), Progress(1)))
    large = max(trace.models, key=trace.accuracy)
    yield errors.as_part(errors.run(trace, errors.ensembles(trace, large), large))
    yield exits.as_part(exits.run(trace, exits.default_tiers(trace)))
    if all(answers.latency_s is not None for answers in trace.models.values()):
        yield parallel.as_part(parallel.run(trace, list(trace.models)[:5], parallel.cascade_of(trace)))
