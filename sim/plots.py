"""The plots, as SVG text in one style: units on the axes, lines named where they end, colours all can tell apart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from coe.settings import format_seconds

from .records import Row
from .systems import TITLES

matplotlib.use("svg")  # no screen is needed
from matplotlib import pyplot as plt
from matplotlib import ticker

# Okabe and Ito's palette: safe for the common kinds of colour blindness.
COLOURS = {"cascade": "#0072B2", "cloud-only": "#D55E00", "edge-only": "#009E73"}
MARKERS = {"cascade": "o", "cloud-only": "s", "edge-only": "^"}
TIER_COLOURS = ("#0072B2", "#008F67", "#D55E00", "#CC79A7", "#8C6D00")
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "coe",  # the same plot gives the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
}


def latency_against_delay(rows: Sequence[Row]) -> str:
    """Mean end-to-end latency of each system over the injected delay; rings are the virtual clock's prediction."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 4.4))
        for system, colour in COLOURS.items():
            own = sorted((row for row in rows if row.system == system), key=lambda row: row.delay_s)
            delays = [row.delay_s for row in own]
            means = [row.latency_mean_s for row in own]
            axes.plot(delays, means, color=colour, marker=MARKERS[system], markersize=5, linewidth=2)
            axes.plot(delays, [row.predicted_mean_s for row in own], "o", color=colour, markersize=11, fillstyle="none")
            axes.annotate(
                TITLES[system],
                (delays[-1], means[-1]),
                xytext=(12, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                fontweight="bold",
            )
        _seconds_axis(axes, "x", [row.delay_s for row in rows])
        _seconds_axis(axes, "y", [row.latency_mean_s for row in rows])
        axes.set_xlabel("delay injected between device and cloud, per round trip")
        axes.set_ylabel("mean end-to-end latency")
        return as_svg(figure)


def exits(shares: Sequence[float], names: Sequence[str]) -> str:
    """Where examples exit, as one bar."""
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(8.2, 1.5))
        left = 0.0
        for number, (share, name) in enumerate(zip(shares, names, strict=True)):
            axes.barh(0, share, left=left, color=TIER_COLOURS[number % len(TIER_COLOURS)], edgecolor="white")
            middle = left + share / 2
            text = f"{name}\n{share:.1%}"
            if share > 0.12:
                axes.text(middle, 0, text, ha="center", va="center", color="white", fontweight="bold")
            else:  # beside the bar, one above the other
                colour = TIER_COLOURS[number % len(TIER_COLOURS)]
                axes.annotate(
                    text.replace("\n", " "),
                    (middle, 0.4),
                    xytext=(1.01, 0.75 - 0.3 * (number - 1)),
                    textcoords="axes fraction",
                    color=colour,
                    va="center",
                    fontweight="bold",
                )
            left += share
        axes.set_xlim(0, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("share of examples")
        return as_svg(figure)


def distribution(latencies: Mapping[tuple[str, float], Sequence[float]], delay_s: float) -> str:
    """Share of examples answered within a time, for each system at one delay."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 3.8))
        for place, (system, colour) in enumerate(COLOURS.items()):
            values = np.sort(latencies[system, delay_s])
            share = np.arange(1, len(values) + 1) / len(values)
            axes.step(values, share, where="post", color=colour, linewidth=2, zorder=4 - place)  # the cascade on top
            axes.annotate(
                TITLES[system],
                (1.01, 0.92 - 0.14 * place),
                xycoords="axes fraction",
                color=colour,
                fontweight="bold",
                va="center",
            )
        _seconds_axis(axes, "x", [value for (_, at), own in latencies.items() if at == delay_s for value in own])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel(f"end-to-end latency, with a delay of {format_seconds(delay_s)} a round trip")
        axes.set_ylabel("examples answered by then")
        return as_svg(figure)


def _seconds_axis(axes: Any, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis over `values`, with a tick named in plain units at each power of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))
    axis.set_major_locator(ticker.FixedLocator([10.0**power for power in range(int(low), int(high) + 1)]))
    axis.set_major_formatter(lambda value, _: format_seconds(value))
    axis.set_minor_locator(ticker.NullLocator())


def as_svg(figure: Any) -> str:
    """The figure as SVG text, from its first tag on; the figure is closed."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
