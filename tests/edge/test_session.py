"""The check of the servers as the agent starts: an answer at once, late, never, and from another task."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fakes import BOUND_S, DECODER, UNANIMOUS, ListSink, Numbers, Seat, until

from coe.cascade import Always, Cascade, ConfigError, LocalTier, Tier, TierUnavailable
from coe.link import Delay, DelayedTier
from coe.protocol import inference_pb2 as pb
from coe.protocol.remote import RemoteTier, remote_of
from edge.agent import Agent
from edge.link import LinkConfig, LinkLog
from edge.linked_tier import watch_links
from edge.session import RemoteTierCheck

OTHER = ConfigError(["tier cloud: another task"])


class Answering(RemoteTier):
    """A remote tier without a channel; `answer` is what asking for its metadata does."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self.name, self.rule, self.n_tiers, self.answer = "cloud", Always(), 1, answer
        self.deadline_s = 2.0

    def metadata(self, timeout_s: float = 2.0) -> pb.ModelMetadataResponse:
        self.answer()
        return pb.ModelMetadataResponse(name="digits")

    def close(self) -> None:
        pass


def raising(error: Exception, after: threading.Event | None = None) -> Callable[[], object]:
    def answer() -> None:
        if after is not None:
            assert after.wait(BOUND_S)
        raise error

    return answer


def started_check(*far: Tier) -> tuple[RemoteTierCheck, Agent]:
    cascade = Cascade([LocalTier("device", [Seat(1), Seat(1)], UNANIMOUS), *far])
    cascade, links = watch_links(cascade, LinkConfig(backoff_s=(3600, 3600)), on_change=LinkLog().changed)
    agent = Agent(cascade, DECODER, ListSink(), interval_s=0.001)
    return RemoteTierCheck(links, agent), agent


def test_a_server_that_answers_is_ok(logged):
    check, agent = started_check(Answering(lambda: None))
    check.wait(BOUND_S)
    assert (agent.tally.cloud, agent.failure, logged) == ("ok", None, [])


def test_a_server_that_cannot_be_reached_is_logged_once_and_stops_nothing(logged):
    check, agent = started_check(Answering(raising(TierUnavailable("cloud", "refused"))))
    check.wait(BOUND_S)
    assert agent.tally.cloud == "unavailable"
    assert logged == ["warning: tier cloud: refused; the device answers by itself until it can be reached"]
    assert agent.run(Numbers(6)).n == 6


def test_a_server_of_another_task_is_logged_once_and_only_its_tier_is_not_asked(logged):
    check, agent = started_check(DelayedTier(Answering(raising(OTHER)), Delay(0.0)))
    check.wait(BOUND_S)
    line = "warning: tier cloud refuses, the device answers by itself and asks again later: another task"
    until(lambda: line in logged)
    assert agent.tally.cloud == "refused"
    assert agent.run(Numbers(6)).n == 6
    assert logged == [line]


def test_a_slow_server_does_not_hold_up_the_start(logged):
    opened = threading.Event()
    check, agent = started_check(Answering(lambda: opened.wait(BOUND_S)))
    started = time.perf_counter()
    check.wait(0.02)
    assert time.perf_counter() - started < 5
    assert agent.tally.cloud == "not asked yet"
    opened.set()
    until(lambda: agent.tally.cloud == "ok")
    assert logged == []


def test_a_device_with_no_cloud_asks_nobody(logged):
    check, agent = started_check()
    check.wait(BOUND_S)
    assert (agent.tally.cloud, logged) == ("not asked yet", [])


def test_a_remote_tier_is_found_behind_an_injected_delay():
    far = Answering(lambda: None)
    assert remote_of(far) is remote_of(DelayedTier(far, Delay(0.1))) is far
    assert remote_of(LocalTier("device", [Seat(1)], Always())) is None
