"""Injected delays and the clocks that wait for them."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from fractions import Fraction

import pytest
from strategies import Broken, one_hot, rows, table_tier

from coe.cascade import Batch, CallCost, TierTimeout
from coe.link import Delay, DelayedTier, RealClock, VirtualClock


@pytest.mark.timing
def test_one_microsecond_costs_microseconds():
    clock = RealClock()
    took = [clock.wait(1e-6) for _ in range(500)]
    assert min(took) >= 1e-6
    assert statistics.median(took) < 20e-6


@pytest.mark.timing
def test_ten_milliseconds_are_ten_milliseconds():
    clock = RealClock()
    outside = []
    for _ in range(9):
        started = time.perf_counter()
        reported = clock.wait(0.010)
        outside.append(time.perf_counter() - started)
        assert reported >= 0.010
        assert outside[-1] >= reported
    assert statistics.median(outside) < 0.011


@pytest.mark.parametrize("seconds", [0.00005, 0.0002, 0.001])
def test_a_wait_is_never_shorter_than_asked_for(seconds):
    clock = RealClock()
    for _ in range(20):
        started = clock.now()
        clock.wait(seconds)
        assert clock.now() - started >= seconds


def test_virtual_time_passes_only_by_waiting():
    clock = VirtualClock()
    started = time.perf_counter()
    assert clock.now() == 0.0
    assert clock.wait(1000.0) == 1000.0
    assert clock.now() == 1000.0
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize(("one_way", "charged"), [(False, 0.1), (True, 0.2)])
def test_a_delay_is_charged_once_a_round_trip_or_in_each_direction(one_way, charged):
    clock = VirtualClock()
    tier = DelayedTier(table_tier([one_hot([1])], Fraction(1), "far"), Delay(0.1, one_way), clock)
    vote = tier.vote(rows(1), tier.rule)
    assert Delay(0.1, one_way).round_trip_s == pytest.approx(charged)
    assert clock.now() == pytest.approx(charged)
    assert vote.call.delay_s == pytest.approx(charged)
    assert vote.labels.tolist() == [1]


def test_the_delay_adds_to_what_the_tier_reports_of_its_own():
    class Counting:
        n_tiers = 3
        waits = False
        closed = False

        def __init__(self):
            self.inner = table_tier([one_hot([1])], Fraction(1), "far")
            self.name, self.rule = self.inner.name, self.inner.rule

        def vote(self, batch, rule):
            return replace(self.inner.vote(batch, rule), call=CallCost(delay_s=0.5, bytes_sent=7.0))

        def complete(self, batch, vote):
            return replace(vote, call=CallCost(times={"completed_s": 1.0}))

        def close(self):
            self.closed = True

    inner = Counting()
    tier = DelayedTier(inner, Delay(0.1), VirtualClock())
    vote = tier.vote(rows(1), tier.rule)
    assert vote.call.to_dict() == {"delay_s": pytest.approx(0.6), "bytes_sent": 7.0}
    assert (tier.name, tier.n_tiers, tier.waits) == ("far", 3, True)
    assert tier.complete(rows(1), vote).call.to_dict() == {"completed_s": 1.0}
    tier.close()
    assert inner.closed


def test_a_tier_that_does_not_answer_fails_after_the_way_there():
    clock = VirtualClock()
    tier = DelayedTier(Broken(TierTimeout("far", "no answer")), Delay(0.1, one_way=True), clock)
    with pytest.raises(TierTimeout):
        tier.vote(rows(1), tier.rule)
    assert clock.now() == pytest.approx(0.1)


def test_a_delayed_tier_waits_in_real_time_by_default():
    tier = DelayedTier(table_tier([one_hot([1])], Fraction(1)), Delay(0.005))
    started = time.perf_counter()
    vote = tier.vote(rows(1), tier.rule)
    assert time.perf_counter() - started >= 0.005
    assert vote.call.delay_s >= 0.005


def test_a_batch_waits_once_not_once_a_row():
    clock = VirtualClock()
    tier = DelayedTier(table_tier([one_hot([0, 1, 2])], Fraction(1)), Delay(1.0), clock)
    batch: Batch = rows(3)
    tier.vote(batch, tier.rule)
    assert clock.now() == 1.0
