"""The calibrated vote: what it says, and that order, batches and stopping early change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.calibration.vote import MOST_BIASED, StageVote
from coe.cascade import NO_LABEL
from coe.cascade.vote import plurality

NUMBERS = st.integers(-24, 24).map(lambda eighths: eighths / 8)  # exact and few, so that utilities tie often
SMOOTH = st.floats(-4, 4)


@st.composite
def stages(draw: st.DrawFn, n_members: int | None = None) -> StageVote:
    n_members = draw(st.integers(1, 5)) if n_members is None else n_members
    n_labels = draw(st.sampled_from([2, 3, 4, 40]))
    number = draw(st.sampled_from([NUMBERS, SMOOTH]))
    row = st.lists(number, min_size=n_members, max_size=n_members).map(tuple)
    grid = st.lists(st.integers(0, 8).map(lambda eighths: eighths / 8), min_size=2, max_size=6).map(sorted).map(tuple)
    d = draw(st.lists(number, min_size=n_labels, max_size=n_labels).map(tuple)) if n_labels <= MOST_BIASED else ()
    return StageVote(
        b=draw(row),
        a=draw(row),
        c=draw(row),
        g=draw(number),
        d=d if draw(st.booleans()) else (),
        grids=tuple(draw(st.lists(grid | st.just(()), min_size=n_members, max_size=n_members))),
        n_labels=n_labels,
        threshold=draw(st.sampled_from([None, 0.3, 0.5, 0.7, 0.9, 0.99])),
    )


@st.composite
def votes(draw: st.DrawFn, stage: StageVote, n_rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    n_rows = draw(st.integers(1, 7)) if n_rows is None else n_rows
    n_cells = stage.n_members * n_rows
    label = st.integers(NO_LABEL, min(stage.n_labels, 5) - 1)
    score = st.integers(-1, 17).map(lambda sixteenths: sixteenths / 16) | st.just(math.nan)
    labels = draw(st.lists(label, min_size=n_cells, max_size=n_cells))
    scores = draw(st.lists(score, min_size=n_cells, max_size=n_cells))
    shape = (stage.n_members, n_rows)
    return np.array(labels, dtype=np.int64).reshape(shape), np.array(scores).reshape(shape)


@st.composite
def cases(draw: st.DrawFn) -> tuple[StageVote, np.ndarray, np.ndarray]:
    stage = draw(stages())
    return (stage, *draw(votes(stage)))


def by_definition(stage: StageVote, labels: list[int], scores: list[float]) -> dict[int, float]:
    """p of every label, as the docstring has it."""
    util = dict.fromkeys(range(stage.n_labels), 0.0)
    for label in util:
        said = [member for member, own in enumerate(labels) if own == label]
        for member in said:
            grid, u = stage.grids[member], 0.0
            if grid and not math.isnan(scores[member]):
                same = [place for place, mark in enumerate(grid) if mark == scores[member]]
                place = sum(same) / len(same) if same else np.interp(scores[member], grid, range(len(grid)))
                u = place / (len(grid) - 1) - 0.5
            util[label] += stage.b[member] + stage.a[member] * u * bool(grid) + stage.c[member] * u * u * bool(grid)
        if said:
            util[label] += stage.g * (len(said) - 1) / max(stage.n_members - 1, 1)
        util[label] += stage.d[label] if stage.d else 0.0
    total = sum(math.exp(value) for value in util.values())
    return {label: math.exp(value) / total for label, value in util.items()}


@given(cases())
def test_the_label_has_the_highest_probability_by_the_formula(case):
    stage, labels, scores = case
    found, p = stage.posterior(labels, scores)
    for row in range(labels.shape[1]):
        expected = by_definition(stage, labels[:, row].tolist(), scores[:, row].tolist())
        said = set(labels[:, row].tolist()) - {NO_LABEL}
        allowed = expected if stage.d or not said else {label: expected[label] for label in said}
        assert p[row] == pytest.approx(expected[int(found[row])], rel=1e-8, abs=1e-10)
        assert expected[int(found[row])] == pytest.approx(max(allowed.values()), rel=1e-8)


@given(cases())
def test_a_batch_equals_its_rows_and_one_example_in_plain_numbers(case):
    stage, labels, scores = case
    found, p = stage.posterior(labels, scores)
    for row in range(labels.shape[1]):
        alone, own = stage.posterior(labels[:, row : row + 1], scores[:, row : row + 1])
        assert (alone[0], own[0]) == (found[row], p[row])
        assert stage.posterior_of_one(labels[:, row].tolist(), scores[:, row].tolist()) == (found[row], p[row])


def permuted(stage: StageVote, order: list[int]) -> StageVote:
    b, a, c, grids = (tuple(getattr(stage, name)[member] for member in order) for name in ("b", "a", "c", "grids"))
    return StageVote(b, a, c, stage.g, stage.d, grids, stage.n_labels, stage.threshold)


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_members_changes_nothing(case, random):
    stage, labels, scores = case
    order = list(range(stage.n_members))
    random.shuffle(order)
    found, p = stage.posterior(labels, scores)
    other, q = permuted(stage, order).posterior(labels[order], scores[order])
    assert found.tolist() == other.tolist()
    assert p.tolist() == q.tolist()


def equal(n_members: int, n_labels: int, b: float, threshold: float | None = None) -> StageVote:
    nothing = (0.0,) * n_members
    return StageVote((b,) * n_members, nothing, nothing, 0.0, (), ((),) * n_members, n_labels, threshold)


@given(st.integers(1, 5), st.integers(2, 5), st.booleans(), st.data())
def test_equal_b_without_scores_is_plain_agreement(n_members, n_labels, has_scores, data):
    size = n_members * 6
    labels = np.array(data.draw(st.lists(st.integers(0, n_labels - 1), min_size=size, max_size=size)))
    labels = labels.reshape(n_members, 6)
    eighths = st.integers(0, 8).map(lambda value: value / 8)
    scores = np.array(data.draw(st.lists(eighths, min_size=size, max_size=size))).reshape(n_members, 6)
    wanted, count, _ = plurality(labels, None, scores if has_scores else None)
    scores = scores if has_scores else np.full(scores.shape, np.nan)
    found, p = equal(n_members, n_labels, 2.0**-10).posterior(labels, scores)
    # Ties between labels of equal votes: the plurality takes the higher mean score, that is the higher sum.
    assert found.tolist() == wanted.tolist()
    for needed in range(1, n_members + 1):
        enough = p[count >= needed]
        less = p[count < needed]
        assert not enough.size or not less.size or enough.min() > less.max()


@given(cases(), st.data())
def test_an_outcome_that_is_settled_early_is_that_of_asking_everybody(case, data):
    stage, labels, scores = case
    left = data.draw(st.lists(st.integers(0, stage.n_members - 1), unique=True))
    partial, known = labels.copy(), scores.copy()
    partial[left], known[left] = NO_LABEL, np.nan
    found, p = stage.posterior(labels, scores)
    so_far, _ = stage.posterior(partial, known)
    exits = stage.exits(p)
    for row in range(labels.shape[1]):
        early = stage.outcome_of_one(partial[:, row].tolist(), known[:, row].tolist(), left)
        if early == 1:
            assert exits[row]
            assert found[row] == so_far[row]
        if early == -1:
            assert not exits[row]


@given(cases())
def test_the_rule_settles_exactly_where_the_outcome_is_an_answer(case):
    stage, labels, scores = case
    n_members = stage.n_members
    for row in range(labels.shape[1]):
        for n_asked in range(1, n_members):
            said, known = labels[:, row].tolist(), scores[:, row].tolist()
            said[n_asked:], known[n_asked:] = [NO_LABEL] * (n_members - n_asked), [math.nan] * (n_members - n_asked)
            left = range(n_asked, n_members)
            is_answer = stage.outcome_of_one(said, known, left) == 1
            assert (stage.outcome_of_one(said, known, left, only_answers=True) == 1) == is_answer
            assert not is_answer or n_asked >= stage.settles_from


def test_no_vote_is_settled_before_the_members_asked_outweigh_those_left():
    assert [equal(n_members, 10, 4.0).settles_from for n_members in (1, 3, 5)] == [1, 2, 3]


def test_two_sure_members_settle_a_vote_without_the_third():
    unknown = [math.nan] * 3
    stage = equal(3, 10, 4.0, threshold=0.9)
    assert stage.outcome_of_one([7, 7, NO_LABEL], unknown, [2]) == 1
    assert stage.outcome_of_one([7, 6, NO_LABEL], unknown, [2]) == 0
    assert equal(3, 10, 4.0, threshold=0.9999999).outcome_of_one([7, 6, NO_LABEL], unknown, [2]) == -1


def test_a_member_that_is_always_wrong_speaks_for_the_other_label():
    stage = StageVote((-2.0,), (0.0,), (0.0,), 0.0, (0.0, 0.0), ((),), 2)
    assert stage.posterior_of_one([0], [math.nan]) == (1, pytest.approx(1 / (1 + math.exp(-2))))


def test_a_surer_member_wins_against_a_dull_one():
    stage = StageVote((1.0, 1.0), (4.0, 4.0), (0.0, 0.0), 0.0, (), ((0.0, 1.0), (0.0, 10.0)), 3)
    assert stage.posterior_of_one([0, 1], [0.9, 3.0])[0] == 0
    assert stage.posterior_of_one([0, 1], [0.2, 9.0])[0] == 1


def test_nobody_voted():
    assert equal(2, 4, 1.0).posterior_of_one([NO_LABEL] * 2, [math.nan] * 2) == (0, 0.25)


@pytest.mark.parametrize(
    ("field", "value"),
    [("a", (0.0,)), ("d", (0.0,)), ("b", (1000.0, 0.0)), ("g", math.nan), ("grids", ((1.0, 0.0), ())),
     ("threshold", -1.0)],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_an_error_that_names_the_field(field, value):
    given = {"b": (1.0, 1.0), "a": (0.0, 0.0), "c": (0.0, 0.0), "g": 0.0, "d": (), "grids": ((), ()), "n_labels": 3}
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        StageVote(**{**given, field: value})
