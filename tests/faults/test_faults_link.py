"""A device, a real coe-cloud, and what goes wrong between them: every digit is decided in its time, and the cloud
answers again soon after the fault is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from device import SLACK_S, Answered, Device, device
from proxies import BlackHole, CutAfter, Proxy, Refuse, Reset, Slow

from coe.protocol.service import client_options
from edge.link import LinkConfig, LinkStatus

DEADLINE_S = 0.25
N_DURING = 12
BACK_S = 10.0  # at most until the cloud answers again: two waits between probes, and a busy machine
FAULTS = {
    "a black hole": (BlackHole, {"timeout", "unavailable"}),
    "a switch of networks": (lambda: BlackHole(spares_new=True), {"timeout", "unavailable"}),
    "resets": (Reset, {"unavailable"}),
    "nobody listening": (Refuse, {"unavailable"}),
    "connections cut short": (lambda: CutAfter(200), {"timeout", "unavailable"}),
    "far too slow": (lambda: Slow(2.0), {"timeout", "unavailable"}),
}
QUICK = ("a black hole", "resets")


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with Proxy(server.port) as opened:
        yield opened


def until_down(opened: Device) -> None:
    end = time.monotonic() + BACK_S
    while opened.link.state.status is not LinkStatus.OPEN:
        assert time.monotonic() < end
        opened.decide(DEADLINE_S)


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.timing)], ids=["calls", "a stream"])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.timing) for name in FAULTS]
)
def test_every_digit_is_decided_in_its_time_and_the_cloud_answers_again_soon(proxy, name, stream):
    fault, reasons = FAULTS[name]
    with device(proxy.address, stream=stream) as opened:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        proxy.fault = fault()
        during = [opened.decide(DEADLINE_S) for _ in range(N_DURING)]
        assert all(answered.took_s < DEADLINE_S + SLACK_S for answered in during)
        assert {answered.reason for answered in during} <= reasons | {None}
        for answered in during:
            assert answered.is_from_the_cloud or answered.decision.asked == 3
        assert any(answered.reason for answered in during)
        assert opened.link.state.n_opened >= 1
        proxy.fault = None
        after = opened.decide_until_cloud(BACK_S)
        assert all(answered.took_s < DEADLINE_S + SLACK_S for answered in after)


def test_a_slow_link_is_still_used_where_answers_fit_the_deadline(proxy):
    with device(proxy.address) as opened:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        proxy.fault = Slow(0.05)
        answered = [opened.decide(2.0) for _ in range(4)]
        assert all(one.is_from_the_cloud for one in answered)
        assert all(one.took_s >= 0.1 for one in answered)
        assert opened.link.state.n_opened == 0


def test_after_a_switch_of_networks_the_channel_is_made_anew_long_before_keepalive_would(proxy):
    """Before the link counts as down, if so configured; keepalive finds out after 40 s."""
    with device(proxy.address, LinkConfig(failures=1000, rebuild_after=3)) as opened:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        assert proxy.n_connections == 1
        proxy.fault = BlackHole(spares_new=True)
        began = time.monotonic()
        answered = opened.decide_until_cloud(BACK_S)
        assert time.monotonic() - began < BACK_S
        misses = [one for one in answered if one.reason == "timeout"]
        assert len(misses) >= 3
        assert (opened.link.state.n_rebuilds, opened.link.state.n_opened) == (1, 0)
        assert proxy.n_connections == 2


@pytest.mark.timing
def test_a_new_channel_would_take_over_the_dead_connection_of_the_old_one_if_it_could(proxy, monkeypatch):
    """Why `client_options` sets use_local_subchannel_pool: without it, to connect anew does nothing while a call is
    still under way on the old channel."""

    def shared(*arguments: object, **more: object) -> list[tuple[str, object]]:
        return [option for option in client_options(*arguments, **more) if "subchannel_pool" not in option[0]]

    def answers_anew(opened: Device) -> bool:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        proxy.fault = BlackHole(spares_new=True)
        under_way = threading.Thread(target=opened.decide, args=(1.2,))
        under_way.start()
        assert opened.decide(DEADLINE_S).reason == "timeout"
        opened.link._remote.redial()
        answered = opened.decide(DEADLINE_S)
        assert under_way.is_alive()
        under_way.join(BACK_S)
        return answered.is_from_the_cloud

    never = LinkConfig(failures=1000, rebuild_after=1000)
    with device(proxy.address, never) as opened:
        assert answers_anew(opened)
    proxy.fault = None
    monkeypatch.setattr("coe.protocol.remote.client_options", shared)
    with device(proxy.address, never) as opened:
        assert not answers_anew(opened)


@pytest.mark.timing
def test_a_channel_that_failed_waits_for_nobody_and_one_that_is_told_to_wait_does_for_its_whole_deadline(proxy):
    """Why a call never sets wait_for_ready: with nobody there it would spend all its time, and look like a timeout."""
    proxy.fault = Refuse()
    with grpc.insecure_channel(proxy.address, client_options()) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        for waits, code in ((False, grpc.StatusCode.UNAVAILABLE), (True, grpc.StatusCode.DEADLINE_EXCEEDED)):
            with pytest.raises(grpc.RpcError) as caught:
                ask(b"", timeout=0.8, wait_for_ready=waits)
            assert caught.value.code() is code


def test_with_nobody_there_a_digit_costs_no_more_than_deciding_it_here(proxy):
    """Three attempts at a dead server cost a seventh of a second; a link that is known to be down costs none of it."""
    proxy.fault = Refuse()

    def median_s(opened: Device) -> float:
        return sorted(opened.decide().took_s for _ in range(5))[2]

    with device(proxy.address, None) as opened:
        before = median_s(opened)
    with device(proxy.address, LinkConfig(backoff_s=(100.0, 100.0))) as opened:
        until_down(opened)
        after = median_s(opened)
    assert before > 0.1
    assert after < before / 5


@pytest.mark.timing
def test_while_nothing_comes_back_a_budget_is_spent_three_times_and_not_for_each_digit(proxy):
    with device(proxy.address, LinkConfig(backoff_s=(100.0, 100.0))) as opened:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        proxy.fault = BlackHole()
        answered = [opened.decide(DEADLINE_S) for _ in range(20)]
    assert [one.reason for one in answered] == ["timeout"] * 3 + ["unavailable"] * 17
    assert sorted(one.took_s for one in answered[3:])[8] < DEADLINE_S / 2


@pytest.mark.timing
def test_a_reserve_leaves_time_for_members_that_were_not_asked_yet(proxy):
    """The answer of the device fits the deadline, too, however slow its members are."""
    slow_s, deadline_s = 0.1, 0.6
    with device(proxy.address, LinkConfig(failures=1000, reserve_s=4 * slow_s)) as opened:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        tier = opened.cascade.tiers[0]
        complete = tier.complete
        tier.complete = lambda *asked: (time.sleep(slow_s), complete(*asked))[1]
        proxy.fault = BlackHole()
        answered = [opened.decide(deadline_s) for _ in range(3)]
    assert [one.reason for one in answered] == ["timeout"] * 3
    assert all(one.took_s <= deadline_s for one in answered)


def test_a_probe_is_no_example_and_leaves_the_server_none_to_decide(proxy):
    with device(proxy.address) as opened:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        proxy.fault = Reset()
        until_down(opened)
        proxy.fault = None
        end = time.monotonic() + BACK_S
        while opened.link.state.status is LinkStatus.OPEN:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert opened.link.state.status is LinkStatus.HALF_OPEN  # no digit was decided meanwhile
        assert opened.decide().is_from_the_cloud
        assert opened.link.state.status is LinkStatus.CLOSED


def test_examples_that_wait_side_by_side_are_decided_in_their_time_through_every_fault_and_after(proxy):
    """As the agent's waiting threads do; one fault after another, with no pause for the link to recover."""
    stopped = threading.Event()

    def decide(opened: Device) -> list[Answered]:
        answered = []
        while not stopped.is_set():
            answered.append(opened.decide(DEADLINE_S))
            time.sleep(0.005)
        return answered

    with device(proxy.address) as opened, ThreadPoolExecutor(8) as pool:
        opened.decide_until_cloud(BACK_S, deadline_s=2.0)
        asked = [pool.submit(decide, opened) for _ in range(8)]
        try:
            for fault in (BlackHole(), Reset(), Refuse(), None, BlackHole(spares_new=True)):
                proxy.fault = fault
                time.sleep(0.15)
            opened.decide_until_cloud(BACK_S)
        finally:
            stopped.set()
        answered = [one for threads in asked for one in threads.result(BACK_S)]
    assert all(one.took_s < DEADLINE_S + SLACK_S for one in answered)
    assert {one.reason for one in answered} <= {"timeout", "unavailable", None}
    assert any(one.is_from_the_cloud for one in answered)
    assert any(one.reason for one in answered)
