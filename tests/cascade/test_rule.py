"""Deferral rules, and `agreement:` in all its spellings."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import rows, thetas

from coe.cascade import Agreement, Always, Confidence, Ideal, Vote, parse_agreement


def vote(count, asked, n_members=None, labels=None, score=1.0):
    counts, askeds = np.atleast_1d(count), np.atleast_1d(asked)
    return Vote(
        labels=np.zeros(len(counts), dtype=np.int64) if labels is None else np.array(labels),
        count=counts,
        asked=askeds,
        n_members=int(askeds.max()) if n_members is None else n_members,
        score=np.broadcast_to(np.float32(score), counts.shape),
    )


@given(thetas(), st.integers(1, 12))
def test_needed_is_the_least_count_whose_share_reaches_theta(theta, n_members):
    assert Agreement(theta).needed(n_members) == oracle.needed(theta, n_members)


@given(thetas(), st.integers(1, 12), st.data())
def test_a_vote_exits_exactly_where_its_count_reaches_needed(theta, n_members, data):
    count = data.draw(st.integers(1, n_members))
    exits = Agreement(theta).exits(rows(1), vote(count, n_members))
    assert exits.dtype == np.bool_
    assert exits[0] == (count >= Agreement(theta).needed(n_members))


def test_every_reachable_fraction_needs_exactly_its_count():
    for n_members in range(1, 60):
        for count in range(1, n_members + 1):
            assert Agreement(Fraction(count, n_members)).needed(n_members) == count


def test_two_of_three_exits_at_two_thirds():
    assert Agreement(Fraction(2, 3)).exits(rows(1), vote(2, 3))[0]


def test_two_of_three_exits_at_0_66_and_not_at_0_67():
    assert Agreement(Fraction("0.66")).needed(3) == 2
    assert Agreement(Fraction("0.67")).needed(3) == 3


@given(st.integers(1, 9))
def test_a_tier_of_one_needs_its_one_vote_at_any_theta(denominator):
    assert Agreement(Fraction(1, denominator)).needed(1) == 1


def test_the_last_tiers_rule_lets_everything_exit_and_needs_no_vote():
    assert Always().exits(rows(2), vote([1, 1], [5, 5])).tolist() == [True, True]
    assert Always().needed(5) == 0


def test_a_rule_that_wants_the_vote_itself_has_every_member_asked():
    assert Always(asks_all=True).needed(5) is None
    assert Always(pools_scores=True).needed(5) is None


def test_confidence_compares_the_score_with_its_threshold():
    answer = vote([1, 1, 1], [1, 1, 1], score=[0.49, 0.5, 0.51])
    assert Confidence(0.5).exits(rows(3), answer).tolist() == [False, True, True]
    assert Confidence(0.5).needed(3) is None
    assert Confidence(0.5).pools_scores


def test_the_ideal_rule_keeps_exactly_the_right_answers():
    rule = Ideal({"x0": 4, "x1": 5})
    assert rule.exits(rows(2), vote([1, 1], [1, 1], labels=[4, 4])).tolist() == [True, False]
    assert rule.needed(3) is None
    assert not rule.pools_scores


@pytest.mark.parametrize(
    ("value", "n_members", "theta"),
    [
        ("unanimous", 3, "1"),
        (" Unanimous ", 5, "1"),
        ("majority", 3, "2/3"),
        ("majority", 4, "3/4"),
        ("majority", 5, "3/5"),
        ("majority", 1, "1"),
        ("2/3", 3, "2/3"),
        ("2/3", 5, "2/3"),
        ("2 of 3", 3, "2/3"),
        ("3  OF 3", 3, "1"),
        (0.66, 3, "66/100"),
        ("0.66", 3, "66/100"),
        (0.6, 5, "3/5"),
        (1, 3, "1"),
        (1.0, 3, "1"),
        ("1/3", 3, "1/3"),
        ("2 of 3", None, "2/3"),
        ("2/3", None, "2/3"),
        (0.67, None, "67/100"),
        ("unanimous", None, "1"),
    ],
)
def test_every_spelling_of_an_agreement_is_read_exactly(value, n_members, theta):
    rule, warning = parse_agreement(value, n_members)
    assert rule == Agreement(Fraction(theta))
    assert warning is None


@pytest.mark.parametrize(("value", "needed"), [(0.66, 2), ("2/3", 2), (0.67, 3), (0.6666, 2), (1 / 3, 1), (1.0, 3)])
def test_a_decimal_means_what_it_says_to_the_last_digit(value, needed):
    rule, _ = parse_agreement(value, 3)
    assert rule.needed(3) == needed


@pytest.mark.parametrize("value", [0.67, "0.67", 0.68, 0.34])
def test_a_decimal_just_above_a_reachable_fraction_warns(value):
    _, warning = parse_agreement(value, 3)
    assert warning is not None
    meant = "1/3" if value == 0.34 else "2/3"
    needed = 2 if value == 0.34 else 3
    assert warning == (
        f"{value} of 3 members needs {needed} votes, because {meant} < {value}; "
        f'write "{meant}" if {needed - 1} of 3 was meant'
    )


@pytest.mark.parametrize(
    ("value", "n_members"), [(0.69, 3), ("67/100", 3), (0.5, 2), (0.5, 100), (1.0, 100), (0.01, 3)]
)
def test_what_is_no_near_miss_does_not_warn(value, n_members):
    assert parse_agreement(value, n_members)[1] is None


@given(st.integers(1, 8), st.decimals(min_value="0.001", max_value=1, places=3))
def test_a_warning_comes_exactly_within_0_02_above_a_reachable_fraction(n_members, value):
    _, warning = parse_agreement(str(value), n_members)
    theta = Fraction(value)
    reachable = [Fraction(count, n_members) for count in range(1, n_members + 1)]
    just_below = [share for share in reachable if 0 < theta - share <= Fraction(2, 100)]
    assert (warning is not None) == (bool(just_below) and theta not in reachable)


SPELLINGS = 'write "unanimous", "majority", a fraction ("2/3"), a count ("2 of 3") or a decimal (0.6)'


@pytest.mark.parametrize(
    ("value", "n_members", "message"),
    [
        ("most", 3, f'expected an agreement, got "most" ({SPELLINGS})'),
        ("", 3, f'expected an agreement, got "" ({SPELLINGS})'),
        ("2/0", 3, f'expected an agreement, got "2/0" ({SPELLINGS})'),
        (float("nan"), 3, f'expected an agreement, got "nan" ({SPELLINGS})'),
        (float("inf"), 3, f'expected an agreement, got "inf" ({SPELLINGS})'),
        (True, 3, f"expected an agreement, got True ({SPELLINGS})"),
        (["2/3"], 3, f"expected an agreement, got ['2/3'] ({SPELLINGS})"),
        (2, 3, f"expected a share in (0, 1], got 2 ({SPELLINGS})"),
        (0, 3, f"expected a share in (0, 1], got 0 ({SPELLINGS})"),
        (-0.5, 3, f"expected a share in (0, 1], got -0.5 ({SPELLINGS})"),
        ("4/3", 3, f"expected a share in (0, 1], got 4/3 ({SPELLINGS})"),
        ("2 of 4", 3, 'expected a count of this tier\'s 3 members, got "2 of 4" (write "2 of 3")'),
        ("4 of 3", 3, 'expected a count of this tier\'s 3 members, got "4 of 3" (write "3 of 3")'),
        ("0 of 3", 3, 'expected a count of this tier\'s 3 members, got "0 of 3" (write "1 of 3")'),
        ("4 of 3", None, 'expected a count of this tier\'s 3 members, got "4 of 3" (write "3 of 3")'),
        ("majority", None, 'expected a fraction for a remote tier, got "majority" (write "2/3" or "2 of 3")'),
    ],
)
def test_an_agreement_that_cannot_be_read_says_what_to_write(value, n_members, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        parse_agreement(value, n_members)


@given(st.text(max_size=8) | st.floats() | st.integers(-5, 5) | st.none() | st.booleans(), st.integers(1, 6))
def test_any_agreement_is_read_or_refused_with_a_value_error(value, n_members):
    try:
        rule, _ = parse_agreement(value, n_members)
    except ValueError as error:
        assert "expected" in str(error)  # noqa: PT017
    else:
        assert 1 <= rule.needed(n_members) <= n_members
