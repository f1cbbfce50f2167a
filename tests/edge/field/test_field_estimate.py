"""The estimate of a share: unbiased whatever the chances, and its interval holds as often as it says."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.field.audit import Estimate, wilson


def test_nothing_known_is_said():
    estimate = Estimate()
    assert estimate.share is None
    assert estimate.interval() == (0.0, 1.0)


@given(hits=st.lists(st.booleans(), min_size=1, max_size=200), chance=st.floats(0.001, 1.0))
def test_with_one_chance_for_all_it_is_the_plain_share_with_wilsons_interval(hits, chance):
    estimate = Estimate()
    for is_hit in hits:
        estimate.add(chance, is_hit)
    share = sum(hits) / len(hits)
    assert estimate.share == pytest.approx(share)
    assert estimate.interval() == pytest.approx(wilson(share, len(hits)))


def test_wilsons_interval_is_the_published_one():
    low, high = wilson(0.0, 10)  # 0 of 10: 0 to 0.2775
    assert (low, high) == pytest.approx((0.0, 0.2775), abs=1e-4)
    low, high = wilson(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def sampled(
    dice: random.Random, n: int, rates: tuple[float, float], chances: tuple[float, float]
) -> tuple[Estimate, float]:
    """A day and a night: rates of error and chances of being drawn change together, the worst case for a plain mean."""
    estimate, n_wrong = Estimate(), 0
    for at in range(n):
        half = at * 2 // n
        is_wrong = dice.random() < rates[half]
        n_wrong += is_wrong
        if dice.random() < chances[half]:
            estimate.add(chances[half], is_wrong)
    return estimate, n_wrong / n


def test_chances_that_change_with_the_error_do_not_bias_it():
    dice = random.Random(3)
    errors, naive = [], []
    for _ in range(300):
        estimate, truth = sampled(dice, 2000, (0.02, 0.20), (0.4, 0.05))
        errors.append(estimate.share - truth)
        naive.append(estimate.n_hits / estimate.n_answered - truth)
    assert abs(sum(errors) / len(errors)) < 0.003
    assert sum(naive) / len(naive) < -0.05  # what counting each draw once would say


@pytest.mark.parametrize(
    ("rates", "chances"),
    [((0.05, 0.05), (0.1, 0.1)), ((0.02, 0.15), (0.3, 0.06)), ((0.01, 0.01), (0.2, 0.05))],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(rates, chances):
    dice = random.Random(11)
    n_runs, covered = 400, 0
    for _ in range(n_runs):
        estimate, _ = sampled(dice, 3000, rates, chances)
        low, high = estimate.interval()
        covered += low <= sum(rates) / 2 <= high
    assert covered / n_runs >= 0.93
