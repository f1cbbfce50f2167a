"""A tier batcher: every caller its own rows, whatever the others do; and nobody left waiting."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Loop, LoopedBatcher
from strategies import one_hot, rows, table_tier

from cloud.tier_batcher import MEASURE_EVERY, TierBatcher
from coe.cascade import Agreement, Always, Batch, CallCost, DeferralRule, Tier, TierOverloaded, TierTimeout, Vote

ALWAYS = Always()
BOUND_S = 90.0  # no thread of these tests may need longer, on any machine


class Echo:
    """A tier whose label for an example is its own number; remembers what it was asked together.

    Args:
        work: done in each call, before the answer; given the batch.
    """

    name, rule, n_tiers, waits = "echo", ALWAYS, 1, False

    def __init__(self, work: Callable[[Batch], object] = lambda batch: None) -> None:
        self.work = work
        self.calls: list[Batch] = []
        self.rules: list[DeferralRule] = []
        self.inside = 0

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        self.inside += 1
        assert self.inside == 1, "two calls at once"
        try:
            self.calls.append(batch)
            self.rules.append(rule)
            self.work(batch)
            labels = np.array([int(name) for name in batch.ids], dtype=np.int64)
            ones = np.ones(len(batch), dtype=np.int64)
            return Vote(
                labels, ones, ones, 1, (labels / 1000).astype(np.float32), call=CallCost(times={"compute_s": 0.5})
            )
        finally:
            self.inside -= 1

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def close(self) -> None:
        pass

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.calls]


class Gate(Echo):
    """An Echo that holds its first call until `open` is set."""

    def __init__(self) -> None:
        super().__init__(self._hold)
        self.entered, self.open = threading.Event(), threading.Event()

    def _hold(self, batch: Batch) -> None:
        if len(self.calls) == 1:
            self.entered.set()
            assert self.open.wait(BOUND_S)


def numbered(first: int, n: int = 1, deadline_s: float = math.inf, shape: tuple[int, ...] = (1,)) -> Batch:
    names = tuple(str(number) for number in range(first, first + n))
    return Batch(names, np.zeros((n, *shape), np.int64), deadline=time.monotonic() + deadline_s)


class Caller(threading.Thread):
    """One call of the tier, on a thread of its own; its vote or its error, and how long it took."""

    def __init__(self, tier: LoopedBatcher, batch: Batch, rule: DeferralRule = ALWAYS) -> None:
        super().__init__(daemon=True)
        self.tier, self.batch, self.rule = tier, batch, rule
        self.labels: list[int] | None = None
        self.error: BaseException | None = None
        self.took_s = math.nan
        self.call = CallCost()
        self.start()

    def run(self) -> None:
        started = time.perf_counter()
        try:
            vote = self.tier.vote(self.batch, self.rule)
            self.labels, self.call = vote.labels.tolist(), vote.call
        except BaseException as error:  # noqa: BLE001 - told to the test
            self.error = error
        self.took_s = time.perf_counter() - started

    @property
    def wanted(self) -> list[int]:
        return [int(name) for name in self.batch.ids]


def finish(callers: Sequence[Caller]) -> None:
    end = time.monotonic() + BOUND_S
    for caller in callers:
        caller.join(max(end - time.monotonic(), 0))
    assert not any(caller.is_alive() for caller in callers), "a caller never came back"


def until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND_S
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture(scope="module")
def batcher() -> Iterator[Callable[..., LoopedBatcher]]:
    """Makes batchers on one event loop, and closes them."""
    loop, made = Loop(), []

    def make(tier: Tier, **limits: object) -> LoopedBatcher:
        made.append(LoopedBatcher(loop, tier, **limits))
        return made[-1]

    yield make
    for one in made:
        one.close()
    loop.close()


@given(
    sizes=st.lists(st.integers(1, 11), min_size=1, max_size=24),
    max_batch=st.integers(1, 8),
    delay_ms=st.sampled_from([0, 0, 1]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_every_caller_gets_its_own_rows_in_order_whatever_the_interleaving(sizes, max_batch, delay_ms, seed, batcher):
    dice = random.Random(seed)
    echo = Echo(lambda batch: time.sleep(dice.choice([0, 0, 0.0002, 0.001])))
    tier = batcher(echo, max_batch=max_batch, max_delay_s=delay_ms / 1000)
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    callers = []
    for first, size in zip(starts, sizes, strict=True):
        callers.append(Caller(tier, numbered(first, size)))
        if dice.random() < 0.3:
            time.sleep(dice.random() * 0.001)
    finish(callers)
    assert [caller.error for caller in callers] == [None] * len(callers)
    assert [caller.labels for caller in callers] == [caller.wanted for caller in callers]
    assert max(echo.sizes) <= max_batch
    assert sum(echo.sizes) == sum(sizes)
    assert tier.is_idle


@pytest.mark.timing
def test_an_idle_tier_is_asked_at_once(batcher):
    tier = batcher(Echo(), max_delay_s=0.0)
    took = []
    for number in range(50):
        started = time.perf_counter()
        tier.vote(numbered(number), ALWAYS)
        took.append(time.perf_counter() - started)
    assert sorted(took)[len(took) // 2] < 0.01


def test_a_quick_call_is_made_on_the_event_loop_and_a_longer_one_on_the_batchers_thread(batcher):
    threads = []
    tier = batcher(Echo(lambda batch: threads.append(threading.current_thread().name)), quick_rows=2)
    tier.vote(numbered(0, 2), ALWAYS)
    tier.vote(numbered(0, 3), ALWAYS)
    assert threads[0] == "test-loop"
    assert threads[1].startswith("coe-tier-echo")


@pytest.mark.timing
def test_how_many_rows_are_quick_is_measured(batcher):
    def measured(work):
        batcher = TierBatcher(Echo(work), max_batch=8)
        batcher.measure(numbered(0, 8), ALWAYS)
        return batcher.quick_rows

    assert measured(lambda batch: None) == 8
    assert measured(lambda batch: time.sleep(0.003)) == 0
    assert 1 <= measured(lambda batch: time.sleep(0.0004 * len(batch))) < 8


@pytest.mark.timing
def test_a_hiccup_does_not_make_a_tier_slow_but_a_slow_tier_leaves_the_event_loop(batcher):
    pauses = iter([0.02, 0, 0.02, 0, 0.02, 0.02, 0.02])
    tier = batcher(Echo(lambda batch: time.sleep(next(pauses))), quick_rows=64)
    for number in range(4):
        tier.vote(numbered(number), ALWAYS)
    assert tier.batcher.quick_rows == 64
    for number in range(3):
        tier.vote(numbered(number), ALWAYS)
    assert tier.batcher.quick_rows == 32


@pytest.mark.timing
def test_a_tier_that_turns_out_quick_comes_to_the_event_loop(batcher):
    tier = batcher(Echo(), quick_rows=0)
    for number in range(MEASURE_EVERY):
        tier.vote(numbered(number, 4), ALWAYS)
    assert tier.batcher.quick_rows == 4


def test_work_alone_on_the_tier_waits_for_the_call_under_way_and_nothing_runs_beside_it(batcher):
    gate = Gate()
    tier = batcher(gate)
    first = Caller(tier, numbered(0))
    assert gate.entered.wait(BOUND_S)
    seen = []
    alone = threading.Thread(target=lambda: seen.append(tier.loop.run(tier.batcher.alone(lambda: gate.inside))))
    alone.start()
    until(lambda: len(tier.waiting()) == 1)
    last = Caller(tier, numbered(1))
    gate.open.set()
    finish([first, last])
    alone.join(BOUND_S)
    assert seen == [0]
    assert last.labels == [1]


def test_a_caller_that_went_away_is_not_voted_on(batcher):
    gate = Gate()
    tier = batcher(gate)
    first = Caller(tier, numbered(0))
    assert gate.entered.wait(BOUND_S)

    async def come_and_go() -> None:
        task = asyncio.ensure_future(tier.batcher.vote(numbered(1), ALWAYS))
        await asyncio.sleep(0.01)
        task.cancel()

    tier.loop.run(come_and_go())
    until(lambda: tier.n_queued == 0)
    gate.open.set()
    finish([first, Caller(tier, numbered(2))])
    assert [name for batch in gate.calls for name in batch.ids] == ["0", "2"]


def test_what_arrives_during_one_call_makes_up_the_next(batcher):
    gate = Gate()
    tier = batcher(gate, max_batch=64)
    callers = [Caller(tier, numbered(0))]
    assert gate.entered.wait(BOUND_S)
    callers += [Caller(tier, numbered(number)) for number in range(1, 11)]
    until(lambda: tier.n_queued == 10)
    gate.open.set()
    finish(callers)
    assert gate.sizes == [1, 10]
    assert [caller.labels for caller in callers] == [caller.wanted for caller in callers]


def test_a_call_takes_whole_entries_up_to_max_batch(batcher):
    gate = Gate()
    tier = batcher(gate, max_batch=8)
    callers = [Caller(tier, numbered(0))]
    assert gate.entered.wait(BOUND_S)
    for first, n in ((10, 5), (20, 3), (30, 4), (40, 7)):
        callers.append(Caller(tier, numbered(first, n)))
        until(lambda: tier.waiting()[-1:] == [callers[-1].batch.ids])
    gate.open.set()
    finish(callers)
    assert gate.sizes == [1, 8, 4, 7]
    assert [caller.labels for caller in callers] == [caller.wanted for caller in callers]


def test_a_call_waits_max_queue_delay_for_more(batcher):
    echo = Echo()
    tier = batcher(echo, max_batch=64, max_delay_s=0.25)
    callers = [Caller(tier, numbered(number)) for number in range(5)]
    finish(callers)
    assert echo.sizes == [5]
    assert max(caller.took_s for caller in callers) > 0.2


def test_a_call_with_a_full_batch_waits_no_longer(batcher):
    echo = Echo()
    tier = batcher(echo, max_batch=4, max_delay_s=BOUND_S * 2)
    callers = [Caller(tier, numbered(number)) for number in range(4)]
    finish(callers)
    assert sorted(echo.sizes) == [4]


def test_beyond_the_bounded_queue_callers_are_refused_at_once_and_nothing_is_lost_for_the_others(batcher):
    gate = Gate()
    tier = batcher(gate, max_batch=4, max_queued=6)
    callers = [Caller(tier, numbered(0))]
    assert gate.entered.wait(BOUND_S)
    callers += [Caller(tier, numbered(10, 4)), Caller(tier, numbered(20, 2))]
    until(lambda: tier.n_queued == 6)
    started = time.perf_counter()
    with pytest.raises(TierOverloaded, match="tier echo: 6 examples are waiting, at most 6 may"):
        tier.vote(numbered(30), ALWAYS)
    assert time.perf_counter() - started < 1
    gate.open.set()
    finish(callers)
    assert [caller.labels for caller in callers] == [caller.wanted for caller in callers]
    assert tier.vote(numbered(40), ALWAYS).labels.tolist() == [40]


def test_a_deadline_that_passes_in_the_queue_is_a_timeout_and_the_tier_is_not_asked(batcher):
    gate = Gate()
    tier = batcher(gate)
    first = Caller(tier, numbered(0))
    assert gate.entered.wait(BOUND_S)
    late, patient = Caller(tier, numbered(1, deadline_s=0.05)), Caller(tier, numbered(2))
    late.join(BOUND_S)
    assert isinstance(late.error, TierTimeout)
    assert "in the queue" in str(late.error)
    assert late.took_s < 5
    gate.open.set()
    finish([first, patient])
    assert [name for batch in gate.calls for name in batch.ids] == ["0", "2"]
    assert tier.is_idle


def test_a_caller_whose_deadline_has_passed_before_is_not_voted_on(batcher):
    echo = Echo()
    tier = batcher(echo)
    with pytest.raises(TierTimeout):
        tier.vote(numbered(0, deadline_s=-1), ALWAYS)
    assert not echo.calls
    assert tier.vote(numbered(1), ALWAYS).labels.tolist() == [1]
    assert tier.is_idle


def test_a_deadline_that_passes_during_the_vote_still_gets_the_answer(batcher):
    gate = Gate()
    tier = batcher(gate)
    callers = [Caller(tier, numbered(0, deadline_s=0.05))]
    assert gate.entered.wait(BOUND_S)
    until(lambda: time.monotonic() > callers[0].batch.deadline)
    gate.open.set()
    finish(callers)
    assert callers[0].labels == [0]


def test_an_error_reaches_exactly_the_callers_of_its_group(batcher):
    def work(batch: Batch) -> None:
        if len(echo.calls) == 1:
            entered.set()
            assert opened.wait(BOUND_S)
        if "13" in batch.ids:
            raise ValueError("unlucky")

    entered, opened = threading.Event(), threading.Event()
    echo = Echo(work)
    tier = batcher(echo, max_batch=2)
    callers = [Caller(tier, numbered(0))]
    assert entered.wait(BOUND_S)
    for number in (12, 13, 14, 15):
        callers.append(Caller(tier, numbered(number)))
        until(lambda: tier.waiting()[-1:] == [callers[-1].batch.ids])
    opened.set()
    finish(callers)
    assert echo.sizes == [1, 2, 2]
    assert [caller.labels for caller in callers] == [[0], None, None, [14], [15]]
    assert [type(caller.error) for caller in callers[1:3]] == [ValueError, ValueError]


def test_the_batcher_goes_on_after_a_call_that_failed(batcher):
    class Failing(Gate):
        def _hold(self, batch: Batch) -> None:
            super()._hold(batch)
            if "0" in batch.ids:
                raise RuntimeError("broken")

    gate = Failing()
    tier = batcher(gate)
    leader = Caller(tier, numbered(0))
    assert gate.entered.wait(BOUND_S)
    follower = Caller(tier, numbered(1))
    until(lambda: tier.n_queued == 1)
    gate.open.set()
    finish([leader, follower])
    assert isinstance(leader.error, RuntimeError)
    assert follower.labels == [1]
    assert tier.is_idle


def test_other_shapes_dtypes_and_rules_are_never_merged(batcher):
    gate = Gate()
    tier = batcher(gate)
    callers = [Caller(tier, numbered(0))]
    assert gate.entered.wait(BOUND_S)
    floats = replace(numbered(20), x=np.zeros((1, 1), np.float32))
    half, whole = Agreement(Fraction(1, 2)), Agreement(Fraction(1))
    for batch, rule in (
        (numbered(10), ALWAYS),
        (numbered(11, shape=(2,)), ALWAYS),
        (numbered(12, shape=(2,)), ALWAYS),
        (floats, ALWAYS),
        (numbered(30), half),
        (numbered(31), Agreement(Fraction(2, 4))),
        (numbered(32), whole),
    ):
        callers.append(Caller(tier, batch, rule))
        until(lambda: tier.waiting()[-1:] == [callers[-1].batch.ids])
    gate.open.set()
    finish(callers)
    assert [batch.ids for batch in gate.calls] == [("0",), ("10",), ("11", "12"), ("20",), ("30", "31"), ("32",)]
    assert gate.rules == [ALWAYS, ALWAYS, ALWAYS, ALWAYS, half, whole]
    assert [caller.labels for caller in callers] == [caller.wanted for caller in callers]


def test_images_of_several_sizes_are_merged_as_they_are(batcher):
    class Sizes(Gate):
        def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
            super().vote(batch, rule)
            labels = np.array([row.size for row in batch.x], dtype=np.int64)
            return Vote(labels, labels, labels, 1, labels.astype(np.float32))

    def ragged(first: int, *sizes: int) -> Batch:
        x = np.empty(len(sizes), dtype=object)
        x[:] = [np.zeros((size, 1), np.uint8) for size in sizes]
        return replace(numbered(first, len(sizes)), x=x)

    gate = Sizes()
    tier = batcher(gate)
    callers = [Caller(tier, ragged(0, 3, 4))]
    assert gate.entered.wait(BOUND_S)
    callers += [Caller(tier, ragged(10, 5, 6))]
    until(lambda: tier.n_queued == 2)
    callers += [Caller(tier, ragged(20, 7, 8))]
    until(lambda: tier.n_queued == 4)
    gate.open.set()
    finish(callers)
    assert gate.sizes == [2, 4]
    assert [caller.labels for caller in callers] == [[3, 4], [5, 6], [7, 8]]


def test_captured_bytes_travel_with_their_rows(batcher):
    gate = Gate()
    tier = batcher(gate)
    callers = [Caller(tier, numbered(0))]
    assert gate.entered.wait(BOUND_S)
    for number in (1, 2):
        captured = np.array([b"png %d" % number], dtype=object)
        callers.append(Caller(tier, replace(numbered(number), captured=captured)))
        until(lambda: tier.waiting()[-1:] == [callers[-1].batch.ids])
    gate.open.set()
    finish(callers)
    assert gate.calls[1].captured.tolist() == [b"png 1", b"png 2"]


def test_a_vote_tells_how_long_it_queued_and_what_the_call_cost(batcher):
    gate = Gate()
    tier = batcher(gate)
    first = Caller(tier, numbered(0))
    assert gate.entered.wait(BOUND_S)
    second = Caller(tier, numbered(1))
    until(lambda: tier.n_queued == 1)
    time.sleep(0.02)
    gate.open.set()
    finish([first, second])
    assert set(first.call.to_dict()) == set(second.call.to_dict()) == {"compute_s", "queue_s"}
    assert first.call.queue_s < second.call.queue_s
    assert 0.02 <= second.call.queue_s <= second.took_s


def test_a_request_over_max_batch_goes_in_pieces_and_lets_others_in_between(batcher):
    gate = Gate()
    tier = batcher(gate, max_batch=4)
    large = Caller(tier, numbered(0, 10))
    assert gate.entered.wait(BOUND_S)
    small = Caller(tier, numbered(100))
    until(lambda: tier.n_queued == 1)
    gate.open.set()
    finish([large, small])
    assert large.labels == list(range(10))
    assert small.labels == [100]
    names = [name for batch in gate.calls for name in batch.ids]
    assert names.index("100") < names.index("9")


def test_a_piece_past_its_deadline_fails_the_whole_request_and_nobody_else(batcher):
    tier = batcher(Echo(lambda batch: time.sleep(0.05)), max_batch=2)
    large, small = Caller(tier, numbered(0, 40, deadline_s=0.12)), Caller(tier, numbered(100))
    finish([large, small])
    assert isinstance(large.error, TierTimeout)
    assert small.labels == [100]
    assert tier.is_idle


def test_the_answers_are_those_of_the_tier_behind_it(batcher):
    outputs = [one_hot([0, 1, 2, 0]), one_hot([0, 1, 1, 2]), one_hot([0, 2, 0, 1])]
    inner = table_tier(outputs, Fraction(2, 3))
    tier = batcher(inner, max_batch=3)
    vote, wanted = tier.vote(rows(4), inner.rule), inner.vote(rows(4), inner.rule)
    for name in ("labels", "count", "asked", "score"):
        assert getattr(vote, name).tolist() == getattr(wanted, name).tolist()
    assert (tier.name, tier.rule, tier.n_tiers, tier.waits) == ("tier", inner.rule, 1, False)


# Deadlines, many at once: what deadlocks are made of.


@pytest.mark.parametrize("seed", range(6))
def test_no_thread_hangs_when_many_deadlines_pass_at_once(seed, batcher):
    dice = random.Random(seed)
    tier = batcher(
        Echo(lambda batch: time.sleep(dice.choice([0, 0.001, 0.004]))),
        max_batch=4,
        max_delay_s=dice.choice([0, 0.001]),
        max_queued=64,
    )
    outcomes: list[str] = []
    together = time.monotonic() + 0.02

    def client(own: random.Random, at: int) -> None:
        for turn in range(12):
            number = at * 1000 + turn * 10
            batch = numbered(number, own.randint(1, 3))
            wait = own.choice([0.0, 0.001, 0.004, 0.008])
            deadline = together if turn == 0 else time.monotonic() + wait
            try:
                vote = tier.vote(replace(batch, deadline=deadline), ALWAYS)
                right = vote.labels.tolist() == [int(name) for name in batch.ids]
                outcomes.append("answered" if right else "WRONG ROWS")
            except (TierTimeout, TierOverloaded) as error:
                outcomes.append(error.reason)
            except BaseException as error:  # noqa: BLE001 - told to the test
                outcomes.append(repr(error))

    threads = [
        threading.Thread(target=client, args=(random.Random(seed * 100 + at), at), daemon=True) for at in range(24)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + BOUND_S
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    assert not any(thread.is_alive() for thread in threads), "a caller never came back"
    assert len(outcomes) == 24 * 12
    assert set(outcomes) <= {"answered", "timeout", "overloaded"}
    assert tier.is_idle
    assert tier.vote(numbered(7), ALWAYS).labels.tolist() == [7]
