"""Models of a link: moments against theory, a trace's bytes against its file, and many at once as one by one."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.cascade import ConfigError
from coe.link import (
    PACKET_BYTES,
    Link,
    Loss,
    Opportunities,
    Outage,
    Propagation,
    Queue,
    RoundTrips,
    Steps,
    bandwidth,
    read_recorded,
)

RECORDED = Path(os.environ.get("COE_DATA") or Path(__file__).parents[3] / "shared" / "data") / "links"
N = 40_000


def took(model, n_bytes=100, n=N, every_s=1000.0, seed=1):
    """Seconds of `n` messages that are too far apart to wait for each other."""
    sent_s = np.arange(n) * every_s
    return Link(up=[model]).start(seed)[0].deliver(sent_s, n_bytes) - sent_s


def test_a_constant_delay_is_that_delay():
    assert took(Propagation(0.25), n=3) == pytest.approx([0.25] * 3)


@pytest.mark.parametrize("jitter", ["normal", "lognormal", "pareto"])
def test_jitter_has_the_mean_and_the_deviation_it_is_given(jitter):
    seconds = took(Propagation(0.1, jitter, 0.02))
    assert seconds.min() >= 0
    assert seconds.mean() == pytest.approx(0.1, abs=5 * 0.02 / math.sqrt(N))
    assert seconds.std() == pytest.approx(0.02, rel=0.1)


def test_a_normal_delay_never_arrives_before_it_was_sent():
    assert took(Propagation(0.01, "normal", 0.05)).min() == 0


@pytest.mark.parametrize(("share", "n_packets"), [(0.01, 1), (0.1, 1), (0.1, 12), (0.3, 3)])
def test_loss_costs_what_theory_says(share, n_packets):
    wait_s = [min(0.2 * 2**k, 60.0) for k in range(60)]  # before the packet is sent once more
    more = [1 - (1 - share ** (k + 1)) ** n_packets for k in range(60)]  # P(a packet is lost more than k times)
    expected = sum(wait * p for wait, p in zip(wait_s, more, strict=True))
    seconds = took(Loss(share), n_packets * PACKET_BYTES)
    assert seconds.mean() == pytest.approx(expected, abs=5 * seconds.std() / math.sqrt(N))
    assert (seconds > 0).mean() == pytest.approx(more[0], abs=5 * math.sqrt(more[0] / N))


def test_bandwidth_takes_time_by_bytes_and_in_order():
    up, _ = Link(up=[bandwidth(1000.0)]).start(0)
    assert up.deliver([0.0, 0.1, 5.0], [1000, 500, 100]) == pytest.approx([1.0, 1.5, 5.1])
    assert up.deliver([5.0], [100]) == pytest.approx([5.2])  # behind the one of the call before


def test_a_queue_waits_as_m_d_1_says():
    rng = np.random.default_rng(3)
    sent_s = rng.exponential(1 / 0.7, 200_000).cumsum()
    took_s = Link(up=[bandwidth(1000.0)]).start(0)[0].deliver(sent_s, 1000) - sent_s
    assert took_s.mean() == pytest.approx(1 + 0.7 / (2 * (1 - 0.7)), rel=0.05)


def test_a_shared_bandwidth_is_taken_by_both_directions():
    up, down = Link(both=[bandwidth(1000.0)]).start(0)
    assert up.deliver(0.0, 1000) == pytest.approx([1.0])
    assert down.deliver(0.5, 1000) == pytest.approx([2.0])
    up, down = Link(up=[bandwidth(1000.0)], down=[bandwidth(1000.0)]).start(0)
    assert (up.deliver(0.0, 1000)[0], down.deliver(0.5, 1000)[0]) == pytest.approx((1.0, 1.5))


def test_a_link_may_be_slower_one_way():
    up, down = Link(up=[Propagation(0.2)], down=[Propagation(0.01)]).start(0)
    assert (up.deliver(0.0, 1)[0], down.deliver(0.0, 1)[0]) == pytest.approx((0.2, 0.01))


def test_the_rate_follows_the_day():
    up, _ = Link(up=[bandwidth(1000.0, day=[1.0, 0.1])]).start(0)
    assert up.deliver([0.0, 50_000.0, 86_400.0 * 3], 1000) == pytest.approx([1.0, 50_010.0, 86_400.0 * 3 + 1])


def test_messages_wait_while_the_link_is_down():
    sent_s = np.random.default_rng(4).random(N) * 4096 * 12.5  # anywhere in its period
    took_s = Link(up=[Outage(10.0, 2.5)]).start(5)[0].deliver(sent_s, 1) - sent_s
    assert (took_s > 0).mean() == pytest.approx(0.2, abs=0.015)
    assert took_s[took_s > 0].mean() == pytest.approx(2.5, rel=0.1)  # an exponential time has no memory


def test_a_message_of_several_packets_waits_for_as_many_opportunities():
    up, _ = Link(up=[Queue(Opportunities([5, 10, 10, 40]))]).start(0)
    arrived = up.deliver([0.0, 0.0, 0.010, 0.041], [100, 2 * PACKET_BYTES, 100, 1])
    # The second takes what the first left of 5 ms, one packet at 10 ms and a part of the next, the third the rest.
    assert arrived == pytest.approx([0.005, 0.010, 0.010, 0.045])  # and after 40 ms the trace starts again


@pytest.mark.parametrize("name", ["ATT-LTE-driving-2016.up", "Verizon-LTE-short.down", "TMobile-UMTS-driving.up"])
def test_a_recorded_link_carries_the_bytes_of_its_file(name):
    path = RECORDED / name
    if not path.is_file():
        pytest.skip(f"needs {name}, which may not be carried here")
    lines = path.read_text().split()
    (queue,) = read_recorded(path, up=True)
    n, end_s = 3 * len(lines), 3 * int(lines[-1]) / 1000
    arrived = Link(up=[queue]).start(0)[0].deliver(np.zeros(n), PACKET_BYTES)
    assert arrived[-1] == pytest.approx(end_s)
    first = arrived[: len(lines)] * 1000
    assert first == pytest.approx(np.array(lines, dtype=float))


def test_a_csv_of_bitrates_and_round_trips_is_a_link(tmp_path):
    path = tmp_path / "5g.csv"
    rows = [
        ["Timestamp", "DL_bitrate", "UL_bitrate", "PINGAVG"],
        ["2019.12.16_07.22.43", 80, 8, "-"],
        ["2019.12.16_07.22.44", 0, 0, 50],
        ["2019.12.16_07.22.44", 0, 0, "-"],
        ["2019.12.16_07.22.45", 160, 16, "-"],
    ]
    path.write_text("\n".join(",".join(map(str, row)) for row in rows))
    up, _ = Link(up=read_recorded(path, up=True)).start(0)
    # 1,000 bytes in the first second, none in the second, 2,000 in the third, and again; half of 50 ms on top.
    assert up.deliver([0.0, 0.0, 3.0], [1000, 1000, 500]) == pytest.approx([1.025, 2.525, 3.525])
    _, down = Link(down=read_recorded(path, up=False)).start(0)
    assert down.deliver(0.0, 5000) == pytest.approx([0.525])


def test_a_5g_recording_carries_the_bytes_of_its_file(tmp_path):
    source = RECORDED / "5g_download_static_2019.12.16_13.40.04.parquet"
    if not source.is_file():
        pytest.skip("needs a 5G recording, which may not be carried here")
    table = pytest.importorskip("pyarrow.parquet").read_table(source).to_pylist()
    path = tmp_path / "5g.csv"
    names = ("timestamp", "DL_bitrate", "UL_bitrate", "PINGAVG")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *([row[name] for name in names] for row in table)])
    queue, trips = read_recorded(path, up=False)
    period_s = queue.capacity.period_s
    by_second = {}
    for row in table:
        by_second.setdefault(row["timestamp"], []).append(row["DL_bitrate"])
    mean = sum(sum(each) / len(each) for each in by_second.values()) / len(by_second)
    total = queue.capacity.bytes_before(np.array([period_s]))[0]
    assert total / period_s * 8 / 1000 == pytest.approx(mean, rel=0.1)  # gaps of some seconds keep the rate before
    assert np.median(trips.round_trips_s) == pytest.approx(0.07, abs=0.03)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.up", "", "milliseconds"),
        ("a.up", "0\n0", "milliseconds"),
        ("a.up", "3\n1", "order"),
        ("a.up", "3\nx", "'x'"),
        ("a.csv", "t_s,down_kbps\n0,1", "UL_bitrate"),
        ("a.csv", "t_s,up_kbps\n0,0", "above 0"),
        ("a.csv", "t_s,up_kbps\n5,1\n3,1", "order of time"),
        ("a.csv", "t_s,up_kbps\n0,fast", "fast"),
    ],
)
def test_a_file_that_is_no_link_is_named(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{name}.*{says}"):
        read_recorded(path, up=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recorded(tmp_path / "none.up", up=True)


ALL = (
    Outage(3.0, 0.5),
    Queue(Opportunities([1, 5, 5, 30])),
    bandwidth(50_000.0, day=[1.0, 0.5]),
    Loss(0.2),
    Propagation(0.02, "lognormal", 0.02),
    RoundTrips(np.array([0.0, 1.0]), np.array([0.1, 0.2]), 2.0),
)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 9000), st.integers(0, 2)), min_size=1, max_size=40),
    st.integers(1, 3),
    st.integers(0, 40),
)
def test_messages_meet_the_same_link_however_they_are_grouped(messages, n_links, cut):
    gaps, sizes, links = zip(*messages, strict=True)
    sent_s, links = np.cumsum(gaps), np.array(links) % n_links
    for model in ALL:
        whole = Link(up=[model]).start(7, n_links)[0].deliver(sent_s, sizes, links)
        parts = Link(up=[model]).start(7, n_links)[0]
        first = parts.deliver(sent_s[:cut], sizes[:cut], links[:cut])
        rest = [
            parts.deliver(at, n, link)[0] for at, n, link in zip(sent_s[cut:], sizes[cut:], links[cut:], strict=True)
        ]
        assert np.concatenate([first, rest]) == pytest.approx(whole, abs=1e-6)
        assert (whole >= sent_s - 1e-9).all()


def test_the_same_seed_gives_the_same_link_and_another_seed_another():
    link = Link(up=ALL, down=ALL[:1])
    seconds = [link.start(seed)[0].deliver(np.arange(100.0), 100) for seed in (1, 1, 2)]
    assert (seconds[0] == seconds[1]).all()
    assert (seconds[0] != seconds[2]).any()


def test_many_links_are_each_at_a_place_of_their_own():
    up, _ = Link(up=[Queue(Steps([0.0, 10.0], [1000.0, 0.0], 20.0))]).start(1, 2000)
    took_s = up.deliver(np.zeros(2000), 1000, np.arange(2000))
    assert (took_s < 1.1).mean() == pytest.approx(0.45, abs=0.05)  # others begin in the pause, or reach it
