"""What all pictures share: the style of `sim.plots`, colours by method, and a figure in two forms."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import pyplot as plt

from ..parts import Figure
from ..plots import STYLE, as_svg

WIDTH = 8.2
GREY = "#8a8a8a"
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


def drawn(figure: Any, name: str, title: str, caption: str = "") -> Figure:
    """The picture as SVG text and PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    return Figure(name, title, as_svg(figure), buffer.getvalue(), caption)


def spread(values: Sequence[float], least: float) -> list[float]:
    """The same places moved apart so that no two are closer than `least`, in their order: for labels."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    groups: list[tuple[float, list[int]]] = []  # (centre, members), bottom up
    for at in order:
        groups.append((values[at], [at]))
        while len(groups) > 1 and _bottom(groups[-1], least) - _top(groups[-2], least) < least:
            (upper, own), (lower, others) = groups.pop(), groups.pop()
            centre = (upper * len(own) + lower * len(others)) / (len(own) + len(others))
            groups.append((centre, others + own))
    places = [0.0] * len(values)
    for centre, members in groups:
        for step, at in enumerate(members):
            places[at] = centre + (step - (len(members) - 1) / 2) * least
    return places


def _bottom(group: tuple[float, list[int]], least: float) -> float:
    return group[0] - (len(group[1]) - 1) / 2 * least


def _top(group: tuple[float, list[int]], least: float) -> float:
    return group[0] + (len(group[1]) - 1) / 2 * least
