"""Members side by side: the vote does not wait for the slowest, and nobody is the worse for it."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import one_hot, rows, table_tier, tables, thetas

from coe.cascade import Agreement, Always, Batch, Confidence, InputError, LocalTier
from coe.models import TableMember
from coe.models.pool import MemberPool

FACTS = ("labels", "count", "asked", "score")
TWO_OF_THREE = Agreement(Fraction(2, 3))
PATIENCE_S = 10


class Gated(TableMember):
    """Answers once its gate is open; counts its calls, and how many were under way at the same time."""

    def __init__(self, table, name="gated", is_open=True, error=None):
        super().__init__(table, name)
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.error = error
        self.n_calls = self.at_once = self.most_at_once = 0
        self.sizes = []
        self.is_closed = False
        if is_open:
            self.gate.set()

    def predict(self, x):
        self.n_calls += 1
        self.sizes.append(len(x))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        assert self.gate.wait(PATIENCE_S)
        self.at_once -= 1
        assert not self.is_closed
        if self.error is not None:
            raise self.error
        return super().predict(x)

    def close(self):
        self.is_closed = True


def side_by_side(members, rule=TWO_OF_THREE, at_once=None, **options):
    return LocalTier("cloud", members, rule, pool=MemberPool.of("cloud", members, at_once), **options)


def three(*ballots, held=(2,), error=None):
    """Members that vote for a label each; those held have closed gates, the last fails where there is an error."""
    return [
        Gated(one_hot([ballot] * 4), f"member-{index + 1}", index not in held, error if index == 2 else None)
        for index, ballot in enumerate(ballots)
    ]


@pytest.fixture
def ask():
    """Calls on a thread of their own."""
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def let_go(members):
    for member in members:
        member.gate.set()


def ask_and_hold(ask, tier, straggler, batch, first=False):
    """A vote under way: the straggler has begun and is held (or comes first: has failed), the others are let go."""
    members = tier.members
    for member in members:
        member.gate.clear()
        member.begun.clear()
    asking = ask(tier.vote, batch, tier.rule)
    for member in members:  # nobody is through before everybody has begun
        assert member.begun.wait(PATIENCE_S)
    if first:
        members[straggler].gate.set()
    let_go(member for index, member in enumerate(members) if index != straggler)
    return asking


@st.composite
def arrivals(draw):
    """Tables of at least two members, and the indices in the order in which their gates open."""
    members = draw(st.integers(2, 5).flatmap(lambda n: tables(n_members=n)))
    return members, draw(st.permutations(range(len(members))))


@given(arrivals(), thetas(), st.booleans())
def test_in_whatever_order_members_come_the_decision_is_that_of_asking_everybody(arrival, theta, is_last):
    tabled, order = arrival
    rule, batch = Always() if is_last else Agreement(theta), rows(len(tabled[0]))
    n_members, n_labels = len(tabled), tabled[0].shape[1]
    needed = 0 if is_last else oracle.needed(theta, n_members)
    ballots = [[oracle.ballot(table[row].tolist()) for table in tabled] for row in range(len(batch))]
    enough = max(oracle.members_asked([row[index] for index in order], n_labels, needed) for row in ballots)
    members = [Gated(table, is_open=False) for table in tabled]
    tier = side_by_side(members, rule)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(tier.vote, batch, rule)
        let_go(members[index] for index in order[:enough])
        vote = asking.result(PATIENCE_S)  # the others are still held
        indices = list(range(n_members)) if vote.member_indices is None else list(vote.member_indices)
        assert set(indices) <= set(order[:enough])
        assert vote.asked.tolist() == [len(indices)] * len(batch)
        for row in ballots:
            ends = oracle.outcomes([row[index] for index in indices], n_members - len(indices), n_labels, needed)
            assert len(indices) == n_members or len(ends) == 1
        everybody = table_tier(tabled, rule, early=False).vote(batch, rule)
        exits = rule.exits(batch, everybody)
        assert rule.exits(batch, vote).tolist() == exits.tolist()
        assert vote.labels[exits].tolist() == everybody.labels[exits].tolist()
        let_go(members)
        whole = tier.complete(batch, vote)
        tier.close()
    assert all(getattr(whole, fact).tobytes() == getattr(everybody, fact).tobytes() for fact in FACTS)
    assert all(member.most_at_once == 1 for member in members)


@given(arrivals(), thetas())
def test_some_rows_of_a_vote_without_stragglers_are_completed_as_the_whole(arrival, theta):
    tabled, order = arrival
    rule, batch = Agreement(theta), rows(len(tabled[0]))
    members = [Gated(table) for table in tabled]
    tier = side_by_side(members, rule)
    with ThreadPoolExecutor(1) as pool:
        asking = ask_and_hold(pool.submit, tier, order[0], batch)
        let_go(members)
        vote = asking.result(PATIENCE_S)
    last = np.array([len(batch) - 1])
    whole = tier.complete(batch.take(last), vote.take(last))
    tier.close()
    everybody = table_tier(tabled, rule, early=False).vote(batch.take(last), rule)
    assert all(getattr(whole, fact).tobytes() == getattr(everybody, fact).tobytes() for fact in FACTS)


def test_the_vote_is_over_when_every_row_of_the_batch_is_settled(ask):
    members = [Gated(one_hot(votes), f"m{index}") for index, votes in enumerate([[1, 1], [1, 2], [1, 2]])]
    members[2].gate.clear()
    tier = side_by_side(members)
    first = ask(tier.vote, rows(1), TWO_OF_THREE)
    assert first.result(PATIENCE_S).asked.tolist() == [2]
    both = ask(tier.vote, rows(2), TWO_OF_THREE)  # its second row needs the third member
    with pytest.raises(TimeoutError):
        both.result(0.05)
    let_go(members)
    assert both.result(PATIENCE_S).asked.tolist() == [3, 3]
    assert both.result().labels.tolist() == [1, 2]
    tier.close()


@pytest.mark.parametrize(
    ("rule", "early"),
    [(TWO_OF_THREE, False), (Always(asks_all=True), True), (Always(pools_scores=True), True), (Confidence(0.5), True)],
)
def test_where_everybody_is_to_be_asked_everybody_is_awaited(ask, rule, early):
    members = three(1, 1, 1)
    tier = side_by_side(members, rule, early=early)
    asking = ask(tier.vote, rows(1), rule)
    with pytest.raises(TimeoutError):
        asking.result(0.05)
    let_go(members)
    assert asking.result(PATIENCE_S).asked.tolist() == [3]
    tier.close()


def nothing_but_nan():
    table = one_hot([1] * 4)
    table[:, 0] = np.nan
    return table


@pytest.mark.parametrize("error", [OSError("disk on fire"), None])
@pytest.mark.parametrize("comes", ["first", "last"])
def test_a_member_that_fails_does_not_vote_whenever_it_comes(ask, caplog, error, comes):
    members = three(1, 1, 1, error=error)
    if error is None:
        members[2].table = nothing_but_nan()
    tier = side_by_side(members)
    with caplog.at_level(logging.WARNING, "coe.cascade"):
        vote = ask_and_hold(ask, tier, 2, rows(1), first=comes == "first").result(PATIENCE_S)
        let_go(members)
        tier.close()
    assert vote.labels.tolist() == [1]
    assert vote.asked.tolist()[0] - vote.count.tolist()[0] == (0 if vote.failures is None else 1)
    assert len(caplog.records) == 1
    assert tier.failures.n_failed == [0, 0, 1]


@pytest.mark.parametrize("held", [(), (0,), (2,)])
def test_where_the_others_do_not_settle_it_without_the_member_that_fails_the_row_goes_on(ask, held):
    members = three(1, 2, 1, held=held, error=OSError("disk on fire"))
    tier = side_by_side(members)
    asking = ask(tier.vote, rows(1), TWO_OF_THREE)
    assert members[0].begun.wait(PATIENCE_S)
    let_go(members)
    vote = asking.result(PATIENCE_S)
    assert not TWO_OF_THREE.exits(rows(1), vote).any()
    whole = tier.complete(rows(1), vote)
    assert (whole.labels.tolist(), whole.count.tolist(), whole.asked.tolist()) == ([1], [1], [3])
    tier.close()


def test_what_a_call_raises_itself_is_raised_of_several_that_of_the_first_member():
    threads = MemberPool("cloud", 3, 3)

    def fail(index):
        raise InputError(f"index {index}")

    with pytest.raises(InputError, match="index"):
        threads.run({index: partial(fail, index) for index in range(3)})
    assert threads.run({0: lambda: np.ones(1)})[0] == 1
    threads.close()


def test_votes_go_on_while_a_straggler_is_held_and_nothing_piles_up_behind_it(ask):
    members = three(1, 1, 1)
    tier = side_by_side(members)
    ask_and_hold(ask, tier, 2, rows(1)).result(PATIENCE_S)
    kept = []
    for _ in range(20):
        x = np.zeros((1, 1))
        kept.append(weakref.ref(x))
        vote = ask(tier.vote, Batch(("x",), x), TWO_OF_THREE).result(PATIENCE_S)
        assert vote.asked.tolist() == [2]
        del x
    ask(int).result()  # the thread that asked lets go of what it held
    assert sum(ref() is not None for ref in kept) <= 8  # at most one for each thread of the pool that asks
    let_go(members)
    tier.close()
    assert members[2].n_calls == 1
    assert [member.n_calls for member in members[:2]] == [21, 21]


def test_votes_that_need_a_busy_member_wait_for_it_and_it_takes_one_call_at_a_time(ask):
    members = [
        Gated(table, f"m{index}") for index, table in enumerate([one_hot([1, 1]), one_hot([1, 2]), one_hot([0, 2])])
    ]
    tier = side_by_side(members)
    assert ask_and_hold(ask, tier, 2, rows(1)).result(PATIENCE_S).asked.tolist() == [2]
    need_it = [ask(tier.vote, rows(1, first=1), TWO_OF_THREE) for _ in range(4)]
    let_go(members)
    for asking in need_it:
        vote = asking.result(PATIENCE_S)
        assert vote.labels.tolist() == [2]
        assert vote.member_indices is None or 2 in vote.member_indices
    tier.close()
    assert members[2].most_at_once == 1


def test_closing_waits_for_a_straggler_before_a_member_is_closed(ask):
    members = three(1, 1, 1)
    tier = side_by_side(members)
    ask_and_hold(ask, tier, 2, rows(1)).result(PATIENCE_S)
    closing = ask(tier.close)
    with pytest.raises(TimeoutError):
        closing.result(0.05)
    assert not any(member.is_closed for member in members)
    let_go(members)
    closing.result(PATIENCE_S)
    assert all(member.is_closed for member in members)
    tier.close()
    with pytest.raises(RuntimeError, match="tier cloud is closed"):
        tier.vote(rows(1), TWO_OF_THREE)


def test_completing_a_vote_asks_only_those_it_was_settled_without(ask):
    members = three(1, 2, 1, held=(0,))
    tier = side_by_side(members, Agreement(Fraction(1)))
    vote = ask_and_hold(ask, tier, 0, rows(2)).result(PATIENCE_S)
    assert list(vote.member_indices) == [1, 2]
    let_go(members)
    whole = tier.complete(rows(2), vote)
    tier.close()
    assert (whole.labels.tolist(), whole.count.tolist(), whole.asked.tolist()) == ([1, 1], [2, 2], [3, 3])
    assert [member.n_calls for member in members] == [2, 1, 1]  # the straggler's own output had been let go


def test_a_completed_vote_counts_a_member_whose_output_is_no_number(ask):
    members = three(1, 2, 1, held=(0,))
    members[0].table = nothing_but_nan()
    tier = side_by_side(members, Agreement(Fraction(1)))
    vote = ask(tier.vote, rows(1), tier.rule).result(PATIENCE_S)
    let_go(members)
    whole = tier.complete(rows(1), vote)
    tier.close()
    assert (whole.count.tolist(), whole.asked.tolist()) == ([1], [3])
    assert whole.failures == {0: "member member-1: its output is not a number (NaN or infinity)"}


def threads_of_the_tier():
    return sum(thread.name.startswith("coe-cloud") for thread in threading.enumerate())


@pytest.mark.parametrize(("at_once", "n_threads"), [(None, 3), (2, 2), (1, 0), (7, 3)])
def test_no_more_members_are_at_work_than_may_be(at_once, n_threads):
    tier = side_by_side(three(0, 1, 2, held=()), at_once=at_once)
    for _ in range(20):
        assert tier.vote(rows(4), TWO_OF_THREE).asked.tolist() == [3] * 4
    assert threads_of_the_tier() == n_threads
    tier.close()
    assert threads_of_the_tier() == 0


def test_with_fewer_threads_than_members_many_callers_are_all_answered(ask):
    tier = side_by_side(three(0, 1, 2, held=()), at_once=2)
    for asking in [ask(tier.vote, rows(4), TWO_OF_THREE) for _ in range(50)]:
        assert asking.result(PATIENCE_S).asked.tolist() == [3] * 4
    tier.close()
    assert all(member.most_at_once == 1 for member in tier.members)


@pytest.mark.parametrize("parallel", [True, False])
def test_members_that_share_a_contract_share_the_prepared_batch(parallel):
    calls = []

    def shared(x):
        calls.append(len(x))
        return x

    members = three(1, 2, 1, held=())
    for member in members:
        member.prepare = shared
    tier = LocalTier(
        "cloud",
        members,
        Agreement(Fraction(1)),
        early=False,
        pool=MemberPool.of("cloud", members) if parallel else None,
    )
    tier.vote(rows(3), tier.rule)
    tier.close()
    assert calls == [3]


@pytest.mark.parametrize("parallel", [True, False])
def test_warming_up_asks_every_member_about_each_size(parallel):
    members = three(1, 1, 1, held=())
    tier = LocalTier("cloud", members, TWO_OF_THREE, pool=MemberPool.of("cloud", members) if parallel else None)
    tier.warm_up(np.zeros((1, 1)), (1, 4))
    tier.close()
    assert [member.sizes for member in members] == [[1, 4]] * 3


class Timed:
    """A tier whose members may take 20 ms by a clock that stands still but where `pass_time` lets it go on."""

    def __init__(self, monkeypatch, members, rule=TWO_OF_THREE, at_once=None, early=True):
        self.now = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("coe.models.pool.time", clock)
        self.pool = MemberPool.of("cloud", members, at_once, 0.02)
        self.tier = LocalTier("cloud", members, rule, early=early, pool=self.pool)

    def pass_time(self, *held):
        """Wait until these alone are at work, and let their time pass."""

        def passes():
            with self.pool._lock:
                if set(self.pool._since) != set(held):
                    return False
                self.now += 1
                return True

        until(passes)


def until(claim):
    end = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("hangs", [0, 1, 2])
def test_a_member_that_hangs_does_not_vote_until_it_is_back(ask, monkeypatch, hangs, at_once, early):
    labels = [1, 1, 1]
    labels[(hangs + 1) % 3] = 2  # without the one that hangs it is not settled
    members = three(*labels, held=(hangs,))
    timed = Timed(monkeypatch, members, at_once=at_once, early=early)
    tier = timed.tier
    for n in range(1, 4):
        asking = ask(tier.vote, rows(2), TWO_OF_THREE)
        if n == 1:
            timed.pass_time(hangs)
        whole = ask(tier.complete, rows(2), asking.result(PATIENCE_S)).result(PATIENCE_S)
        assert (whole.count.tolist(), whole.asked.tolist()) == ([1, 1], [3, 3])
        assert whole.failures == {hangs: f"member member-{hangs + 1}: no answer within 20 ms"}
        assert members[hangs].n_calls == 1  # it is not asked again meanwhile
        assert tier.failures.n_failed[hangs] == 2 * n
    members[hangs].gate.set()
    until(lambda: ask(tier.vote, rows(2), Always(asks_all=True)).result(PATIENCE_S).failures is None)
    tier.close()
    assert threads_of_the_tier() == 0


def test_two_that_hang_on_the_only_threads_leave_the_third_its_own(ask, monkeypatch):
    members = three(1, 1, 2, held=(0, 1))
    timed = Timed(monkeypatch, members, rule=Always(asks_all=True), at_once=2)
    asking = ask(timed.tier.vote, rows(1), timed.tier.rule)
    timed.pass_time(0, 1)
    vote = asking.result(PATIENCE_S)
    assert (vote.labels.tolist(), vote.count.tolist(), vote.asked.tolist()) == ([2], [1], [3])
    let_go(members)
    timed.tier.close()


def test_a_straggler_that_nobody_waits_for_is_late_too_and_gives_its_thread_back(ask, monkeypatch):
    members = three(1, 1, 1)
    timed = Timed(monkeypatch, members, at_once=3)
    assert ask_and_hold(ask, timed.tier, 2, rows(1)).result(PATIENCE_S).asked.tolist() == [2]
    timed.pass_time(2)
    vote = ask(timed.tier.vote, rows(1), Always(asks_all=True)).result(PATIENCE_S)
    assert vote.failures == {2: "member member-3: no answer within 20 ms"}
    let_go(members)
    timed.tier.close()


def test_where_all_hang_nobody_votes_and_closing_does_not_wait_for_ever(ask, monkeypatch):
    members = three(1, 1, 1, held=(0, 1, 2))
    timed = Timed(monkeypatch, members)
    asking = ask(timed.tier.vote, rows(1), TWO_OF_THREE)
    timed.pass_time(0, 1, 2)
    vote = asking.result(PATIENCE_S)
    assert (vote.labels.tolist(), vote.count.tolist()) == ([-1], [0])
    monkeypatch.undo()
    ask(timed.pool.close).result(PATIENCE_S)
    let_go(members)


def test_a_single_member_has_a_thread_too_where_its_time_is_bounded(ask, monkeypatch):
    members = [Gated(one_hot([1]), is_open=False)]
    timed = Timed(monkeypatch, members, rule=Always())
    asking = ask(timed.tier.vote, rows(1), Always())
    timed.pass_time(0)
    assert asking.result(PATIENCE_S).labels.tolist() == [-1]
    let_go(members)
    timed.tier.close()
