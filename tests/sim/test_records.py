"""Records and rows: what a run says of each example, and what a row says of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from coe.cascade import ConfigError
from sim.records import Record, load_recording, read_records, save_recording, summarise

AWAY = Record("b", 1, 1, 2, 0.112, call_s=0.011, server_s=0.008, delay_s=0.1, bytes_sent=300, bytes_received=90)
HERE = Record("a", 0, 1, 1, 0.001)


def test_communication_is_all_waiting_that_is_no_servers_own_time():
    assert AWAY.communication_s == pytest.approx(0.1 + 0.011 - 0.008)
    assert replace(AWAY, hops_s=0.002).communication_s == pytest.approx(0.105)
    assert HERE.communication_s == 0.0


def test_local_time_is_what_is_left_of_the_latency():
    assert AWAY.local_s == pytest.approx(0.112 - 0.111)


def test_a_row_averages_over_all_examples_and_delays_over_those_that_left():
    row = summarise("cascade", 0.1, [HERE, AWAY, HERE, HERE], 0.03, n_tiers=3, clock="real")
    assert (row.n, row.deferral_rate, row.accuracy) == (4, 0.25, 0.25)
    assert row.exits == (0.75, 0.25, 0.0)
    assert row.latency_mean_s == pytest.approx((0.112 + 3 * 0.001) / 4)
    assert row.communication_mean_s == pytest.approx(0.103 / 4)
    assert row.bytes_sent_per_example == 75
    assert row.achieved_delay_s == pytest.approx(0.1)


def test_a_recording_round_trips(tmp_path: Path):
    path = tmp_path / "recording.json"
    save_recording(path, {"cascade": [HERE, AWAY]}, "here")
    recording, about = load_recording(path)
    assert (recording, about) == ({"cascade": [HERE, AWAY]}, "here")


@pytest.mark.parametrize("content", ["", "{}", '{"columns": ["id"], "systems": {"cascade": [[1, 2]]}, "about": ""}'])
def test_what_is_no_recording_is_a_clear_error(tmp_path: Path, content: str):
    path = tmp_path / "recording.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="expected a recording"):
        load_recording(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recording(tmp_path / "none.json")


def test_an_example_without_a_decision_is_not_averaged_away(tmp_path: Path):
    path = tmp_path / "decisions.jsonl"
    path.write_text(json.dumps({"id": "x", "error": "unavailable: ...", "truth": 3, "latency_s": 1}) + "\n")
    with pytest.raises(ConfigError, match="example x: unavailable"):
        read_records(path)
