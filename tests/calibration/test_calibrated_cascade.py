"""A cascade by calibrated votes: what a tier knew counts in the next one's answer, wherever the tiers run."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.calibration import CalibratedVote, Calibration, Gate, StageVote, TableMember, rules_of
from coe.cascade import NO_LABEL, Agreement, Always, Cascade, Confidence, LocalTier, TierRejected, TierUnavailable
from tests.calibration.test_calibrated_vote import equal, stages
from tests.strategies import Broken, members_of, rows, table_tier, tables


@st.composite
def cascades(draw: st.DrawFn):
    """Tables of each tier's members, and a stage each."""
    n_rows, n_labels = draw(st.integers(1, 6)), draw(st.sampled_from([2, 3, 4]))
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    tiers = [draw(tables(n_members=size, n_rows=n_rows, n_labels=n_labels)) for size in sizes]
    fitted: list[StageVote] = []
    for place in range(len(sizes)):
        stage = draw(stages(n_members=sum(sizes[: place + 1])).filter(lambda one: one.n_labels in (2, 3, 4)))
        stage = replace(stage, n_labels=n_labels, d=stage.d[:n_labels] if len(stage.d) >= n_labels else ())
        fitted.append(replace(stage, threshold=None if place == len(sizes) - 1 else stage.threshold or 0.5))
    return tiers, fitted, n_rows


def cascade_of(tiers, fitted, *, early: bool = False, parallel: bool = False) -> Cascade:
    before, opened = 0, []
    for number, (own, stage) in enumerate(zip(tiers, fitted, strict=True), start=1):
        rule = CalibratedVote((stage,), before)
        opened.append(table_tier(own, rule, f"tier {number}", early=early, parallel=parallel))
        before += len(own)
    return Cascade(opened)


def by_hand(tiers, fitted, row: int) -> tuple[int, int, float]:
    """Label, exit tier and p of one example, with every member asked."""
    labels: list[int] = []
    scores: list[float] = []
    for number, (own, stage) in enumerate(zip(tiers, fitted, strict=True), start=1):
        labels += [int(table[row].argmax()) for table in own]
        scores += [float(table[row].max()) for table in own]
        label, p = stage.posterior_of_one(labels, scores)
        if stage.threshold is None or p >= stage.threshold:
            return label, number, p
    raise AssertionError("a last stage has no threshold")


@given(cascades())
def test_a_tier_weighs_what_all_members_so_far_said_and_a_batch_equals_its_rows(case):
    tiers, fitted, n_rows = case
    cascade = cascade_of(tiers, fitted)
    decided = cascade.decide(rows(n_rows))
    for row in range(n_rows):
        alone = cascade.decide(rows(1, row))[0]
        assert (alone.label, alone.exit_tier, alone.score) == by_hand(tiers, fitted, row)
        assert replace(decided[row], tier_times_s=()) == replace(alone, tier_times_s=())
        own = [int(table[row].argmax()) for table in tiers[alone.exit_tier - 1]]
        assert alone.vote == own.count(alone.label) / len(own)


@given(cascades())
def test_an_early_decided_vote_is_that_of_asking_everybody(case):
    tiers, fitted, n_rows = case
    early, whole = cascade_of(tiers, fitted, early=True), cascade_of(tiers, fitted)
    for row in range(n_rows):
        one, other = early.decide(rows(1, row))[0], whole.decide(rows(1, row))[0]
        assert (one.label, one.exit_tier) == (other.label, other.exit_tier)
        assert one.asked <= other.asked
