"""Accuracy against average cost: every method as a line or as points, named where it ends. Paper: Figures 2, 3, 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import ticker

from ..parts import Figure
from .canvas import GREY, INK, canvas, drawn, spread
from .series import OURS, Series

SUFFIX = ".onnx"  # models of files are named without it
GROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}  # names are read over lines and marks
NEAR = (45.0, 12.0)  # points, across and up: closer ones share a label
LOG_FROM = 12.0  # a wider range of most costs gets a logarithmic axis


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn, the same in every picture."""

    colour: str
    marker: str
    line: str = "-"
    width: float = 1.6


LOOKS = {  # Okabe and Ito's colours, marker and dash differ too
    OURS: Look("#0072B2", "o", "-", 2.6),
    "single models": Look("#111111", "s", "", 0),
    "ensembles alone": Look(GREY, "^", "-", 1.2),
    "confidence cascade": Look("#D55E00", "D", "--"),
    "confidence, same members": Look("#B37400", "v", "--"),
    "committee cascade": Look("#CC79A7", "P", "-."),
    "IDK, max probability": Look("#009E73", "X", "-."),
    "IDK, entropy": Look("#3A9BD9", "*", "-."),
    "random deferral": Look(GREY, "", ":", 1.6),
    "Pareto set": Look("#0072B2", "o", "-", 1.4),
    "ideal rule": Look(INK, "", (0, (1, 1)), 1.6),  # type: ignore[arg-type]
}
OTHER = Look(GREY, ".", "", 0)


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
            axes.plot(
                *cloud, ".", color="#8fb0c9", markersize=4, markeredgewidth=0, alpha=0.55, zorder=1, rasterized=True
            )
        for one in shown:
            look = LOOKS.get(one.method, OTHER)
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
        return drawn(figure, name, title, caption)


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
            share = (
                (np.log(cost / low) / np.log(high / low)) if axes.get_xscale() == "log" else (cost - low) / (high - low)
            )
            left, low_down = share > 0.75, accuracy < floor + 0.06 * (top - floor)
            beside = (-5, 5) if left else (7, 1 if low_down else -9)
            axes.annotate(
                name, (cost, accuracy), xytext=beside, textcoords="offset points",
                ha="right" if left else "left", fontsize=9, color=LOOKS.get(one.method, OTHER).colour,
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
    places = spread(heights, 0.058)
    over = max([*places, 1.0]) - 1.0  # nothing above the top
    for (method, cost, accuracy), place in zip(ends, places, strict=True):
        colour = LOOKS.get(method, OTHER).colour
        axes.annotate(
            method, (cost, accuracy), xytext=(1.04, place - over), textcoords="axes fraction", color=colour,
            va="center", fontsize=10, fontweight="bold" if method == OURS else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 0, "shrinkB": 3,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
