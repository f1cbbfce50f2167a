"""coe-edge: the agent on a Raspberry Pi or another small computer."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from coe import __version__
from coe.config.program import positive_int, run_program

from .config import AgentConfig, default_config, read_config

Command = Callable[[Sequence[str]], int]

COMMANDS: dict[str, tuple[str, str]] = {  # name -> where its function is, what it does
    "init": ("edge.setup.init:init_command", "write a first config"),
    "doctor": (
        "edge.setup.doctor:doctor_command",
        "check device, config and servers; say how to fix what is wrong",
    ),
    "bench": ("edge.profile.command:bench_command", "time members and thread plans here, compare payloads"),
    "explain": ("edge.setup.explain:explain_command", "say what leaves this device, and what it keeps"),
    "install-service": ("edge.setup.install_service:install_service_command", "run it as a systemd service"),
    "spool": ("edge.spool.command:spool_command", "examples that wait for a later answer: status, export, clear"),
    "calibrate": ("edge.field.drift:calibrate_command", "measure the baseline for drift detection"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    return run_program("coe-edge", _run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        where, _ = COMMANDS[arguments[0]]
        module, _, function = where.partition(":")
        command: Command = getattr(importlib.import_module(module), function)
        return command(arguments[1:])
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    config = read_config(path)
    for warning in config.warnings:
        _tell(f"{path}: warning: {warning}")
    if options.dry_run:
        from .session import dry_run

        return dry_run(config)
    return _decide(config, options)


def _parser() -> argparse.ArgumentParser:
    width = max((len(name) for name in COMMANDS), default=0)
    parser = argparse.ArgumentParser(
        prog="coe-edge",
        description="Decide examples on this device where its models agree; send only the others to the cloud.",
        epilog="\n".join(
            ["other commands (coe-edge COMMAND --help):"]
            + [f"  {name.ljust(width)}  {what}" for name, (_, what) in COMMANDS.items()]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument("--once", action="store_true", help="what the source has now, then stop (no watching)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="stop after N examples")
    parser.add_argument("--dry-run", action="store_true", help="check config, models and cloud, and stop")
    parser.add_argument("--verbose", action="store_true", help="what runs on what, and a summary, off a terminal too")
    parser.add_argument("--version", action="version", version=f"coe-edge {__version__}")
    return parser


def _decide(config: AgentConfig, options: argparse.Namespace) -> int:
    from .supervisor import ShutdownTimeout, Supervisor
    from .tally import LiveLine

    talks = options.verbose or sys.stderr.isatty()
    supervisor = Supervisor(
        config,
        lambda: read_config(config.path),
        tell=_tell,
        say=_tell if talks else lambda line: None,
        once=options.once,
        limit=options.limit,
    )
    prints = any(sink.prints for sink in config.sinks)
    try:
        with LiveLine(supervisor.tally.line, sys.stderr, hidden=prints and _is_terminal(sys.stdout)):
            tally = supervisor.run()
    except ShutdownTimeout as error:
        _tell(str(error))
        os._exit(1)  # its threads would be waited for
    if talks:
        for line in tally.summary():
            _tell(line)
    if supervisor.stopped_by == signal.SIGINT:
        return 130
    return 1 if tally.n and not tally.n_decided else 0  # nothing could be decided: that is no success


def _is_terminal(stream: TextIO | None) -> bool:
    """False, too, where whoever started this program closed the stream."""
    return stream is not None and stream.isatty()


def _tell(line: str) -> None:
    print(f"coe-edge: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
