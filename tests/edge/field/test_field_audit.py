"""The audit: drawn without regard to the example, asked in the background, counted without bias."""

from __future__ import annotations

import random
import threading
from fractions import Fraction

import numpy as np
import pytest
from fakes import BOUND_S, DECODER, UNANIMOUS, Far, ListSink, Numbers, Seat, until

from coe.cascade import Agreement, Cascade, LocalTier, TierUnavailable
from edge.agent import Agent, RemoteTiers
from edge.field import audit as module
from edge.field.audit import Audit, SamplingBudget
from edge.field.config import AuditConfig
from edge.field.drift import calibrate
from edge.field.privacy import SendPolicy, send_policy_check

LABELS = ("zero", "one", "two")
ALL = AuditConfig(share=1.0, max_per_hour=1e12, max_bytes_per_day=1e9, link_share=1.0)


class Differs(Far):
    """Says another label than the device's where the number is a multiple of ten, and is not deferred."""

    def vote(self, batch, rule):
        vote = super().vote(batch, rule)
        numbers = batch.x[:, 0]
        vote.labels = np.where(numbers % 10 == 0, (numbers + 1) % 3, vote.labels)
        return vote


def audited(far: Far, n: int, config: AuditConfig = ALL, **options) -> tuple[Audit, ListSink, Agent]:
    sink = ListSink()
    cascade = Cascade([LocalTier("device", [Seat(1), Seat(2)], UNANIMOUS), far])
    agent = Agent(cascade, DECODER, sink)
    audit = Audit(
        config, RemoteTiers(cascade, DECODER), LABELS, notify=agent.write_event, rng=random.Random(1), **options
    )
    agent.observers.append(audit)
    agent.run(Numbers(n))
    return audit, sink, agent


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.001)
    monkeypatch.setattr(module, "MAX_QUEUED", 10_000)


def test_every_decided_example_can_be_asked_about_and_no_deferred_one_is():
    far = Differs()
    audit, _, _ = audited(far, 60)
    assert audit.settle(BOUND_S)
    report = audit.report()
    assert {key: report[key] for key in ("examples", "drawn", "answered", "differ", "error")} == {
        "examples": 30,
        "drawn": 30,
        "answered": 30,
        "differ": 6,
        "error": 0.2,
    }
    assert report["low"] < 0.2 < report["high"]
    assert sum(facts["answered"] for facts in report["by_label"].values()) == 30
    assert report["by_label"]["zero"]["differ"] == 2  # 0 and 30 of 0, 6, 12, ...
    audit.close()


def test_a_share_is_drawn_without_regard_to_the_example():
    audit, _, _ = audited(Differs(), 4000, AuditConfig(0.25, 1e12, 1e12, 1.0))
    assert audit.settle(BOUND_S)
    report = audit.report()
    assert report["examples"] == 2000
    assert 420 < report["drawn"] == report["answered"] < 580
    assert abs(report["error"] - 0.2) < 0.06
    audit.close()


def test_an_answer_that_does_not_come_is_asked_for_again_and_then_counted_as_missing(monkeypatch):
    n_calls = []

    def fail_twice(batch):
        n_calls.append(batch.ids)
        if len(n_calls) <= 2:
            raise TierUnavailable("cloud", "gone")

    audit, _, _ = audited(Far(fail_twice), 1)
    assert audit.settle(BOUND_S)
    assert (len(n_calls), audit.report()["answered"]) == (3, 1)
    audit.close()
    monkeypatch.setattr(module, "MAX_AGE_S", 0.0)

    def fail(batch):
        raise TierUnavailable("cloud", "gone")

    audit, _, _ = audited(Far(fail), 1)
    assert audit.settle(BOUND_S)
    report = audit.report()
    assert (report["drawn"], report["answered"], report["error"]) == (1, 0, None)
    audit.close()


def test_it_asks_nothing_while_a_live_example_waits():
    is_busy = threading.Event()
    is_busy.set()
    far = Far()
    audit, _, _ = audited(far, 2, is_busy=is_busy.is_set)
    n_live = len(far.deadlines)
    assert not audit.settle(0.1)
    assert len(far.deadlines) == n_live == 1
    is_busy.clear()
    assert audit.settle(BOUND_S)
    assert len(far.deadlines) == 2
    audit.close()


def test_findings_survive_a_restart_and_a_damaged_file_does_not_stop_the_agent(tmp_path):
    state = tmp_path / "state" / "audit.json"
    audit, _, _ = audited(Differs(), 60, state=state)
    assert audit.settle(BOUND_S)
    before = audit.report()
    audit.close()
    again, _, _ = audited(Differs(), 0, state=state)
    assert again.report() == before
    again.close()
    state.write_text('{"whole": 3')
    fresh, _, _ = audited(Differs(), 0, state=state)
    assert fresh.report()["examples"] == 0
    fresh.close()


def test_every_so_many_answers_the_sink_is_told():
    audit, sink, _ = audited(Differs(), 60, AuditConfig(1.0, 1e12, 1e12, 1.0, report_every=10))
    assert audit.settle(BOUND_S)
    until(lambda: len(sink.events) == 3)
    assert [event.facts["answered"] for event in sink.events] == [10, 20, 30]
    audit.close()


def test_the_budget_lowers_the_chance_so_that_it_lasts_and_is_never_overdrawn():
    now = [0.0]
    pace = SamplingBudget(AuditConfig(0.5, max_per_hour=60, max_bytes_per_day=1e12), lambda: now[0])
    dice, n_spent = random.Random(5), 0
    chances = []
    for _ in range(36_000):  # ten hours at an example a second
        now[0] += 1.0
        chances.append(pace.chance())
        if dice.random() < chances[-1]:
            n_spent += pace.spend(100)
    assert min(chances) > 0
    assert chances[-1] == pytest.approx(0.9 * 60 / 3600, rel=0.01)
    assert 480 <= n_spent <= 660
    bytes_pace = SamplingBudget(AuditConfig(1.0, max_per_hour=1e6, max_bytes_per_day=1000), lambda: now[0])
    assert [bytes_pace.spend(400) for _ in range(3)] == [True, True, False]
    now[0] += 86_400
    assert bytes_pace.spend(400)


def test_its_calls_take_at_most_a_set_share_of_the_time():
    from time import perf_counter, sleep

    far = Far(lambda batch: sleep(0.01))
    started = perf_counter()
    audit, _, _ = audited(far, 19, AuditConfig(1.0, 1e12, 1e12, link_share=0.1))
    assert audit.settle(BOUND_S)
    assert perf_counter() - started > 9 * 0.1  # ten calls of 10 ms each, of which the last need not rest
    audit.close()


def test_calibrating_asks_about_no_example_that_may_not_leave():
    far = Far()
    device = LocalTier("device", [Seat(1), Seat(1), Seat(2)], Agreement(Fraction(2, 3)))
    cascade = Cascade([device, far])
    examples = Numbers(12).examples(threading.Event())
    hold_back = SendPolicy(LABELS, frozenset({2}))
    found = calibrate(examples, cascade, RemoteTiers(cascade, DECODER), asks=True, policy=hold_back)
    assert far.asked == ["x0", "x4", "x6", "x10"]
    assert (found.n_asked, found.n_held, found.categories.total()) == (4, 8, 12)


def test_an_example_that_may_not_leave_is_not_asked_about_though_a_member_in_the_minority_says_why():
    """Two of three decide; the third, not asked by then, votes for the class that is never sent."""
    far, sink = Far(), ListSink()
    device = LocalTier("device", [Seat(1), Seat(1), Seat(2)], Agreement(Fraction(2, 3)))
    cascade = Cascade([device, far])
    agent = Agent(cascade, DECODER, sink)
    hold_back = SendPolicy(LABELS, frozenset({2}))
    held_back = send_policy_check(hold_back, cascade, DECODER)
    audit = Audit(ALL, RemoteTiers(cascade, DECODER), LABELS, held_back=held_back, rng=random.Random(1))
    agent.observers.append(audit)
    agent.run(Numbers(12))
    assert audit.settle(BOUND_S)
    report = audit.report()
    assert far.asked == ["x0", "x4", "x6", "x10"]  # odd ones have a vote for "two"; x2 and x8 are "two"
    assert (report["drawn"], report["answered"]) == (12, 4)
    audit.close()
