"""Fitting: it finds what the data were made with, and the order of members or examples does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from members_of import recorded

from coe.calibration import fit as fit_module
from coe.calibration.fit import fit, out_of_fold, with_share
from coe.calibration.vote import StageVote
from coe.cascade import NO_LABEL


def test_better_members_weigh_more_and_surer_votes_too():
    labels, scores, truth = recorded()
    stage = fit(labels, scores, truth, 4)
    assert stage.b[0] < stage.b[1] < stage.b[2]
    assert all(a > 1 for a in stage.a)
    found, p = stage.posterior(labels, scores)
    assert (found == truth).mean() > (labels[2] == truth).mean() + 0.02
    assert p.mean() == pytest.approx((found == truth).mean(), abs=0.02)  # it knows how often it is right


@pytest.mark.parametrize("n_labels", [2, 4, 50])
def test_permuting_members_permutes_the_table_and_nothing_else(n_labels):
    labels, scores, truth = recorded(400, n_labels)
    names, order = ["b", "a", "c"], [2, 0, 1]
    stage = fit(labels, scores, truth, n_labels, names)
    other = fit(labels[order], scores[order], truth, n_labels, [names[member] for member in order])
    for field in ("b", "a", "c", "grids"):
        assert getattr(other, field) == tuple(getattr(stage, field)[member] for member in order)
    assert (other.g, other.d) == (stage.g, stage.d)
    assert (len(stage.d) > 0) == (n_labels <= 31)


def test_many_labels_are_fitted_as_few_are_but_for_the_bias(monkeypatch):
    labels, scores, truth = recorded(400, 6)
    monkeypatch.setitem(fit_module.SPREADS, "d", 1e-5)
    few = fit(labels, scores, truth, 6)
    monkeypatch.setattr(fit_module, "MOST_BIASED", 0)
    many = fit(labels, scores, truth, 6)
    assert many.d == ()
    assert np.allclose([*few.b, *few.a, *few.c, few.g], [*many.b, *many.a, *many.c, many.g], atol=1e-3)


def test_without_scores_only_votes_count():
    labels, scores, truth = recorded()
    unknown = np.full(scores.shape, np.nan)
    stage = fit(labels, unknown, truth, 4)
    assert stage.grids == ((), (), ())
    assert stage.a == stage.c == (0.0, 0.0, 0.0)
    assert (stage.posterior(labels, unknown)[0] == truth).mean() >= (labels[2] == truth).mean() - 0.005


def test_a_member_that_did_not_always_vote_is_fitted_on_its_votes():
    labels, scores, truth = recorded()
    labels[0, ::2] = NO_LABEL
    scores[0, ::2] = np.nan
    stage = fit(labels, scores, truth, 4)
    assert 0 < stage.b[0] < stage.b[2]


def test_few_examples_stay_near_the_plain_log_odds():
    labels, scores, truth = recorded(4)
    stage = fit(labels, scores, truth, 4)
    assert all(np.isfinite([*stage.b, *stage.a, *stage.c, stage.g, *stage.d]))
    assert max(map(abs, stage.a)) < 3


def test_out_of_fold_uses_no_example_on_itself():
    labels, scores, truth = recorded(300)
    folds = np.arange(300) % 2
    found, p = out_of_fold(labels, scores, truth, 4, folds)
    odd = fit(labels[:, folds == 1], scores[:, folds == 1], truth[folds == 1], 4)
    expected, q = odd.posterior(labels[:, folds == 0], scores[:, folds == 0])
    assert found[folds == 0].tolist() == expected.tolist()
    assert p[folds == 0].tolist() == q.tolist()


def test_a_threshold_keeps_the_share_it_was_made_for():
    stage = StageVote((1.0,), (0.0,), (0.0,), 0.0, (), ((),), 3)
    p = np.linspace(0.2, 0.99, 101)
    for share in (0.0, 0.25, 0.5, 1.0):
        assert (with_share(stage, p, share).exits(p)).mean() == pytest.approx(share, abs=0.01)
    few = np.repeat([0.3, 0.9], 50)
    assert with_share(stage, few, 0.45).threshold == pytest.approx(0.6)  # between two values, away from both
