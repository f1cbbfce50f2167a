"""Counting votes: plurality, ties, and when the outcome of a vote is settled.

Paper: Section 3, vote(x; H) before Eq. (3). Ties are our choice, the paper is silent: the higher mean score
of the tied labels wins, then the lower label. No result depends on the order of the members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .types import NO_LABEL, Array, Labels

# Scores are summed as integers in these units: an integer sum is exact, so the members' order cannot show
# in the last bit and turn a tie. A float32 probability above 2**-16 is represented without loss.
SCORE_UNITS = 2.0**40

MOST_MEMBERS = 64  # a share rounded on its way is told apart from any other up to this denominator

Number = TypeVar("Number", int, Labels)


def is_settled(top: Number, runner_up: Number, left: Number | int, needed: int) -> bool | NDArray[np.bool_]:
    """Whether more votes cannot change the outcome; on integers, or on (B,) arrays row by row.

    A tier that will answer is settled when its label and its decision are fixed; one that will defer, when
    no label can reach `needed` any more (which label it would have been does not matter then).

    Args:
        top: votes of the leading label.
        runner_up: votes of the next one (equal to `top` in a tie).
        left: members not yet asked.
        needed: votes that make the tier answer; 0 where it always answers.
    """
    answers = (top >= needed) & (top > runner_up + left)
    defers = top + left < needed
    return answers | defers


def leaders(ballots: Labels) -> tuple[Labels, Labels]:
    """Votes of the leading label and of the runner-up, each (B,). `ballots` is (M, B), NO_LABEL not cast."""
    votes = votes_per_ballot(ballots)  # (M, B)
    first = votes.argmax(axis=0)  # (B,) a member that voted for the leading label
    leading = np.take_along_axis(ballots, first[None], axis=0)  # (1, B)
    top = votes.max(axis=0)
    runner_up = np.where(ballots == leading, 0, votes).max(axis=0)
    return top, runner_up


def leaders_of_one(ballots: list[int]) -> tuple[int, int]:
    """`leaders` for one example, on plain integers: what a device decides on, batch 1. Of the ballots cast alone."""
    if not ballots:
        return 0, 0
    top = ballots.count(ballots[0])
    if top == len(ballots):
        return top, 0
    counts = sorted((ballots.count(label) for label in set(ballots)), reverse=True)
    return counts[0], counts[1]


def plurality_of_one(ballots: list[int], top: int, outputs: Sequence[Array]) -> tuple[int, float]:
    """`plurality` for one example: its label and score, from the ballots cast and these members' (1, L) outputs."""
    if not ballots:
        return NO_LABEL, math.nan
    label = ballots[0]
    if top < len(ballots):
        leading = {label for label in ballots if ballots.count(label) == top}
        label = break_tie(leading, lambda label: _units_of_one(outputs, label))
    return label, _units_of_one(outputs, label) / len(outputs) / SCORE_UNITS


def break_tie(leading: Iterable[int], score_of: Callable[[int], float]) -> int:
    """Of the labels with the most votes, the one with the higher score, then the lower label."""
    return max(sorted(leading), key=score_of)  # max keeps the first of equals


def _units_of_one(outputs: Sequence[Array], label: int) -> int:
    units = 0
    for output in outputs:  # sooner than a generator: the device's hot path
        units += round(output.item(label) * SCORE_UNITS)
    return units


def votes_per_ballot(ballots: Labels) -> Labels:
    """(M, B): how many members cast the same label as this one; 0 where no ballot was cast."""
    same = ballots[:, None] == ballots[None]  # (M, M, B)
    return np.where(ballots == NO_LABEL, 0, same.sum(axis=0))


def plurality(
    ballots: Labels, probabilities: Array | None, top_scores: Array | None = None
) -> tuple[Labels, Labels, NDArray[np.float32]]:
    """The tier's label, the votes for it and its score, each (B,); NO_LABEL, 0 and NaN where no ballot was cast.

    Args:
        ballots: (M, B) int64, each member's top-1 label, NO_LABEL where it did not vote.
        probabilities: (M, B, L), or None where only top-1 scores were recorded. What it holds where a member did
            not vote counts for nothing.
        top_scores: (M, B), then: each member's score of its own label. A label's score is then the mean over
            the members that voted for it.
    """
    votes = votes_per_ballot(ballots)  # (M, B)
    count = votes.max(axis=0)  # (B,)
    leads = (votes == count) & (ballots != NO_LABEL)  # (M, B) ballots for a leading label
    labels = np.where(count > 0, _lowest(ballots, leads), NO_LABEL)
    tied = np.flatnonzero((leads & (ballots != labels)).any(axis=0))
    if tied.size:
        given, known = (None if scores is None else scores[:, tied] for scores in (probabilities, top_scores))
        labels[tied] = break_ties(ballots[:, tied], leads[:, tied], given, known)
    units_of_label = _mean_units(labels, ballots, probabilities, top_scores)
    return labels, count, (units_of_label / SCORE_UNITS).astype(np.float32)


def _lowest(ballots: Labels, among: NDArray[np.bool_]) -> Labels:
    """(B,) the lowest label among the ballots marked."""
    lowest: Labels = np.where(among, ballots, np.iinfo(np.int64).max).min(axis=0)
    return lowest


def break_ties(
    ballots: Labels, leads: NDArray[np.bool_], probabilities: Array | None, top_scores: Array | None
) -> Labels:
    """(B,) `break_tie` on every row at once; `leads` (M, B) marks the ballots for a leading label.

    Leading labels have equally many votes, so the order of their summed scores is that of their means.
    """
    units = np.where(leads, _units_behind(ballots, probabilities, top_scores), np.iinfo(np.int64).min)
    return _lowest(ballots, units == units.max(axis=0))


def _units_behind(ballots: Labels, probabilities: Array | None, top_scores: Array | None) -> Labels:
    """(M, B) the summed score of each ballot's label, in units; 0 where no score is known."""
    if probabilities is not None:
        given = np.stack([np.take_along_axis(probabilities, cast[None, :, None], axis=2)[..., 0] for cast in ballots])
        sums: Labels = _in_units(np.where(ballots != NO_LABEL, given, 0)).sum(axis=1)  # of (M, M, B), over those asked
        return sums
    if top_scores is None:
        return np.zeros_like(ballots)
    units = _in_units(np.where(ballots != NO_LABEL, top_scores, 0))
    sums = units.copy()
    for one in range(len(ballots)):
        for other in range(one):
            same = ballots[one] == ballots[other]
            sums[one] += units[other] * same
            sums[other] += units[one] * same
    return sums


def _in_units(scores: Array) -> Labels:
    units: Labels = np.rint(scores.astype(np.float64) * SCORE_UNITS).astype(np.int64)
    return units


def _mean_units(
    labels: Labels, ballots: Labels, probabilities: Array | None, top_scores: Array | None
) -> NDArray[np.float64]:
    """(B,) mean score of `labels`, in units; NaN where no score is known."""
    if probabilities is not None:
        given = np.take_along_axis(probabilities, labels[None, :, None], axis=2)[..., 0]  # (M, B)
        counted = ballots != NO_LABEL  # every member that voted, for whatever
    elif top_scores is not None:
        given = top_scores
        counted = ballots == labels
    else:
        return np.full(labels.shape, np.nan)
    return _divided(_in_units(np.where(counted, given, 0)).sum(axis=0), counted.sum(axis=0))


def _divided(sums: Array, counts: Labels) -> NDArray[np.float64]:
    """(B,) sums / counts; NaN where a count is 0."""
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return means


def exact_share(share: float) -> Fraction:
    """votes / asked, exactly, from its decimal or FP32 form: a tier has at most MOST_MEMBERS members."""
    return Fraction(share).limit_denominator(MOST_MEMBERS)


def pool(probabilities: Array, ballots: Labels | None = None) -> tuple[Labels, NDArray[np.float32]]:
    """Label and probability of the mean output of the members that voted, each (B,); for the confidence baselines.

    Wang et al., "Wisdom of Committees", 2021. `probabilities` is (M, B, L), `ballots` as of `plurality`, None where
    every member voted; NO_LABEL and NaN where none did.
    """
    voted = np.ones(probabilities.shape[:2], dtype=np.bool_) if ballots is None else ballots != NO_LABEL
    units = _in_units(np.where(voted[..., None], probabilities, 0)).sum(axis=0)  # (B, L)
    n_voted = voted.sum(axis=0)
    labels = units.argmax(axis=1)
    best = _divided(units[np.arange(len(labels)), labels], n_voted) / SCORE_UNITS
    return np.where(n_voted > 0, labels, NO_LABEL), best.astype(np.float32)
