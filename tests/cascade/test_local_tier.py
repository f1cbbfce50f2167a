"""An ensemble in this process: in turn, stopping early, side by side; one example or many."""

from __future__ import annotations

import threading
from dataclasses import replace
from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import members_of, one_hot, rows, table_tier, tables, thetas

from coe.cascade import Agreement, Always, Batch, CallCost, Confidence, Ideal, InputError, LocalTier, ModelError
from coe.cascade.tier import RECOVERED
from coe.models import TableMember
from coe.models.pool import MemberPool

FACTS = ("labels", "count", "asked", "score")


def same(ours, theirs, facts=FACTS):
    return all(getattr(ours, fact).tobytes() == getattr(theirs, fact).tobytes() for fact in facts)


def asked_of(tier):
    return [member.n_asked for member in tier.members]


@given(tables(), thetas())
def test_asking_everybody_gives_the_oracles_vote(members, theta):
    n_rows = len(members[0])
    vote = table_tier(members, theta, early=False).vote(rows(n_rows), Agreement(theta))
    assert vote.asked.tolist() == [len(members)] * n_rows
    assert vote.n_members == len(members)
    for row in range(n_rows):
        label, count, score = oracle.vote_on_row(members, row)
        assert (vote.labels[row], vote.count[row]) == (label, count)
        assert vote.score[row] == pytest.approx(float(score), abs=1e-6)
        assert vote.share[row] == np.float32(count / len(members))


@given(tables(), thetas(), st.randoms(use_true_random=False))
def test_the_order_of_members_changes_no_bit_of_the_answer(members, theta, random):
    rule, batch = Agreement(theta), rows(len(members[0]))
    shuffled = list(members)
    random.shuffle(shuffled)
    ours = table_tier(members, theta, early=False).vote(batch, rule)
    theirs = table_tier(shuffled, theta, early=False).vote(batch, rule)
    assert same(ours, theirs)
    assert rule.exits(batch, ours).tolist() == rule.exits(batch, theirs).tolist()


@given(tables(), thetas(), st.randoms(use_true_random=False))
def test_the_order_of_members_changes_no_early_decided_answer(members, theta, random):
    rule, batch = Agreement(theta), rows(len(members[0]))
    shuffled = list(members)
    random.shuffle(shuffled)
    ours = table_tier(members, theta).vote(batch, rule)
    theirs = table_tier(shuffled, theta).vote(batch, rule)
    exits = rule.exits(batch, ours)
    assert exits.tolist() == rule.exits(batch, theirs).tolist()
    assert ours.labels[exits].tolist() == theirs.labels[exits].tolist()


@given(tables(), thetas())
def test_stopping_early_decides_as_asking_everybody_does(members, theta):
    rule, batch = Agreement(theta), rows(len(members[0]))
    early = table_tier(members, theta).vote(batch, rule)
    everybody = table_tier(members, theta, early=False).vote(batch, rule)
    exits = rule.exits(batch, everybody)
    assert rule.exits(batch, early).tolist() == exits.tolist()
    assert early.labels[exits].tolist() == everybody.labels[exits].tolist()


@given(tables())
def test_the_last_tier_stops_early_with_the_label_of_asking_everybody(members):
    batch = rows(len(members[0]))
    early = table_tier(members, Always()).vote(batch, Always())
    everybody = table_tier(members, Always()).vote(batch, Always(asks_all=True))
    assert early.labels.tolist() == everybody.labels.tolist()
    assert everybody.asked.tolist() == [len(members)] * len(batch)


@given(tables(), thetas(), st.booleans())
def test_no_member_is_asked_once_only_one_outcome_is_left(members, theta, is_last):
    rule = Always() if is_last else Agreement(theta)
    n_rows, n_labels = members[0].shape
    tier = table_tier(members, rule)
    vote = tier.vote(rows(n_rows), rule)
    needed = 0 if is_last else oracle.needed(theta, len(members))
    expected = []
    for row in range(n_rows):
        ballots = [oracle.ballot(table[row].tolist()) for table in members]
        expected.append(oracle.members_asked(ballots, n_labels, needed))
    assert vote.asked.tolist() == expected
    assert asked_of(tier) == [sum(asked > index for asked in expected) for index in range(len(members))]


@given(tables(), thetas(), st.booleans(), st.booleans())
def test_a_batch_is_answered_as_its_rows_one_by_one(members, theta, early, is_last):
    rule = Always() if is_last else Agreement(theta)
    tier = table_tier(members, rule, early=early)
    together = tier.vote(rows(len(members[0])), rule)
    for row in range(len(members[0])):
        alone = tier.vote(rows(1, first=row), rule)
        assert same(alone, together.take(np.array([row])))


@given(tables(), thetas())
def test_side_by_side_gives_what_asking_everybody_in_turn_gives(members, theta):
    rule, batch = Agreement(theta), rows(len(members[0]))
    tier = table_tier(members, theta, parallel=True, early=False)
    try:
        ours = tier.vote(batch, rule)
    finally:
        tier.close()
    theirs = table_tier(members, theta, early=False).vote(batch, rule)
    assert same(ours, theirs)
    assert np.array(ours.probabilities).tobytes() == np.array(theirs.probabilities).tobytes()


@given(tables(), thetas())
def test_completing_an_early_deferral_is_asking_everybody(members, theta):
    rule, batch = Agreement(theta), rows(len(members[0]))
    tier = table_tier(members, theta)
    early = replace(tier.vote(batch, rule), call=CallCost(queue_s=1.0))
    everybody = table_tier(members, theta, early=False).vote(batch, rule)
    whole = tier.complete(batch, early)
    assert same(whole, everybody)
    assert whole.call == CallCost(queue_s=1.0)
    assert asked_of(tier) == [len(batch)] * len(members)  # nobody twice


@given(tables(), thetas(), st.data())
def test_completing_one_row_alone_gives_its_row_of_the_whole(members, theta, data):
    rule = Agreement(theta)
    row = data.draw(st.integers(0, len(members[0]) - 1))
    tier = table_tier(members, theta)
    whole = tier.complete(rows(1, first=row), tier.vote(rows(1, first=row), rule))
    everybody = table_tier(members, theta, early=False).vote(rows(1, first=row), rule)
    assert same(whole, everybody)


@given(tables(), thetas())
def test_a_vote_whose_outputs_were_let_go_is_completed_by_asking_anew(members, theta):
    rule, batch = Agreement(theta), rows(len(members[0]))
    tier = table_tier(members, theta)
    early = replace(tier.vote(batch, rule), probabilities=())
    assert same(tier.complete(batch, early), table_tier(members, theta, early=False).vote(batch, rule))


@pytest.mark.parametrize(
    ("agreement", "ballots", "asked", "exits"),
    [
        ("2/3", [1, 1, 0], [1, 1, 0], True),  # two that agree decide
        ("2/3", [1, 0, 1], [1, 1, 1], True),
        ("2/3", [0, 1, 2], [1, 1, 1], False),
        ("1", [1, 0, 1], [1, 1, 0], False),  # the first disagreement defers
        ("1", [1, 1, 0], [1, 1, 1], False),
        ("1", [1, 1, 1], [1, 1, 1], True),
        ("3/5", [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], True),
        ("4/5", [0, 1, 2, 1, 1], [1, 1, 1, 0, 0], False),  # four of one label are out of reach
    ],
)
def test_members_are_asked_only_while_the_outcome_is_open(agreement, ballots, asked, exits):
    rule = Agreement(Fraction(agreement))
    tier = table_tier([one_hot([ballot]) for ballot in ballots], rule)
    vote = tier.vote(rows(1), rule)
    assert asked_of(tier) == asked
    assert vote.asked.tolist() == [sum(asked)]
    assert rule.exits(rows(1), vote).tolist() == [exits]


@pytest.mark.parametrize("n_rows", [1, 2])
def test_a_tier_that_is_asked_with_another_rule_each_time_follows_the_one_it_is_asked_with(n_rows):
    tier = table_tier([one_hot([1, 1]), one_hot([1, 1]), one_hot([0, 0])], Fraction(1))
    wanted = [(Agreement(Fraction(2, 3)), 2), (Agreement(Fraction(1)), 3), (Always(), 2), (Always(asks_all=True), 3)]
    for rule, asked in [*wanted, *reversed(wanted)]:
        assert tier.vote(rows(n_rows), rule).asked.tolist() == [asked] * n_rows


def test_in_a_batch_each_row_leaves_as_soon_as_it_is_settled():
    rule = Agreement(Fraction(2, 3))
    tier = table_tier([one_hot([1, 1, 0]), one_hot([1, 0, 0]), one_hot([2, 1, 2])], rule)
    vote = tier.vote(rows(3), rule)
    assert vote.asked.tolist() == [2, 3, 2]
    assert asked_of(tier) == [3, 3, 1]
    assert vote.labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "rule",
    [
        Confidence(0.9),
        Ideal({"x0": 0}),
        Always(pools_scores=True),
        Always(asks_all=True),
        Agreement(Fraction(2, 3), pools_scores=True),
    ],
)
def test_a_rule_that_looks_beyond_the_count_has_every_member_asked(rule):
    tier = table_tier([one_hot([1])] * 3, rule)
    assert tier.vote(rows(1), rule).asked.tolist() == [3]


def test_a_confidence_tier_answers_with_the_label_of_the_mean_output():
    outputs = [np.array([row], dtype=np.float32) for row in ([0.4, 0.35, 0.25], [0.4, 0.35, 0.25], [0.0, 0.9, 0.1])]
    vote = table_tier(outputs, Confidence(0.5)).vote(rows(1), Confidence(0.5))
    assert vote.labels.tolist() == [1]  # the plurality would be 0
    assert vote.count.tolist() == [1]
    assert vote.score[0] == pytest.approx((0.35 + 0.35 + 0.9) / 3)


class Failing(TableMember):
    """Fails on some rows of its table: raises if any of them is asked about, or gives what is no probability.

    Args:
        how: by row.
    """

    def __init__(self, table, name, how):
        super().__init__(table, name)
        self.how = how

    def predict(self, x):
        output = super().predict(x).copy()
        for place, row in enumerate(x[:, 0].tolist()):
            how = self.how.get(row)
            if how == "shape":
                return output[:, :-1]
            if isinstance(how, BaseException):
                raise how
            if how is not None:
                output[place, how[0]] = how[1]
        return output


HOWS = [
    OSError("disk on fire"),
    MemoryError(),
    InputError("not mine"),
    SystemExit(3),
    "shape",
    *[(column, bad) for column in (0, 1) for bad in (np.nan, np.inf, -np.inf)],
]


@st.composite
def failing_tables(draw):
    """Tables as of `tables`, and for each member on which rows it fails, and how."""
    members = draw(tables())
    row = st.integers(0, len(members[0]) - 1)
    return members, [draw(st.dictionaries(row, st.sampled_from(HOWS), max_size=2)) for _ in members]


def failing_tier(members, hows, rule, order=None, *, early=True, parallel=False):
    seats = range(len(members)) if order is None else order
    failing = [Failing(members[index], f"member-{index}", hows[index]) for index in seats]
    pool = MemberPool.of("tier", failing) if parallel else None
    return LocalTier("tier", failing, rule, early=early, pool=pool)


@given(failing_tables(), thetas() | st.sampled_from([Fraction(2, 3), Fraction(1)]), st.booleans(), st.data())
def test_a_member_that_fails_does_not_vote_and_nothing_depends_on_order_threads_or_batch(drawn, theta, is_last, data):
    members, hows = drawn
    rule = Always() if is_last else Agreement(theta)
    batch = rows(len(members[0]))
    order = data.draw(st.permutations(range(len(members))))
    for row in range(len(batch)):
        voted = [index for index in range(len(members)) if row not in hows[index]]
        label, count, score = (-1, 0, float("nan"))
        if voted:
            label, count, score = oracle.vote([members[index][row].tolist() for index in voted])
        exits = bool(voted) if is_last else Fraction(count, len(members)) >= theta
        for parallel in (False, True):
            for early in (False, True):
                tier = failing_tier(members, hows, rule, order, early=early, parallel=parallel)
                alone = tier.vote(rows(1, first=row), rule)
                together = tier.vote(batch, rule).take(np.array([row]))
                for vote, asked in ((alone, rows(1, first=row)), (together, batch.take(np.array([row])))):
                    assert rule.exits(asked, vote).tolist() == [exits]
                    if exits:
                        assert vote.labels.tolist() == [label]
                    whole = tier.complete(asked, vote)
                    if not early or not exits:
                        assert (whole.labels.tolist(), whole.count.tolist()) == ([label], [count])
                        assert whole.asked.tolist() == [len(members)]
                        assert whole.score[0] == pytest.approx(float(score), abs=1e-6, nan_ok=True)
                tier.close()


@given(failing_tables(), thetas())
def test_no_more_members_are_asked_than_settle_it_with_those_that_failed_counted_as_no_votes(drawn, theta):
    members, hows = drawn
    rule = Agreement(theta)
    for row in range(len(members[0])):
        ballots = [
            oracle.NOBODY if row in how else oracle.ballot(table[row].tolist())
            for table, how in zip(members, hows, strict=True)
        ]
        asked = oracle.members_asked(ballots, members[0].shape[1], oracle.needed(theta, len(members)))
        for n_rows in (1, 2):
            batch = Batch(("x",) * n_rows, np.full((n_rows, 1), row))
            assert failing_tier(members, hows, rule).vote(batch, rule).asked.tolist() == [asked] * n_rows


@given(failing_tables(), st.booleans())
def test_pooled_scores_are_of_the_members_that_voted(drawn, parallel):
    members, hows = drawn
    tier = failing_tier(members, hows, Confidence(0.5), parallel=parallel)
    vote = tier.vote(rows(len(members[0])), tier.rule)
    tier.close()
    for row in range(len(members[0])):
        voted = [table[row] for table, how in zip(members, hows, strict=True) if row not in how]
        if not voted:
            assert (vote.labels[row], vote.count[row]) == (-1, 0)
            assert not tier.rule.exits(rows(len(members[0])), vote)[row]
        else:
            assert vote.score[row] == pytest.approx(np.mean(voted, axis=0, dtype=np.float64).max(), abs=1e-6)


def test_a_row_on_which_a_member_raises_does_not_cost_its_votes_on_the_others():
    hows = [{1: OSError("disk on fire")}, {}, {}]
    tier = failing_tier([one_hot([1, 1, 1])] * 3, hows, Agreement(Fraction(1)), early=False)
    vote = tier.vote(rows(3), tier.rule)
    assert vote.count.tolist() == [3, 2, 3]
    assert np.isnan(vote.probabilities[0]).any(axis=1).tolist() == [False, True, False]
    assert vote.failures == {0: "member member-0: OSError: disk on fire"}
    assert tier.failures.n_failed == [1, 0, 0]


def test_a_member_that_keeps_failing_is_logged_once_and_once_more_when_it_works_again(caplog):
    tier = failing_tier([one_hot([1, 1])] * 3, [{0: OSError("disk on fire")}, {}, {}], Agreement(Fraction(2, 3)))
    for row in [0] * 5 + [1] * RECOVERED * 2 + [0]:
        assert tier.vote(rows(1, first=row), tier.rule).labels.tolist() == [1]
    assert [record.getMessage() for record in caplog.records] == [
        "tier tier: member member-0: OSError: disk on fire; it does not vote where it fails, "
        "which is logged once and counted",
        "tier tier: member member-0 votes again; it missed 5 examples",
        "tier tier: member member-0: OSError: disk on fire; it does not vote where it fails, "
        "which is logged once and counted",
    ]
    assert tier.failures.n_failed == [6, 0, 0]


@pytest.mark.parametrize("n_rows", [1, 2])
@pytest.mark.parametrize("parallel", [True, False])
def test_an_example_that_cannot_be_prepared_is_the_callers_error(n_rows, parallel):
    def refuse(x):
        raise InputError("expected a pair of texts")

    members = members_of([one_hot([1, 1])] * 2)
    for member in members:
        member.prepare = refuse
    tier = LocalTier("t", members, Agreement(Fraction(1)), pool=MemberPool.of("t", members) if parallel else None)
    with pytest.raises(InputError, match="a pair of texts"):
        tier.vote(rows(n_rows), tier.rule)
    tier.close()
    assert tier.failures.n_failed == [0, 0]


def test_a_tier_needs_a_member():
    with pytest.raises(ValueError, match="tier device: expected at least one member, got none"):
        LocalTier("device", [], Agreement(Fraction(1)))


def test_members_of_a_tier_share_one_set_of_labels_even_under_one_name():
    members = [TableMember(one_hot([1], 3), "model.onnx"), TableMember(one_hot([1], 5), "model.onnx")]
    with pytest.raises(ModelError, match=r"one set of labels, got sizes model\.onnx 3, model\.onnx 5"):
        LocalTier("device", members, Agreement(Fraction(1)))


def test_members_that_share_an_input_contract_share_the_prepared_example():
    class InputSpec:
        calls = 0

        def prepare(self, x):
            self.calls += 1
            return x

    shared, own = InputSpec(), InputSpec()
    members = members_of([one_hot([1])] * 3)
    for member, input_spec in zip(members, (shared, shared, own), strict=True):
        member.prepare = input_spec.prepare
    LocalTier("device", members, Agreement(Fraction(1))).vote(rows(1), Agreement(Fraction(1)))
    assert (shared.calls, own.calls) == (1, 1)


def test_side_by_side_members_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)

    class Meeting(TableMember):
        def predict(self, x):
            meeting.wait()  # nobody passes until all three are here
            return super().predict(x)

    members = [Meeting(one_hot([1])) for _ in range(3)]
    tier = LocalTier("cloud", members, Agreement(Fraction(1)), pool=MemberPool.of("cloud", members))
    try:
        assert tier.vote(rows(1), tier.rule).labels.tolist() == [1]
    finally:
        tier.close()


def test_closing_a_tier_closes_its_members():
    class Closing(TableMember):
        closed = False

        def close(self):
            self.closed = True

    members = [Closing(one_hot([1])) for _ in range(2)]
    LocalTier("device", members, Agreement(Fraction(1)), pool=MemberPool.of("device", members)).close()
    assert [member.closed for member in members] == [True, True]
