"""A tier that gives no answer: the tier before it has the last word, and says so."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from strategies import Broken, FakeServer, one_hot, rows, table_tier, tables, thetas

from coe.cascade import (
    Agreement,
    Always,
    CallCost,
    Cascade,
    TierError,
    TierOverloaded,
    TierRejected,
    TierTimeout,
    TierUnavailable,
)

ERRORS = [
    (TierUnavailable, "unavailable"),
    (TierTimeout, "timeout"),
    (TierOverloaded, "overloaded"),
    (TierRejected, "rejected"),
    (TierError, "error"),
]


def near():
    """Three members on four examples: x0 unanimous; x1 settled by two; x2 the third decides; x3 all differ."""
    return table_tier(
        [one_hot([0, 0, 0, 0]), one_hot([0, 1, 0, 1]), one_hot([0, 1, 1, 2])], Agreement(Fraction(1)), "device"
    )


@pytest.mark.parametrize(("kind", "reason"), ERRORS)
def test_the_tier_before_answers_with_all_its_members_asked(kind, reason):
    decisions = Cascade([near(), Broken(kind("cloud", "no luck"))]).decide(rows(4))
    assert decisions.labels.tolist() == [0, 1, 0, 0]
    assert decisions.exit_tier.tolist() == [1, 1, 1, 1]
    assert decisions.asked.tolist() == [3, 3, 3, 3]
    assert decisions.vote.tolist() == pytest.approx([1, 2 / 3, 2 / 3, 1 / 3])
    assert decisions.reasons() == [None, *[f"{reason}: tier cloud: no luck"] * 3]
    assert [decision.degraded for decision in decisions] == decisions.reasons()
    assert [decision.tier_votes for decision in decisions] == [
        pytest.approx((share,)) for share in (1, 2 / 3, 2 / 3, 1 / 3)
    ]


@pytest.mark.parametrize(("kind", "reason"), ERRORS)
def test_one_example_alone_falls_back_as_it_does_in_a_batch(kind, reason):
    decision = Cascade([near(), Broken(kind("cloud", "no luck"))]).decide(rows(1, first=1))[0]
    assert (decision.label, decision.asked, decision.degraded) == (1, 3, f"{reason}: tier cloud: no luck")


@given(tables(), thetas())
def test_a_fallback_is_the_oracles_vote_on_exactly_the_rows_deferred(members, theta):
    batch = rows(len(members[0]))
    everybody = table_tier(members, theta, early=False)
    vote = everybody.vote(batch, everybody.rule)
    exits = everybody.rule.exits(batch, vote)
    decisions = Cascade([table_tier(members, theta), Broken(TierTimeout("cloud", "late"))]).decide(batch)
    assert [reason is not None for reason in decisions.reasons()] == (~exits).tolist()
    assert decisions.labels.tolist() == vote.labels.tolist()
    stayed = ~exits
    for name in ("asked", "score"):
        assert getattr(decisions, name)[stayed].tobytes() == getattr(vote, name)[stayed].tobytes()


def test_the_tier_that_failed_is_asked_once():
    cloud = Broken(TierTimeout("cloud", "late"))
    Cascade([near(), cloud]).decide(rows(4))
    assert cloud.calls == 1


def test_tiers_after_the_one_that_failed_are_not_asked():
    last = table_tier([one_hot([2, 2, 2, 2])], Always(), "best")
    decisions = Cascade([near(), Broken(TierTimeout("cloud", "late")), last]).decide(rows(4))
    assert last.members[0].n_asked == 0
    assert decisions.exit_tier.tolist() == [1, 1, 1, 1]


def test_a_run_that_fell_back_is_done_with_tiers_left():
    last = table_tier([one_hot([2, 2, 2, 2])], Always(), "best")
    run = Cascade([near(), Broken(TierTimeout("cloud", "late")), last]).start(rows(4))
    assert run.step()
    assert not run.is_done
    assert not run.step()
    assert run.is_done
    assert run.decisions().labels.tolist() == [0, 1, 0, 0]


def test_a_middle_tier_answers_for_the_last_with_rows_of_its_own_numbering():
    middle = table_tier([one_hot([2, 2, 2, 2]), one_hot([2, 1, 2, 0]), one_hot([2, 1, 2, 1])], Fraction(1), "middle")
    decisions = Cascade([near(), middle, Broken(TierUnavailable("best", "gone"))]).decide(rows(4))
    assert decisions.labels.tolist() == [0, 1, 2, 0]
    assert decisions.exit_tier.tolist() == [1, 2, 2, 2]
    gone = "unavailable: tier best: gone"
    assert decisions.reasons() == [None, gone, None, gone]
    assert decisions.asked.tolist() == [3, 3, 3, 3]
    assert [len(decision.tier_times_s) for decision in decisions] == [1, 2, 2, 2]


@pytest.mark.parametrize(("kind", "reason"), ERRORS)
def test_without_keep_last_answer_the_error_is_raised(kind, reason):
    del reason
    with pytest.raises(kind, match="tier cloud: no luck") as caught:
        Cascade([near(), Broken(kind("cloud", "no luck"))], keep_last_answer=False).decide(rows(4))
    assert caught.value.tier == "cloud"


@pytest.mark.parametrize(("kind", "reason"), ERRORS)
def test_a_first_tier_that_fails_leaves_nobody_to_answer(kind, reason):
    del reason
    with pytest.raises(kind):
        Cascade([Broken(kind("device", "broken")), near()]).decide(rows(4))


def test_without_deferred_examples_a_broken_tier_does_not_matter():
    cloud = Broken(TierUnavailable("cloud", "gone"))
    decisions = Cascade([near(), cloud]).decide(rows(1))
    assert cloud.calls == 0
    assert decisions.reasons() == [None]


def server(error=None, inner_error=None):
    """A server of two tiers: it is sure of x1 in its first tier, of the others only in its second."""
    first = table_tier([one_hot([2, 2, 2, 2]), one_hot([0, 2, 1, 1])], Fraction(1), "medium")
    last = Broken(inner_error) if inner_error else table_tier([one_hot([1, 1, 1, 1])], Always(), "best")
    return FakeServer("cloud", Cascade([first, last]), Always(), error)


def test_tiers_inside_a_remote_one_are_numbered_on():
    cloud = server()
    cascade = Cascade([near(), cloud])
    decisions = cascade.decide(rows(4))
    assert cascade.n_tiers == 3
    assert cloud.asked_about == [("x1", "x2", "x3")]
    assert decisions.labels.tolist() == [0, 2, 1, 1]
    assert decisions.exit_tier.tolist() == [1, 2, 3, 3]
    assert decisions.exit_shares(cascade.n_tiers).tolist() == [0.25, 0.25, 0.5]
    votes = decisions.tier_votes
    assert votes.shape == (4, 3)
    assert votes[:, 1:].tolist()[1][0] == 1.0
    assert [len(decision.tier_votes) for decision in decisions] == [1, 2, 3, 3]
    assert decisions[2].tier_votes[1:] == (0.5, 1.0)
    assert decisions[1].call == CallCost(bytes_sent=100.0)


def test_a_tier_after_a_remote_cascade_takes_the_next_number():
    cloud = server()
    cloud.rule = Agreement(Fraction(1))
    cloud.cascade = Cascade([*cloud.cascade.tiers[:1], table_tier([one_hot([1] * 4), one_hot([0] * 4)], Always(True))])
    last = table_tier([one_hot([2, 2, 2, 2])], Always(), "hq")
    cascade = Cascade([near(), cloud, last])
    decisions = cascade.decide(rows(4))
    assert cascade.n_tiers == 4
    assert decisions.exit_tier.tolist() == [1, 2, 4, 4]
    assert decisions.tier_votes.shape == (4, 4)
    assert [len(decision.tier_votes) for decision in decisions] == [1, 2, 4, 4]


def test_what_a_remote_tier_had_to_fall_back_on_is_passed_through():
    decisions = Cascade([near(), server(inner_error=TierTimeout("best", "late"))]).decide(rows(4))
    assert decisions.exit_tier.tolist() == [1, 2, 2, 2]
    late = "timeout: tier best: late"
    assert decisions.reasons() == [None, None, late, late]
    assert [decision.degraded for decision in decisions] == decisions.reasons()


def test_a_remote_cascade_before_a_broken_tier_keeps_the_last_word_with_its_own_numbers():
    cloud = server()
    cloud.rule = Agreement(Fraction(1))
    cloud.cascade = Cascade([cloud.cascade.tiers[0]])  # one tier of two members, unsure of x2 and x3
    decisions = Cascade([near(), cloud, Broken(TierTimeout("hq", "late"))]).decide(rows(4))
    assert decisions.labels.tolist() == [0, 2, 1, 1]
    assert decisions.exit_tier.tolist() == [1, 2, 2, 2]
    assert decisions.reasons() == [None, None, *["timeout: tier hq: late"] * 2]


def test_a_server_that_is_gone_is_told_as_any_tier_is():
    decisions = Cascade([near(), server(error=lambda: TierUnavailable("cloud", "gone"))]).decide(rows(4))
    assert decisions.reasons() == [None, *["unavailable: tier cloud: gone"] * 3]
    assert decisions.tier_votes.shape == (4, 1)
