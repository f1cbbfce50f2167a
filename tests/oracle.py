"""The paper's rule once more, as naively as it can be written: one example, plain loops, exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

from coe.cascade.types import Array

DEFERS = "defers"
NOBODY = -1  # the ballot of a member that failed


def ballot(output: Sequence[float]) -> int:
    """The first label with the highest score."""
    best = 0
    for label in range(len(output)):
        if output[label] > output[best]:
            best = label
    return best


def vote(outputs: Sequence[Sequence[float]]) -> tuple[int, int, Fraction]:
    """Label, votes for it, and mean score, from every member's output on one example."""
    n_labels = len(outputs[0])
    votes = [0] * n_labels
    means = [Fraction(0)] * n_labels
    for output in outputs:
        votes[ballot(output)] += 1
        for label in range(n_labels):
            means[label] += Fraction(float(output[label])) / len(outputs)
    winner = None
    for label in range(n_labels):  # from the lowest: an equal one later does not win
        if winner is None or (votes[label], means[label]) > (votes[winner], means[winner]):
            winner = label
    assert winner is not None
    return winner, votes[winner], means[winner]


def vote_on_row(tables: Sequence[Array], row: int) -> tuple[int, int, Fraction]:
    return vote([table[row].tolist() for table in tables])


def decide(tiers: Sequence[tuple[Sequence[Array], Fraction]], row: int) -> tuple[int, int, list[Fraction]]:
    """Algorithm 1 on one example: label, exit tier, and the vote of each tier visited."""
    votes = []
    for number, (tables, theta) in enumerate(tiers, start=1):
        label, count, _ = vote_on_row(tables, row)
        votes.append(Fraction(count, len(tables)))
        if votes[-1] >= theta or number == len(tiers):
            return label, number, votes
    raise AssertionError("a cascade has a last tier")


def needed(theta: Fraction, n_members: int) -> int:
    """The least count whose share reaches theta."""
    for count in range(n_members + 1):
        if Fraction(count, n_members) >= theta:
            return count
    raise AssertionError("theta is at most 1")


def outcomes(cast: Sequence[int], left: int, n_labels: int, needed: int) -> set[object]:
    """Everything the vote can still come to; where it can end in a tie, any tied label may win."""
    ends: set[object] = set()
    for rest in product(range(n_labels), repeat=left):
        ballots = [*cast, *rest]
        votes = [ballots.count(label) for label in range(n_labels)]
        if max(votes) < needed:
            ends.add(DEFERS)
        else:
            ends.update(label for label in range(n_labels) if votes[label] == max(votes))
    return ends


def members_asked(ballots: Sequence[int], n_labels: int, needed: int) -> int:
    """How many of the members, in turn, it takes until only one outcome is left."""
    for asked in range(1, len(ballots)):  # a member not asked yet may vote for any label; one that failed did not
        if len(outcomes(ballots[:asked], len(ballots) - asked, n_labels, needed)) == 1:
            return asked
    return len(ballots)
