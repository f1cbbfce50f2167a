"""coe-edge: the agent on a Raspberry Pi or another small computer."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from coe import __version__
from coe.config.program import positive_int, run_program

from .config import AgentConfig, default_config, read_config

Command = Callable[[Sequence[str]], int]

COMMANDS: dict[str, tuple[str, str]] = {  # name -> its function, its help
    "init": ("edge.setup.init:init_command", "write a first config"),
    "doctor": ("edge.setup.doctor:doctor_command", "check config, models, servers and device, and say how to fix them"),
    "bench": ("edge.profile.command:bench_command", "time members and thread plans on this device, measure payloads"),
    "explain": ("edge.setup.explain:explain_command", "list what leaves this device, and what it stores"),
    "install-service": ("edge.setup.install_service:install_service_command", "install the agent as a systemd service"),
    "spool": ("edge.spool.command:spool_command", "show, copy, send or drop the examples that wait for a later answer"),
    "calibrate": ("edge.field.drift:calibrate_command", "measure the baseline for drift detection"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    return run_program("coe-edge", _run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        module, _, function = COMMANDS[arguments[0]][0].partition(":")
        command: Command = getattr(importlib.import_module(module), function)
        return command(arguments[1:])
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    config = read_config(path)
    for warning in config.warnings:
        _print(f"warning: {path}: {warning}")
    if options.dry_run:
        from .session import dry_run

        return dry_run(config)
    return _decide(config, options)


def _parser() -> argparse.ArgumentParser:
    width = max(len(name) for name in COMMANDS)
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
    parser.add_argument("--once", action="store_true", help="decide what the source has now, then stop (no watching)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="stop after N examples")
    parser.add_argument("--dry-run", action="store_true", help="check config, models and servers, and stop")
    parser.add_argument(
        "--verbose", action="store_true", help="print what runs on what, and a summary; always so on a terminal"
    )
    parser.add_argument("--version", action="version", version=f"coe-edge {__version__}")
    return parser


def _decide(config: AgentConfig, options: argparse.Namespace) -> int:
    from .supervisor import ShutdownTimeout, Supervisor
    from .tally import LiveLine

    is_verbose = options.verbose or sys.stderr.isatty()
    supervisor = Supervisor(config, lambda: read_config(config.path), once=options.once, limit=options.limit)
    prints_here = sys.stdout is not None and sys.stdout.isatty() and any(sink.prints for sink in config.sinks)
    try:
        with _logging(is_verbose), LiveLine(supervisor.tally.line, sys.stderr, hidden=prints_here):
            tally = supervisor.run()
    except ShutdownTimeout as error:
        _print(str(error))
        os._exit(1)  # a normal exit would wait for the threads
    if is_verbose:
        for line in tally.summary(config.cascade.task.labels):
            _print(line)
    if supervisor.stopped_by == signal.SIGINT:
        return 130
    if not tally.n and not supervisor.stopped_by:
        _print(f"no examples: {_what_was_seen(config)}")
        return 1
    return 0 if tally.n_decided or not tally.n else 1  # a run that could decide nothing has failed


def _what_was_seen(config: AgentConfig) -> str:
    """What there is in place of examples."""
    from coe.models.labelled import what_is_in

    seen = []
    for part in config.source.each:
        folder = part.path if part.kind == "folder" and part.path is not None and part.path.is_dir() else None
        there = f"{part.kind} is empty" if folder is None else f"{folder} holds {what_is_in(folder)}"
        hint = folder is not None and not part.recursive and any(path.is_dir() for path in folder.iterdir())
        seen.append(there + (" (recursive: true takes those in its folders)" if hint else ""))
    return "; ".join(seen)


@contextmanager
def _logging(is_verbose: bool) -> Iterator[None]:
    """Print the agent's log on standard error while the block runs; verbose: also what runs on what."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter())
    logging.getLogger().addHandler(handler)
    logging.getLogger("edge").setLevel(logging.INFO)
    logging.getLogger("edge.session").setLevel(logging.DEBUG if is_verbose else logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


class _LineFormatter(logging.Formatter):
    """Lines as `coe-edge: warning: ...`; the level is left out below a warning."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"coe-edge: {level}{super().format(record)}"


def _print(line: str) -> None:
    print(f"coe-edge: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
