"""The virtual clock: the simulator without queues equals the closed form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cascade import ConfigError
from coe.link import Delay
from sim.records import Record, replay

seconds = st.floats(1e-6, 0.5)


@st.composite
def runs(draw: st.DrawFn) -> list[Record]:
    """Records of a cascade without an injected delay: unanimous ones stay, others leave."""
    records = []
    for number in range(draw(st.integers(1, 12))):
        local_s, call_s = draw(seconds), draw(seconds)
        if draw(st.booleans()):
            records.append(Record(f"e{number}", 3, 3, 1, local_s, votes=(1.0,)))
        else:
            exit_tier = draw(st.integers(2, 3))
            votes = (0.5, 1.0) if exit_tier == 2 else (0.666667, 0.666667, 1.0)
            records.append(Record(f"e{number}", 4, 3, exit_tier, local_s + call_s, call_s, bytes_sent=300, votes=votes))
    return records


@given(runs(), seconds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_replay_equals_the_closed_form(records: list[Record], delay_s: float, one_way: bool):
    delay = Delay(delay_s, one_way)
    for record, replayed in zip(records, replay(records, delay, has_device_tier=True), strict=True):
        expected = record.latency_s + (delay.round_trip_s if record.left_device else 0.0)
        assert replayed.latency_s == pytest.approx(expected)
        assert replayed.delay_s == pytest.approx(delay.round_trip_s if record.left_device else 0.0)
        assert (replayed.label, replayed.exit_tier) == (record.label, record.exit_tier)


def test_a_system_without_a_device_tier_pays_the_delay_for_every_example():
    records = [Record(f"e{n}", 1, 1, 1, 0.012, call_s=0.01, bytes_sent=300) for n in range(5)]
    replayed = replay(records, Delay(1.0), has_device_tier=False)
    assert [record.latency_s for record in replayed] == pytest.approx([1.012] * 5)


def test_a_system_that_never_leaves_the_device_pays_none():
    records = [Record(f"e{n}", 1, 1, 1, 0.002) for n in range(5)]
    replayed = replay(records, Delay(1.0), has_device_tier=True)
    assert [record.latency_s for record in replayed] == pytest.approx([0.002] * 5)


def test_a_recording_at_two_thirds_is_replayed_though_its_votes_are_rounded():
    stays = Record("a", 1, 1, 1, 0.001, votes=(0.666667,))
    leaves = Record("b", 2, 2, 2, 0.012, call_s=0.01, bytes_sent=300, votes=(0.333333, 1.0))
    replayed = replay([stays, leaves], Delay(0.1), has_device_tier=True)
    assert [record.exit_tier for record in replayed] == [1, 2]


def test_a_recording_with_degraded_examples_is_refused():
    fell_back = Record("b", 2, 2, 1, 0.012, call_s=0.01, votes=(0.666667,), degraded="timeout: ...")
    with pytest.raises(ConfigError, match="got 1 degraded examples, b first"):
        replay([fell_back], Delay(0.1), has_device_tier=True)
