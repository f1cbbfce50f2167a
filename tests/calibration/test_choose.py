"""The choice: figures equal those of deciding example by example, budgets hold, and the order of members is nothing."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from members_of import recorded

from coe.calibration.choose import (
    Budget,
    Candidate,
    Certifier,
    Panel,
    System,
    best_single,
    candidates,
    cheapest_certified,
    combinations_of,
    front,
    most_accurate,
    wrong_together,
)
from coe.calibration.choose import _votes as votes
from coe.cascade import Accounting, tier_charges

COST = {"a": 1.0, "b": 2.0, "c": 20.0}
SEQUENCES = [(("a",),), (("b",),), (("c",),), (("a",), ("c",)), (("a", "b"), ("c",)), (("a",), ("b",), ("c",))]


def panel(n: int = 1200, accuracies=(0.7, 0.75, 0.8), seed: int = 0) -> Panel:
    labels, scores, truth = recorded(n, 4, accuracies, seed)
    return Panel(("a", "b", "c"), labels, scores, truth, 4)


def cost(most: float = 0.95, reference: str = "c") -> Budget:
    def charges(tiers):
        own = [[COST[name] for name in tier] for tier in tiers]
        return tier_charges(own, Accounting.REACH_SERIAL) / COST[reference]

    return Budget(charges, most)


@pytest.mark.parametrize("rule", ["calibrated", "agreement", "confidence"])
def test_every_combination_of_thresholds_is_counted_as_if_decided_one_by_one(rule):
    data = panel(120)
    tiers = (("a", "b"), ("c",)) if rule == "agreement" else (("a",), ("b",), ("c",))
    swept = votes(rule, tiers, data)
    exits, right = combinations_of(swept)
    for places in product(*(range(len(own.marks)) for own in swept[:-1])):
        left = np.full(120, -1)
        for number, own in enumerate(swept):
            leaves = np.ones(120, bool) if number == len(swept) - 1 else own.score >= own.marks[places[number]]
            left[(left < 0) & leaves] = number
        assert exits[places].tolist() == np.bincount(left, minlength=len(tiers)).tolist()
        assert right[places].tolist() == [int(own.right[left == number].sum()) for number, own in enumerate(swept)]


def test_the_front_rises_within_the_budget_and_the_end_is_the_most_accurate():
    found = front(candidates(panel(), SEQUENCES, [cost(0.9)]))
    costs, accuracies = [one.cost for one in found], [one.accuracy for one in found]
    assert costs == sorted(costs)
    assert accuracies == sorted(accuracies)
    assert max(costs) <= 0.9
    assert found[-1].system.rule == "calibrated"


def test_a_limit_on_what_is_sent_holds_on_other_examples():
    def sent(tiers):
        return [float(any("c" in tier for tier in tiers[: place + 1])) for place in range(len(tiers))]

    best = front(candidates(panel(), SEQUENCES, [cost(2.0), Budget(sent, 0.2)]))[-1]
    system = best.fitted(panel())
    _, exit_tier = system.decide(panel(4000, seed=1))
    assert np.dot(system.shares(exit_tier), sent(system.tiers)) <= 0.23
    assert system.as_text().count("|") >= 1


def test_what_was_expected_comes_about_on_other_examples():
    best = front(candidates(panel(), SEQUENCES, [cost()]))[-1]
    other = panel(20_000, seed=2)
    right, _ = best.fitted(panel()).decide(other)
    assert right.mean() == pytest.approx(best.accuracy, abs=0.03)
    assert right.mean() > other.right("c").mean()


def test_the_order_of_the_members_changes_no_decision():
    data, order = panel(400), [2, 0, 1]
    other = Panel(("c", "a", "b"), data.labels[order], data.scores[order], data.truth, 4)
    one, two = (front(candidates(own, SEQUENCES, [cost()]))[-1] for own in (data, other))
    assert one == two
    assert one.fitted(data).decide(data)[0].tolist() == two.fitted(other).decide(other)[0].tolist()


def certifier(epsilon: float = 0.01, seed: int = 3) -> Certifier:
    return Certifier(panel(600), panel(600, seed=seed), "c", ("a", "b", "c"), epsilon, 0.1)


def test_the_most_accurate_comes_with_a_bound_against_every_model():
    choice = most_accurate(front(candidates(panel(600), SEQUENCES, [cost()])), certifier())
    assert choice is not None
    assert choice.bound.holds
    assert choice.bound.lower_bound > -0.01
    assert choice.bound.n == 600
    assert choice.gain > choice.loss


def test_the_cheapest_certified_is_no_dearer_and_stops_where_nothing_is_shown():
    found = front(candidates(panel(600), SEQUENCES, [cost()]))
    cheap = cheapest_certified(found, certifier(0.03))
    assert cheap is not None
    assert cheap.bound.holds
    charges = np.array(cost().charges(cheap.system.tiers))
    assert np.dot(cheap.system.shares(cheap.system.decide(panel(seed=4))[1]), charges) <= found[-1].cost
    worse = [Candidate(0.05, 0.7, System("single", (("a",),)), ())]
    assert cheapest_certified(worse, certifier()) is None
    assert cheapest_certified([], certifier()) is None


def test_the_reference_itself_needs_no_test():
    choice = certifier().choice(System("single", (("c",),)), 0.8)
    assert (choice.bound.holds, choice.bound.lower_bound) == (True, 0.0)


def test_of_models_that_labels_cannot_tell_apart_the_dearest_is_the_reference():
    data = panel(200, (0.8, 0.5, 0.79), seed=5)
    assert best_single(data, COST) == "c"
    assert best_single(data, {**COST, "a": 30.0}) == "a"
    assert best_single(panel(4000, (0.85, 0.5, 0.8), seed=5), COST) == "a"


def test_models_that_agree_wrongly_are_noticed():
    truth = np.zeros(100, dtype=np.int64)
    labels = np.stack([np.ones(100, dtype=np.int64)] * 2 + [truth])
    data = Panel(("a", "b", "c"), labels, np.full((3, 100), np.nan), truth, 2)
    assert best_single(data, COST) == "c"
    assert wrong_together(data, "c", COST) == (1.0, 0.0)
    assert wrong_together(data, "b", COST) is None
