"""LinkedTier: which calls are made, with how much time, and what the watch does between them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest

from coe.cascade import (
    Agreement,
    Always,
    Batch,
    Cascade,
    ConfigError,
    InputError,
    LocalTier,
    TierError,
    TierOverloaded,
    TierRefused,
    TierRejected,
    TierTimeout,
    TierUnavailable,
    Vote,
)
from coe.cascade.rule import DeferralRule
from coe.link import Delay, DelayedTier
from coe.models import TableMember
from coe.protocol import inference_pb2 as pb
from coe.protocol.remote import RemoteTier, remote_of
from edge.link import LinkConfig, LinkLog, LinkState, LinkStatus
from edge.linked_tier import LinkedTier, watch_links

BOUND_S = 90.0
QUICK = LinkConfig(failures=3, rebuild_after=3, backoff_s=(0.02, 0.1))
NEVER = LinkConfig(backoff_s=(1000.0, 1000.0))  # no probe within the test
GONE = TierUnavailable("cloud", "refused")
ONE = Batch(("x",), np.zeros((1, 1), dtype=np.int64))


class Far(RemoteTier):
    """A remote tier without a channel: `answer` is what a call does, `ready` what a probe does."""

    def __init__(self) -> None:
        self.name, self.rule, self.n_tiers, self.deadline_s = "cloud", Always(), 2, 2.0
        self.answer: Callable[[Batch], object] = lambda batch: None
        self.ready: Callable[[], bool] = lambda: True
        self.dials: Callable[[], object] = lambda: None
        self.told: Callable[[object], object] = lambda _: None
        self.did: list[str] = []
        self.deadlines: list[float] = []

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        self.did.append("call")
        self.deadlines.append(batch.deadline)
        self.answer(batch)
        ones = np.ones(len(batch), dtype=np.int64)
        return Vote(ones, ones, ones, 1, np.ones(len(batch), dtype=np.float32))

    def is_ready(self, timeout_s: float = 2.0) -> bool:
        self.did.append(f"probe {timeout_s:g}")
        return self.ready()

    def metadata(self, timeout_s: float = 2.0) -> pb.ModelMetadataResponse:
        self.told(None)
        return pb.ModelMetadataResponse(name="digits")

    def redial(self) -> None:
        self.did.append("redial")
        self.dials()

    def close(self) -> None:
        self.did.append("close")


def raising(error: BaseException) -> Callable[[object], object]:
    def answer(_: object) -> object:
        raise error

    return answer


@contextmanager
def linked(config: LinkConfig = QUICK, **options: object) -> Iterator[tuple[Far, LinkedTier]]:
    far = Far()
    tier = LinkedTier(far, config, **options)  # type: ignore[arg-type]
    try:
        yield far, tier
    finally:
        tier.close()


def fail(tier: LinkedTier, n: int, batch: Batch = ONE) -> None:
    for _ in range(n):
        with pytest.raises(TierError):
            tier.vote(batch, Always())


def until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND_S
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def due_in(seconds: float) -> Batch:
    return Batch(("x",), np.zeros((1, 1), dtype=np.int64), deadline=time.monotonic() + seconds)


# Which calls are made


def test_a_link_that_is_down_costs_no_call():
    with linked(NEVER) as (far, tier):
        far.answer = raising(GONE)
        fail(tier, 3)
        assert tier.state.status is LinkStatus.OPEN
        with pytest.raises(TierUnavailable, match="the link is down, next probe in"):
            tier.vote(ONE, Always())
        assert far.did == ["call"] * 3


def test_a_probe_asks_on_a_new_connection_and_no_example_is_risked_until_it_is_answered():
    with linked() as (far, tier):
        far.answer, far.ready = raising(GONE), lambda: len(far.did) > 8
        fail(tier, 3)
        until(lambda: tier.state.status is LinkStatus.HALF_OPEN)
        far.answer = lambda batch: None
        assert tier.vote(ONE, Always()).labels.tolist() == [1]
        assert tier.state.status is LinkStatus.CLOSED
    assert far.did[:3] == ["call"] * 3
    assert far.did[3:-2] == ["redial", "probe 2"] * 3
    assert far.did[-2:] == ["call", "close"]


def test_a_probe_has_a_deadline_of_its_own():
    for probe_s, told in ((0.5, "probe 0.5"), (None, "probe 1")):  # by default the tier's, but a second at least
        with linked(LinkConfig(failures=1, backoff_s=(0.02, 0.1), probe_s=probe_s)) as (far, tier):
            far.answer, far.deadline_s = raising(GONE), 0.2
            fail(tier, 1)
            until(lambda: tier.state.status is LinkStatus.HALF_OPEN)
            assert told in far.did


@pytest.mark.parametrize("answer", [TierRejected("cloud", "no such model"), TierOverloaded("cloud", "too much")])
def test_a_server_that_refuses_a_probe_is_there_and_the_next_call_learns_why(answer):
    with linked() as (far, tier):
        far.answer = raising(GONE)
        far.ready = lambda: raising(answer)(None)  # type: ignore[return-value]
        fail(tier, 3)
        until(lambda: tier.state.status is LinkStatus.HALF_OPEN)


def test_a_server_that_drains_is_not_called_until_it_is_ready_again():
    with linked() as (far, tier):
        far.answer, far.ready = raising(GONE), lambda: False
        fail(tier, 3)
        until(lambda: tier.state.n_probes >= 2)
        assert (tier.state.status, tier.state.is_draining) == (LinkStatus.OPEN, True)
        assert "draining" in tier.state.error
        far.ready = lambda: True
        until(lambda: tier.state.status is LinkStatus.HALF_OPEN)


def test_a_channel_that_cannot_be_dialled_is_a_failed_probe_that_says_so_and_the_old_one_is_asked(caplog):
    with linked() as (far, tier):
        far.answer = raising(GONE)
        far.dials = lambda: raising(ConfigError(["token_file: cannot be read"]))(None)
        far.ready = lambda: raising(GONE)(None)  # type: ignore[return-value]
        with caplog.at_level(logging.WARNING):
            fail(tier, 3)
            until(lambda: tier.state.n_probes >= 1)
        assert tier.state.error == "token_file: cannot be read"
        assert tier.state.n_rebuilds == 0
        far.ready = lambda: True
        until(lambda: tier.state.status is LinkStatus.HALF_OPEN)
    assert "cannot reconnect: token_file" in caplog.text


def test_a_change_of_the_devices_own_network_has_a_link_that_is_down_probed_soon(monkeypatch):
    changes = threading.Event()
    closed: list[str] = []

    class Network:
        def has_any(self) -> bool:
            return changes.is_set()

        def close(self) -> None:
            closed.append("closed")

    monkeypatch.setattr("edge.linked_tier.NetworkChanges", Network)
    with linked(LinkConfig(failures=1, backoff_s=(0.02, 1000.0))) as (far, tier):
        far.answer, far.ready = raising(GONE), lambda: raising(GONE)(None)  # type: ignore[return-value]
        fail(tier, 1)
        until(lambda: tier.state.n_probes > 0)
        for _ in range(14):
            tier._breaker.probed(False, "no network")
        assert tier.state.next_probe_at - time.monotonic() > 100
        far.ready = lambda: True
        changes.set()
        until(lambda: tier.state.status is LinkStatus.HALF_OPEN)
        until(lambda: closed == ["closed"])


def test_what_is_the_requests_fault_and_not_the_links_does_not_count():
    with linked(NEVER) as (far, tier):
        for error in (TierRejected("cloud", "no"), InputError("bad"), ZeroDivisionError()):
            far.answer = raising(error)
            for _ in range(4):
                with pytest.raises(type(error)):
                    tier.vote(ONE, Always())
        assert (tier.state.status, tier.state.failures) == (LinkStatus.CLOSED, 0)


def test_a_trial_call_that_the_server_rejects_leaves_the_next_one_its_turn():
    with linked() as (far, tier):
        far.answer = raising(GONE)
        fail(tier, 3)
        until(lambda: tier.state.status is LinkStatus.HALF_OPEN)
        far.answer = raising(TierRejected("cloud", "no"))
        fail(tier, 2)
        far.answer = lambda batch: None
        tier.vote(ONE, Always())
        assert tier.state.status is LinkStatus.CLOSED


def test_only_one_example_tries_a_link_that_may_be_back_and_the_others_are_answered_at_once():
    arrived, goes_on = threading.Event(), threading.Event()

    def slowly(batch: Batch) -> None:
        arrived.set()
        assert goes_on.wait(BOUND_S)

    with linked() as (far, tier):
        far.answer = raising(GONE)
        fail(tier, 3)
        until(lambda: tier.state.status is LinkStatus.HALF_OPEN)
        far.answer = slowly
        trial = threading.Thread(target=tier.vote, args=(ONE, Always()))
        trial.start()
        assert arrived.wait(BOUND_S)
        with pytest.raises(TierUnavailable, match="another call is trying it"):
            tier.vote(ONE, Always())
        goes_on.set()
        trial.join(BOUND_S)
        assert tier.state.status is LinkStatus.CLOSED


def test_an_overloaded_server_is_left_alone_as_long_as_it_said():
    with linked(NEVER) as (far, tier):
        far.answer = raising(TierOverloaded("cloud", "too much", retry_after_s=60.0))
        fail(tier, 1)
        with pytest.raises(TierOverloaded, match="left alone for another") as caught:
            tier.vote(ONE, Always())
        assert 0 < caught.value.retry_after_s <= 60
        assert far.did == ["call"]
        assert tier.state.held_until > time.monotonic()


def test_after_so_many_deadline_misses_the_channel_is_made_anew_though_the_link_is_not_yet_down():
    with linked(LinkConfig(failures=100, rebuild_after=3)) as (far, tier):
        far.answer = raising(TierTimeout("cloud", "late"))
        fail(tier, 2)
        assert "redial" not in far.did
        fail(tier, 1)
        until(lambda: tier.state.n_rebuilds == 1)
        assert far.did == ["call"] * 3 + ["redial"]


# How much time they have


def test_a_reserve_for_the_devices_own_answer_is_taken_off_the_deadline():
    with linked(LinkConfig(reserve_s=0.25)) as (far, tier):
        batch = due_in(5.0)
        tier.vote(batch, Always())
        tier.vote(ONE, Always())
    assert far.deadlines == [batch.deadline - 0.25, math.inf]
    reserves = iter([0.5, 1.5, 0.1])
    with linked(LinkConfig(reserve_s=0.25), reserve_s=lambda: next(reserves)) as (far, tier):
        for _ in range(3):
            tier.vote(batch, Always())
    assert far.deadlines == [batch.deadline - reserve for reserve in (0.5, 1.5, 0.25)]


def test_a_call_that_cannot_be_answered_in_time_is_not_made():
    with linked(LinkConfig(reserve_s=0.0)) as (far, tier):
        far.answer = lambda batch: time.sleep(0.1)
        tier.vote(due_in(5.0), Always())
        with pytest.raises(TierTimeout, match=r"left for a call, and none was quicker than [1-9]"):
            tier.vote(due_in(0.04), Always())
        with pytest.raises(TierTimeout, match="0 us of the example's deadline are left"):
            tier.vote(due_in(-1.0), Always())
        tier.vote(due_in(5.0), Always())
        assert far.did == ["call", "call"]
        assert tier.state.failures == 0


def test_a_deadline_too_short_for_any_link_says_nothing_of_this_one():
    with linked(NEVER) as (far, tier):
        far.answer = raising(TierTimeout("cloud", "late"))
        fail(tier, 10, due_in(0.03))
        assert (tier.state.status, tier.state.failures) == (LinkStatus.CLOSED, 0)
        far.deadline_s = 0.01  # what the tier itself is given is always long enough
        fail(tier, 3)
        assert tier.state.status is LinkStatus.OPEN


# Who is told


def test_listeners_are_told_of_each_change_in_order_and_the_link_outlives_their_bugs(caplog):
    told: list[LinkState] = []

    def listen(state: LinkState) -> None:
        told.append(state)
        raise ZeroDivisionError("a bug")

    also: list[LinkState] = []
    with linked(on_change=listen) as (far, tier):
        tier.listen(also.append)
        for _ in range(2):
            far.answer = raising(GONE)
            fail(tier, 3)
            until(lambda: tier.state.status is LinkStatus.HALF_OPEN)
            far.answer = lambda batch: None
            tier.vote(ONE, Always())
        until(lambda: len(also) == 6)
    assert also == told
    assert [state.status for state in told] == [LinkStatus.OPEN, LinkStatus.HALF_OPEN, LinkStatus.CLOSED] * 2
    assert [state.is_up for state in told] == [False, True, True] * 2
    assert told[-1].n_opened == 2
    assert "a bug" in caplog.text


def test_closing_ends_the_watch_also_from_a_listener_and_twice():
    closed: list[str] = []

    def close(state: LinkState) -> None:
        tier.close()
        closed.append("closed")

    with linked(NEVER, on_change=close) as (far, tier):
        far.answer = raising(GONE)
        fail(tier, 3)
        until(lambda: closed == ["closed"])
        tier.close()
        until(lambda: not any("coe-link" in thread.name for thread in threading.enumerate()))
    assert "close" in far.did


# In a cascade


def test_a_tier_with_a_link_is_a_tier_like_any_other_and_its_remote_one_can_be_found():
    far = Far()
    tier = LinkedTier(DelayedTier(far, Delay(0.0)))
    assert (tier.name, tier.rule, tier.n_tiers, tier.waits) == ("cloud", far.rule, 2, True)
    assert remote_of(tier) is far
    vote = tier.vote(ONE, Always())
    assert tier.complete(ONE, vote) is vote
    assert tier.state.best_s >= 0
    tier.close()


def test_a_local_tier_has_no_link():
    with pytest.raises(ValueError, match="tier device: expected a remote tier"):
        LinkedTier(local())


def test_each_remote_tier_of_a_cascade_is_watched_and_the_cascade_is_otherwise_the_same():
    rule = Always(pools_scores=True)
    plain = Cascade([local(), Far(), Far()], keep_last_answer=False, last_rule=rule)
    cascade, links = watch_links(plain, QUICK)
    assert [remote_of(link) for link in links] == list(plain.tiers[1:])
    assert cascade.tiers == (plain.tiers[0], *links)
    assert (cascade.n_tiers, cascade.keep_last_answer, cascade.rules) == (plain.n_tiers, False, plain.rules)
    cascade.close()
    alone = Cascade([local()])
    assert watch_links(alone) == (alone, [])


def test_an_example_whose_link_is_down_gets_the_devices_answer_with_all_members_asked():
    cascade, (link,) = watch_links(Cascade([local(), Far()]), NEVER)
    far = remote_of(link)
    assert isinstance(far, Far)
    far.answer = raising(GONE)
    decisions = [cascade.decide(ONE)[0] for _ in range(5)]
    cascade.close()
    assert [decision.label for decision in decisions] == [0] * 5
    assert [decision.asked for decision in decisions] == [3] * 5
    assert [(decision.degraded or "").split(":")[0] for decision in decisions] == ["unavailable"] * 5
    assert far.did == ["call"] * 3 + ["close"]


def local() -> LocalTier:
    """Three members that disagree, which the first two settle already."""
    tables = [np.eye(3, dtype=np.float32)[[label]] for label in (0, 1, 0)]
    members = [TableMember(table, f"member-{seat}") for seat, table in enumerate(tables, start=1)]
    return LocalTier("device", members, Agreement(Fraction(1)))


# What is refused


OTHER_TASK = ConfigError(["tier cloud: host:1 serves digits for another task: expected fingerprint a, got b"])
REFUSES = "warning: tier cloud refuses, the device answers by itself and asks again later: "


def test_a_refused_call_is_the_last_until_the_server_takes_calls_again_and_is_one_line(logged):
    """An expired token, a model that is not loaded: no example is sent for nothing, and nothing is silent."""
    with linked(NEVER, on_change=LinkLog().changed) as (far, tier):
        far.answer = raising(TierRefused("cloud", "UNAUTHENTICATED: the token has expired"))
        for _ in range(5):
            with pytest.raises(TierRefused, match="the token has expired"):
                tier.vote(ONE, Always())
        until(lambda: len(logged) > 0)
        assert far.did == ["call"]
        assert (tier.state.is_refused, tier.state.is_up, tier.state.n_refused) == (True, False, 1)
        assert logged == [f"{REFUSES}UNAUTHENTICATED: the token has expired"]


def test_a_refused_tier_is_asked_again_and_answers_once_that_is_mended(logged):
    with linked(on_change=LinkLog().changed) as (far, tier):
        far.answer = raising(TierRefused("cloud", "PERMISSION_DENIED: not you"))
        fail(tier, 1)
        until(lambda: tier.state.is_up)
        fail(tier, 1)  # the trial
        assert not tier.state.is_up
        far.answer = lambda batch: None
        until(lambda: tier.state.is_up)
        tier.vote(ONE, Always())
        until(lambda: len(logged) == 2)
        assert logged[0] == f"{REFUSES}PERMISSION_DENIED: not you"
        assert "is up again" in logged[1]


def test_a_server_that_came_back_for_another_task_is_logged_with_both_fingerprints(logged):
    with linked(on_change=LinkLog().changed) as (far, tier):
        far.answer, far.ready, far.told = raising(GONE), lambda: False, raising(OTHER_TASK)
        fail(tier, QUICK.failures)
        until(lambda: tier.state.is_refused)
        until(lambda: tier.state.n_probes > 3)
        assert len(logged) == 2  # down, and then why it is not asked
        assert logged[1].endswith("expected fingerprint a, got b")
        assert logged[1].startswith(REFUSES)
        far.answer, far.ready, far.told = lambda batch: None, lambda: True, lambda _: None
        until(lambda: tier.state.is_up)
        tier.vote(ONE, Always())
        assert not tier.state.is_refused


def test_answers_that_cannot_be_read_are_one_line_and_a_count(logged):
    with linked() as (far, tier):
        far.answer = raising(TierRejected("cloud", "its answer cannot be read: garbage"))
        fail(tier, 7)
        assert (len(far.did), tier.state.n_refused, tier.state.is_up) == (7, 7, True)
        (line,) = logged
        assert line.startswith("warning: tier cloud: its answer cannot be read: garbage; the device answers by itself")
