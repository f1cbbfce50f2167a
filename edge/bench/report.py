"""The bench's figures as tables for people, and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coe.settings import format_seconds

from .order import Order
from .payloads import Weighed
from .plans import MARGIN, Timed

RESTLESS = 1.5  # rounds of one plan that differ by more tell of other programs


@dataclass(frozen=True)
class TierReport:
    """What was measured of one local tier.

    Args:
        order: None where the order of members makes no difference.
        settings: what the chosen plan is in a config.
    """

    name: str
    members: tuple[str, ...]
    timed: tuple[Timed, ...]
    chosen: Timed
    why: str
    order: Order | None
    settings: dict[str, bool | int | str]


def tier_lines(report: TierReport) -> list[str]:
    """A tier's members, its plans, and the one to take."""
    in_turn = [one for one in report.timed if not one.plan.parallel]
    heads = ["member, one example", *(f"{one.plan.threads} thread{'s'[: one.plan.threads > 1]}" for one in in_turn)]
    rows = [[name, *(format_seconds(one.members[seat]) for one in in_turn)] for seat, name in enumerate(report.members)]
    lines = [f"tier {report.name}", *_table(heads, rows), ""]
    fastest = min(one.seconds for one in report.timed)
    lines += _table(
        ["plan", "a decision", "of the fastest", ""],
        [
            [
                one.how,
                format_seconds(one.seconds),
                f"{one.seconds / fastest:.2f}x",
                "<-" if one is report.chosen else "",
            ]
            for one in report.timed
        ],
    )
    spread = max(one.spread for one in report.timed)
    if spread > RESTLESS:
        lines.append(f"rounds of one plan differ by up to {spread:.1f}x: the machine is busy; measure when it is quiet")
    lines += ["", f"take: {report.chosen.how} ({report.why})"]
    if report.order is not None:
        lines += _order_lines(report.order, report.members)
    written = ", ".join(f"{key}: {_plain(value)}" for key, value in report.settings.items())
    return [*lines, f"in the config, at this tier: {written}"]


def _order_lines(order: Order, members: Sequence[str]) -> list[str]:
    def named(seats: Sequence[int]) -> str:
        return ", ".join(members[seat] for seat in seats)

    lines = [
        f"members asked, a decision: as listed {format_seconds(order.listed_s)}; "
        f"cheapest first ({named(order.cheapest_first)}) {format_seconds(order.cheapest_first_s)}"
    ]
    if order.best_s * MARGIN < min(order.listed_s, order.cheapest_first_s):
        lines.append(f"with these examples' votes known, listing {named(order.best)}: {format_seconds(order.best_s)}")
    return lines


def payload_lines(weighed: Sequence[Weighed], why_not: str, n_examples: int) -> list[str]:
    """What each way to send weighs and changes, against as captured."""
    heads = ["send", "bytes an example", "of captured", "labels here", "decisions here", "labels in the cloud"]
    rows = [
        [
            str(one.payload),
            f"{one.bytes:.0f}",
            f"{one.bytes / weighed[0].bytes:.2f}x",
            _changed(one.labels_changed),
            _changed(one.decisions_changed),
            _changed(one.cloud_changed),
        ]
        for one in weighed
    ]
    lines = [f"what is sent, and what it changes against `captured`, of {n_examples} examples", *_table(heads, rows)]
    if why_not:
        lines.append(f"the cloud's labels were not compared: {why_not}")
    return lines


def as_values(reports: Sequence[TierReport], weighed: Sequence[Weighed]) -> dict[str, Any]:
    """The same, for JSON: seconds, bytes, shares."""
    return {
        "tiers": [
            {
                "name": report.name,
                "members": report.members,
                "plans": [_values_of(one) for one in report.timed],
                "chosen": {**asdict(report.chosen.plan), "how": report.chosen.how},
                "why": report.why,
                "order": None if report.order is None else asdict(report.order),
                "settings": report.settings,
            }
            for report in reports
        ],
        "payloads": [{**asdict(one), "payload": str(one.payload)} for one in weighed],
    }


def _values_of(one: Timed) -> dict[str, Any]:
    values = asdict(one)
    return {**values.pop("plan"), **values}


def _changed(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _plain(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
