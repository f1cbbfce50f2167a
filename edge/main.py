"""coe-edge: the agent on a Raspberry Pi or another small computer."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from coe import __version__
from coe.settings.programs import run_program

from .config import AgentConfig, default_config, read_config

GREET_S = 0.5  # how long a start waits to hear from the cloud before it goes on without


def main(arguments: Sequence[str] | None = None) -> int:
    return run_program("coe-edge", _run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    config = read_config(path)
    for warning in config.warnings:
        _tell(f"{path}: warning: {warning}")
    if options.dry_run:
        from .check import check

        return check(config)
    return _decide(config, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge",
        description="Decide examples on this device where its models agree; send only the others to the cloud.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument("--once", action="store_true", help="what the source has now, then stop (no watching)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="stop after N examples")
    parser.add_argument("--dry-run", action="store_true", help="check config, models and cloud, and stop")
    parser.add_argument("--verbose", action="store_true", help="what runs on what, and a summary, off a terminal too")
    parser.add_argument("--version", action="version", version=f"coe-edge {__version__}")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def _decide(config: AgentConfig, options: argparse.Namespace) -> int:
    from coe.assembly import open_cascade
    from coe.models.inputs import Door

    from .agent import Agent
    from .greet import Greeting
    from .live import LiveLine
    from .sinks import open_sink
    from .sources import open_source

    talks = options.verbose or sys.stderr.isatty()
    source = open_source(config.source, options.once)
    sink = open_sink(config.sink, config.cascade.task.labels)
    cascade = open_cascade(config.cascade, _tell if talks else lambda line: None)
    door = Door(config.cascade.task.contract)
    door.warm_up()
    agent = Agent(
        cascade,
        door,
        sink,
        max_in_flight=config.max_in_flight,
        ordered=config.ordered,
        deadline_s=config.deadline_s,
        interval_s=config.source.interval_s,
    )
    interrupted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: agent.stop.set())
    signal.signal(signal.SIGINT, lambda *_: _interrupt(interrupted, agent.stop))
    greeting = Greeting(cascade, agent, _tell)
    greeting.wait(GREET_S)
    try:
        with LiveLine(agent.tally.line, sys.stderr, hidden=config.sink.path is None and sys.stdout.isatty()):
            tally = agent.run(source, options.limit)
    finally:
        sink.close()
        cascade.close()
    if talks:
        for line in tally.summary():
            _tell(line)
    if interrupted.is_set():
        return 130
    return 1 if tally.n and not tally.n_decided else 0  # nothing could be decided: that is no success


def _interrupt(*events: threading.Event) -> None:
    for event in events:
        event.set()


def _tell(line: str) -> None:
    print(f"coe-edge: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
