"""The report: one HTML file that stands alone, offline."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coe.config import format_seconds
from sim import charts
from sim.output import (
    DELAY_COLUMNS,
    achieved_cells,
    delay_cells,
    document,
    figure_html,
    scrolling,
    table_html,
    written_by,
)
from sim.records import DelayRow
from sim.systems import TITLES

from .delays import BUSY, DelayStudy, savings, verdict
from .digits import COST_HEADER, MODEL_HEADER, Profile, cost_cells, model_cells


def write_report(path: Path, study: DelayStudy, profile: Profile | None) -> Path:
    """The report of a delay study, and of the models where they were run; its first plot also as `latency.svg`."""
    rows = study.rows
    latency = charts.latency_against_delay(rows)
    path.with_name("latency.svg").write_text(latency, encoding="utf-8")
    is_real = rows[0].clock == "real"
    title = f"Where a cascade answers, and what that saves: {study.task}"
    middle = sorted({row.delay_s for row in rows})[-2:][0]  # the largest delay but one, where there are two
    kinds = "The cascade is two kinds of example: most answered at once on the device, the others after the delay."
    measured = "Filled: measured mean. Rings: what the virtual clock predicts from a run without a delay."
    virtual = "Means in virtual time; nothing was measured anew."
    parts = [
        f"<h1>{html.escape(title)}</h1><p class=lead>{written_by()}; {rows[0].n:,} examples of {study.task}; "
        f"{'real processes' if is_real else 'a recording'}: {html.escape(study.about + study.link)}</p>",
        _cards(rows),
        *(f"<p class=warning>{html.escape(line)}</p>" for line in verdict(rows)[1:] if BUSY in line),
        *(f"<p>{html.escape(line)}</p>" for line in verdict(rows)[:1]),
        figure_html("Latency against delay", latency, measured if is_real else virtual),
        _exit_chart(rows),
        figure_html("Latency distribution", charts.distribution(study.latencies, middle), kinds),
        "<h2>All rows</h2>" + _rows_table(rows),
        f"<p class=note>The delay is charged {'in each direction' if study.one_way else 'once per round trip'}.</p>",
        "<h2>The injected delay, checked</h2>" + _achieved(rows),
    ]
    if profile is not None:
        parts += ["<h2>The models</h2>" + table_html(MODEL_HEADER, model_cells(profile)), _accountings_table(profile)]
    path.write_text(document(title, "".join(parts)), encoding="utf-8")
    return path


def _cards(rows: Sequence[DelayRow]) -> str:
    """The headline is that of the largest delay at which the machine was not busy; all delays stand below it."""
    found = savings(rows)
    first = {row.system: row for row in reversed(rows)}
    cascade, cloud = first["cascade"], first["cloud-only"]
    held = [one for one in found if not one["busy"]]
    each = ", ".join(f"{format_seconds(one['delay_s'])}: {_times(one, 'latency_ratio')}" for one in found)
    at = max(held, key=lambda one: float(one["delay_s"]), default=None)
    lower = f"lower mean latency than the cloud alone at {format_seconds(at['delay_s'])}" if at else "no headline"
    sent = at["bytes_ratio"] if at else None
    cards = [
        (f"{1 - cascade.deferral_rate:.1%}", "decided on the device"),
        (_times(at, "latency_ratio") if at else "busy", f"{lower} ({each})"),
        ("-" if sent is None else f"{1 - 1 / sent:.1%}", "fewer bytes sent"),
        (f"{cascade.accuracy:.1%}", f"accuracy; best single model {cloud.accuracy:.1%}"),
    ]
    shown = (f"<div class=card><b>{value}</b><span>{html.escape(text)}</span></div>" for value, text in cards)
    return f"<div class=cards>{''.join(shown)}</div>"


def _times(saving: Mapping[str, Any], name: str) -> str:
    if saving["busy"]:
        return "busy"
    return "-" if saving[name] is None else f"{saving[name]:.1f}x"


def _exit_chart(rows: Sequence[DelayRow]) -> str:
    shares = next(row for row in rows if row.system == "cascade").exits
    names = ["tier 1, on the device", *(f"tier {number}, cloud" for number in range(2, len(shares) + 1))]
    caption = "The tier whose members agreed, or the last."
    return figure_html("Where examples exit", charts.exits(shares, names), caption)


def _rows_table(rows: Sequence[DelayRow]) -> str:
    lines = "".join(
        f"<tr class={row.system}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in delay_cells(row))}</tr>"
        for row in rows
    )
    header = "".join(f"<th>{name}</th>" for name in DELAY_COLUMNS)
    return scrolling(f"<tr>{header}</tr>{lines}")


def _achieved(rows: Sequence[DelayRow]) -> str:
    lines = [[delay, TITLES[system], *achieved] for delay, system, *achieved in achieved_cells(rows)]
    return table_html(("target", "system", "achieved mean", "achieved p99"), lines)


def _accountings_table(profile: Profile) -> str:
    head = (COST_HEADER[0], "an example pays for", *COST_HEADER[1:])
    lines = [[kind, _MEANING[kind], *cells] for kind, *cells in cost_cells(profile)]
    return (
        "<h2>Compute in three accountings</h2>"
        + table_html(head, lines)
        + f"<p class=note>best: {html.escape(profile.best_name)} alone, {format_seconds(profile.best_latency_s)} and "
        f"{profile.best_flops:.2g} FLOPs. Model time alone, on one machine; no network.</p>"
    )


_MEANING = {
    "exit": "the tier where it leaves",
    "reach": "every tier passed, members side by side",
    "reach-serial": "every member of every tier passed",
}
