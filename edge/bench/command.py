"""`coe-edge bench`: times members and plans on this machine, weighs ways to send, and can write the plan down."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coe.assembly import CascadeConfig, LocalTierConfig, RemoteTierConfig
from coe.cascade.errors import ConfigError
from coe.settings import format_seconds
from coe.settings.edit import CannotEdit, replace_file, with_values

from ..config import AgentConfig, default_config, read_config
from .examples import Examples, read_examples
from .order import Order, ballots_of, weigh_orders
from .payloads import Weighed, weigh
from .plans import Timed, choose, cores, measure, reason
from .report import TierReport, as_values, payload_lines, tier_lines


def bench_command(arguments: Sequence[str]) -> int:
    """The exit code: 0; 1 where the plan could not be written.

    Raises:
        ConfigError, ModelError, RuntimeMissing: what has to be mended first.
    """
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    if options.write and options.config is None:
        raise ConfigError(["--write: expected --config as well: the bundled config is not written to"])
    config = read_config(path)
    for warning in config.warnings:
        _say(f"{path}: warning: {warning}")
    if options.ask_cloud and (config.field.never_send or config.field.hook):
        raise ConfigError(
            ["--ask-cloud: all examples would be sent, and `never_send:` or `hook:` lets some not leave (leave it out)"]
        )
    examples = read_examples(options.data, config, options.limit)
    _say(f"{examples.told}; {cores()} core(s) to use")
    if examples.n_unread:
        _say(f"{examples.n_unread} file(s) could not be read and are left out")
    if not examples.are_blank:
        _say(f"decoding and checking one takes {format_seconds(examples.decode_s)}, which no plan below includes")
    reports = _tiers(config.cascade, examples, options.seconds)
    weighed, why_not = _payloads(config.cascade, examples, options.ask_cloud)
    if options.json:
        told: dict[str, Any] = {"examples": examples.told, "n_examples": len(examples), "cores": cores()}
        told["decode_s"] = None if examples.are_blank else examples.decode_s
        print(json.dumps({**told, **as_values(reports, weighed)}, indent=1))
    else:
        for report in reports:
            print("\n".join([*tier_lines(report), ""]))
        if weighed:
            print("\n".join(payload_lines(weighed, why_not, len(examples))))
    return _write(path, config, reports) if options.write else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge bench",
        description="Time each member, and members in turn against side by side, on 1 thread and more; "
        "weigh the ways to send an example.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help='images to run on, "digits" (bundled), or - for JSON lines on standard input; default: the digits where '
        "they are the config's source, else a blank example",
    )
    parser.add_argument("--limit", type=_positive, default=200, metavar="N", help="examples at most (default: 200)")
    parser.add_argument(
        "--seconds", type=_seconds, default=10.0, metavar="S", help="for the plans of all tiers (default: 10)"
    )
    parser.add_argument(
        "--ask-cloud", action="store_true", help="send the examples there in each way, to compare its labels, too"
    )
    parser.add_argument("--write", action="store_true", help="write the plan into the config, comments kept")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return seconds


def _tiers(config: CascadeConfig, examples: Examples, seconds: float) -> list[TierReport]:
    """Each local tier, timed on every example, whichever would reach it."""
    local = [tier for tier in config.tiers if isinstance(tier, LocalTierConfig)]
    return [_tier(tier, config, examples, seconds / len(local)) for tier in local]


def _tier(tier: LocalTierConfig, config: CascadeConfig, examples: Examples, seconds: float) -> TierReport:
    timed = measure(
        tier,
        config,
        examples.batches,
        seconds,
        asks_all=examples.are_blank,
        say=lambda line: _say(f"tier {tier.name}: {line}"),
    )
    chosen = choose(timed)
    order = _order(tier, config, examples, chosen)
    settings: dict[str, bool | int | str] = {"parallel": chosen.plan.parallel, "threads": chosen.plan.threads}
    if order is not None:
        settings["order"] = order.setting
    elif tier.order != "fixed":
        settings["order"] = "fixed"
    return TierReport(
        tier.name,
        tuple(spec.name for spec in tier.members),
        tuple(timed),
        chosen,
        reason(timed, chosen),
        order,
        settings,
    )


def _order(tier: LocalTierConfig, config: CascadeConfig, examples: Examples, chosen: Timed) -> Order | None:
    """What the order of members costs, where some may be spared and it is known who agrees with whom."""
    needed = None if tier.rule.pools_scores else tier.rule.needed(len(tier.members))
    if chosen.plan.parallel or not tier.early or needed is None or len(tier.members) == 1 or examples.are_blank:
        return None
    return weigh_orders(ballots_of(tier, config, examples.batches), chosen.members, needed)


def _payloads(config: CascadeConfig, examples: Examples, asks_cloud: bool) -> tuple[list[Weighed], str]:
    """The ways to send to the first remote tier, where there is one and examples are images."""
    remote = next((tier for tier in config.tiers if isinstance(tier, RemoteTierConfig)), None)
    local = next((tier for tier in config.tiers if isinstance(tier, LocalTierConfig)), None)
    if remote is None or remote.foreign or examples.are_blank or config.task.contract.kind != "image":
        return [], ""
    return weigh(
        remote,
        local,
        config,
        examples.batches,
        lambda line: _say(f"tier {remote.name}: {line}"),
        asks_cloud=asks_cloud,
    )


def _write(path: Path, config: AgentConfig, reports: Sequence[TierReport]) -> int:
    """Put each tier's plan into the config; where that is not safe, say what to write by hand."""
    places = {tier.name: place for place, tier in enumerate(config.cascade.tiers)}
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line ends as they are
            text = file.read()
        for report in reports:
            text = with_values(text, ("tiers", places[report.name]), report.settings)
        replace_file(path, text, read_config)
    except CannotEdit as error:
        _say(f"{path} is as it was: {error}. Write by hand what each table says last")
        return 1
    _say(f"{path}: written: the plan of {', '.join(report.name for report in reports)}")
    return 0


def _say(line: str) -> None:
    print(f"coe-edge: {line}", file=sys.stderr, flush=True)
