"""The agent's loop, with tiers that the test holds in its hand."""

from __future__ import annotations

import random
import threading
import time
from fractions import Fraction

import pytest
from fakes import BOUND_S, DECODER, UNANIMOUS, Far, ListSink, Numbers, Seat, until

from coe.cascade import Agreement, Cascade, InputError, LocalTier, TierTimeout, TierUnavailable
from edge.agent import Agent, RemoteTiers
from edge.sinks import Event, Outcome
from edge.sources import Example


def device() -> LocalTier:
    return LocalTier("device", [Seat(1), Seat(2), Seat(3)], UNANIMOUS)


def agent_of(far: Far | None, sink: ListSink, keep_last_answer: bool = True, **options: object) -> Agent:
    tiers = [device()] if far is None else [device(), far]
    return Agent(Cascade(tiers, keep_last_answer=keep_last_answer), DECODER, sink, **options)  # type: ignore[arg-type]


def running(agent: Agent, source: Numbers, limit: int | None = None) -> threading.Thread:
    thread = threading.Thread(target=agent.run, args=(source, limit), daemon=True)
    thread.start()
    return thread


def test_every_example_has_one_outcome_and_the_tally_adds_up():
    sink = ListSink()
    tally = agent_of(Far(), sink).run(Numbers(40))
    assert sorted(sink.ids) == sorted(f"x{number}" for number in range(40))
    assert all(outcome.decision.label == outcome.truth for outcome in sink.outcomes)
    assert (tally.n, tally.n_decided, tally.n_degraded, tally.n_failed) == (40, 40, 0, 0)
    assert dict(tally.exits) == {1: 20, 2: 20}
    assert (tally.n_calls, tally.bytes_sent, tally.bytes_received) == (20, 2000.0, 1000.0)
    assert (tally.n_known, tally.n_right, tally.kept_share, tally.cloud) == (40, 40, 0.5, "ok")


def test_examples_that_wait_for_the_cloud_do_not_hold_up_those_decided_here():
    opened = threading.Event()
    sink = ListSink()
    agent = agent_of(Far(lambda batch: opened.wait(BOUND_S)), sink, max_in_flight=8)
    thread = running(agent, Numbers(14))
    until(lambda: len(sink.outcomes) == 7)
    assert sink.ids == [f"x{number}" for number in range(0, 14, 2)]
    opened.set()
    thread.join(BOUND_S)
    assert len(sink.outcomes) == 14
    assert all(outcome.decision.degraded is None for outcome in sink.outcomes)


@pytest.mark.parametrize("most", [1, 3])
def test_at_most_max_in_flight_examples_wait_and_then_the_source_waits(most):
    opened = threading.Event()
    sink, source = ListSink(), Numbers(40)
    far = Far(lambda batch: opened.wait(BOUND_S))
    thread = running(agent_of(far, sink, max_in_flight=most), source)
    until(lambda: far.n_at_once == most)
    until(lambda: source.n_taken == 2 * (most + 1))  # the next odd number has no waiter
    time.sleep(0.05)
    assert source.n_taken == 2 * (most + 1)
    opened.set()
    thread.join(BOUND_S)
    assert far.most_at_once == most
    assert len(sink.outcomes) == 40


def test_with_none_in_flight_each_example_has_its_answer_before_the_next_is_taken():
    sink, source = ListSink(), Numbers(20)
    taken: list[int] = []
    far = Far(lambda batch: taken.append(source.n_taken))
    agent_of(far, sink, max_in_flight=0).run(source)
    assert sink.ids == [f"x{number}" for number in range(20)]
    assert taken == list(range(2, 21, 2))
    assert far.most_at_once == 1


def test_ordered_restores_the_order_of_the_source():
    dice = random.Random(7)
    for ordered in (True, False):
        sink = ListSink()
        far = Far(lambda batch: time.sleep(dice.random() * 0.01))
        agent_of(far, sink, max_in_flight=8, ordered=ordered).run(Numbers(60, bad=[4, 5]))
        in_order = [f"x{number}" for number in range(60)]
        assert sorted(sink.ids) == sorted(in_order)
        assert (sink.ids == in_order) is ordered


def test_a_bad_example_fails_alone():
    sink = ListSink()
    tally = agent_of(Far(), sink).run(Numbers(10, bad=[2, 3]))
    failed = {outcome.id: outcome.error for outcome in sink.outcomes if outcome.decision is None}
    assert set(failed) == {"x2", "x3"}
    assert failed["x2"] == "example x2: expected shape [1], got [2]"
    assert (tally.n, tally.n_failed, tally.n_decided) == (10, 2, 8)


def test_an_input_that_a_far_tier_cannot_take_fails_alone():
    def refuse(batch):
        if batch.ids == ("x3",):
            raise InputError("not for this member")

    sink = ListSink()
    tally = agent_of(Far(refuse), sink).run(Numbers(10))
    assert tally.n_failed == 1
    assert {outcome.error for outcome in sink.outcomes} == {None, "not for this member"}


def down(batch):
    raise TierUnavailable("cloud", "it is gone")


class Broken(Seat):
    """Raises on some examples."""

    def __init__(self, label, *on, error=MemoryError):
        super().__init__(label)
        self.on, self.error = on, error

    def predict(self, x):
        if int(x[0, 0]) in self.on:
            raise self.error("no room")
        return super().predict(x)


@pytest.mark.parametrize("seats", [[Broken(1, 6), Seat(1), Seat(1)], [Seat(1), Seat(1), Broken(1, 6)]])
@pytest.mark.parametrize(("rule", "exits"), [(Agreement(Fraction(2, 3)), 1), (UNANIMOUS, 2)])
def test_where_a_member_fails_the_others_settle_it_or_the_next_tier_is_asked(seats, rule, exits):
    sink = ListSink()
    tally = Agent(Cascade([LocalTier("device", seats, rule), Far()]), DECODER, sink).run(Numbers(10))
    by_id = {outcome.id: outcome.decision for outcome in sink.outcomes}
    assert (tally.n, tally.n_failed) == (10, 0)
    assert {by_id[f"x{number}"].exit_tier for number in range(10) if number != 6} == {1}
    assert by_id["x6"].exit_tier == exits


def test_where_the_next_tier_gives_no_answer_those_that_voted_give_it():
    sink = ListSink()
    cascade = Cascade([LocalTier("device", [Broken(1, 3), Seat(2), Seat(2)], UNANIMOUS), Far(down)])
    Agent(cascade, DECODER, sink).run(Numbers(5))
    decision = next(outcome.decision for outcome in sink.outcomes if outcome.id == "x3")
    assert (decision.label, decision.exit_tier, decision.asked) == (2, 1, 3)
    assert decision.vote == pytest.approx(2 / 3)
    assert decision.degraded.startswith("unavailable: ")


@pytest.mark.parametrize("tiers", [1, 2])
def test_where_no_member_votes_and_no_tier_answers_the_example_has_an_error_that_names_them_and_why(tiers):
    sink = ListSink()
    device = LocalTier("device", [Broken(1, 3), Broken(1, 3, error=ValueError)], UNANIMOUS)
    tally = Agent(Cascade([device, Far(down)][:tiers]), DECODER, sink).run(Numbers(5))
    assert (tally.n, tally.n_failed) == (5, 1)
    error = next(outcome.error for outcome in sink.outcomes if outcome.id == "x3")
    assert error == (
        "failed: tier device: no member voted: member seat-1: MemoryError: no room; member seat-1: ValueError: no room"
    )


def test_a_tier_whose_members_all_fail_is_no_answer_to_be_kept_and_the_tier_before_gives_it():
    sink = ListSink()
    tiers = [LocalTier("small", [Seat(1), Seat(2)], UNANIMOUS), LocalTier("large", [Broken(2, 3)], UNANIMOUS)]
    Agent(Cascade(tiers), DECODER, sink).run(Numbers(5))
    decisions = {outcome.id: outcome.decision for outcome in sink.outcomes}
    assert [decisions[f"x{number}"].exit_tier for number in range(5)] == [1, 2, 1, 1, 1]
    assert decisions["x3"].degraded == "failed: tier large: no member voted"


def test_an_unexpected_error_is_its_examples_alone_and_logged_once(caplog):
    def break_down(batch):
        if batch.ids[0] in ("x3", "x5"):
            raise RuntimeError("a bug")

    sink = ListSink()
    tally = agent_of(Far(break_down), sink).run(Numbers(10))
    assert (tally.n, tally.n_failed) == (10, 2)
    errors = {outcome.id: outcome.error for outcome in sink.outcomes if outcome.error}
    assert errors == dict.fromkeys(("x3", "x5"), "error: RuntimeError: a bug")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [TierUnavailable("cloud", "gone"), TierTimeout("cloud", "late")])
def test_where_the_cloud_never_answers_the_device_does_with_all_its_members_and_says_why(error):
    def fail(batch):
        raise error

    sink = ListSink()
    tally = agent_of(Far(fail), sink).run(Numbers(20))
    odd = [outcome for outcome in sink.outcomes if int(outcome.id[1:]) % 2]
    even = [outcome for outcome in sink.outcomes if not int(outcome.id[1:]) % 2]
    assert all(outcome.decision.degraded == f"{error.reason}: {error}" for outcome in odd)
    assert all(outcome.decision.asked == outcome.decision.n_members == 3 for outcome in odd)
    assert all(outcome.decision.exit_tier == 1 for outcome in odd)
    assert all(outcome.decision.label == 0 for outcome in odd)  # a tie of three: the lowest label
    assert all(outcome.decision.degraded is None for outcome in even)
    assert (tally.n_degraded, tally.n_failed, tally.cloud, tally.kept_share) == (10, 0, error.reason, 0.5)


def test_where_no_answer_is_better_than_the_devices_own_a_failed_call_is_an_error():
    def fail(batch):
        raise TierUnavailable("cloud", "gone")

    sink = ListSink()
    tally = agent_of(Far(fail), sink, keep_last_answer=False).run(Numbers(10))
    assert (tally.n_failed, tally.n_decided, tally.n_degraded) == (5, 5, 0)
    errors = {outcome.error for outcome in sink.outcomes if outcome.decision is None}
    assert errors == {"unavailable: tier cloud: gone"}


def test_a_cascade_with_no_local_tier_has_errors_where_the_cloud_fails():
    def fail(batch):
        raise TierTimeout("cloud", "late")

    sink = ListSink()
    tally = Agent(Cascade([Far(fail)]), DECODER, sink).run(Numbers(6))
    assert tally.n_failed == 6
    assert {outcome.error for outcome in sink.outcomes} == {"timeout: tier cloud: late"}


def test_the_deadline_of_an_example_starts_when_it_is_taken():
    far, sink = Far(), ListSink()
    before = time.monotonic()
    agent_of(far, sink, deadline_s=5.0).run(Numbers(6))
    after = time.monotonic()
    assert len(far.deadlines) == 3
    assert all(before + 5 <= deadline <= after + 5 for deadline in far.deadlines)
    assert len(set(far.deadlines)) == 3


@pytest.mark.parametrize("limit", [1, 5, 20, 50])
def test_a_limit_takes_exactly_so_many_and_asks_the_source_for_no_more(limit):
    sink, source = ListSink(), Numbers(20)
    tally = agent_of(Far(), sink).run(source, limit)
    assert tally.n == len(sink.outcomes) == source.n_taken == min(limit, 20)


def test_the_interval_paces_the_source():
    sink = ListSink()
    started = time.perf_counter()
    agent_of(None, sink, interval_s=0.02).run(Numbers(6))
    assert time.perf_counter() - started >= 0.1


def test_being_stopped_lets_what_is_under_way_finish():
    opened, sink, source = threading.Event(), ListSink(), Numbers(100_000)
    far = Far(lambda batch: opened.wait(BOUND_S))
    agent = agent_of(far, sink, max_in_flight=4, interval_s=0.001)
    thread = running(agent, source)
    until(lambda: far.n_at_once >= 3)
    agent.stop.set()
    opened.set()
    thread.join(BOUND_S)
    assert not thread.is_alive()
    assert 5 < len(sink.outcomes) <= source.n_taken < 100_000
    assert source.n_taken - len(sink.outcomes) <= 1  # one may have been drawn as the stop came
    assert all(outcome.decision is not None for outcome in sink.outcomes)


@pytest.mark.parametrize("odd", [True, False])
def test_a_sink_that_cannot_be_written_stops_the_agent_with_its_error(odd):
    def full(outcome):
        return OSError(28, "No space left on device") if int(outcome.id[1:]) % 2 == odd else None

    source = Numbers(100_000)
    with pytest.raises(OSError, match="No space left"):
        agent_of(Far(), ListSink(full)).run(source)
    assert source.n_taken < 100_000


def test_a_degraded_answer_from_the_server_is_counted_once():
    """A server that had to fall back is a call and a degraded decision: one example that was not kept here."""

    class FallsBack(Far):
        def vote(self, batch, rule):
            from dataclasses import replace

            return replace(super().vote(batch, rule), degraded=("unavailable: tier best: gone",))

    sink = ListSink()
    tally = agent_of(FallsBack(), sink).run(Numbers(10))
    assert (tally.n_calls, tally.n_degraded, tally.kept_share) == (5, 5, 0.5)
    assert {outcome.decision.degraded for outcome in sink.outcomes} == {None, "unavailable: tier best: gone"}


def fail_with(error: Exception):
    def fail(batch):
        raise error

    return fail


class Shelf:
    """Keeps examples: remembers what it was given, and whether the sink had it by then."""

    def __init__(self, sink: ListSink) -> None:
        self.sink = sink
        self.kept: list[tuple[str, str]] = []
        self.early = True

    def keep(self, example: Example, outcome: Outcome) -> str:
        self.early = self.early and example.id not in self.sink.ids
        self.kept.append((example.id, outcome.reason))
        return f"key-{example.id}"


@pytest.mark.parametrize("keeps_answer", [True, False])
def test_an_example_that_missed_its_answer_is_kept_before_its_outcome_is_written(keeps_answer):
    sink = ListSink()
    shelf = Shelf(sink)
    far = Far(fail_with(TierTimeout("cloud", "late")))
    tally = agent_of(far, sink, keeps_answer, keep=shelf.keep).run(Numbers(20))
    assert sorted(shelf.kept) == sorted((f"x{number}", "timeout") for number in range(1, 20, 2))
    assert shelf.early
    assert tally.n_spooled == 10
    for outcome in sink.outcomes:
        assert outcome.spooled == (f"key-{outcome.id}" if int(outcome.id[1:]) % 2 else "")
        assert (outcome.decision is None) is (not keeps_answer and outcome.spooled != "")


def test_an_example_with_its_answer_is_not_kept():
    sink = ListSink()
    shelf = Shelf(sink)
    agent_of(Far(), sink, keep=shelf.keep).run(Numbers(20))
    assert shelf.kept == []


def test_an_example_that_is_held_back_never_leaves_and_is_answered_by_all_the_members_here():
    sink = ListSink()
    far = Far()
    shelf = Shelf(sink)
    seen = []

    def hold_back(example, run):
        seen.append((example.id, run.visits[-1].vote.asked.tolist()))
        return "its class is never sent" if example.id in ("x3", "x7") else None

    agent = agent_of(far, sink, hold_back=hold_back, keep=shelf.keep)
    tally = agent.run(Numbers(10))
    held = {outcome.id: outcome for outcome in sink.outcomes if outcome.reason == "held-back"}
    assert sorted(held) == ["x3", "x7"]
    assert all(outcome.decision.asked == 3 and outcome.decision.exit_tier == 1 for outcome in held.values())
    assert held["x3"].decision.degraded == "held-back: tier cloud: its class is never sent"
    assert [name for name, _ in seen] == ["x1", "x3", "x5", "x7", "x9"]  # those that agreed stay anyway
    assert (len(far.deadlines), tally.n_calls, shelf.kept) == (3, 3, [])
    assert (tally.n_degraded, tally.cloud) == (2, "ok")  # nothing is wrong with the cloud


def test_an_example_that_is_held_back_where_no_local_answer_is_wanted_has_none():
    sink = ListSink()
    agent_of(Far(), sink, keep_last_answer=False, hold_back=lambda example, run: "no").run(Numbers(4))
    assert [outcome.error for outcome in sink.outcomes if int(outcome.id[1:]) % 2] == ["held-back: tier cloud: no"] * 2


@pytest.mark.parametrize("ordered", [False, True])
def test_watchers_and_whoever_waits_for_an_example_are_told_once_it_is_in_the_sink(ordered):
    sink = ListSink()
    told: list[tuple[str, str, bool]] = []

    class Numbered(Numbers):
        def examples(self, stop):
            for example in super().examples(stop):
                answered = lambda outcome: told.append(("caller", outcome.id, outcome.id in sink.ids))  # noqa: E731
                yield Example(example.id, example.value, example.truth, answered=answered)

    class Watching:
        def on_outcome(self, example, outcome):
            assert example.id == outcome.id
            told.append(("watcher", outcome.id, outcome.id in sink.ids))

    agent_of(Far(lambda batch: time.sleep(0.005)), sink, observers=[Watching()], ordered=ordered).run(
        Numbered(6, bad=[2])
    )
    assert sorted(told) == [(who, f"x{number}", True) for who in ("caller", "watcher") for number in range(6)]


def test_a_correction_is_written_and_counted_apart_from_the_examples():
    sink = ListSink()
    agent = agent_of(Far(), sink)
    agent.run(Numbers(4))
    decision = next(outcome.decision for outcome in sink.outcomes if outcome.id == "x1")
    agent.correct(Outcome("x1", decision, 60.0, corrects="key-x1"))
    agent.write_event(Event("drift", {"what": "deferral"}))
    assert sink.outcomes[-1].corrects == "key-x1"
    assert [event.kind for event in sink.events] == ["drift"]
    assert (agent.tally.n, agent.tally.n_corrected, agent.tally.n_calls) == (4, 0, 3)  # the spool counts it


def test_the_agent_says_how_many_wait_for_a_server_and_since_when_it_is_busy():
    opened, sink = threading.Event(), ListSink()
    far = Far(lambda batch: opened.wait(BOUND_S))
    agent = agent_of(far, sink, max_in_flight=4)
    busy = []
    agent.observers.append(
        type("Watching", (), {"on_outcome": lambda self, example, outcome: busy.append(agent.busy_since)})()
    )
    thread = running(agent, Numbers(6))
    until(lambda: agent.n_waiting == 3)
    assert agent.busy_since is None
    opened.set()
    thread.join(BOUND_S)
    assert agent.n_waiting == 0
    assert agent.busy_since is None


def test_the_tiers_beyond_the_device_answer_alone_and_count_from_its_first():
    cascade = Cascade([device(), Far()])
    remote_tiers = RemoteTiers(cascade, DECODER)
    (example,) = Numbers(1).examples(threading.Event())
    decision = remote_tiers.ask(example)
    assert (decision.label, decision.exit_tier, decision.id) == (0, 2, "x0")
    assert remote_tiers.first_tier == 2
    broken = RemoteTiers(Cascade([device(), Far(fail_with(TierUnavailable("cloud", "gone")))]), DECODER)
    with pytest.raises(TierUnavailable):
        broken.ask(example)
    assert not RemoteTiers(Cascade([device()]), DECODER).is_there


def test_an_answer_from_a_server_does_not_make_a_loop_that_hangs_look_idle():
    opened, hung, sink = threading.Event(), threading.Event(), ListSink()

    class Hangs(Seat):
        def predict(self, x):
            if x[0, 0] == 2:
                hung.set()
                opened.wait(BOUND_S)
            return super().predict(x)

    cascade = Cascade([LocalTier("device", [Hangs(1), Seat(2)], UNANIMOUS), Far(lambda batch: hung.wait(BOUND_S))])
    agent = Agent(cascade, DECODER, sink, max_in_flight=2)
    thread = running(agent, Numbers(3))
    until(lambda: "x1" in sink.ids and agent.n_waiting == 0)  # deferred, and answered while the loop hangs at x2
    time.sleep(0.05)
    assert agent.busy_since is not None
    opened.set()
    thread.join(BOUND_S)
    assert agent.busy_since is None
