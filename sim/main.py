"""coe-sim: latency and communication studies of cascades, on this machine, offline."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from coe import __version__
from coe.cascade import ConfigError
from coe.settings import parse_seconds
from coe.settings.programs import run_program
from coe.zoo.digits import N_TEST

DEFAULT_DELAYS = "1us,10ms,100ms,1000ms"  # the paper's


def main(arguments: Sequence[str] | None = None) -> int:
    # SIGTERM ends a study as ^C does, so that the programs it started are stopped and its folders removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run_program("coe-sim", _run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.study == "digits":
        from .commands import digits

        return digits(options)
    _refuse_without_effect(options)
    if options.delays is None:
        parser.print_help(sys.stderr)
        raise ConfigError(["expected a study, got none (write coe-sim --delays, or coe-sim digits)"])
    from .commands import delays, schedule

    return schedule(options) if options.schedule else delays(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-sim", description="Studies of cascades: real programs on this machine, or their recordings replayed."
    )
    parser.add_argument("--version", action="version", version=f"coe-sim {__version__}")
    parser.add_argument(
        "--delays",
        nargs="?",
        const=DEFAULT_DELAYS,
        type=_delays,
        metavar="LIST",
        help=f"the delay study; times with units, default {DEFAULT_DELAYS}",
    )
    parser.add_argument("--one-way", action="store_true", help="charge each delay in each direction")
    parser.add_argument(
        "--schedule",
        action="store_true",
        help="spread the delays over the tiers, each on a server of its own: smallest first, largest last",
    )
    parser.add_argument("--clock", choices=("real", "virtual"), default="real", help="default: real")
    parser.add_argument("--recording", type=Path, help="what the virtual clock replays; default: the bundled one")
    parser.add_argument("--limit", type=_limit, metavar="N", help="examples, at most and by default 1000")
    _add_output(parser)
    studies = parser.add_subparsers(dest="study", metavar="study")
    digits = studies.add_parser("digits", help="the bundled models: accuracy, exits, and the three accountings")
    _add_output(digits)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.json and report.html there")
    parser.add_argument("--json", action="store_true", help="only JSON on standard output")


def _refuse_without_effect(options: argparse.Namespace) -> None:
    """An option that would be passed over is an error, not a surprise."""
    findings = []
    if options.recording and options.clock == "real":
        findings.append("--recording: the real clock replays nothing (add --clock virtual, or leave it out)")
    if options.schedule and options.clock == "virtual":
        findings.append("--schedule: it is measured on the real clock only (leave --clock virtual out)")
    if options.limit is not None and options.clock == "virtual":
        findings.append("--limit: the virtual clock replays the whole recording (leave it out)")
    if findings:
        raise ConfigError(findings)


def _delays(text: str) -> list[float]:
    try:
        found = [parse_seconds(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not all(0 < delay_s <= 60 for delay_s in found):
        raise argparse.ArgumentTypeError("expected delays above 0 and up to 60s")
    return found


def _limit(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= N_TEST:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {N_TEST}, got {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
