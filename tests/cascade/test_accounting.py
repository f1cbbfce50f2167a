"""The three accountings, by hand and against the paper's arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.cascade import Accounting, average_cost, communication, communication_ratio, tier_charges

COSTS = [[1.0, 2.0, 4.0], [10.0, 20.0], [100.0]]  # three tiers: three members, two, one


@pytest.mark.parametrize(
    ("accounting", "charges"),
    [
        (Accounting.EXIT, [4, 20, 100]),  # the slowest member of the tier where it leaves
        (Accounting.REACH, [4, 24, 124]),  # the slowest of each tier passed
        (Accounting.REACH_SERIAL, [7, 37, 137]),  # the sum of each tier passed
    ],
)
def test_each_accounting_charges_a_tier_as_its_name_says(accounting, charges):
    assert tier_charges(COSTS, accounting).tolist() == charges


@pytest.mark.parametrize(
    ("accounting", "mean"),
    [(Accounting.EXIT, 0.7 * 4 + 0.2 * 20 + 0.1 * 100), (Accounting.REACH, 20.0), (Accounting.REACH_SERIAL, 26.0)],
)
def test_the_average_weighs_each_charge_by_the_share_that_leaves_there(accounting, mean):
    assert average_cost([0.7, 0.2, 0.1], COSTS, accounting) == pytest.approx(mean)


def test_the_accountings_are_named_as_in_reports():
    assert [accounting.value for accounting in Accounting] == ["exit", "reach", "reach-serial"]


def test_sst2_over_one_microsecond_and_one_second_communicates_14_3_times_less():
    assert communication_ratio([0.93, 0.07], [1e-6, 1.0]) == pytest.approx(14.3, abs=0.05)


def test_communication_is_each_exit_share_times_its_delay():
    assert communication([0.5, 0.3, 0.2], [1e-6, 0.01, 1.0]) == pytest.approx(0.5e-6 + 0.003 + 0.2)


def test_a_cascade_that_always_reaches_its_last_tier_saves_no_communication():
    assert communication_ratio([0.0, 1.0], [1e-6, 1.0]) == 1.0


@pytest.mark.parametrize(
    "shares", [[0.5, 0.5], [0.5, 0.2, 0.2], [0.5, 0.5, 0.5], [float("nan"), 0.5, 0.5], [], [[0.5, 0.3, 0.2]]]
)
def test_exit_shares_must_be_one_per_tier_and_sum_to_one(shares):
    with pytest.raises(ValueError, match=r"must be one per tier \(3\) and sum to 1"):
        average_cost(shares, COSTS, Accounting.EXIT)


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), min_size=1, max_size=5), st.data())
def test_exit_never_charges_more_than_reach_nor_reach_more_than_serial(costs, data):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(costs), max_size=len(costs)))
    shares = [weight / sum(weights) for weight in weights]
    exit_, reach, serial = (average_cost(shares, costs, accounting) for accounting in Accounting)
    assert exit_ <= reach * (1 + 1e-9)
    assert reach <= serial * (1 + 1e-9)


@given(st.floats(0.001, 1e6), st.integers(1, 5))
def test_one_tier_of_one_member_costs_the_same_in_every_accounting(cost, n_tiers):
    del n_tiers
    assert {average_cost([1.0], [[cost]], accounting) for accounting in Accounting} == {cost}
