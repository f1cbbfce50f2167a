"""`coe-edge bench`: times members and thread plans on this device, and compares ways to send an example."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError, InputError
from coe.cascade.types import Batch
from coe.config import format_seconds
from coe.config.cascade import CascadeConfig, LocalTierConfig
from coe.config.program import positive_int
from coe.config.yaml_edit import CannotEdit, replace_file, with_values
from coe.models.input_spec import InputSpec
from coe.models.inputs import InputDecoder
from edge.config import AgentConfig, default_config, read_config
from edge.sources import Source, SourceConfig, open_data, open_source
from edge.tally import answers_warnings

from .payloads import PayloadCost, compare_payloads
from .plans import MARGIN, Order, PlanTiming, choose, compare_orders, cores, measure, member_labels, reason

DIGITS = "digits"


@dataclass(frozen=True)
class ProfileExamples:
    """Examples, each a batch of its own, as a device gets them.

    Args:
        description: what they are, for people.
        are_blank: zeros: fit for timing a model, not for what depends on which members agree.
        n_unread: files that could not be read as an example.
        decode_s: median seconds to decode and check one; NaN for a blank one.
    """

    batches: tuple[Batch, ...]
    description: str
    are_blank: bool = False
    n_unread: int = 0
    decode_s: float = math.nan

    def __len__(self) -> int:
        return len(self.batches)


def read_examples(data: str | None, config: AgentConfig, limit: int) -> ProfileExamples:
    """The first `limit` examples of `data`: "digits", or what `open_data` takes.

    Args:
        data: None: the digits where the config's source is these, else blank ones.
    Raises:
        ConfigError: there is no such place, or nothing in it that the task takes.
    """
    input_spec = config.cascade.task.input_spec
    if data is None and config.source.kind == DIGITS:
        data = DIGITS
    if data is None:
        return ProfileExamples(
            (Batch(("blank",), input_spec.blank()),),
            "a blank example (no --data): every member votes, and no payloads are compared",
            are_blank=True,
        )
    if data == DIGITS:
        description = "bundled digits, a test split: look, but choose nothing by it"
        return _read(open_source(SourceConfig(DIGITS)), input_spec, limit, description)
    description = "examples of standard input" if data == "-" else f"examples of {data}"
    return _read(open_data(data, config.cascade.task), input_spec, limit, description)


def _read(source: Source, input_spec: InputSpec, limit: int, description: str) -> ProfileExamples:
    decoder = InputDecoder(input_spec)
    batches, times = [], []
    first_error, n_unread = "", 0
    for example in source.examples(threading.Event()):
        try:
            if example.value is None:
                raise InputError(str(example.error))
            started = time.perf_counter()
            batches.append(decoder.batch([example.id], [example.value]))
            times.append(time.perf_counter() - started)
        except InputError as error:
            first_error, n_unread = first_error or str(error), n_unread + 1
        if len(batches) == limit:
            break
    if not batches:
        raise ConfigError([f"--data: expected examples the task takes, got none: {first_error or 'it is empty'}"])
    description = f"{len(batches)} {description}"
    return ProfileExamples(tuple(batches), description, n_unread=n_unread, decode_s=statistics.median(times))


NOISY_RATIO = 1.5  # rounds of one plan that differ by more: other programs are running


@dataclass(frozen=True)
class TierReport:
    """What was measured of one local tier.

    Args:
        order: None if the order of members makes no difference.
        settings: the chosen plan as settings of a config.
    """

    name: str
    members: tuple[str, ...]
    timed: tuple[PlanTiming, ...]
    chosen: PlanTiming
    why: str
    order: Order | None
    settings: dict[str, bool | int | str]


def tier_lines(report: TierReport) -> list[str]:
    """The report as text: a tier's members, its plans, and the one to take."""
    in_turn = [one for one in report.timed if not one.plan.parallel]
    heads = ["member, one example", *(f"{one.plan.threads} thread{'s'[: one.plan.threads > 1]}" for one in in_turn)]
    rows = [
        [name, *(format_seconds(one.members[index]) for one in in_turn)] for index, name in enumerate(report.members)
    ]
    lines = [f"tier {report.name}", *_table(heads, rows), ""]
    fastest = min(one.seconds for one in report.timed)
    rows = [
        [one.how, format_seconds(one.seconds), f"{one.seconds / fastest:.2f}x", "<-" if one is report.chosen else ""]
        for one in report.timed
    ]
    lines += _table(["plan", "a decision", "of the fastest", ""], rows)
    spread = max(one.spread for one in report.timed)
    if spread > NOISY_RATIO:
        lines.append(f"rounds of one plan differ by up to {spread:.1f}x: the machine is busy; measure when it is quiet")
    lines += ["", f"take: {report.chosen.how} ({report.why})"]
    if report.order is not None:
        lines += _order_lines(report.order, report.members)
    settings = json.dumps(report.settings).strip("{}").replace('"', "")
    return [*lines, f"in the config, at this tier: {settings}"]


def _order_lines(order: Order, members: Sequence[str]) -> list[str]:
    def named(indices: Sequence[int]) -> str:
        return ", ".join(members[index] for index in indices)

    lines = [
        f"members that vote, a decision: as listed {format_seconds(order.listed_s)}; "
        f"cheapest first ({named(order.cheapest_first)}) {format_seconds(order.cheapest_first_s)}"
    ]
    if order.best_s * MARGIN < min(order.listed_s, order.cheapest_first_s):
        lines.append(f"with these examples' votes known, listing {named(order.best)}: {format_seconds(order.best_s)}")
    return lines


def payload_lines(costs: Sequence[PayloadCost], why_not: str, n_examples: int) -> list[str]:
    """The size of each payload and the labels that it changes, against `captured`, as text."""
    heads = ["send", "bytes an example", "of captured", "labels here", "decisions here", "labels in the cloud"]
    rows = []
    for one in costs:
        changed = (one.labels_changed, one.decisions_changed, one.cloud_changed)
        shares = ["-" if share is None else f"{share:.1%}" for share in changed]
        rows.append([str(one.payload), f"{one.bytes:.0f}", f"{one.bytes / costs[0].bytes:.2f}x", *shares])
    lines = [f"what is sent, and what it changes against `captured`, of {n_examples} examples", *_table(heads, rows)]
    if why_not:
        lines.append(f"the cloud's labels were not compared: {why_not}")
    return lines


def as_values(reports: Sequence[TierReport], costs: Sequence[PayloadCost]) -> dict[str, Any]:
    """The reports as plain data: seconds, bytes, shares."""
    return {
        "tiers": [
            {
                "name": report.name,
                "members": report.members,
                "plans": [(values := asdict(one)).pop("plan") | values for one in report.timed],
                "chosen": asdict(report.chosen.plan) | {"how": report.chosen.how},
                "why": report.why,
                "order": None if report.order is None else asdict(report.order),
                "settings": report.settings,
            }
            for report in reports
        ],
        "payloads": [{**asdict(one), "payload": str(one.payload)} for one in costs],
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [heads, *rows]
    ]


def bench_command(arguments: Sequence[str]) -> int:
    """The exit code: 0; 1 where the plan could not be written.

    Raises:
        ConfigError, ModelError, RuntimeMissing: the config or a model cannot be used.
    """
    options = _parser().parse_args(arguments)
    path = options.config or default_config()
    if options.write and options.config is None:
        raise ConfigError(["--write: expected --config as well: the bundled config is not written to"])
    config = read_config(path)
    for warning in config.warnings:
        _log(f"{path}: warning: {warning}")
    if options.ask_cloud and config.field.holds_back:
        reason = "all examples would be sent, and `never_send:` or `privacy_filter:` holds some back"
        raise ConfigError([f"--ask-cloud: {reason} (leave it out)"])
    examples = read_examples(options.data, config, options.limit)
    _log(f"{examples.description}; {cores()} core(s) to use")
    if examples.n_unread:
        _log(f"{examples.n_unread} file(s) could not be read and are left out")
    if not examples.are_blank:
        _log(f"decoding and checking one takes {format_seconds(examples.decode_s)}, which no plan below includes")
    seconds = options.seconds / max(len(config.cascade.local_tiers), 1)  # each on all examples, reached by them or not
    reports = [_tier(tier, config.cascade, examples, seconds) for tier in config.cascade.local_tiers]
    costs, why_not = _payloads(config.cascade, examples, options.ask_cloud)
    if options.json:
        values = {
            "examples": examples.description,
            "n_examples": len(examples),
            "cores": cores(),
            "decode_s": None if examples.are_blank else examples.decode_s,
        }
        print(json.dumps(values | as_values(reports, costs), indent=1))
    else:
        for report in reports:
            print("\n".join([*tier_lines(report), ""]))
        if costs:
            print("\n".join(payload_lines(costs, why_not, len(examples))))
    return _write(path, config, reports) if options.write else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coe-edge bench",
        description="Time each member, and members in turn against side by side, on 1 thread and more; "
        "compare the ways to send an example.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument(
        "--data",
        metavar="PLACE",
        help='folder or file of examples, "digits" (bundled), or - for JSON lines on stdin; default: the digits where '
        "they are the config's source, else a blank example",
    )
    parser.add_argument("--limit", type=positive_int, default=200, metavar="N", help="examples at most (default: 200)")
    parser.add_argument(
        "--seconds", type=_seconds, default=10.0, metavar="S", help="for the plans of all tiers (default: 10)"
    )
    parser.add_argument(
        "--ask-cloud", action="store_true", help="send it the examples in each way, to compare its labels, too"
    )
    parser.add_argument("--write", action="store_true", help="write the plan into the config, comments kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return seconds


def _tier(tier: LocalTierConfig, config: CascadeConfig, examples: ProfileExamples, seconds: float) -> TierReport:
    timed = measure(
        tier,
        config,
        examples.batches,
        seconds,
        asks_all=examples.are_blank,
        log=lambda line: _log(f"tier {tier.name}: {line}"),
    )
    chosen = choose(timed)
    labels = [] if examples.are_blank else member_labels(tier, config, examples.batches)
    for spec, answers in zip(tier.members, zip(*labels, strict=True), strict=False):
        for line in answers_warnings(Counter(answers), math.nan, config.task.labels):
            _log(f"warning: {spec.name}: {line}")
    order = _order(tier, labels, chosen)
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


def _order(tier: LocalTierConfig, labels: list[list[int]], chosen: PlanTiming) -> Order | None:
    """The cost of the order of members; None if all of them vote anyway, or if nothing is known of their votes."""
    needed = None if tier.rule.pools_scores else tier.rule.needed(len(tier.members))
    if chosen.plan.parallel or not tier.early or needed is None or len(tier.members) == 1 or not labels:
        return None
    return compare_orders(labels, chosen.members, needed)


def _payloads(config: CascadeConfig, examples: ProfileExamples, asks_cloud: bool) -> tuple[list[PayloadCost], str]:
    """The payloads for the first remote tier, if there is one and examples are images, and why it was not asked."""
    remote, local = next(iter(config.remote_tiers), None), next(iter(config.local_tiers), None)
    if remote is None or examples.are_blank or config.task.input_spec.kind != "image":
        return [], ""
    return compare_payloads(
        remote,
        local,
        config,
        examples.batches,
        lambda line: _log(f"tier {remote.name}: {line}"),
        asks_cloud=asks_cloud,
    )


def _write(path: Path, config: AgentConfig, reports: Sequence[TierReport]) -> int:
    """0: each tier's plan is in the config; 1: the file cannot be edited safely, and a message says what to do."""
    places = {tier.name: place for place, tier in enumerate(config.cascade.tiers)}
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line ends as they are
            text = file.read()
        for report in reports:
            text = with_values(text, ("tiers", places[report.name]), report.settings)
        replace_file(path, text, read_config)
    except CannotEdit as error:
        _log(f"{path} is unchanged: {error}. Write the last line of each table into it by hand")
        return 1
    _log(f"{path}: written: the plan of {', '.join(report.name for report in reports)}")
    return 0


def _log(line: str) -> None:
    print(f"coe-edge: {line}", file=sys.stderr, flush=True)
