"""Bars: where examples exit, which agreements are wrong, what members cost side by side and in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import ticker

from ..parts import Figure
from ..plots import TIER_COLOURS
from .canvas import INK, canvas, drawn


def stacked(
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
                    axes.text(
                        left + value / 2, place, write(value), ha="center", va="center", color="white", fontsize=9
                    )
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
        return drawn(figure, name, title, caption)


def _part_names(axes: Any, parts: Sequence[str], colours: Sequence[str]) -> None:
    """The parts' names in their colours, in one line over the bars."""
    handles = [axes.barh(0, 0, color=colours[number % len(colours)], label=part) for number, part in enumerate(parts)]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(parts), frameon=False, fontsize=9.5,
        handlelength=1.0, handletextpad=0.5, columnspacing=1.5, borderaxespad=0.2,
    )  # fmt: skip


def paired(
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
        return drawn(figure, name, title, caption)


def plain(
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
        return drawn(figure, name, title, caption)
