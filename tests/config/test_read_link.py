"""Models of a link as a config or a file says them."""

from __future__ import annotations

import pytest

from coe.config import Fields, Report
from coe.config.link import open_link, read_link
from coe.link import Link, Loss, Opportunities, Outage, Propagation, Queue


def read(value, folder):
    report = Report("pi.yaml")
    return read_link(Fields({"link_model": value}, report), "link_model", folder), report.findings


def seconds(queue, n_bytes):
    return float(Link([queue]).start(0)[0].deliver(0.0, n_bytes)[0])


def test_no_link_is_none(tmp_path):
    assert read(None, tmp_path) == (None, [])


def test_settings_hold_for_both_directions_but_for_those_of_one(tmp_path):
    value = {"delay_ms": 20, "jitter_ms": 5, "loss": 0.01, "down": {"delay_ms": 10, "jitter": "pareto"}}
    link, found = read(value, tmp_path)
    assert found == []
    assert list(link.up) == [Loss(0.01, 0.2), Propagation(0.02, "normal", 0.005)]
    assert list(link.down) == [Loss(0.01, 0.2), Propagation(0.01, "pareto", 0.005)]


def test_a_bandwidth_is_in_megabits_and_may_be_shared(tmp_path):
    link, _ = read({"mbit_per_s": 8, "up": {"mbit_per_s": 0.8, "day": [0.5, 1]}}, tmp_path)
    assert [seconds(way[0], 1e6) for way in (link.up, link.down)] == pytest.approx([20.0, 1.0])
    link, _ = read({"mbit_per_s": 8, "shared": True, "delay_ms": 1}, tmp_path)
    assert [type(model) for model in link.both] == [Queue]
    assert link.up == link.down == [Propagation(0.001, "normal", 0.0)]


def test_an_outage_of_the_link_is_one_of_both_directions(tmp_path):
    link, _ = read({"outage_seconds": 2, "outage_every_seconds": 60}, tmp_path)
    assert (list(link.both), list(link.up), list(link.down)) == ([Outage(60.0, 2.0)], [], [])
    link, _ = read({"up": {"outage_seconds": 2}}, tmp_path)
    assert (list(link.both), list(link.up), list(link.down)) == ([], [Outage(3600.0, 2.0)], [])


def test_a_file_is_a_recording_or_the_settings(tmp_path):
    (tmp_path / "lte.up").write_text("1\n2\n")
    link, _ = read("lte.up", tmp_path)
    assert isinstance(link.up[0].capacity, Opportunities)
    assert list(link.down) == []
    (tmp_path / "lte.yaml").write_text("up: {trace: lte.up, delay_ms: 5}\n")
    link = open_link(str(tmp_path / "lte.yaml"))
    assert [type(model) for model in link.up] == [Queue, Propagation]
    (tmp_path / "5g.csv").write_text("t_s,up_kbps,down_kbps,rtt_ms\n0,8,16,50\n")
    link, _ = read("5g.csv", tmp_path)
    assert [len(way) for way in (link.up, link.down)] == [2, 2]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"delay": 5}, 'link_model.delay: unknown setting (did you mean "delay_ms"?)'),
        ({"up": {"loss": 2}}, "link_model.up.loss: expected 0 to 0.9, got 2"),
        ({"loss": 2}, "link_model.loss: expected 0 to 0.9, got 2"),
        ({"up": {"jitter_ms": 2}}, "link_model.up.jitter_ms: expected a delay_ms"),
        ({"day": [0, 0], "mbit_per_s": 1, "down": {"day": [1, 1]}}, "link_model.up.day: expected at least two"),
        ({"trace": "none.up"}, "none.up: the link cannot be read"),
        ("none.yaml", "none.yaml: cannot be read"),
        ("zoo:nothing/x.up", "nothing"),
        (5, "expected a mapping, got 5"),
    ],
)
def test_what_is_wrong_is_named_once(tmp_path, value, says):
    link, found = read(value, tmp_path)
    assert link is None
    assert len(found) == 1
    assert says in found[0]
