"""Drift: a change is an event, so is its end, and where nothing changes there is none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.cascade import Decision
from edge.field.drift import Baseline, Drift, DriftConfig, Gauge, band, category
from edge.sinks import Event, Outcome
from edge.sources import Example


def outcome(what: str) -> Outcome:
    if what == "deferred":
        return Outcome("x", None, 0.0, error="timeout: late", deferred=True)
    count, asked = (int(word) for word in what.split(" of "))
    return Outcome("x", Decision("x", 0, 1, count / asked, 0.9, asked, 3, (count / asked,), (0.0,)), 0.0)


EXAMPLE = Example("x", b"")


def drift_of(window: int = 500, **shares: float) -> tuple[Drift, list[Event]]:
    events: list[Event] = []
    baselines = tuple(Baseline(what.replace("_of_", " of ").lstrip("v"), share, 2000) for what, share in shares.items())
    return Drift(DriftConfig(window, audits=100, baselines=baselines), events.append), events


@given(count=st.integers(0, 3), asked=st.integers(1, 3))
def test_a_decision_counts_by_its_votes(count, asked):
    if count <= asked:
        assert category(outcome(f"{count} of {asked}")) == f"{count} of {asked}"


def test_an_example_that_was_deferred_counts_as_such_whether_or_not_the_cloud_answered():
    answered = Decision("x", 0, 2, 1.0, 0.9, 1, 1, (0.5, 1.0), (0.0, 0.0))
    assert category(Outcome("x", answered, 0.0, deferred=True)) == "deferred"
    assert category(outcome("deferred")) == "deferred"
    assert category(Outcome("x", answered, 0.0, corrects="key")) is None
    assert category(Outcome("x", None, 0.0, error="cannot be read")) is None


def test_a_band_holds_a_window_like_calibration_and_is_wider_where_calibration_was_small():
    low, high = band(0.05, 2000, 1000, 1e-6)
    assert 0 < low < 0.05 < high < 0.12
    wide_low, wide_high = band(0.05, 100, 1000, 1e-6)
    assert wide_low < low < high < wide_high
    assert band(0.0, 1000, 500, 1e-6)[0] == 0.0
    assert band(1.0, 1000, 500, 1e-6)[1] == 1.0


def test_the_band_is_left_by_a_window_as_seldom_as_it_says():
    """At one in a hundred, with calibration drawn anew each time, as the predictive distribution means it."""
    dice, n_runs, n_out = random.Random(2), 1500, 0
    for _ in range(n_runs):
        rate = dice.uniform(0.02, 0.2)
        n_calibration, window = 400, 300
        share = sum(dice.random() < rate for _ in range(n_calibration)) / n_calibration
        seen = sum(dice.random() < rate for _ in range(window)) / window
        low, high = band(share, n_calibration, window, 0.01)
        n_out += not low <= seen <= high
    assert n_out / n_runs < 0.02


def test_a_device_whose_world_stays_as_it_was_raises_no_alarm_over_200_windows():
    drift, events = drift_of(deferred=0.05, v3_of_3=0.95)
    dice = random.Random(7)
    for _ in range(100_000):
        drift.on_outcome(EXAMPLE, outcome("deferred" if dice.random() < 0.05 else "3 of 3"))
    assert events == []


def test_leaving_the_band_is_told_once_and_so_is_coming_back():
    drift, events = drift_of(deferred=0.05)
    dice = random.Random(9)
    for rate, n in ((0.05, 2000), (0.25, 2000), (0.05, 4000)):
        for _ in range(n):
            drift.on_outcome(EXAMPLE, outcome("deferred" if dice.random() < rate else "3 of 3"))
    assert [(event.kind, event.facts["what"], event.facts["state"]) for event in events] == [
        ("drift", "deferred", "outside"),
        ("drift", "deferred", "inside"),
    ]
    left = events[0].facts
    assert left["share"] >= left["band"][1] > left["calibration"] == 0.05
    assert left["window"] == 500


def test_a_change_of_votes_is_seen_where_the_deferral_rate_stays():
    drift, events = drift_of(deferred=0.05, v2_of_2=0.90, v2_of_3=0.05)
    dice = random.Random(4)
    for _ in range(2000):
        drift.on_outcome(EXAMPLE, outcome(dice.choices(["deferred", "2 of 2", "2 of 3"], [0.05, 0.7, 0.25])[0]))
    assert {event.facts["what"] for event in events} == {"2 of 2", "2 of 3"}


def test_the_audits_error_has_a_band_of_its_own():
    drift, events = drift_of(audit_error=0.01)
    for number in range(200):
        drift.on_audit(number % 4 == 0)
        drift.on_outcome(EXAMPLE, outcome("deferred"))
    (event,) = events
    assert (event.facts["what"], event.facts["window"]) == ("audit_error", 100)


def test_a_band_can_be_set():
    gauge = Gauge(Baseline("deferred", 0.0, 1, band=(0.1, 0.2)), 100, 1e-6)
    assert (gauge.low, gauge.high) == (0.1, 0.2)
    changes = [gauge.add(number % 3 == 0) for number in range(100)]
    assert sum(changes) == 1
    assert gauge.is_out
    assert gauge.facts()["share"] == pytest.approx(0.34)
