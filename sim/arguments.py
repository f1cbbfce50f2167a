"""Command-line arguments that several studies share, and the traces and costs they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from coe.cascade import Accounting, ConfigError
from coe.config import parse_seconds
from coe.config.program import positive_int

from .traces import Trace, read_trace

TRACES = "a table of predictions: .parquet, .tsv or .csv; or a bundled one: cifar10, zoo:cifar10/calibration.parquet"


def add_output(parser: argparse.ArgumentParser, what: str = "PNG, CSV and a chapter of report.html") -> None:
    """Where the results go; a study whose files are pictures too checks for matplotlib before its work."""
    parser.set_defaults(pictures="PNG" in what)
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {what} there")
    parser.add_argument("--json", action="store_true", help="only JSON on standard output")


def add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, metavar="TRACE", help=TRACES)
    parser.add_argument("--models", type=names, metavar="M1,M2", help="these models of the trace alone")


def add_costs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--costs",
        metavar="FILE",
        help="YAML of what each model costs (flops, latency_s, usd_per_million), the name of a bundled one, or a "
        "table of prices; "
        "the trace's own latencies, and the FLOPs of a bundled one, are used besides",
    )


def add_choices(parser: argparse.ArgumentParser) -> None:
    """How systems are chosen."""
    parser.add_argument(
        "--calibration",
        type=share_or_trace,
        metavar="SHARE|TRACE",
        help="to choose on: a share of TRACE, or another trace of the same models; default: that of a bundled test "
        "trace, else 0.5",
    )
    add_ranking(parser)
    parser.add_argument("--most", type=count, default=20_000, metavar="N", help="systems per method; default 20000")


def add_ranking(parser: argparse.ArgumentParser) -> None:
    """What systems are compared by, on which examples."""
    parser.add_argument("--by", metavar="KIND", help="the cost to choose by: flops, latency_s, ..; default: the first")
    parser.add_argument(
        "--accounting",
        choices=[kind.value for kind in Accounting],
        help="default: reach for latency_s, reach-serial for all else",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the split and of random draws; default 0")


def add_bound(parser: argparse.ArgumentParser) -> None:
    """What is to be shown."""
    parser.add_argument(
        "--bound", type=share, default=0.01, metavar="SHARE", help="less accurate than the model, at most; default 1%%"
    )
    parser.add_argument("--delta", type=share, default=0.1, help="risk that the bound does not hold; default 10%%")


def open_trace(options: argparse.Namespace) -> Trace:
    """The trace asked for, with the models asked for.

    Raises:
        ConfigError: it is none, or has no such model.
    """
    trace = read_trace(Path(options.trace))
    if options.models is None:
        return trace
    check_models("--models", options.models, trace)
    return trace.only(options.models)


def check_models(argument: str, models: Sequence[str], trace: Trace) -> None:
    """Raises ConfigError where the trace lacks one."""
    missing = [name for name in models if name not in trace.models]
    if missing:
        known = ", ".join(trace.models)
        raise ConfigError([f'{argument}: no model "{name}" in the trace (known: {known})' for name in missing])


def names(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f'expected different names with commas between, got "{text}"')
    return found


def share(text: str) -> float:
    """A number between 0 and 1; a percent sign is understood."""
    is_percent = text.rstrip().endswith("%")
    value = _number(text.rstrip("% ")) / (100 if is_percent else 1)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text}")
    return value


def ratio(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text} (write 0.95)")
    return value


def share_or_trace(text: str) -> float | Path:
    """A share where it is a number, else the path of a trace."""
    try:
        float(text)
    except ValueError:
        return Path(text)
    return share(text)


def shares(text: str) -> list[float]:
    """Exit shares that sum to 1; percent signs are understood."""
    parts = text.split(",")
    values = [_number(part.rstrip("% ")) / (100 if part.strip().endswith("%") else 1) for part in parts]
    if not all(0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"expected shares that sum to 1, got {text} (write 0.93,0.07)")
    return values


def seconds(text: str) -> list[float]:
    try:
        return [parse_seconds(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


count = positive_int


def seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'expected a number, got "{text}"') from None
