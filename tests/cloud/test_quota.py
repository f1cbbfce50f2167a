"""What a device is given over time: never more than its rate and its burst allow, whatever it tries."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.limits import Quota, Rate
from coe.cascade.errors import TierOverloaded, TierRejected
from coe.protocol.core import Request

RATES = st.builds(Rate, st.floats(0.01, 1000), st.integers(1, 200))
TRIES = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 200)), min_size=1, max_size=60)  # (pause, rows)


def given_at(quota: Quota, tries: list[tuple[float, int]], caller: str = "pi-1") -> list[tuple[float, int]]:
    """(when, how many) of what was given."""
    now, got = 0.0, []
    for pause, n_rows in tries:
        now += pause
        try:
            quota.take(caller, n_rows, now)
        except (TierOverloaded, TierRejected):
            continue
        got.append((now, n_rows))
    return got


@given(RATES, TRIES)
def test_in_no_window_a_device_gets_more_than_its_burst_and_its_rate(rate: Rate, tries: list[tuple[float, int]]):
    got = given_at(Quota(rate), tries)
    for first, (start, _) in enumerate(got):
        total = 0
        for end, n_rows in got[first:]:
            total += n_rows
            assert total <= rate.burst + rate.examples_per_s * (end - start) + 1e-6


@given(RATES, TRIES)
def test_who_comes_again_when_it_is_told_to_is_served(rate: Rate, tries: list[tuple[float, int]]):
    quota, now = Quota(rate), 0.0
    for pause, n_rows in tries:
        now += pause
        try:
            quota.take("pi-1", n_rows, now)
        except TierRejected:
            assert n_rows > rate.burst
        except TierOverloaded as error:
            now += error.retry_after_s or 0.0
            quota.take("pi-1", n_rows, now)


@given(RATES, TRIES)
def test_a_refused_request_costs_nothing(rate: Rate, tries: list[tuple[float, int]]):
    """Without those that were refused, the others are given just the same."""
    got = given_at(Quota(rate), tries)
    quota = Quota(rate)
    for now, n_rows in got:
        quota.take("pi-1", n_rows, now)


def test_a_device_gets_its_burst_then_its_rate():
    quota = Quota(Rate(10, 5))
    for _ in range(5):
        quota.take("pi-1", 1, 0.0)
    with pytest.raises(TierOverloaded) as refused:
        quota.take("pi-1", 1, 0.0)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    quota.take("pi-1", 1, 0.1)
    with pytest.raises(TierOverloaded):
        quota.take("pi-1", 1, 0.15)


def test_a_pause_saves_up_no_more_than_the_burst():
    quota = Quota(Rate(10, 5))
    quota.take("pi-1", 5, 0.0)
    quota.take("pi-1", 5, 1e6)
    with pytest.raises(TierOverloaded):
        quota.take("pi-1", 1, 1e6)


def test_a_clock_that_goes_back_gives_nothing():
    quota = Quota(Rate(10, 5))
    quota.take("pi-1", 5, 100.0)
    for now in (0.0, 100.0, 50.0, 100.0):
        with pytest.raises(TierOverloaded):
            quota.take("pi-1", 1, now)


def test_a_request_larger_than_the_burst_is_refused_for_good_and_names_it():
    quota = Quota(Rate(10, 5))
    with pytest.raises(TierRejected, match=r"at most 5 examples .* the burst .* got 6"):
        quota.take("pi-1", 6, 0.0)


def test_one_device_does_not_use_up_anothers_quota():
    quota = Quota(Rate(10, 5))
    quota.take("pi-1", 5, 0.0)
    quota.take("pi-2", 5, 0.0)


def test_a_device_with_a_rate_of_its_own_has_that_one_and_no_limit_is_none():
    quota = Quota(None, {"pi-1": Rate(1, 2)}.get)
    quota.take("pi-2", 10**6, 0.0)
    assert len(quota) == 0
    with pytest.raises(TierRejected):
        quota.take("pi-1", 3, 0.0)


def test_a_rate_that_is_lowered_counts_from_the_next_request():
    rates = {"pi-1": Rate(10, 100)}
    quota = Quota(None, rates.get)
    quota.take("pi-1", 1, 0.0)
    rates["pi-1"] = Rate(1, 2)
    quota.take("pi-1", 2, 0.0)
    with pytest.raises(TierOverloaded):
        quota.take("pi-1", 1, 0.0)


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 3)), max_size=200))
def test_no_more_devices_are_tracked_than_the_bound(visits: list[tuple[int, float]]):
    quota, now = Quota(Rate(1, 1), n_devices=5), 0.0
    for number, pause in visits:
        now += pause
        with contextlib.suppress(TierOverloaded):
            quota.take(f"pi-{number}", 1, now)
        assert len(quota) <= 5


def test_idle_devices_make_room_and_busy_ones_keep_their_debts():
    quota = Quota(Rate(1, 10), n_devices=3)
    for number in range(3):
        quota.take(f"pi-{number}", 1 if number else 10, 0.0)
    with pytest.raises(TierOverloaded, match="3 devices are busy already"):
        quota.take("pi-3", 1, 0.5)
    quota.take("pi-3", 1, 2.0)  # two buckets are full again after a second, and are gone
    assert len(quota) == 2
    with pytest.raises(TierOverloaded):
        quota.take("pi-0", 5, 2.0)


def test_as_a_gate_it_charges_the_caller_for_the_rows_of_its_request():
    quota = Quota(Rate(0.001, 5))
    quota.enter(Request("digits", "", "", {"input": np.zeros((4, 1))}, caller="pi-1"))
    quota.leave(Request("digits", "", "", {"input": np.zeros((4, 1))}, caller="pi-1"))
    with pytest.raises(TierOverloaded, match=r'tier digits: the quota of device "pi-1"') as refused:
        quota.enter(Request("digits", "", "", {"input": np.zeros((2, 1))}, caller="pi-1"))
    assert refused.value.tier == "digits"
