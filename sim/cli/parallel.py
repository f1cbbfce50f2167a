"""`coe-sim parallel`: members side by side, or in turn."""

from __future__ import annotations

import argparse

from . import arguments
from .output import finish_part, require_plots


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "parallel",
        help="members side by side against in turn (Figure 8)",
        description="What an ensemble of one, two, .. members takes per example, from recorded latencies.",
    )
    arguments.add_trace(parser)
    parser.add_argument("--members", type=arguments.names, metavar="M1,M2", help="in order; default: the first five")
    arguments.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..studies import parallel

    require_plots(options)
    trace = arguments.open_trace(options)
    members = options.members or list(trace.models)[:5]
    arguments.check_models("--members", members, trace)
    return finish_part(options, parallel.as_part(parallel.run(trace, members)))
