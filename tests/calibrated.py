"""Cascades by calibrated votes, as hypothesis draws them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from strategies import table_tier, tables

from coe.calibration import CalibratedVote, StageVote
from coe.cascade import Cascade
from coe.cascade.types import Array

Case = tuple[list[list[Array]], list[StageVote], int]
EIGHTHS = st.integers(-24, 24).map(lambda eighths: eighths / 8)  # exact and few, so that utilities tie often


@st.composite
def fitted_stages(draw: st.DrawFn, n_members: int, n_labels: int, *, is_last: bool) -> StageVote:
    number = draw(st.sampled_from([EIGHTHS, st.floats(-4, 4)]))
    row = st.lists(number, min_size=n_members, max_size=n_members).map(tuple)
    grid = st.lists(st.integers(0, 8).map(lambda eighths: eighths / 8), min_size=2, max_size=6).map(sorted).map(tuple)
    biases = st.lists(number, min_size=n_labels, max_size=n_labels).map(tuple)
    grids = tuple(draw(st.lists(grid | st.just(()), min_size=n_members, max_size=n_members)))
    threshold = None if is_last else draw(st.sampled_from([0.3, 0.5, 0.7, 0.9, 0.99]))
    d = draw(st.just(()) | biases)
    return StageVote(draw(row), draw(row), draw(row), draw(number), d, grids, n_labels, threshold)


@st.composite
def cascades(draw: st.DrawFn, least_tiers: int = 1) -> Case:
    """Tables of each tier's members, the stages, and the number of rows."""
    n_rows, n_labels = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    sizes = draw(st.lists(st.integers(1, 3), min_size=least_tiers, max_size=3))
    tiers = [draw(tables(n_members=size, n_rows=n_rows, n_labels=n_labels)) for size in sizes]
    stages = [
        draw(fitted_stages(sum(sizes[: place + 1]), n_labels, is_last=place == len(sizes) - 1))
        for place in range(len(sizes))
    ]
    return tiers, stages, n_rows


def cascade_of(
    tiers: Sequence[Sequence[Array]], stages: Sequence[StageVote], *, early: bool = False, parallel: bool = False
) -> Cascade:
    before, opened = 0, []
    for number, (own, stage) in enumerate(zip(tiers, stages, strict=True), start=1):
        rule = CalibratedVote((stage,), before)
        opened.append(table_tier(own, rule, f"tier {number}", early=early, parallel=parallel))
        before += len(own)
    return Cascade(opened)


def by_hand(tiers: Sequence[Sequence[Array]], stages: Sequence[StageVote], row: int) -> tuple[int, int, float]:
    """Label, exit tier and p of one example, with every member asked."""
    labels: list[int] = []
    scores: list[float] = []
    for number, (own, stage) in enumerate(zip(tiers, stages, strict=True), start=1):
        labels += [int(table[row].argmax()) for table in own]
        scores += [float(table[row].max()) for table in own]
        label, p = stage.posterior_of_one(labels, scores)
        if stage.threshold is None or p >= stage.threshold:
            return label, number, p
    raise AssertionError("a last stage has no threshold")


N_LABELS = 3


def equal(n_members: int, threshold: float | None = None, gate: float | None = None) -> StageVote:
    """Equal weights and no scores: plain agreement."""
    none = (0.0,) * n_members
    return StageVote((2.0,) * n_members, none, none, 0.0, (), ((),) * n_members, N_LABELS, threshold, gate)
