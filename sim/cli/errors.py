"""`coe-sim errors`: wrong agreements."""

from __future__ import annotations

import argparse
from itertools import combinations

from coe.cascade import ConfigError

from ..traces import Trace
from . import arguments
from .output import finish_part, require_plots

MOST_MEMBERS = 5
MOST_MODELS = 5  # of more, --members says which


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "errors",
        help="wrong agreements, and whether the large model knows better (Table 3)",
        description="How often members agree on a wrong label, and how many of those the large model gets wrong too.",
    )
    arguments.add_trace(parser)
    parser.add_argument(
        "--members", type=arguments.names, metavar="M1,M2", help="of the ensembles; default: all others"
    )
    parser.add_argument("--large", metavar="MODEL", help="the large model; default: the most accurate")
    arguments.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..studies import errors

    require_plots(options)
    trace = arguments.open_trace(options)
    large = options.large or max(trace.models, key=trace.accuracy)
    arguments.check_models("--large", [large], trace)
    if options.members:
        arguments.check_models("--members", options.members, trace)
    return finish_part(options, errors.as_part(errors.run(trace, ensembles(trace, large, options.members), large)))


def ensembles(trace: Trace, large: str, members: list[str] | None = None) -> list[tuple[str, ...]]:
    """Every choice of two to five of the members; of many models, the most accurate.

    Raises:
        ConfigError: fewer than two members.
    """
    found = members or [name for name in trace.models if name != large]
    if members is None and len(found) > MOST_MODELS:
        best = set(sorted(found, key=trace.accuracy, reverse=True)[:MOST_MODELS])
        found = [name for name in found if name in best]
    if len(found) < 2:
        raise ConfigError([f"expected at least two members besides {large}, got {', '.join(found) or 'none'}"])
    return [some for size in range(2, min(len(found), MOST_MEMBERS) + 1) for some in combinations(found, size)]
