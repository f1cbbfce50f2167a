"""`coe-sim replay`: one cascade over a trace."""

from __future__ import annotations

import argparse

from . import arguments
from .output import finish_part


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "replay",
        help="one cascade over recorded predictions",
        description="Decide every example of a trace with a cascade, through the same code as the edge and the cloud.",
    )
    arguments.add_trace(parser)
    parser.add_argument(
        "--tiers",
        nargs="+",
        required=True,
        metavar="TIER",
        help="first to last, each 'member,member@agreement': 'a,b,c@2/3' 'd'; unanimous where nothing is said; "
        "'a@confidence>=0.8' defers by score",
    )
    arguments.add_costs(parser)
    arguments.add_output(parser, "CSV and a chapter of report.html")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..studies import replayed
    from ..traces import parse_tiers

    trace = arguments.open_trace(options)
    specs, warnings = parse_tiers(options.tiers, trace)
    arguments.warn(warnings)
    costs = arguments.open_costs(options, trace)
    return finish_part(options, replayed.as_part(replayed.replay_trace(trace, specs), costs))
