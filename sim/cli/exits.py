"""`coe-sim exits`: where examples exit, threshold by threshold."""

from __future__ import annotations

import argparse

from coe.cascade import Always, ConfigError

from ..traces import TierSpec, Trace, parse_tiers
from . import arguments
from .output import finish_part, require_plots


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "exits",
        help="where examples exit as the threshold rises (Figure 7)",
        description="The share of examples that leaves at each tier, at every threshold its members can reach.",
    )
    arguments.add_trace(parser)
    parser.add_argument("--tiers", nargs="+", metavar="TIER", help="'a,b,c' 'd'; default: all but the best, the best")
    arguments.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..studies import exits

    require_plots(options)
    trace = arguments.open_trace(options)
    specs = default_tiers(trace) if options.tiers is None else parse_tiers(options.tiers, trace)[0]
    if len(specs) < 2:
        raise ConfigError(["--tiers: expected at least two tiers, got one (the last answers everything)"])
    return finish_part(options, exits.as_part(exits.run(trace, specs)))


def default_tiers(trace: Trace) -> list[TierSpec]:
    """The three most accurate models but one, then that one.

    Raises:
        ConfigError: fewer than three models.
    """
    best, *others = sorted(trace.models, key=trace.accuracy, reverse=True)
    if len(others) < 2:
        raise ConfigError(["--tiers: expected a trace of three models at least, two of them for the first tier"])
    return [TierSpec(tuple(others[:3]), Always()), TierSpec((best,), Always())]
