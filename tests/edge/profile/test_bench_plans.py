"""Which plan, which order: what is tried, what is chosen, and what each would cost."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import members_of, one_hot, rows

from coe.cascade import Agreement, LocalTier
from edge.profile.plans import Plan, PlanTiming, choose, compare_orders, cores, expected_s, plans, reason


def timed(seconds, threads=1, parallel=False):
    return PlanTiming(Plan(parallel, threads), f"{threads} {'side by side' if parallel else 'in turn'}", seconds, ())


@pytest.mark.parametrize(
    ("n_members", "n_cores", "in_turn", "side_by_side"),
    [
        (3, 1, [1], []),
        (3, 2, [1, 2], [2]),
        (3, 4, [1, 2, 3, 4], [2, 3, 4]),
        (1, 4, [1, 2, 3, 4], []),
        (3, 20, [1, 2, 3, 4, 5, 6, 7, 8, 16, 20], [2, 3, 4, 5, 6, 7, 8, 16, 20]),
    ],
)
def test_members_in_turn_and_side_by_side_are_tried_on_one_thread_to_all_cores(
    n_members, n_cores, in_turn, side_by_side
):
    tried = plans(n_members, n_cores)
    assert [plan.threads for plan in tried if not plan.parallel] == in_turn
    assert [plan.threads for plan in tried if plan.parallel] == side_by_side


def test_the_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert cores() == 3


def test_the_fastest_plan_is_taken_and_the_next_is_told():
    tried = [timed(3e-3), timed(2e-3, 2), timed(1e-3, 2, parallel=True)]
    chosen = choose(tried)
    assert chosen is tried[2]
    assert reason(tried, chosen) == "the fastest; the next (2 in turn) takes 2.00 times as long"


def test_of_plans_as_fast_as_the_fastest_the_one_on_the_fewest_threads_is_taken():
    tried = [timed(1.04e-3), timed(1e-3, 2), timed(1.01e-3, 2, parallel=True)]
    assert choose(tried) is tried[0]
    assert choose(tried[1:]) is tried[1]
    assert reason(tried, tried[0]).startswith("within 5% of the fastest (2 in turn)")
    assert choose([timed(1.06e-3), *tried[1:]]) is tried[1]


BALLOTS = st.integers(2, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1, max_size=6)
)
COSTS = st.lists(st.sampled_from([1.0, 2.0, 3.0, 7.0]), min_size=4, max_size=4)


@given(BALLOTS, COSTS, st.data())
def test_an_orders_cost_is_that_of_the_members_a_tier_asks(labels, costs, data):
    n_members = len(labels[0])
    theta = Fraction(data.draw(st.integers(1, n_members)), n_members)
    order = data.draw(st.permutations(range(n_members)))
    members = members_of([one_hot([row[index] for row in labels]) for index in order])
    tier = LocalTier("tier", members, Agreement(theta))
    for number in range(len(labels)):
        tier.vote(rows(1, first=number), tier.rule)
    asked = sum(costs[index] * member.n_asked for index, member in zip(order, members, strict=True))
    needed = tier.rule.needed(n_members)
    assert expected_s(order, labels, costs, needed) == pytest.approx(asked / len(labels))


@settings(max_examples=30)
@given(BALLOTS, COSTS, st.data())
def test_where_nothing_is_known_of_who_agrees_with_whom_no_order_beats_the_cheapest_first(labels, costs, data):
    n_members = len(labels[0])
    costs = costs[:n_members]
    needed = data.draw(st.integers(0, n_members))
    # nothing is known: each member's labels may be any other's
    anybody = [[row[index] for index in order] for row in labels for order in itertools.permutations(range(n_members))]
    found = compare_orders(anybody, costs, needed)
    assert found.cheapest_first_s == pytest.approx(found.best_s)
    assert found.cheapest_first_s <= found.listed_s * (1 + 1e-9)


def test_an_order_is_worth_measuring_where_the_cheapest_first_saves_something():
    agree = [[1, 1, 1]]
    assert compare_orders(agree, [3.0, 1.0, 1.0], needed=2).setting == "measured"
    assert compare_orders(agree, [1.0, 1.0, 3.0], needed=2).setting == "fixed"
    assert compare_orders(agree, [3.0, 1.0, 1.0], needed=3).setting == "fixed"  # all are asked anyway


def test_with_the_votes_known_another_order_may_be_better_still():
    # the two cheap ones always agree, and the third never does with them: at unanimity it settles most
    found = compare_orders([[0, 0, 1]], [1.0, 2.0, 2.5], needed=3)
    assert found.cheapest_first == (0, 1, 2)
    assert found.best in ((0, 2, 1), (2, 0, 1))
    assert (found.cheapest_first_s, found.best_s) == (5.5, 3.5)
