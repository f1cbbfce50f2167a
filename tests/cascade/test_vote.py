"""Counting votes against the oracle: plurality, ties, and when an outcome is settled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import ballot, members_asked, outcomes, vote_on_row
from strategies import tables

from coe.cascade import NO_LABEL
from coe.cascade.vote import is_settled, leaders, leaders_of_one, plurality, plurality_of_one, pool, votes_per_ballot


def stacked(members):
    probabilities = np.stack(members)  # (M, B, L)
    return probabilities.argmax(axis=2), probabilities


@given(tables())
def test_plurality_is_that_of_the_oracle(members):
    ballots, probabilities = stacked(members)
    labels, counts, scores = plurality(ballots, probabilities)
    for row in range(ballots.shape[1]):
        label, count, score = vote_on_row(members, row)
        assert (labels[row], counts[row]) == (label, count)
        assert scores[row] == np.float32(float(score)) or abs(scores[row] - float(score)) < 1e-6


@given(tables())
def test_the_vote_on_one_example_is_that_on_a_batch_to_the_last_bit(members):
    ballots, probabilities = stacked(members)
    labels, counts, scores = plurality(ballots, probabilities)
    for row in range(ballots.shape[1]):
        cast = ballots[:, row].tolist()
        top, _ = leaders_of_one(cast)
        label, score = plurality_of_one(cast, top, [table[[row]] for table in members])
        assert (label, top) == (labels[row], counts[row])
        assert np.float32(score).tobytes() == scores[row].tobytes()


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_members_changes_no_bit_of_the_vote(members, random):
    ballots, probabilities = stacked(members)
    order = list(range(len(members)))
    random.shuffle(order)
    for ours, theirs in zip(
        plurality(ballots, probabilities), plurality(ballots[order], probabilities[order]), strict=True
    ):
        assert ours.tobytes() == theirs.tobytes()


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_members_changes_no_bit_of_the_pooled_output(members, random):
    _, probabilities = stacked(members)
    order = list(range(len(members)))
    random.shuffle(order)
    for ours, theirs in zip(pool(probabilities), pool(probabilities[order]), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_a_tie_goes_to_the_higher_mean_score_of_all_members():
    outputs = np.array([[[0.4, 0.6, 0.0]], [[0.0, 0.1, 0.9]]], dtype=np.float32)  # means: 0.2, 0.35, 0.45
    labels, counts, scores = plurality(np.array([[1], [2]]), outputs)
    assert (labels[0], counts[0]) == (2, 1)
    assert scores[0] == pytest.approx(0.45)


def test_a_tie_in_votes_and_scores_goes_to_the_lower_label():
    outputs = np.array([[[0.0, 0.25, 0.75]], [[0.0, 0.75, 0.25]]], dtype=np.float32)
    labels, counts, _ = plurality(np.array([[2], [1]]), outputs)
    assert (labels[0], counts[0]) == (1, 1)


def test_a_label_that_no_member_voted_for_cannot_win_a_tie():
    outputs = np.array([[[0.5, 0.45, 0.05]], [[0.05, 0.45, 0.5]]], dtype=np.float32)  # label 1 has the best mean
    labels, _, _ = plurality(np.array([[0], [2]]), outputs)
    assert labels[0] == 0


def test_scores_that_would_round_differently_in_another_order_still_tie():
    parts = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    forward = np.stack([np.array([[part, 0.0]], dtype=np.float32) for part in parts])
    backward = np.stack([np.array([[0.0, part]], dtype=np.float32) for part in parts[::-1]])
    outputs = np.concatenate([forward, backward])  # label 0 gets 0.1 + 0.2 + 0.3, label 1 gets 0.3 + 0.2 + 0.1
    labels, counts, _ = plurality(outputs.argmax(axis=2), outputs)
    assert (labels[0], counts[0]) == (0, 3)


def test_ballots_not_cast_count_for_nobody():
    ballots = np.array([[1, 0], [1, NO_LABEL], [NO_LABEL, NO_LABEL]])
    assert votes_per_ballot(ballots).tolist() == [[2, 1], [2, 0], [0, 0]]
    labels, counts, _ = plurality(ballots, np.zeros((3, 2, 2), dtype=np.float32))
    assert labels.tolist() == [1, 0]
    assert counts.tolist() == [2, 1]


def test_the_score_is_the_mean_over_the_members_asked_alone():
    ballots = np.array([[1], [1], [NO_LABEL]])
    outputs = np.array([[[0.2, 0.8]], [[0.4, 0.6]], [[9.0, 9.0]]], dtype=np.float32)
    _, _, scores = plurality(ballots, outputs)
    assert scores[0] == pytest.approx(0.7)


@given(tables())
def test_recorded_top_scores_alone_give_the_mean_over_those_who_voted_so(members):
    ballots, probabilities = stacked(members)
    top_scores = probabilities.max(axis=2)  # (M, B)
    labels, counts, scores = plurality(ballots, None, top_scores)
    for row in range(ballots.shape[1]):
        cast = ballots[:, row].tolist()
        top = max(cast.count(label) for label in cast)
        means = {
            label: sum(float(score) for score, vote in zip(top_scores[:, row], cast, strict=True) if vote == label)
            / top
            for label in set(cast)
            if cast.count(label) == top
        }
        best = max(means.values())
        assert counts[row] == top
        assert means[labels[row]] == pytest.approx(best, abs=1e-6)
        assert scores[row] == pytest.approx(best, abs=1e-6)
        assert not any(mean == best and label < labels[row] for label, mean in means.items())


@given(tables(), st.sampled_from([-1.0, 1.0, 100.0]))
def test_ties_are_broken_on_many_rows_as_on_each_alone(members, scale):
    ballots, probabilities = stacked(members)
    ballots[len(members) // 2 :, ::2] = NO_LABEL  # in every other row only the first members were asked
    ballots[0, ::2] = probabilities[0, ::2].argmax(axis=1)
    top_scores = (probabilities.max(axis=2) * scale).astype(np.float32)  # scores may be of any scale and sign
    for scores in ((probabilities, None), (None, top_scores), (None, None)):
        whole = plurality(ballots, *scores)
        for row in range(ballots.shape[1]):
            cast = ballots[:, row] != NO_LABEL  # the members that were not asked are not there
            alone = (None if one is None else one[cast][:, [row]] for one in scores)
            for many, one in zip(whole, plurality(ballots[cast][:, [row]], *alone), strict=True):
                assert many[row].tobytes() == one[0].tobytes()


def test_without_any_scores_a_tie_goes_to_the_lower_label_and_the_score_is_unknown():
    labels, counts, scores = plurality(np.array([[2], [1]]), None)
    assert (labels[0], counts[0]) == (1, 1)
    assert np.isnan(scores[0])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_leaders_of_one_and_of_a_batch_agree(cast):
    top, runner_up = leaders(np.array(cast)[:, None])
    assert leaders_of_one(cast) == (top[0], runner_up[0])
    counts = sorted((cast.count(label) for label in set(cast)), reverse=True)
    assert (top[0], runner_up[0]) == (counts[0], counts[1] if len(counts) > 1 else 0)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 7),
)
def test_settled_means_that_every_way_the_vote_can_end_is_the_same(cast, left, needed):
    needed = min(needed, len(cast) + left)
    top, runner_up = leaders_of_one(cast)
    settled = is_settled(top, runner_up, left, needed)
    assert settled == (len(outcomes(cast, left, 3, needed)) == 1)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(0, 5))
def test_members_are_asked_until_one_outcome_is_left_and_no_further(ballots, needed):
    needed = min(needed, len(ballots))
    asked = next(
        (
            index
            for index in range(1, len(ballots))
            if is_settled(*leaders_of_one(ballots[:index]), len(ballots) - index, needed)
        ),
        len(ballots),
    )
    assert asked == members_asked(ballots, 3, needed)


@given(tables())
def test_pooling_takes_the_label_of_the_mean_output(members):
    _, probabilities = stacked(members)
    labels, scores = pool(probabilities)
    for row in range(probabilities.shape[1]):
        _, _, _ = vote_on_row(members, row)
        mean = [
            float(sum(float(table[row][label]) for table in members)) / len(members)
            for label in range(probabilities.shape[2])
        ]
        assert mean[labels[row]] == pytest.approx(max(mean), abs=1e-9)
        assert scores[row] == pytest.approx(max(mean), abs=1e-6)
        assert ballot(mean) >= labels[row] or mean[ballot(mean)] - mean[labels[row]] < 1e-9
