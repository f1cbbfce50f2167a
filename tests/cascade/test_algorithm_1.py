"""Algorithm 1 against the oracle: who exits where, with what, and in what order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import one_hot, rows, table_tier, tables, thetas

from coe.cascade import Agreement, Always, Batch, CallCost, Cascade, Confidence, Ideal, TierFailed, Vote


@st.composite
def cascades(draw):
    """[(tables, theta)] of 1 to 5 tiers of 1 to 5 members, over the same examples."""
    n_rows, n_labels = draw(st.integers(1, 5)), draw(st.integers(2, 4))
    n_tiers = draw(st.integers(1, 5))
    return [(draw(tables(n_rows=n_rows, n_labels=n_labels)), draw(thetas())) for _ in range(n_tiers)]


def opened(tiers, early=True):
    return Cascade(
        [table_tier(members, theta, f"tier-{i}", early=early) for i, (members, theta) in enumerate(tiers, start=1)]
    )


def n_rows_of(tiers):
    return len(tiers[0][0][0])


@given(cascades(), st.booleans())
def test_every_example_leaves_where_the_oracle_says_with_the_oracles_label(tiers, early):
    n_rows = n_rows_of(tiers)
    decisions = opened(tiers, early).decide(rows(n_rows))
    expected = [oracle.decide(tiers, row) for row in range(n_rows)]
    assert decisions.labels.tolist() == [label for label, _, _ in expected]
    assert decisions.exit_tier.tolist() == [tier for _, tier, _ in expected]


@given(cascades())
def test_asking_everybody_reports_the_oracles_votes_of_every_tier_visited(tiers):
    n_rows = n_rows_of(tiers)
    cascade = Cascade([table_tier(members, theta, early=False) for members, theta in tiers])
    decisions = cascade.decide(rows(n_rows))
    votes = decisions.tier_votes
    assert votes.shape == (n_rows, max(decisions.exit_tier))
    for row in range(n_rows):
        _, exit_tier, shares = oracle.decide(tiers, row)
        seen = [float(np.float32(float(share))) for share in shares]
        assert votes[row, :exit_tier].tolist() == seen
        assert np.isnan(votes[row, exit_tier:]).all()
        assert decisions[row].tier_votes == pytest.approx(seen)
        assert len(decisions[row].tier_times_s) == exit_tier


@given(cascades(), st.data())
def test_a_larger_theta_never_lets_an_example_leave_earlier(tiers, data):
    raised = [(members, data.draw(thetas().map(lambda other, low=theta: max(low, other)))) for members, theta in tiers]
    batch = rows(n_rows_of(tiers))
    assert (opened(tiers).decide(batch).exit_tier <= opened(raised).decide(batch).exit_tier).all()


@given(cascades(), st.booleans())
def test_a_batch_is_decided_as_its_rows_one_by_one(tiers, early):
    cascade = opened(tiers, early)
    together = cascade.decide(rows(n_rows_of(tiers)))
    for row, decision in enumerate(together):
        (alone,) = cascade.decide(rows(1, first=row))
        for name in ("id", "label", "exit_tier", "vote", "asked", "n_members", "tier_votes", "degraded"):
            assert getattr(alone, name) == getattr(decision, name), name
        assert np.float32(alone.score).tobytes() == np.float32(decision.score).tobytes()


@given(cascades(), st.randoms(use_true_random=False), st.sampled_from([0.2, 0.6, 0.9]))
def test_where_members_fail_a_batch_is_decided_as_its_rows_one_by_one(tiers, random, share):
    for members, _ in tiers:
        for outputs in members:
            outputs[[random.random() < share for _ in outputs]] = np.nan
    cascade = opened(tiers)
    run = cascade.start(rows(n_rows_of(tiers)))
    while run.question is not None:
        run.step()
    together = run.decisions()
    for row in range(n_rows_of(tiers)):
        if together.failure(slice(row, row + 1)) is not None:
            with pytest.raises(TierFailed):
                cascade.decide(rows(1, first=row))
            continue
        (alone,) = cascade.decide(rows(1, first=row))
        decision = together[row]
        for name in ("id", "label", "exit_tier", "vote", "asked", "n_members", "tier_votes", "degraded"):
            assert getattr(alone, name) == getattr(decision, name), name
        assert np.float32(alone.score).tobytes() == np.float32(decision.score).tobytes()


@given(cascades(), st.randoms(use_true_random=False))
def test_every_id_is_answered_exactly_once_in_the_callers_order(tiers, random):
    n_rows = n_rows_of(tiers)
    order = list(range(n_rows)) * 2  # ids need not differ, nor come sorted
    random.shuffle(order)
    batch = Batch(tuple(f"id-{row}" for row in order), np.array(order)[:, None])
    decisions = opened(tiers).decide(batch)
    assert [decision.id for decision in decisions] == [f"id-{row}" for row in order]
    alone = opened(tiers).decide(rows(n_rows))
    assert decisions.labels.tolist() == alone.labels[order].tolist()
    assert decisions.exit_tier.tolist() == alone.exit_tier[order].tolist()
    assert decisions.exit_shares(len(tiers)).sum() == pytest.approx(1.0)


@given(cascades())
def test_a_row_read_alone_says_what_the_columns_say(tiers):
    decisions = opened(tiers).decide(rows(n_rows_of(tiers)))
    assert len(decisions) == n_rows_of(tiers)
    for row, decision in enumerate(decisions):
        assert decision.label == decisions.labels[row]
        assert decision.exit_tier == decisions.exit_tier[row]
        assert decision.asked == decisions.asked[row]
        assert decision.n_members == decisions.n_members[row]
        assert np.float32(decision.vote) == decisions.vote[row]
        assert np.float32(decision.score) == decisions.score[row]
        assert decision.vote == decision.tier_votes[-1]
        assert decision.degraded is None
    assert decisions.reasons() == [None] * len(decisions)


@given(cascades(), st.randoms(use_true_random=False))
def test_the_order_of_members_changes_no_decision(tiers, random):
    shuffled = [(random.sample(members, len(members)), theta) for members, theta in tiers]
    batch = rows(n_rows_of(tiers))
    ours, theirs = opened(tiers).decide(batch), opened(shuffled).decide(batch)
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert ours.exit_tier.tolist() == theirs.exit_tier.tolist()


@given(cascades())
def test_stepping_tier_by_tier_is_deciding_at_once(tiers):
    cascade, batch = opened(tiers), rows(n_rows_of(tiers))
    run = cascade.start(batch)
    steps = 0
    while not run.is_done:
        assert run.next_tier is cascade.tiers[steps]
        run.step()
        steps += 1
    assert steps == max(cascade.decide(batch).exit_tier)
    assert run.decisions().labels.tolist() == cascade.decide(batch).labels.tolist()


@given(cascades())
def test_a_tier_sees_only_what_the_tier_before_it_deferred(tiers):
    cascade = Cascade([table_tier(members, theta, early=False) for members, theta in tiers])
    exit_tier = cascade.decide(rows(n_rows_of(tiers))).exit_tier
    for number, tier in enumerate(cascade.tiers, start=1):
        assert {member.n_asked for member in tier.members} == {int((exit_tier >= number).sum())}


def test_the_last_tier_always_answers_whatever_its_vote():
    last = table_tier([one_hot([0]), one_hot([1]), one_hot([2])], Fraction(1))
    decision = Cascade([last]).decide(rows(1))[0]
    assert (decision.label, decision.exit_tier, decision.degraded) == (0, 1, None)


def test_the_last_tier_stops_asking_when_its_label_is_settled():
    last = table_tier([one_hot([1]), one_hot([1]), one_hot([0])], Fraction(1))
    decision = Cascade([last]).decide(rows(1))[0]
    assert (decision.label, decision.asked, decision.n_members) == (1, 2, 3)


def test_a_last_tier_that_wants_the_whole_vote_keeps_its_rule():
    last = table_tier([one_hot([1]), one_hot([1]), one_hot([0])], Always(asks_all=True))
    decision = Cascade([last]).decide(rows(1))[0]
    assert (decision.asked, decision.vote) == (3, pytest.approx(2 / 3))


def test_a_last_tier_that_pools_scores_still_does():
    outputs = [np.array([row], dtype=np.float32) for row in ([0.6, 0.4], [0.6, 0.4], [0.1, 0.9])]
    assert Cascade([table_tier(outputs, Confidence(0.99))]).decide(rows(1)).labels.tolist() == [1]
    assert Cascade([table_tier(outputs, Fraction(1))]).decide(rows(1)).labels.tolist() == [0]


@given(cascades())
def test_with_the_ideal_rule_only_right_answers_leave_before_the_last_tier(tiers):
    n_rows = n_rows_of(tiers)
    truth = {f"x{row}": row % 2 for row in range(n_rows)}
    cascade = Cascade([table_tier(members, Ideal(truth)) for members, _ in tiers])
    decisions = cascade.decide(rows(n_rows))
    for row, decision in enumerate(decisions):
        assert decision.exit_tier == len(tiers) or decision.label == row % 2


@given(cascades(), st.floats(0, 1))
def test_the_confidence_rule_exits_where_the_mean_output_is_sure_enough(tiers, threshold):
    n_rows = n_rows_of(tiers)
    cascade = Cascade([table_tier(members, Confidence(threshold)) for members, _ in tiers])
    for row, decision in enumerate(cascade.decide(rows(n_rows))):
        for number, (members, _) in enumerate(tiers, start=1):
            best = max(
                sum(float(table[row, label]) for table in members) / len(members)
                for label in range(members[0].shape[1])
            )
            if abs(best - threshold) < 1e-6:
                break  # too close to tell in the oracle's arithmetic
            if best >= threshold or number == len(tiers):
                assert decision.exit_tier == number
                break


def test_an_empty_batch_asks_nobody():
    tier = table_tier([one_hot([1])], Fraction(1))
    decisions = Cascade([tier, tier]).decide(rows(0))
    assert len(decisions) == 0
    assert list(decisions) == []
    assert decisions.labels.shape == (0,)
    assert decisions.tier_votes.shape[0] == 0
    assert tier.members[0].n_asked == 0


def test_a_cascade_needs_a_tier():
    with pytest.raises(ValueError, match="at least one tier, got none"):
        Cascade([])


def test_a_cascade_counts_and_closes_its_tiers():
    closed = []
    tiers = [table_tier([one_hot([1])], Agreement(Fraction(1)), f"t{i}") for i in range(3)]
    for tier in tiers:
        tier.members[0].close = lambda name=tier.name: closed.append(name)
    cascade = Cascade(tiers)
    assert cascade.n_tiers == 3
    cascade.close()
    assert closed == ["t0", "t1", "t2"]


def test_captured_bytes_travel_with_their_rows():
    seen = []

    class Watching:
        name, rule, n_tiers, waits = "far", Always(), 1, True

        def __init__(self):
            self.inner = table_tier([one_hot([2, 2, 2])], Always())

        def vote(self, batch, rule):
            seen.append((batch.ids, batch.captured.tolist(), batch.deadline))
            return self.inner.vote(batch, rule)

    captured = np.array([b"a", b"b", b"c"], dtype=object)
    batch = Batch(("a", "b", "c"), np.arange(3)[:, None], captured, deadline=12.5)
    near = table_tier([one_hot([0, 0, 0]), one_hot([0, 1, 1])], Fraction(1))
    decisions = Cascade([near, Watching()]).decide(batch)
    assert seen == [(("b", "c"), [b"b", b"c"], 12.5)]
    assert decisions.labels.tolist() == [0, 2, 2]


def test_an_example_that_went_from_server_to_server_paid_for_each_call():
    class Far:
        rule, n_tiers, waits = Agreement(Fraction(1)), 1, True

        def __init__(self, name, count):
            self.name, self.count = name, count

        def vote(self, batch, rule):
            ones = np.ones(len(batch), dtype=np.int64)
            score = np.ones(len(batch), dtype=np.float32)
            call = CallCost(1, bytes_sent=300.0, call_s=0.01 * self.count)
            return Vote(ones, ones * self.count, ones * 2, 2, score, call=call)

        def close(self):
            pass

    decision = Cascade([Far("a", 1), Far("b", 2)]).decide(Batch(("x",), np.zeros((1, 1))))[0]
    assert decision.exit_tier == 2
    assert decision.call == CallCost(2, bytes_sent=600.0, call_s=pytest.approx(0.03))
