"""The studies' charts, as SVG for the page and PNG for a paper; the only module that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib import ticker

from coe.config import format_seconds

from .output import OURS, Figure, Series
from .records import DelayRow
from .systems import TITLES

matplotlib.use("svg")  # no screen is needed

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


WIDTH = 8.2
GREY = "#6f6f6f"
INK = "#333333"


@contextmanager
def canvas(height: float, **style: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, in the project's style."""
    settings: Any = {**STYLE, **style}
    with plt.rc_context(settings):
        figure, axes = plt.subplots(figsize=(WIDTH, height))
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def latency_against_delay(rows: Sequence[DelayRow]) -> str:
    """Mean end-to-end latency of each system over the injected delay; rings are the virtual clock's prediction."""
    with canvas(4.4) as (figure, axes):
        for system, colour in COLOURS.items():
            own = sorted((row for row in rows if row.system == system), key=lambda row: row.delay_s)
            delays = [row.delay_s for row in own]
            means = [row.latency_mean_s for row in own]
            axes.plot(delays, means, color=colour, marker=MARKERS[system], markersize=5, linewidth=2)
            axes.plot(delays, [row.predicted_mean_s for row in own], "o", color=colour, markersize=11, fillstyle="none")
            place = {"xytext": (12, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(TITLES[system], (delays[-1], means[-1]), color=colour, fontweight="bold", **place)
        _seconds_axis(axes, "x", [row.delay_s for row in rows])
        _seconds_axis(axes, "y", [row.latency_mean_s for row in rows])
        axes.set_xlabel("delay injected between device and cloud, per round trip")
        axes.set_ylabel("mean end-to-end latency")
        return as_svg(figure)


def exits(shares: Sequence[float], names: Sequence[str]) -> str:
    """Where examples exit, as one bar."""
    with canvas(1.5, **{"axes.grid": False}) as (figure, axes):
        left = 0.0
        for number, (share, name) in enumerate(zip(shares, names, strict=True)):
            colour = TIER_COLOURS[number % len(TIER_COLOURS)]
            axes.barh(0, share, left=left, color=colour, edgecolor="white")
            middle = left + share / 2
            style: dict[str, Any] = {"va": "center", "fontweight": "bold"}
            if share > 0.12:
                axes.text(middle, 0, f"{name}\n{share:.1%}", ha="center", color="white", **style)
            else:  # beside the bar, one above the other
                style |= {"xytext": (1.01, 0.75 - 0.3 * (number - 1)), "textcoords": "axes fraction"}
                axes.annotate(f"{name} {share:.1%}", (middle, 0.4), color=colour, **style)
            left += share
        axes.set_xlim(0, 1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("share of examples")
        return as_svg(figure)


def distribution(latencies: Mapping[tuple[str, float], Sequence[float]], delay_s: float) -> str:
    """Share of examples answered within a time, for each system at one delay."""
    with canvas(3.8) as (figure, axes):
        for place, (system, colour) in enumerate(COLOURS.items()):
            values = np.sort(latencies[system, delay_s])
            share = np.arange(1, len(values) + 1) / len(values)
            axes.step(values, share, where="post", color=colour, linewidth=2, zorder=4 - place)  # the cascade on top
            at = (1.01, 0.92 - 0.14 * place)
            axes.annotate(TITLES[system], at, xycoords="axes fraction", color=colour, fontweight="bold", va="center")
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
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def to_figure(figure: Any, name: str, title: str, caption: str = "") -> Figure:
    """The picture as SVG text and PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    return Figure(name, title, as_svg(figure), buffer.getvalue(), caption)


def spread_labels(values: Sequence[float], least: float) -> list[float]:
    """The same places moved apart so that no two are closer than `least`, in their order: for labels."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    groups: list[tuple[float, list[int]]] = []  # (centre, members), bottom up
    for at in order:
        groups.append((values[at], [at]))
        while len(groups) > 1 and _edge(groups[-1], -least) - _edge(groups[-2], least) < least:
            (upper, own), (lower, others) = groups.pop(), groups.pop()
            centre = (upper * len(own) + lower * len(others)) / (len(own) + len(others))
            groups.append((centre, others + own))
    places = [0.0] * len(values)
    for centre, members in groups:
        for step, at in enumerate(members):
            places[at] = centre + (step - (len(members) - 1) / 2) * least
    return places


def _edge(group: tuple[float, list[int]], least: float) -> float:
    """The place of a group's uppermost label; of its lowest where `least` is negative."""
    return group[0] + (len(group[1]) - 1) / 2 * least


def stacked_bars(
    rows: Sequence[str],
    parts: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    name: str,
    title: str,
    axis: str,
    caption: str = "",
    ends: Sequence[str] = (),
    colours: Sequence[str] = TIER_COLOURS,
    text: Callable[[float], str] | None = None,
) -> Figure:
    """One horizontal bar per row in coloured parts, the parts named above the first.

    Args:
        values: per row, one per part; shares unless `text` writes them.
        ends: what stands to the right of each row.
    """
    write = text or (lambda value: f"{value:.0%}")
    with canvas(0.9 + 0.5 * len(rows), **{"axes.grid": False}) as (figure, axes):
        longest = max(map(sum, values), default=1.0) or 1.0
        for place, own in enumerate(values):
            left = 0.0
            for number, value in enumerate(own):
                colour = colours[number % len(colours)]
                axes.barh(place, value, left=left, height=0.7, color=colour, edgecolor="white")
                if value > 0.07 * longest:
                    middle = left + value / 2
                    axes.text(middle, place, write(value), ha="center", va="center", color="white", fontsize=9)
                left += value
            if ends:
                axes.text(left + 0.012 * longest, place, ends[place], va="center", fontsize=9.5, color=INK)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, longest)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(lambda value, _: write(value) if value <= longest * 1.0001 else "")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        axes.set_xlabel(axis)
        _part_names(axes, parts, colours)
        return to_figure(figure, name, title, caption)


def _part_names(axes: Any, parts: Sequence[str], colours: Sequence[str]) -> None:
    """The parts' names in their colours, in one line over the bars."""
    handles = [axes.barh(0, 0, color=colours[number % len(colours)], label=part) for number, part in enumerate(parts)]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(parts), frameon=False, fontsize=9.5,
        handlelength=1.0, handletextpad=0.5, columnspacing=1.5, borderaxespad=0.2,
    )  # fmt: skip


def grouped_bars(
    groups: Sequence[str],
    parts: Sequence[str],
    values: Sequence[Sequence[float]],
    text: Callable[[float], str],
    *,
    name: str,
    title: str,
    axis: str,
    caption: str = "",
    colours: Sequence[str] = TIER_COLOURS,
    value: Callable[[float], str] | None = None,
) -> Figure:
    """Bars side by side: one group per row of `values`, one bar per part, each with its value above.

    Args:
        text: how a tick is written, with its unit. value: how a bar's own is; default: as a tick.
    """
    width = 0.8 / len(parts)
    with canvas(4.0) as (figure, axes):
        for number, part in enumerate(parts):
            places = [place + (number - (len(parts) - 1) / 2) * width for place in range(len(groups))]
            heights = [own[number] for own in values]
            bars = axes.bar(places, heights, width * 0.92, color=colours[number % len(colours)], label=part)
            if len(groups) * len(parts) <= 24:
                axes.bar_label(bars, [(value or text)(height) for height in heights], fontsize=7.5, padding=2)
        axes.set_xticks(range(len(groups)), groups)
        axes.xaxis.grid(visible=False)
        axes.yaxis.set_major_formatter(lambda at, _: text(at) if at else "0")
        axes.set_ylabel(axis)
        axes.margins(y=0.12)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(parts), frameon=False, fontsize=10, handlelength=1.0
        )
        return to_figure(figure, name, title, caption)


def bar_chart(
    rows: Sequence[str],
    values: Sequence[float],
    text: Callable[[float], str],
    *,
    name: str,
    title: str,
    axis: str,
    colours: Sequence[str],
    caption: str = "",
) -> Figure:
    """One horizontal bar per row, its value at its end."""
    with canvas(0.8 + 0.42 * len(rows)) as (figure, axes):
        bars = axes.barh(range(len(rows)), values, 0.7, color=colours)
        axes.bar_label(bars, [text(value) for value in values], fontsize=10, padding=4)
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.yaxis.grid(visible=False)
        axes.margins(x=0.1)
        axes.xaxis.set_major_formatter(lambda value, _: text(value) if value else "0")
        axes.set_xlabel(axis)
        return to_figure(figure, name, title, caption)


SUFFIX = ".onnx"  # models of files are named without it
GROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}  # names are read over lines and marks
NEAR = (45.0, 12.0)  # points, across and up: closer ones share a label
LOG_FROM = 12.0  # a wider range of most costs gets a logarithmic axis


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How a method is drawn, the same in every picture."""

    colour: str
    marker: str
    line: str = "-"
    width: float = 1.6


LINE_STYLES = {  # Okabe and Ito's colours and a violet; marker and dash differ too
    OURS: LineStyle("#0072B2", "o", "-", 2.6),
    "agreement 2/3": LineStyle("#56A0D3", "^", "-", 2.2),
    "agreement 100%": LineStyle("#0072B2", "o", "-", 2.2),
    "single models": LineStyle("#111111", "s", "", 0),
    "ensembles alone": LineStyle(GREY, "^", "-", 1.2),
    "confidence cascade": LineStyle("#D55E00", "D", "--"),
    "confidence, ensembles": LineStyle("#B37400", "v", "--"),
    "committee cascade": LineStyle("#CC79A7", "P", "-."),
    "IDK, max probability": LineStyle("#009E73", "X", "-."),
    "IDK, entropy": LineStyle("#3A9BD9", "*", "-."),
    "calibrated vote": LineStyle("#6A3D9A", "p", "-", 2.0),
    "random deferral": LineStyle(GREY, "", ":", 1.6),
    "Pareto set": LineStyle("#0072B2", "o", "-", 1.4),
    "ideal rule": LineStyle(INK, "", (0, (1, 1)), 1.6),  # type: ignore[arg-type]
}
OTHER = LineStyle(GREY, ".", "", 0)


def frontier(
    series: Sequence[Series],
    axis: str,
    text: Callable[[float], str],
    *,
    name: str,
    title: str,
    caption: str = "",
    cloud: tuple[Sequence[float], Sequence[float]] | None = None,
    floor: float | None = None,
) -> Figure:
    """The picture.

    Args:
        axis: what the costs are, with their unit; `text` writes one.
        cloud: (costs, accuracies) of everything tried, as faint dots.
        floor: accuracies below it are left out of view.
    """
    shown = [one for one in series if len(one.costs)]
    with canvas(5.0) as (figure, axes):
        if cloud is not None:
            dots = {"markersize": 4, "markeredgewidth": 0, "alpha": 0.55}
            axes.plot(*cloud, ".", color="#8fb0c9", zorder=1, rasterized=True, **dots)
        for one in shown:
            look = LINE_STYLES.get(one.method, OTHER)
            axes.plot(
                one.costs, one.accuracies, linestyle=look.line or "none", marker=look.marker or None,
                color=look.colour, linewidth=look.width, markersize=5.5, zorder=3 if look.width < 2 else 4,
            )  # fmt: skip
        _cost_axis(axes, [cost for one in shown for cost in one.costs], text)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=None))
        if floor is not None:
            axes.set_ylim(bottom=floor)
        axes.set_xlabel(axis)
        axes.set_ylabel("accuracy")
        figure.canvas.draw()
        _point_names(axes, shown)
        _line_names(axes, shown)
        return to_figure(figure, name, title, caption)


def _cost_axis(axes: Any, costs: Sequence[float], text: Callable[[float], str]) -> None:
    positive = [cost for cost in costs if cost > 0]
    low, high = np.quantile(positive or [1.0], (0.2, 0.95))
    if high > LOG_FROM * low:
        axes.set_xscale("log")
        narrow = max(positive) < 1000 * min(positive)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=12))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        axes.set_xlim(left=0, right=max(positive, default=1) * 1.04)
    axes.xaxis.set_major_formatter(lambda value, _: text(value) if value > 0 else "0")


def _point_names(axes: Any, series: Sequence[Series]) -> None:
    """A name beside each named point; those under the view are listed at its edge."""
    low, high = axes.get_xlim()
    floor, top = axes.get_ylim()
    under = [
        f"{name} {at:.1%}" for one in series for name, at in zip(one.names, one.accuracies, strict=False) if at < floor
    ]
    if under:
        axes.annotate(
            "below: " + ", ".join(under), (0.01, 0.015), xycoords="axes fraction", ha="left", fontsize=9, color=INK,
            zorder=6, bbox=GROUND,
        )  # fmt: skip
    for one in series:
        points = [
            (name.removesuffix(SUFFIX), cost, accuracy)
            for name, cost, accuracy in zip(one.names, one.costs, one.accuracies, strict=False)
            if accuracy >= floor
        ]
        for name, cost, accuracy in _gathered(axes, points):
            is_log = axes.get_xscale() == "log"
            share = (np.log(cost / low) / np.log(high / low)) if is_log else (cost - low) / (high - low)
            left, low_down = share > 0.75, accuracy < floor + 0.06 * (top - floor)
            beside = (-5, 5) if left else (7, 1 if low_down else -9)
            axes.annotate(
                name, (cost, accuracy), xytext=beside, textcoords="offset points",
                ha="right" if left else "left", fontsize=9, color=LINE_STYLES.get(one.method, OTHER).colour,
                annotation_clip=True, clip_on=True, zorder=6, bbox=GROUND,
            )  # fmt: skip


def _gathered(axes: Any, points: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """(name, cost, accuracy) with the names of points that lie close together in one label, at the rightmost."""
    places = axes.transData.transform([(cost, accuracy) for _, cost, accuracy in points]) if points else []
    unit = axes.figure.dpi / 72
    groups: list[list[int]] = []
    for at in sorted(range(len(points)), key=lambda at: points[at][1]):
        for group in groups:
            near = np.abs(places[group[-1]] - places[at]) / unit
            if near[0] < NEAR[0] and near[1] < NEAR[1]:
                group.append(at)
                break
        else:
            groups.append([at])
    return [(", ".join(points[at][0] for at in group), *points[group[-1]][1:]) for group in groups]


def _line_names(axes: Any, series: Sequence[Series]) -> None:
    """Each method's name to the right of the axes, tied to its last point in view by a hair line."""
    bottom, top = axes.get_ylim()
    ends = []
    for one in series:
        inside = [(c, a) for c, a in zip(one.costs, one.accuracies, strict=True) if bottom <= a <= top]
        if inside:
            ends.append((one.method, *inside[-1]))
    heights = [(accuracy - bottom) / (top - bottom) for _, _, accuracy in ends]
    places = spread_labels(heights, 0.058)
    over = max([*places, 1.0]) - 1.0  # nothing above the top
    for (method, cost, accuracy), place in zip(ends, places, strict=True):
        colour = LINE_STYLES.get(method, OTHER).colour
        axes.annotate(
            method, (cost, accuracy), xytext=(1.04, place - over), textcoords="axes fraction", color=colour,
            va="center", fontsize=10, fontweight="bold" if method == OURS else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 0, "shrinkB": 3,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
