"""`coe-sim pareto`: accuracy against cost, with every baseline."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from coe.cascade import Accounting, ConfigError

from ..traces import Trace, pick
from . import arguments
from .output import finish_part, require_plots

if TYPE_CHECKING:
    from ..studies.pareto import Choices


def add(studies: arguments.Studies) -> None:
    parser = studies.add_parser(
        "pareto",
        help="cascades and all baselines, accuracy against cost",
        description="Sweep cascades and baselines; choose on a calibration split, report on the rest.",
    )
    arguments.add_trace(parser)
    arguments.add_costs(parser)
    arguments.add_choices(parser)
    arguments.add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..progress import Progress
    from ..studies import pareto

    require_plots(options)
    trace = arguments.open_trace(options)
    study = pareto.run(trace, choices(options, trace), Progress(1))
    return finish_part(options, pareto.as_part(study))


def choices(options: argparse.Namespace, trace: Trace) -> Choices:
    """What the options say of how to choose.

    Raises:
        ConfigError: no cost is known, or a split is empty.
    """
    from ..studies.pareto import Choices

    known = arguments.open_costs(options, trace)
    first = pick(known, options.by)
    if not 1 <= round(options.calibration * len(trace)) < len(trace):
        raise ConfigError([f"--calibration: {options.calibration:g} of {len(trace)} examples leaves one split empty"])
    return Choices(
        costs=[first, *(one for one in known if one is not first)],
        accounting=None if options.accounting is None else Accounting(options.accounting),
        calibration=options.calibration,
        most=options.most,
        seed=options.seed,
    )
