"""What is remembered of how long calls took, and what is forgotten."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.link import MovingAverage, RoundTrips


def test_nothing_is_known_at_first():
    times = RoundTrips(lambda: 0.0)
    assert math.isnan(times.mean_s)
    assert math.isnan(times.best_s)
    assert MovingAverage().high == 0.0


def test_the_best_of_a_minute_ago_is_forgotten_and_that_of_half_a_minute_is_not():
    now = 0.0
    times = RoundTrips(lambda: now)
    times.add(0.1)
    now = 29.0
    times.add(0.3)
    assert times.best_s == 0.1
    now = 45.0
    assert times.best_s == 0.1
    times.add(0.2)
    now = 76.0
    assert times.best_s == 0.2
    now = 140.0
    assert math.isnan(times.best_s)
    assert math.isnan(times.mean_s)


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=50))
def test_the_mean_stays_within_what_was_seen_and_the_high_above_it(values):
    times = MovingAverage()
    for value in values:
        times.add(value)
    assert min(values) - 1e-9 <= times.mean <= max(values) + 1e-9
    assert times.high >= times.mean


def test_a_steady_time_has_a_high_close_to_it():
    times = MovingAverage()
    for _ in range(50):
        times.add(0.01)
    assert times.high == pytest.approx(0.01, rel=0.01)
