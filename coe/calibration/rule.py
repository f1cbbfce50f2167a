"""The calibrated vote as a deferral rule, and the rules of a cascade that was calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.cascade import NO_LABEL, Always, Batch, Confidence, DeferralRule, TierRejected, Vote, parse_agreement
from coe.cascade.types import Array, Ballots, Labels

from .table import Calibration
from .vote import StageVote

NAME = "calibrated"  # as records have it


@dataclass(frozen=True, slots=True)
class CalibratedVote:
    """The answer stands where the label's probability, given what all members asked so far said, is high enough.

    A tier's label and score are the calibrated vote's, the score in double precision; its `count` is of the tier's own
    members.

    Args:
        stages: of this tier; of a server that holds several, one for each of its tiers.
        n_before: members of the tiers before.
    """

    stages: tuple[StageVote, ...]
    n_before: int = 0
    pools_scores: bool = False

    def needed(self, n_members: int) -> None:
        return None

    @property
    def threshold(self) -> float | None:
        """The probability from which an answer stands; None: any."""
        return self.stages[-1].threshold

    def stricter(self) -> CalibratedVote | None:
        """The rule by the stage's `gate_threshold`; None where it has none."""
        last = self.stages[-1]
        if last.gate_threshold is None:
            return None
        return replace(self, stages=(*self.stages[:-1], replace(last, threshold=last.gate_threshold)))

    def settles(self, outputs: Sequence[Array], n_members: int) -> bool:
        """Whether more of a first tier's members cannot change label and decision of one example that stays here.

        An example that goes on is never settled: the next tier's vote weighs what every member of this one said.

        Args:
            outputs: (1, L) of the first members, in order.
        """
        stage = self.stages[0]
        if len(outputs) < stage.settles_from or self.n_before or len(self.stages) > 1 or stage.n_members != n_members:
            return False
        labels, scores = _said(outputs, n_members)
        return stage.outcome_of_one(labels, scores, range(len(outputs), n_members), only_answers=True) == 1

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        if len(vote.labels) == 1:  # the device's hot path
            is_high = self.threshold is None or vote.score.item() >= self.threshold
            return np.array((is_high and vote.labels.item() != NO_LABEL,), dtype=np.bool_)
        stands: NDArray[np.bool_] = (vote.labels != NO_LABEL) & self.stages[-1].exits(vote.score)
        return stands

    def fuse(self, tier: str, vote: Vote, before: Sequence[Ballots]) -> Vote:
        """The tier's vote with the label and score that follow from what its members and those before it said.

        Raises:
            TierRejected: it has other members than were calibrated.
        """
        n_expected = self.stages[-1].n_members
        is_one = len(vote.labels) == 1 and vote.n_members == n_expected and vote.member_indices is None
        if is_one and not before and len(vote.probabilities) == vote.asked.item():
            return self._fuse_one(vote)
        labels, scores = vote.ballots()
        if before:
            labels = np.concatenate([*(said for said, _ in before), labels])
            scores = np.concatenate([*(known for _, known in before), scores])
        is_cascade = vote.tier_votes is not None and vote.tier_votes.shape[1] > 1  # of which no row may reach the end
        if len(labels) > n_expected or (len(labels) < n_expected and not is_cascade):
            expected = n_expected - self.n_before
            got = len(labels) - self.n_before
            fix = "a server that is no coe-cloud counts as one member; calibrate with what it serves"
            raise TierRejected(tier, f"expected the votes of {expected} members as calibrated, got {got} ({fix})")
        fused, share = self._posterior(labels, scores, vote)
        silent = vote.labels == NO_LABEL
        if silent.any():
            fused, share = np.where(silent, NO_LABEL, fused), np.where(silent, np.nan, share)
        own = labels[self.n_before :]
        count = ((own == fused) & (fused != NO_LABEL)).sum(axis=0)
        return replace(vote, labels=fused, score=share, count=count, rule=NAME)

    def _posterior(self, labels: Labels, scores: Array, vote: Vote) -> tuple[Labels, Array]:
        """Each row by the stage of the tier where it left the server."""
        fused, share = np.empty(len(vote), dtype=np.int64), np.empty(len(vote))
        at = np.ones(len(vote), dtype=np.int64) if vote.exit_tier is None else vote.exit_tier
        for number, stage in enumerate(self.stages, start=1):
            rows = np.flatnonzero(at == number if number < len(self.stages) else at >= number)
            if rows.size:
                missing = max(stage.n_members - len(labels), 0)  # of tiers that no row reached
                said = np.pad(labels[: stage.n_members, rows], ((0, missing), (0, 0)), constant_values=NO_LABEL)
                known = np.pad(
                    scores[: stage.n_members, rows].astype(np.float64), ((0, missing), (0, 0)), constant_values=np.nan
                )
                fused[rows], share[rows] = stage.posterior(said, known)
        return fused, share

    def _fuse_one(self, vote: Vote) -> Vote:
        """`fuse` for one example and a first tier here: a device's hot path."""
        labels, scores = _said(vote.probabilities, vote.n_members)
        label, p = self.stages[0].posterior_of_one(labels, scores)
        if vote.labels.item() != NO_LABEL:
            vote.labels, vote.score = np.array((label,), dtype=np.int64), np.array((p,))
            vote.count = np.array((labels.count(label),), dtype=np.int64)
        vote.rule = NAME
        return vote


def _said(outputs: Sequence[Array], n_members: int) -> tuple[list[int], list[float]]:
    """Each member's label and score, from the outputs (1, L) of those asked, which are NaN where one did not vote."""
    labels, scores = [NO_LABEL] * n_members, [math.nan] * n_members
    for index, output in enumerate(outputs):
        row = output.tolist()[0]
        score = max(row)
        if score == score:
            labels[index], scores[index] = row.index(score), score
    return labels, scores


def rules_of(calibration: Calibration, n_tiers: Sequence[int]) -> list[DeferralRule]:
    """The rule of each tier of the cascade that was calibrated.

    Args:
        n_tiers: of each of them, the calibrated tiers that it stands for: more than 1 for a server that holds several.
    """
    rules: list[DeferralRule] = []
    first = 0
    for number in n_tiers:
        is_last = first + number == len(calibration.tiers)
        members = calibration.tiers[first + number - 1]
        if calibration.rule == "calibrated":
            before = sum(map(len, calibration.tiers[:first]))
            rules.append(CalibratedVote(calibration.stages[first : first + number], before))
        elif is_last:
            rules.append(Always())
        elif calibration.rule == "confidence":
            rules.append(Confidence(float(calibration.thresholds[first + number - 1])))
        else:
            rules.append(parse_agreement(calibration.thresholds[first + number - 1], len(members))[0])
        first += number
    return rules
