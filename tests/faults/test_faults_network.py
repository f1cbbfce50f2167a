"""A device and a coe-cloud on hosts of their own, whose cable is pulled for some seconds and put back."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from device import SLACK_S
from namespaces import Host, network, why_not
from programs import READY, records_in, until

pytestmark = pytest.mark.timing

PYTHON, PORT = [sys.executable], 8001
OUTAGE_S = 10.0  # the wait for the next probe is 4.8 s or more by then
DEADLINE_MS = 400
BACK_S = 15.0  # from the cable's mending to an answer: that wait and a probe; gRPC's keepalive takes 40 s
SEEN_S = 2.0  # the same where the device's own interface is what comes back, and so is no secret to it


@dataclass
class Running:
    """A device at work: its host, its cloud's, and the file of its words."""

    device: Host
    cloud: Host
    words: Path

    @property
    def decided(self) -> list[dict[str, Any]]:
        return records_in(self.words.read_text(encoding="utf-8"))

    def since(self, at: float) -> list[dict[str, Any]]:
        return [record for record in self.decided if record["at"] > at]

    def until_cloud_answers(self, since: float) -> float:
        """Seconds from `since` (a `time.monotonic()`) to its first answer after that."""
        until(lambda: any(record["is_from_the_cloud"] for record in self.since(since)), lambda: self.words.read_text())
        return next(record["at"] for record in self.since(since) if record["is_from_the_cloud"]) - since


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    if reason := why_not():
        pytest.skip(reason)
    with at_work(tmp_path) as opened:
        yield opened


@contextmanager
def at_work(tmp_path: Path, *options: str) -> Iterator[Running]:
    """A device that decides digits, and its cloud, each on a host of its own."""
    with network(2) as (device, cloud):
        serve = [*PYTHON, "-m", "cloud.main", "serve", "--insecure", "--host", cloud.address, "--grpc-port", PORT]
        decide = [*PYTHON, Path(__file__).parent / "device.py", f"{cloud.address}:{PORT}", 60, DEADLINE_MS, *options]
        said, words = tmp_path / "cloud.txt", tmp_path / "device.jsonl"
        with cloud.running(serve, said):
            until(lambda: READY.search(said.read_text()), said.read_text)
            with device.running(decide, words):
                opened = Running(device, cloud, words)
                opened.until_cloud_answers(0.0)
                yield opened


def check_outage(running: Running, began: float, ended: float) -> list[dict[str, Any]]:
    """Every digit of the outage was decided in its time, by the device, and most of them at once."""
    during = [record for record in running.since(began) if record["at"] < ended]
    assert len(during) > 50
    assert not any(record["is_from_the_cloud"] for record in during[1:])  # one may have been on its way back
    assert all(record["took_s"] < DEADLINE_MS / 1000 + SLACK_S for record in during)
    assert sorted(record["took_s"] for record in during)[len(during) // 2] < 0.05
    assert {record["reason"] for record in during[1:]} <= {"timeout", "unavailable"}
    return during


def test_a_device_whose_own_interface_goes_down_and_up_is_answered_by_the_cloud_again(running):
    began = time.monotonic()
    running.device.take_down()
    time.sleep(OUTAGE_S)
    ended = time.monotonic()
    running.device.bring_up()
    took_s = running.until_cloud_answers(ended)
    check_outage(running, began, ended)
    assert took_s < SEEN_S
    print(f"answered {took_s:.2f} s after the interface came up")


def test_when_packets_vanish_on_their_way_the_channel_is_made_anew_and_the_cloud_answers_soon_after_they_do_not(
    running,
):
    began = time.monotonic()
    running.cloud.cut_at_the_switch()
    time.sleep(OUTAGE_S)
    ended = time.monotonic()
    running.cloud.mend_at_the_switch()
    took_s = running.until_cloud_answers(ended)
    during = check_outage(running, began, ended)
    assert [record["reason"] for record in during[1:4]].count("timeout") >= 2  # nothing came back, not even a refusal
    assert during[-1]["n_rebuilds"] >= 1
    assert took_s < BACK_S
    print(f"answered {took_s:.2f} s after packets arrived again")
