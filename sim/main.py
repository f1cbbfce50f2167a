"""coe-sim: studies of cascades, on this machine, offline: real programs behind delays, or recorded predictions."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from coe import __version__
from coe.cascade import ConfigError
from coe.config.program import run_program

from . import arguments
from .output import Part, finish_parts, require_matplotlib
from .studies import (
    certify,
    delays,
    digits,
    errors,
    exits,
    fleet,
    gpu_cost,
    model_table,
    paper,
    parallel,
    pareto,
    plan,
    record,
    replay,
    report,
)

STUDIES = (
    digits, paper, record, replay, pareto, plan, certify, fleet, errors, exits, parallel, gpu_cost, model_table, report
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    # SIGTERM ends a study as ^C does, so that the programs it started are stopped and its folders removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_program("coe-sim", _run, sys.argv[1:] if arguments is None else arguments)


def _run(given: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(given)
    if options.study is not None:
        if options.pictures:
            require_matplotlib(options)
        result: Part | int = options.run(options)
        return result if isinstance(result, int) else finish_parts(options, [result], result.content)
    if options.delays is None and options.link is None and not options.schedule:
        parser.print_help(sys.stderr)
        raise ConfigError(["expected a study, got none (write coe-sim --delays, or coe-sim digits)"])
    return delays.run_command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-sim", description="Studies of cascades: real programs on this machine, or recorded predictions."
    )
    parser.add_argument("--version", action="version", version=f"coe-sim {__version__}")
    delays.add(parser)
    arguments.add_output(parser, "results.json and report.html")
    studies = parser.add_subparsers(dest="study", metavar="study")
    for study in STUDIES:
        own = studies.add_parser(study.NAME, help=study.HELP, description=study.DESCRIPTION)
        own.set_defaults(run=study.run_command, pictures=False)
        study.add_arguments(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
