"""A cascade by calibrated votes: what a tier knew counts in the next one's answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calibrated import by_hand, cascade_of, cascades, equal
from hypothesis import given
from strategies import Broken, one_hot, rows, table_tier

from coe.calibration import CalibratedVote
from coe.cascade import Agreement, Cascade, TierRejected, TierUnavailable


def p_of(votes: int, others: int = 0) -> float:
    """Of a label with so many votes, where another has `others`."""
    return float(np.exp(2 * votes) / (np.exp(2 * votes) + np.exp(2 * others) + 1))


@given(cascades())
def test_a_tier_weighs_what_all_members_so_far_said_and_a_batch_equals_its_rows(case):
    tiers, stages, n_rows = case
    cascade = cascade_of(tiers, stages)
    decided = cascade.decide(rows(n_rows))
    for row in range(n_rows):
        alone = cascade.decide(rows(1, row))[0]
        assert (alone.label, alone.exit_tier, alone.score) == by_hand(tiers, stages, row)
        assert replace(decided[row], tier_times_s=()) == replace(alone, tier_times_s=())
        own = [int(table[row].argmax()) for table in tiers[alone.exit_tier - 1]]
        assert alone.vote == own.count(alone.label) / len(own)


@given(cascades())
def test_an_early_decided_vote_is_that_of_asking_everybody(case):
    tiers, stages, n_rows = case
    whole = [cascade_of(tiers, stages).decide(rows(1, row))[0] for row in range(n_rows)]
    early = cascade_of(tiers, stages, early=True)
    decided = [early.decide(rows(1, row))[0] for row in range(n_rows)]
    for one, other, together in zip(decided, whole, early.decide(rows(n_rows)), strict=True):
        assert (one.label, one.exit_tier) == (other.label, other.exit_tier) == (together.label, together.exit_tier)
        assert one.asked <= other.asked


def test_equal_weights_decide_as_plain_agreement_does():
    tables = [one_hot([0, 0, 1, 2]), one_hot([0, 0, 1, 0]), one_hot([0, 1, 2, 1])]
    last = [one_hot([1, 1, 1, 1])]
    plain = Cascade([table_tier(tables, Agreement("2/3")), table_tier(last, Agreement("1"))])
    between = (p_of(2, 1) + 1 / 3) / 2  # 2 of 3 reach it, 1 of 3 does not
    calibrated = cascade_of([tables, last], [equal(3, between), equal(4)])
    expected, got = plain.decide(rows(4)), calibrated.decide(rows(4))
    np.testing.assert_array_equal(got.exit_tier, expected.exit_tier)
    np.testing.assert_array_equal(got.labels[got.exit_tier == 1], expected.labels[expected.exit_tier == 1])


def test_a_late_tier_does_not_overrule_those_before_without_their_votes():
    first, last = [one_hot([0]), one_hot([0])], [one_hot([1])]
    (decided,) = cascade_of([first, last], [equal(2, 1.5), equal(3)]).decide(rows(1))
    assert (decided.label, decided.exit_tier, decided.vote) == (0, 2, 0.0)  # none of the last tier's members said it
    assert decided.score == pytest.approx(p_of(2, 1))


def test_where_a_tier_gives_no_answer_all_members_of_the_one_before_are_weighed():
    first = [one_hot([0, 1]), one_hot([0, 1]), one_hot([1, 2])]
    rule = CalibratedVote((equal(3, 1.5),))
    for n_rows in (1, 2):
        cascade = Cascade([table_tier(first, rule), Broken(TierUnavailable("cloud", "away"))])
        for decided in cascade.decide(rows(n_rows)):
            assert (decided.label, decided.exit_tier, decided.asked) == (int(decided.id[1]), 1, 3)
            assert decided.score == pytest.approx(p_of(2, 1))
            assert decided.degraded is not None
            assert decided.degraded.startswith("unavailable")


def test_the_stricter_rule_holds_answers_to_the_gate_threshold():
    rule = CalibratedVote((equal(2, 0.5, 0.999),))
    for own, exit_tier in ((rule, 1), (rule.stricter(), 2)):
        last = table_tier([one_hot([0])], CalibratedVote((equal(3),), 2))
        assert Cascade([table_tier([one_hot([0])] * 2, own), last]).decide(rows(1))[0].exit_tier == exit_tier
    assert CalibratedVote((equal(2, 0.5),)).stricter() is None


def test_a_tier_of_other_members_than_were_calibrated_gives_no_answer():
    first, rule = (
        table_tier([one_hot([0]), one_hot([1])], CalibratedVote((equal(2, 0.99),))),
        CalibratedVote((equal(4),), 2),
    )
    other = table_tier([one_hot([2])], rule, "cloud")
    kept = Cascade([first, other]).decide(rows(1))[0]
    assert kept.exit_tier == 1
    assert kept.degraded is not None
    assert "cloud: expected the votes of 2 members as calibrated, got 1" in kept.degraded
    with pytest.raises(TierRejected, match="expected the votes of 2 members"):
        Cascade([first, other], keep_last_answer=False).decide(rows(1))
