"""Fitting one stage's numbers: ridge maximum likelihood, a convex problem of a few dozen numbers, by Newton's method.

The prior is the plain log-odds of each member's accuracy (votes weighed as if members were independent), with no use
of scores, no bias of labels and nothing for company; labelled examples move the numbers from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.cascade import NO_LABEL
from coe.cascade.types import Array, Labels

from .vote import LARGEST, LARGEST_BIAS, MOST_BIASED, StageVote, Values, ranks

QUANTILES = 17  # of a member's scores that are kept
SPREADS = {"b": 1.5, "a": 3.0, "c": 6.0, "g": 1.5, "d": 1.0}  # of the prior: standard deviations
ITERATIONS, ENOUGH = 50, 1e-7


def fit(labels: Labels, scores: Array, truth: Labels, n_labels: int, names: Sequence[str] = ()) -> StageVote:
    """The stage's numbers, without a threshold.

    Args:
        labels: (M, B) int64, each member's label; NO_LABEL: no vote.
        scores: (M, B) float, of that label; NaN: not known.
        truth: (B,) int64.
        names: M; members are summed in the order of their names, so that theirs does not matter.
    """
    order = sorted(range(len(labels)), key=lambda member: names[member]) if names else list(range(len(labels)))
    labels, scores = labels[order], np.asarray(scores, dtype=np.float64)[order]
    grids = [_grid(own[said != NO_LABEL]) for own, said in zip(scores, labels, strict=True)]
    problem = _problem(labels, scores, truth, n_labels, grids)
    numbers = _newton(problem)
    n_members = len(labels)
    own = np.clip(numbers[: 3 * n_members + 1], -LARGEST, LARGEST)
    place = np.argsort(order)
    b, a, c = (tuple(part[place].tolist()) for part in np.split(own[:-1], 3))
    d = np.clip(numbers[3 * n_members + 1 :], -LARGEST_BIAS, LARGEST_BIAS)
    return StageVote(b, a, c, float(own[-1]), tuple(d.tolist()), tuple(grids[at] for at in place.tolist()), n_labels)


def out_of_fold(
    labels: Labels, scores: Array, truth: Labels, n_labels: int, folds: NDArray[np.intp], names: Sequence[str] = ()
) -> tuple[Labels, Values]:
    """Label and p of every example (B,), each by numbers fitted on the examples of the other folds.

    Args:
        folds: (B,) the fold of each example, from 0.
    """
    found, p = np.empty(labels.shape[1], dtype=np.int64), np.empty(labels.shape[1])
    for fold in np.unique(folds):
        own, others = folds == fold, folds != fold
        stage = fit(labels[:, others], scores[:, others], truth[others], n_labels, names)
        found[own], p[own] = stage.posterior(labels[:, own], scores[:, own])
    return found, p


GATE_SHARE = 0.10  # of examples as they were calibrated, that a stricter threshold may cost


def with_share(stage: StageVote, p: Values, share: float) -> StageVote:
    """The stage with the threshold at which this share of examples answers: between two of their p (B,).

    Where several examples have one p, they answer or go on together, whichever is closer to the share. Its
    `gate_threshold` is the one at which GATE_SHARE fewer of all examples answer.
    """
    values, counts = np.unique(p, return_counts=True)
    above = np.append(counts[::-1].cumsum()[::-1], 0)  # examples at or above each value, and above all
    at = int(np.abs(above - share * len(p)).argmin())
    edges = np.concatenate([[max(2 * values[0] - 1, 0.0)], values, [max(1.0, values[-1]) + 1e-6]])
    stricter = max(int(np.abs(above - (share - GATE_SHARE) * len(p)).argmin()), at)
    usual, gate = (float((edges[one] + edges[one + 1]) / 2) for one in (at, stricter))
    return replace(stage, threshold=usual, gate_threshold=gate)


def _grid(scores: Values) -> tuple[float, ...]:
    known = scores[np.isfinite(scores)]
    if not known.size:
        return ()
    return tuple(np.quantile(known, np.linspace(0, 1, QUANTILES)).tolist())


@dataclass(frozen=True, slots=True)
class _Problem:
    """An example's alternatives are its M votes, of which a label's first stands for it, and the labels nobody said.

    Args:
        x: (B, M, K) what each number but d adds to a vote's label's utility.
        offset: (B, M + R) 0, or far below where an alternative is none. R is 1, its offset the log of how many labels
            nobody said; or, where labels are biased, L.
        right: (B,) the true alternative.
        said: (M, B, L) the label of each vote, where labels are biased; empty: they are not.
        prior, precision: (P,) of the numbers.
    """

    x: Values
    offset: Values
    right: NDArray[np.intp]
    said: Values
    prior: Values
    precision: Values

    def utilities(self, numbers: Values) -> Values:
        n_members, n_own = self.x.shape[1:]
        util = self.offset.copy()
        util[:, :n_members] += self.x @ numbers[:n_own]
        if self.said.size:
            util[:, n_members:] += numbers[n_own:]
            util[:, :n_members] += (self.said @ numbers[n_own:]).T
        return util

    def loss(self, numbers: Values) -> float:
        util = self.utilities(numbers)
        top = util.max(axis=1)
        log_sum = np.log(np.exp(util - top[:, None]).sum(axis=1)) + top
        ridge = 0.5 * (self.precision * (numbers - self.prior) ** 2).sum()
        return float((log_sum - util[np.arange(len(util)), self.right]).sum() + ridge)

    def slopes(self, numbers: Values) -> tuple[Values, Values]:
        """Gradient (P,) and Hessian (P, P)."""
        n_members, n_own = self.x.shape[1:]
        util = self.utilities(numbers)
        p = np.exp(util - util.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        weighted = self.x * p[:, :n_members, None]
        mean = weighted.sum(axis=1)
        gradient, hessian = self.precision * (numbers - self.prior), np.diag(self.precision)
        voted = np.flatnonzero(self.right < n_members)
        gradient[:n_own] += mean.sum(axis=0) - self.x[voted, self.right[voted]].sum(axis=0)
        hessian[:n_own, :n_own] += weighted.reshape(-1, n_own).T @ self.x.reshape(-1, n_own) - mean.T @ mean
        if self.said.size:
            of_label = p[:, n_members:].copy()  # (B, L)
            cross = np.zeros((n_own, of_label.shape[1]))
            right = np.bincount(self.right, minlength=p.shape[1])[n_members:].astype(np.float64)
            for member, said in enumerate(self.said):
                of_label += said * p[:, member, None]
                cross += weighted[:, member].T @ said
                right += said[self.right == member].sum(axis=0)
            cross -= mean.T @ of_label
            gradient[n_own:] += of_label.sum(axis=0) - right
            hessian[n_own:, n_own:] += np.diag(of_label.sum(axis=0)) - of_label.T @ of_label
            hessian[:n_own, n_own:] += cross
            hessian[n_own:, :n_own] += cross.T
        return gradient, hessian


NONE = -1e9  # the utility of what is no alternative


def _problem(
    labels: Labels, scores: Values, truth: Labels, n_labels: int, grids: Sequence[Sequence[float]]
) -> _Problem:
    n_members, n = labels.shape
    voted = labels != NO_LABEL
    u = np.zeros(labels.shape)
    for member, grid in enumerate(grids):
        if grid:
            known = np.isfinite(scores[member])
            u[member, known] = ranks(scores[member, known], np.array(grid))
    own = np.stack([np.ones_like(u), u, u * u]) * voted  # (3, M, B)
    x = np.zeros((n, n_members, 3 * n_members + 1))
    offset = np.full((n, n_members), NONE)
    right = np.full(n, n_members, dtype=np.intp)
    for slot in range(n_members):
        same = (labels == labels[slot]) & voted[slot]  # (M, B)
        is_first = voted[slot] & ~same[:slot].any(axis=0)
        offset[is_first, slot] = 0.0
        right[is_first & (labels[slot] == truth)] = slot
        x[:, slot, :-1] = (own * same).reshape(-1, n).T
        x[:, slot, -1] = np.maximum(same.sum(axis=0) - 1, 0) / max(n_members - 1, 1)
    spread = [*np.repeat([SPREADS["b"], SPREADS["a"], SPREADS["c"]], n_members), SPREADS["g"]]
    said = np.zeros((0, 0, 0))
    if n_labels <= MOST_BIASED:
        said = ((labels[:, :, None] == np.arange(n_labels)) & (offset.T == 0)[:, :, None]).astype(np.float64)
        rest = np.where(said.any(axis=0), NONE, 0.0)
        right = np.where(right == n_members, n_members + truth, right)
        spread += [SPREADS["d"]] * n_labels
    else:
        rest = np.log(np.maximum(n_labels - (offset == 0).sum(axis=1), 1e-9))[:, None]
    prior = np.zeros(len(spread))
    n_right, n_voted = ((labels == truth) & voted).sum(axis=1), voted.sum(axis=1)
    prior[:n_members] = np.log((n_right + 1) / (n_voted - n_right + 1) * (n_labels - 1))
    return _Problem(x, np.hstack([offset, rest]), right, said, prior, np.array(spread) ** -2.0)


def _newton(problem: _Problem) -> Values:
    numbers = problem.prior.copy()
    loss = problem.loss(numbers)
    for _ in range(ITERATIONS):
        gradient, hessian = problem.slopes(numbers)
        step = np.linalg.solve(hessian, gradient)
        decrease = float(gradient @ step)
        if decrease < ENOUGH:
            break
        size = 1.0
        while size > 1e-6:
            tried = numbers - size * step
            found = problem.loss(tried)
            if found <= loss - 1e-4 * size * decrease:
                break
            size /= 2
        else:
            break
        numbers, loss = tried, found
    return numbers
