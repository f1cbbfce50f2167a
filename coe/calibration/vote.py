"""The calibrated vote: who says what, and how sure, weighed by numbers fitted on labelled examples.

    util(k) = sum over members m that say k of (b_m + a_m u_m + c_m u_m^2) + g (votes(k) - 1) / (M - 1) + d_k
    p(k) = exp util(k) / sum of exp util over all labels

u_m is the rank of the member's score among its scores on the fitting examples, less 1/2. A label that nobody said has
util d_k. Equal b and nothing else is plain agreement.

Utilities and their exponentials are rounded to whole units before they are summed, and sums of whole numbers are
exact: the order of the members does not show in the last bit, a batch equals its rows, and other languages agree.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from coe.cascade import NO_LABEL
from coe.cascade.types import Array, Labels

UNITS = 2.0**40  # of utilities, exponentials and scores; whole numbers of them below 2**53 are exact in float64
LARGEST, LARGEST_BIAS = 100.0, 5.0  # of fitted numbers, and of d: sums stay exact, and exponentials finite
MOST_BIASED = 31  # labels, at most, that have a bias
LARGEST_SCORE = 64.0  # scores beyond only break ties as if they were this
MARGIN = 1e-9  # by which a bound must clear the threshold: far above the rounding

Values = NDArray[np.float64]

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_C3, _C4, _C5, _C6, _C7, _C8, _C9, _C10, _C11, _C12 = (1 / math.factorial(n) for n in range(3, 13))


@dataclass(frozen=True, slots=True)
class StageVote:
    """The fitted numbers of one stage: all M members asked by the end of one tier, the first tier's first.

    Args:
        b, a, c: (M,) of each member: what its vote is worth, and how that changes with its score's rank.
        g: for company: all of it where every member says the same.
        d: (L,) bias of each label; empty: none, as always with more than MOST_BIASED labels.
        grids: (M, Q) quantiles of each member's score, rising; an empty one: its score is not used.
        n_labels: L.
        threshold: the tier answers where the label's p reaches this; None: always (the last tier).
        gate_threshold: a stricter one, for inputs that are no longer as they were calibrated; None: there is none.
    """

    b: tuple[float, ...]
    a: tuple[float, ...]
    c: tuple[float, ...]
    g: float
    d: tuple[float, ...]
    grids: tuple[tuple[float, ...], ...]
    n_labels: int
    threshold: float | None = None
    gate_threshold: float | None = None
    _company: tuple[float, ...] = field(init=False, repr=False, compare=False)  # units of g by votes, from 0
    _bias: tuple[float, ...] = field(init=False, repr=False, compare=False)  # units of d; empty: none
    _unsaid: tuple[float, ...] = field(init=False, repr=False, compare=False)  # units of exp d
    _all_unsaid: float = field(init=False, repr=False, compare=False)  # their sum
    _by_bias: tuple[int, ...] = field(init=False, repr=False, compare=False)  # labels from the largest d
    _spans: tuple[tuple[float, float], ...] = field(init=False, repr=False, compare=False)  # least and most added
    _members: tuple[tuple[float, float, float, tuple[float, ...]], ...] = field(init=False, repr=False, compare=False)
    settles_from: int = field(init=False, repr=False, compare=False)  # members asked, before which none is settled

    def __post_init__(self) -> None:
        """Raises ValueError where the numbers do not fit each other; the text names the field."""
        n_members = len(self.b)
        for name in ("a", "c", "grids"):
            if len(getattr(self, name)) != n_members:
                raise ValueError(f"{name}: expected {n_members}, one a member, got {len(getattr(self, name))}")
        if len(self.d) not in (0, self.n_labels) or len(self.d) > MOST_BIASED:
            wanted = f"{self.n_labels} numbers, one a label, or none" if self.n_labels <= MOST_BIASED else "none"
            raise ValueError(f"d: expected {wanted}, got {len(self.d)}")
        if not n_members or self.n_labels < 2:
            raise ValueError(f"b: expected a member at least and two labels, got {n_members} and {self.n_labels}")
        for name, values in (("b", self.b), ("a", self.a), ("c", self.c), ("g", (self.g,)), ("d", self.d)):
            most = LARGEST_BIAS if name == "d" else LARGEST
            wrong = [value for value in values if not abs(value) <= most]
            if wrong:
                raise ValueError(f"{name}: expected numbers from -{most:g} to {most:g}, got {wrong[0]}")
        if any(
            list(grid) != sorted(grid) or len(grid) == 1 or not all(map(math.isfinite, grid)) for grid in self.grids
        ):
            raise ValueError("grids: expected rising numbers, two at least or none, got others")
        if self.threshold is not None and not 0 <= self.threshold <= 2:
            raise ValueError(f"threshold: expected a number from 0 to 2, got {self.threshold}")
        if self.gate_threshold is not None and not (self.threshold or 0) <= self.gate_threshold <= 2:
            raise ValueError(f"gate_threshold: expected {self.threshold or 0} to 2, got {self.gate_threshold}")
        share = self.g / max(n_members - 1, 1)
        company = [0.0, *(float(round(share * (votes - 1) * UNITS)) for votes in range(1, n_members + 1))]
        object.__setattr__(self, "_company", tuple(company))
        object.__setattr__(self, "_bias", tuple(float(round(bias * UNITS)) for bias in self.d))
        object.__setattr__(self, "_unsaid", tuple(_exponential(bias / UNITS) for bias in self._bias))
        object.__setattr__(self, "_all_unsaid", sum(self._unsaid))
        object.__setattr__(self, "_by_bias", tuple(sorted(range(len(self.d)), key=lambda label: -self._bias[label])))
        members = tuple(zip(self.b, self.a, self.c, self.grids, strict=True))
        object.__setattr__(self, "_members", members)
        object.__setattr__(self, "_spans", tuple(_span(*member, share) for member in members))
        object.__setattr__(self, "settles_from", self._first_settled())

    @property
    def n_members(self) -> int:
        return len(self.b)

    def posterior(self, labels: Labels, scores: Array) -> tuple[Labels, Values]:
        """The label and its probability p, each (B,).

        Ties go to the higher summed score of the label's members, then to the lower label.

        Args:
            labels: (M, B) int64, each member's label; NO_LABEL: it gave no vote, and adds nothing.
            scores: (M, B) float, each member's score of its label; NaN: not known, so only its b counts.
        """
        said = labels != NO_LABEL  # (M, B)
        worth = np.where(said, self._worth(scores), 0.0)
        support = np.where(said, _score_units(scores), 0.0)
        util, summed = np.empty_like(worth), np.empty_like(worth)  # (M, B) of each vote's label
        first = said.copy()  # (M, B) whether the vote is the first for its label
        company = np.array(self._company)
        for member, own in enumerate(labels):
            same = labels == own  # (M, B)
            util[member] = np.where(same, worth, 0.0).sum(axis=0) + company[np.where(same, said, False).sum(axis=0)]
            summed[member] = np.where(same, support, 0.0).sum(axis=0)
            if member:
                first[member] &= ~same[:member].any(axis=0)
        if self._bias:
            util += np.where(said, np.array(self._bias)[np.where(said, labels, 0)], 0.0)
        top = np.where(said, util, -np.inf).max(axis=0)
        leads = said & (util == top)
        most = np.where(leads, summed, -np.inf).max(axis=0)
        best = np.where(leads & (summed == most), labels, self.n_labels).min(axis=0)
        rest = self._rest(labels, first)
        if self._bias:
            best, top, rest = self._compare_unsaid(labels, best, top, most, rest)
        best = np.where(best == self.n_labels, 0, best)  # no label is known, and nobody voted
        top = np.where(np.isneginf(top), 0.0, top)
        own = np.where(first, _exponential_of((util - top) / UNITS), 0.0).sum(axis=0)
        is_said = (first & (labels == best)).any(axis=0)
        total = own + np.where(is_said, 0.0, UNITS) + rest * _raw_exponential_of(-top / UNITS)
        return best.astype(np.int64), UNITS / total

    def posterior_of_one(self, labels: Sequence[int], scores: Sequence[float]) -> tuple[int, float]:
        """`posterior` for one example, from M plain numbers: what a device decides on, batch 1."""
        utils, label, top, rest = self._utils_of_one(labels, scores)
        return label, UNITS / self._total_of_one(utils, label, top, rest)

    def exits(self, p: Array) -> NDArray[np.bool_]:
        """(B,) where an answer of this probability stands."""
        stands: NDArray[np.bool_] = np.ones(len(p), dtype=np.bool_) if self.threshold is None else p >= self.threshold
        return stands

    def outcome_of_one(
        self, labels: Sequence[int], scores: Sequence[float], left: Sequence[int], only_answers: bool = False
    ) -> int:
        """What more votes on an example cannot change: 1: it answers, with this label; -1: it defers; 0: it is open.

        Args:
            labels, scores: of `posterior_of_one`, NO_LABEL for members that were not asked yet.
            left: positions of these members.
            only_answers: -1 is not looked for, which is sooner.
        """
        utils, label, top, rest = self._utils_of_one(labels, scores)
        low, high = self._reach(left)
        next_best = -math.inf
        for said, util in utils.items():
            if said != label and util > next_best:
                next_best = util
        if self._bias:
            for one in self._by_bias:
                if one not in utils and one != label:
                    next_best = max(next_best, self._bias[one])
                    break
        elif len(utils) < self.n_labels:
            next_best = max(next_best, 0.0)
        gap = (next_best - top) / UNITS
        is_fixed = gap + high - low < -MARGIN
        if self.threshold is None or (only_answers and not is_fixed):
            return int(is_fixed)
        others = max(self._total_of_one(utils, label, top, rest) / UNITS - 1, 0.0)
        if is_fixed:  # the others' sum is largest where all that comes goes to the next label
            most = others + math.exp(gap) * (math.exp(high) - 1)
            if 1 / (1 + most * math.exp(-low)) >= self.threshold + MARGIN:
                return 1
        lead = math.exp(min(max(gap, 0.0), 50.0))  # of a label nobody said yet, where it is ahead of the best said
        return -int(1 / (1 + (others + 1 - lead) / lead * math.exp(low - high)) < self.threshold - MARGIN)

    def _first_settled(self) -> int:
        """Members asked from which a label can be fixed: their votes set two labels apart by more than is left."""
        apart = (max(self._bias) - min(self._bias)) / UNITS if self._bias else 0.0
        for n_asked, (least, most) in enumerate(self._spans):
            low, high = self._reach(range(n_asked, self.n_members))
            if apart > high - low - 4 * MARGIN:
                return n_asked
            apart += max(most, -least)
        return self.n_members

    def _reach(self, left: Sequence[int]) -> tuple[float, float]:
        """The least and the most that these members can add to a label's utility, 0 among them."""
        low, high = -MARGIN, MARGIN
        for member in left:
            least, most = self._spans[member]
            low, high = low + least, high + most
        return low, high

    def _rest(self, labels: Labels, first: NDArray[np.bool_]) -> Values:
        """(B,) units of exponentials of the labels that nobody said."""
        if not self._bias:
            n_unsaid: Values = self.n_labels - np.maximum(first.sum(axis=0), 1.0)
            return n_unsaid * UNITS
        unsaid = np.array(self._unsaid)
        rest: Values = self._all_unsaid - np.where(first, unsaid[np.where(first, labels, 0)], 0.0).sum(axis=0)
        return rest

    def _compare_unsaid(
        self, labels: Labels, best: Labels, top: Values, most: Values, rest: Values
    ) -> tuple[Labels, Values, Values]:
        """The best label, its utility, and what is left, where a label that nobody said may be the best."""
        bias, unsaid = np.array(self._bias), np.array(self._unsaid)
        rival = np.full(best.shape, self.n_labels)
        for label in self._by_bias[: self.n_members + 1]:
            rival = np.where((rival == self.n_labels) & ~(labels == label).any(axis=0), label, rival)
        is_there = rival < self.n_labels
        at = np.where(is_there, rival, 0)
        tied = (bias[at] == top) & ((most < 0) | ((most == 0) & (at < best)))
        wins = is_there & ((bias[at] > top) | tied)
        return np.where(wins, at, best), np.where(wins, bias[at], top), rest - np.where(wins, unsaid[at], 0.0)

    def _worth(self, scores: Array) -> Values:
        """(M, B) units that a vote of each member adds to its label's utility."""
        worth = np.empty(scores.shape)
        for member, (b, a, c, grid) in enumerate(zip(self.b, self.a, self.c, self.grids, strict=True)):
            if not grid:
                worth[member] = np.rint(b * UNITS)
                continue
            own = scores[member].astype(np.float64)
            u = ranks(own, np.array(grid))
            worth[member] = np.rint(np.where(np.isnan(own), b, b + a * u + c * (u * u)) * UNITS)
        return worth

    def _total_of_one(self, utils: dict[int, float], best: int, top: float, rest: float) -> float:
        """The sum of exponentials, from what `_utils_of_one` gives."""
        total = UNITS
        for label, util in utils.items():
            if label != best:
                total += _exponential((util - top) / UNITS)
        return total + rest * _raw_exponential(-top / UNITS) if rest else total

    def _utils_of_one(
        self, labels: Sequence[int], scores: Sequence[float]
    ) -> tuple[dict[int, float], int, float, float]:
        """Utility of each label said; the best label, its utility, and the exponentials of those that nobody said."""
        bias, company = self._bias, self._company
        utils: dict[int, float] = {}
        votes: dict[int, int] = {}
        for label, score, (worth, a, c, grid) in zip(labels, scores, self._members, strict=True):
            if label == NO_LABEL:
                continue
            if grid and score == score:
                u = _rank(score, grid)
                worth = worth + a * u + c * (u * u)
            if label in utils:
                utils[label] += round(worth * UNITS)
                votes[label] += 1
            else:
                utils[label] = float(round(worth * UNITS))
                votes[label] = 1
        best, top, is_tied = 0, -math.inf, False
        for label, util in utils.items():
            util += company[votes[label]]
            if bias:
                util += bias[label]
            utils[label] = util
            if util > top:
                best, top, is_tied = label, util, False
            elif util == top:
                is_tied = True
        if is_tied:
            tied = [label for label, util in utils.items() if util == top]
            best = max(sorted(tied), key=lambda label: _support(label, labels, scores))
        if not bias:
            rest = (self.n_labels - max(len(utils), 1)) * UNITS
        else:
            rest = self._all_unsaid
            for label in utils:
                rest -= self._unsaid[label]
            for rival in self._by_bias:
                if rival not in utils:
                    wins = bias[rival] > top
                    if bias[rival] == top:
                        most = _support(best, labels, scores)
                        wins = most < 0 or (most == 0 and rival < best)
                    if wins:
                        best, top, rest = rival, bias[rival], rest - self._unsaid[rival]
                    break
        if top == -math.inf:
            top = 0.0
        return utils, best, top, rest


def _support(label: int, labels: Sequence[int], scores: Sequence[float]) -> float:
    """Units of the summed score of a label's members, for ties."""
    own = (score for said, score in zip(labels, scores, strict=True) if said == label and score == score)
    return sum(float(round(min(max(score, -LARGEST_SCORE), LARGEST_SCORE) * UNITS)) for score in own)


def _span(b: float, a: float, c: float, grid: Sequence[float], company: float) -> tuple[float, float]:
    """The least and the most that a vote adds to any label's utility: 0 (to others), b + a u + c u^2, and company."""
    marks = [0.0] + ([-0.5, 0.5] if grid else []) + ([-a / (2 * c)] if grid and abs(c) > abs(a) else [])
    values = [b + a * u + c * u * u for u in marks]
    return min(0.0, min(values) + min(company, 0.0)), max(0.0, max(values) + max(company, 0.0))


def _rank(score: float, grid: Sequence[float]) -> float:
    """Where the score lies among the quantiles, from -1/2 to 1/2; the middle of those that equal it."""
    right, last = bisect_right(grid, score), len(grid) - 1
    if right == 0:
        return -0.5
    below = grid[right - 1]
    if below == score:
        return (bisect_left(grid, score, 0, right) + right - 1) / 2 / last - 0.5
    if right > last:
        return 0.5
    return (right - 1 + (score - below) / (grid[right] - below)) / last - 0.5


def ranks(scores: Values, grid: Values) -> Values:
    """`_rank` of (B,) scores; of a NaN, any number."""
    left, right = np.searchsorted(grid, scores, "left"), np.searchsorted(grid, scores, "right")
    last = len(grid) - 1
    above = np.clip(left, 1, last)
    below = grid[above - 1]
    step = np.where(grid[above] > below, grid[above] - below, 1.0)
    place = np.where(left < right, (left + right - 1) / 2, above - 1 + (np.nan_to_num(scores) - below) / step)
    u = place / last - 0.5
    return np.where(left < right, u, np.where(left == 0, -0.5, np.where(left > last, 0.5, u)))


def _score_units(scores: Array) -> Values:
    """(M, B) of summed scores, for ties."""
    known = np.clip(np.nan_to_num(scores.astype(np.float64), nan=0.0), -LARGEST_SCORE, LARGEST_SCORE)
    units: Values = np.rint(known * UNITS)
    return units


Number = TypeVar("Number", float, Values)


def _series(r: Number) -> Number:
    """exp of |r| < 0.35."""
    high = _C6 + r * (_C7 + r * (_C8 + r * (_C9 + r * (_C10 + r * (_C11 + r * _C12)))))
    return 1.0 + r * (1.0 + r * (0.5 + r * (_C3 + r * (_C4 + r * (_C5 + r * high)))))


def _raw_exponential(x: float) -> float:
    """exp of x in +-700 by additions and multiplications alone, which every machine rounds alike."""
    if not -700.0 <= x <= 700.0:
        x = min(max(x, -700.0), 700.0)
    power = round(x * _LOG2_E)
    return math.ldexp(_series((x - power * _LN2_HIGH) - power * _LN2_LOW), power)


def _raw_exponential_of(x: Values) -> Values:
    x = np.clip(x, -700.0, 700.0)
    power = np.rint(x * _LOG2_E)
    scaled: Values = np.ldexp(_series((x - power * _LN2_HIGH) - power * _LN2_LOW), power.astype(np.int32))
    return scaled


def _exponential(x: float) -> float:
    """exp of x in whole units."""
    return float(round(_raw_exponential(x) * UNITS))


def _exponential_of(x: Values) -> Values:
    units: Values = np.rint(_raw_exponential_of(x) * UNITS)
    return units
