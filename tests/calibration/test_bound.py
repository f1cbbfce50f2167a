"""Bounds: they hold as often as they say, at the boundary too, and the sizes are those that were published."""

from __future__ import annotations

import numpy as np
import pytest

from coe.calibration.bound import (
    binomial_tail,
    difference_interval,
    examples_needed,
    is_certified,
    lower_bound,
    power,
    sample_size,
    share_interval,
)


def drawn(rng: np.random.Generator, n: int, gain: float, loss: float) -> np.ndarray:
    return rng.choice([-1, 0, 1], n, p=[loss, 1 - gain - loss, gain])


@pytest.mark.parametrize("gain", [0.0, 0.02])
def test_at_the_boundary_a_tenth_at_most_is_certified(gain):
    rng = np.random.default_rng(0)
    found = [is_certified(drawn(rng, 1000, gain, gain + 0.01), 0.01, 0.1) for _ in range(200)]
    assert np.mean(found) <= 0.1 + 2 * 0.021


def test_the_lower_bound_is_below_the_truth_nine_times_in_ten_and_not_far():
    rng = np.random.default_rng(1)
    bounds = [lower_bound(drawn(rng, 1000, 0.04, 0.02), 0.1) for _ in range(20)]
    assert np.mean(np.array(bounds) <= 0.02) >= 0.9
    assert np.median(bounds) > 0


def test_the_bound_and_the_test_agree():
    x = drawn(np.random.default_rng(2), 800, 0.03, 0.03)
    low = lower_bound(x, 0.1)
    assert is_certified(x, -low + 1e-4, 0.1)
    assert not is_certified(x, -low - 1e-4, 0.1)


def test_nothing_is_shown_by_nothing():
    assert lower_bound([], 0.1) == -1.0
    assert not is_certified([], 0.01, 0.1)
    assert lower_bound([-1] * 50, 0.1) < -0.9


def test_power_grows_with_examples_and_the_size_has_the_power_wanted():
    assert power(500, 0.01, 0.01, 0.01, 0.1) < power(3000, 0.01, 0.01, 0.01, 0.1)
    n = sample_size(0.01, 0.01, 0.01, 0.1)
    assert n is not None
    assert 1000 < n < 3000  # 2,000 where 2% of the answers differ and nothing is gained
    assert power(n, 0.01, 0.01, 0.01, 0.1) >= 0.77


def test_a_candidate_that_is_worse_by_more_is_never_certified():
    assert sample_size(0.0, 0.02, 0.01, 0.1) is None
    assert sample_size(0.02, 0.02, 0.0, 0.1) is None


def test_the_exact_sizes_are_those_of_the_binomial():
    assert examples_needed(0.01) == [299, 473, 773]
    assert binomial_tail(0, 299, 0.01) <= 0.05 < binomial_tail(0, 298, 0.01)
    assert binomial_tail(3, 10, 0.5) == pytest.approx(176 / 1024)


def test_six_examples_show_little():
    assert share_interval(6, 6) == (pytest.approx(0.541, abs=1e-3), 1.0)
    low, high = difference_interval(0, 0, 6)
    assert low < -0.2
    assert high > 0.2
    low, high = difference_interval(30, 10, 1000)
    assert low == pytest.approx(0.0074, abs=1e-3)
    assert high == pytest.approx(0.0325, abs=1e-3)
