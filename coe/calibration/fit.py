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


def with_share(stage: StageVote, p: Values, share: float) -> StageVote:
    """The stage with the threshold at which this share of examples answers: between two of their p (B,).

    Where several examples have one p, they answer or go on together, whichever is closer to the share.
    """
    values, counts = np.unique(p, return_counts=True)
    above = np.append(counts[::-1].cumsum()[::-1], 0)  # examples at or above each value, and above all
    at = int(np.abs(above - share * len(p)).argmin())
    edges = np.concatenate([[max(2 * values[0] - 1, 0.0)], values, [max(1.0, values[-1]) + 1e-6]])
    return replace(stage, threshold=float((edges[at] + edges[at + 1]) / 2))


def _grid(scores: Values) -> tuple[float, ...]:
    known = scores[np.isfinite(scores)]
    if not known.size:
        return ()
    return tuple(np.quantile(known, np.linspace(0, 1, QUANTILES)).tolist())


@dataclass(frozen=True, slots=True)
class _Problem:
    """x (B, J, K): what each number adds to the utility of each of J alternatives; offset (B, J): log of how many
    labels an alternative stands for; right (B,): the true one. Biased: alternatives are the labels, each has a d."""

    x: Values
    offset: Values
    right: NDArray[np.intp]
    prior: Values
    precision: Values
    n_biased: int

    def utilities(self, numbers: Values) -> Values:
        util: Values = self.x @ numbers[: self.x.shape[2]] + self.offset
        return util + numbers[self.x.shape[2] :] if self.n_biased else util

    def loss(self, numbers: Values) -> float:
        util = self.utilities(numbers)
        top = util.max(axis=1)
        log_sum = np.log(np.exp(util - top[:, None]).sum(axis=1)) + top
        ridge = 0.5 * (self.precision * (numbers - self.prior) ** 2).sum()
        return float((log_sum - util[np.arange(len(util)), self.right]).sum() + ridge)

    def slopes(self, numbers: Values) -> tuple[Values, Values]:
        """Gradient (P,) and Hessian (P, P)."""
        util = self.utilities(numbers)
        p = np.exp(util - util.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows, n_own = np.arange(len(p)), self.x.shape[2]
        weighted = self.x * p[:, :, None]
        mean = weighted.sum(axis=1)
        gradient = self.precision * (numbers - self.prior)
        gradient[:n_own] += (mean - self.x[rows, self.right]).sum(axis=0)
        hessian = np.diag(self.precision)
        hessian[:n_own, :n_own] += weighted.reshape(-1, n_own).T @ self.x.reshape(-1, n_own) - mean.T @ mean
        if self.n_biased:
            gradient[n_own:] += p.sum(axis=0) - np.bincount(self.right, minlength=self.n_biased)
            hessian[n_own:, n_own:] += np.diag(p.sum(axis=0)) - p.T @ p
            cross = weighted.sum(axis=0).T - mean.T @ p
            hessian[:n_own, n_own:] += cross
            hessian[n_own:, :n_own] += cross.T
        return gradient, hessian


def _problem(
    labels: Labels, scores: Values, truth: Labels, n_labels: int, grids: Sequence[Sequence[float]]
) -> _Problem:
    n_members, n = labels.shape
    said = labels != NO_LABEL
    u = np.zeros(labels.shape)
    for member, grid in enumerate(grids):
        if grid:
            known = np.isfinite(scores[member])
            u[member, known] = ranks(scores[member, known], np.array(grid))
    n_biased = n_labels if n_labels <= MOST_BIASED else 0
    own = np.stack([np.ones_like(u), u, u * u], axis=2) * said[:, :, None]  # (M, B, 3)
    rows = np.arange(n)
    if n_biased:
        x = np.zeros((n, n_labels, 3 * n_members + 1))
        votes = np.zeros((n, n_labels))
        for member in range(n_members):
            at = rows[said[member]], labels[member, said[member]]
            for kind in range(3):
                x[*at, kind * n_members + member] = own[member, said[member], kind]
            np.add.at(votes, at, 1.0)
        right, offset = truth.astype(np.intp), np.zeros((n, n_labels))
    else:
        x = np.zeros((n, n_members + 1, 3 * n_members + 1))
        votes = np.zeros((n, n_members + 1))
        offset = np.full((n, n_members + 1), -1e9)
        right = np.full(n, n_members, dtype=np.intp)
        n_said = np.zeros(n)
        for slot in range(n_members):  # a label's first vote stands for it
            same = (labels == labels[slot]) & said[slot]  # (M, B)
            is_first = said[slot] & ~same[:slot].any(axis=0)
            offset[is_first, slot] = 0.0
            n_said += is_first
            right[is_first & (labels[slot] == truth)] = slot
            votes[:, slot] = same.sum(axis=0)
            for kind in range(3):
                x[:, slot, kind * n_members : (kind + 1) * n_members] = (own[:, :, kind] * same).T
        offset[:, -1] = np.log(np.maximum(n_labels - n_said, 1e-9))
    x[:, :, -1] = np.maximum(votes - 1, 0) / max(n_members - 1, 1)
    spread = [*np.repeat([SPREADS["b"], SPREADS["a"], SPREADS["c"]], n_members), SPREADS["g"]]
    spread += [SPREADS["d"]] * n_biased
    prior = np.zeros(len(spread))
    n_right, n_said = ((labels == truth) & said).sum(axis=1), said.sum(axis=1)
    odds = (n_right + 1) / (n_said - n_right + 1)
    prior[:n_members] = np.log(odds * (n_labels - 1))
    return _Problem(x, offset, right, prior, np.array(spread) ** -2.0, n_biased)


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
