"""What members cost: measured in turn, within a bounded time; and the cheapest are asked first."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import one_hot

from coe.models import TableMember
from coe.models.pool import MOST_ROUNDS, cheapest_first, seconds_each

X = np.zeros((1, 1), dtype=np.int64)


class Slow(TableMember):
    """Takes so long for each example; counts what it prepares."""

    def __init__(self, seconds):
        super().__init__(one_hot([1]))
        self.seconds = seconds
        self.n_prepared = 0
        self.prepare = self.count

    def count(self, x):
        self.n_prepared += 1
        return x

    def predict(self, x):
        time.sleep(self.seconds)
        return super().predict(x)


def test_slower_members_take_longer_and_are_asked_later():
    members = [Slow(0.2), TableMember(one_hot([1])), Slow(0.05)]
    seconds = seconds_each(members, X)
    assert seconds[0] >= 0.2
    assert seconds[2] >= 0.05
    assert cheapest_first(seconds) == [1, 2, 0]


def test_measuring_stops_in_time_and_asks_each_once_at_least():
    members = [Slow(0.02), Slow(0.02)]
    started = time.perf_counter()
    seconds_each(members, X, budget_s=0.001)
    assert [member.n_asked for member in members] == [1, 1]
    assert time.perf_counter() - started < 1
    quick = TableMember(one_hot([1]))
    seconds_each([quick], X, budget_s=60)
    assert quick.n_asked == MOST_ROUNDS


def test_a_preparation_counts_where_no_other_member_shares_it():
    alone, one, other = Slow(0), Slow(0), Slow(0)
    one.prepare = other.prepare = shared = Slow(0).count
    seconds_each([alone, one, other], X, budget_s=60)
    assert alone.n_prepared == MOST_ROUNDS + 1
    assert shared.__self__.n_prepared == 2


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=6))
def test_the_order_is_that_of_the_costs_and_of_the_list_where_these_are_the_same(seconds):
    order = cheapest_first(seconds)
    assert sorted(order) == list(range(len(seconds)))
    assert [(seconds[index], index) for index in order] == sorted((cost, index) for index, cost in enumerate(seconds))
