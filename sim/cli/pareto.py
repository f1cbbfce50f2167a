"""`coe-sim pareto`: accuracy against cost, with every baseline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from coe.cascade import Accounting, ConfigError

from ..traces import CALIBRATION, TEST, Trace, pick, read_trace
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
    return Choices(
        costs=[first, *(one for one in known if one is not first)],
        accounting=None if options.accounting is None else Accounting(options.accounting),
        calibration=_calibration(options.calibration, trace),
        most=options.most,
        seed=options.seed,
    )


def _calibration(given: float | Path | None, trace: Trace) -> float | Trace:
    """A share, or the trace to choose on; that of a bundled test trace is known."""
    if given is None and trace.task is not None and trace.name == f"{trace.task}-{Path(TEST).stem}":
        given = Path(f"zoo:{trace.task}/{CALIBRATION}")
    if isinstance(given, Path):
        other = read_trace(given)
        arguments.check_models("--calibration", list(trace.models), other)
        shared = set(other.ids) & set(trace.ids)
        if shared:
            raise ConfigError(
                [f"--calibration: expected other examples than those reported on, got {len(shared)} of them, "
                 f"{min(shared)} first (give a share of one trace instead)"]
            )  # fmt: skip
        return other.only(list(trace.models))
    share = 0.5 if given is None else given
    if not 1 <= round(share * len(trace)) < len(trace):
        raise ConfigError([f"--calibration: {share:g} of {len(trace)} examples leaves one split empty"])
    return share
