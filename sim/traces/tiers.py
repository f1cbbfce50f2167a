"""Recorded answers as tiers of the one cascade: `coe.cascade` votes, decides and charges; nothing is run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.calibration import Calibration
from coe.calibration.rule import rules_of
from coe.cascade import Always, Batch, Cascade, Confidence, ConfigError, DeferralRule, Ideal, Vote, parse_agreement
from coe.cascade.rule import as_last, fuses
from coe.cascade.types import NO_LABEL, Array, Labels
from coe.cascade.vote import is_settled, leaders, plurality, pool
from coe.link import Clock

from .trace import CHUNK, Answers, Trace

NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"


def exact(value: float) -> str:
    """The shortest decimal that is read as the same float32: scores and their thresholds are compared in it."""
    return np.format_float_positional(np.float32(value), trim="-")


@dataclass(frozen=True, slots=True)
class LowEntropy:
    """Baseline, for studies: one model's answer stands where the entropy of its output is at most `most` nats."""

    most: float
    pools_scores: bool = False

    def needed(self, n_members: int) -> None:
        return None

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        return vote.score >= -self.most


@dataclass(frozen=True, slots=True)
class AtRandom:
    """Baseline, for studies: an answer stands by chance; `stands` (N,), of every row of the trace."""

    stands: NDArray[np.bool_]
    pools_scores: bool = False

    def needed(self, n_members: int) -> None:
        return None

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        stands: NDArray[np.bool_] = self.stands[batch.x[:, 0].astype(np.intp)]
        return stands


def by_chance(rate: float, seed: int, tier: int, n: int) -> NDArray[np.bool_]:
    """(N,) True at random, at this rate, in tier number `tier`."""
    chosen: NDArray[np.bool_] = np.random.default_rng([seed, tier]).random(n) < rate
    return chosen


class RecordedTier:
    """An ensemble whose votes are recorded: row `x[b, 0]` of them answers example b.

    Args:
        vote: on every example of the record.
        seconds: (B,) that each vote took; `clock` runs on by as much. None: the votes take no time.
    """

    n_tiers = 1
    waits = False

    def __init__(
        self, name: str, vote: Vote, rule: DeferralRule, seconds: Array | None = None, clock: Clock | None = None
    ) -> None:
        self.name = name
        self.rule = rule
        self._vote = vote
        self._seconds = seconds
        self._clock = clock

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        rows = batch.x[:, 0].astype(np.intp)
        if self._clock is not None and self._seconds is not None:
            self._clock.wait(float(self._seconds[rows].sum()))
        return self._vote.take(rows)

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def close(self) -> None:
        pass


def vote_of(trace: Trace, members: Sequence[str], rule: DeferralRule, *, early: bool = False) -> Vote:
    """The vote of these members on every example of the trace, as a tier with this rule takes it.

    Where probabilities are known the vote is the usual one; with top-1 scores alone a tie goes to the label whose
    voters' mean score is higher, then to the lower label.

    Args:
        early: members are asked in turn until the outcome is settled; False: all are asked.
    Raises:
        ConfigError: the rule pools scores, and the trace has no probabilities.
    """
    if rule.pools_scores and any(trace.models[name].probabilities is None for name in members):
        raise ConfigError([f"tier {', '.join(members)}: expected probabilities in the trace, got none (record them)"])
    needed = rule.needed(len(members)) if early and not rule.pools_scores else None
    pieces = [
        _vote_on([trace.models[name].take(rows) for name in members], rule.pools_scores, needed)
        for rows in np.split(np.arange(len(trace)), range(CHUNK, len(trace), CHUNK))
    ]
    labels, count, asked, score = (np.concatenate(column) for column in zip(*pieces, strict=True))
    if isinstance(rule, LowEntropy):
        score = -trace.models[members[0]].entropy()
    vote = Vote(labels, count, asked, len(members), score)
    if fuses(rule):
        vote.member_labels, vote.member_scores = ballots_of([trace.models[name] for name in members])
    return vote


def ballots_of(answers: Sequence[Answers]) -> tuple[Labels, NDArray[np.float32]]:
    """(M, B) each model's labels, and its scores of them: NaN where they were not recorded."""
    said = np.stack([one.predictions for one in answers]).astype(np.int64)
    unknown = np.full(said.shape[1], np.nan, dtype=np.float32)
    return said, np.stack([unknown if one.scores is None else one.scores for one in answers])


def _vote_on(
    answers: Sequence[Answers], pools_scores: bool, needed: int | None
) -> tuple[Labels, Labels, Labels, NDArray[np.float32]]:
    """(labels, count, asked, score), each (B,); needed: votes that settle the outcome, None: all members are asked."""
    ballots = np.stack([one.predictions for one in answers]).astype(np.int64)  # (M, B)
    asked = members_asked(ballots, needed)
    probabilities = _stacked(answers, "probabilities")  # (M, B, L)
    if pools_scores:
        assert probabilities is not None
        labels, score = pool(probabilities)
        return labels, (ballots == labels).sum(axis=0), asked, score
    ballots[np.arange(len(ballots))[:, None] >= asked] = NO_LABEL
    top_scores = _stacked(answers, "scores") if probabilities is None else None
    labels, count, score = plurality(ballots, probabilities, top_scores)
    return labels, count, asked, score


def members_asked(ballots: Labels, needed: int | None) -> Labels:
    """(B,) members asked in turn until the outcome is settled; all of them where `needed` is None.

    Args:
        ballots: (M, B) of all members, in the order in which they are asked.
        needed: votes that make the tier answer; 0: it always answers.
    """
    n_members = len(ballots)
    asked = np.full(ballots.shape[1], n_members, dtype=np.int64)
    if needed is not None:
        for n_asked in reversed(range(1, n_members)):
            settled = is_settled(*leaders(ballots[:n_asked]), n_members - n_asked, needed)
            asked[np.asarray(settled)] = n_asked
    return asked


def _stacked(answers: Sequence[Answers], column: str) -> Array | None:
    """A column of every member, side by side; None where one does not have it."""
    found = [getattr(one, column) for one in answers]
    return None if any(values is None for values in found) else np.stack(found)


@dataclass(frozen=True, slots=True)
class TierSpec:
    """A tier as a command line names it: 'a,b,c@2/3'.

    Args:
        members: the models that an example pays for there.
        earlier: models of earlier tiers whose outputs are pooled with theirs.
    """

    members: tuple[str, ...]
    rule: DeferralRule
    earlier: tuple[str, ...] = ()


def parse_tiers(texts: Sequence[str], trace: Trace) -> tuple[list[TierSpec], list[str]]:
    """The tiers, and warnings.

    Raises:
        ConfigError: every finding at once.
    """
    findings: list[str] = []
    warnings: list[str] = []
    specs: list[TierSpec] = []
    for number, text in enumerate(texts, start=1):
        before, _, rule = text.rpartition("@") if "@" in text else (text, "", "")
        names = tuple(name.strip() for name in before.split(","))
        for name in names:
            if name not in trace.models:
                near = difflib.get_close_matches(name, trace.models, 1)
                hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(trace.models)}"
                findings.append(f'--tiers: tier {number}: no model "{name}" in the trace ({hint})')
        if len(set(names)) < len(names):
            findings.append(f'--tiers: tier {number}: expected each model once, got "{text}" (drop the second)')
        rule = rule.strip()
        earlier = tuple(name for spec in specs for name in spec.members) if rule.startswith("mean") else ()
        outputs = [trace.models[name].probabilities for name in (*earlier, *names) if name in trace.models]
        if re.match("mean|entropy", rule) and any(one is None for one in outputs):
            findings.append(f'--tiers: tier {number}: "@{rule}" needs probabilities, and the trace has none')
            continue
        try:
            found, warning = _rule(rule, names, trace, number, is_last=number == len(texts))
        except ValueError as error:
            findings.append(f"--tiers: tier {number}: {error}")
            continue
        specs.append(TierSpec(names, found, earlier))
        warnings += [f"--tiers: tier {number}: {warning}"] if warning else []
    if findings:
        raise ConfigError(findings)
    return specs, warnings


def _rule(text: str, names: Sequence[str], trace: Trace, number: int, is_last: bool) -> tuple[DeferralRule, str | None]:
    """The rule that a text means, and a warning: those of a cascade, and those of the baselines as `pareto` prints."""
    if is_last:
        is_pooled = text == "mean"
        unread = f'the last tier always answers, so "@{text}" has no effect (leave it out)'
        return Always(pools_scores=is_pooled), unread if text and not is_pooled else None
    if match := re.fullmatch(rf"(mean )?confidence\s*>=\s*{NUMBER}", text):
        known = all(name in trace.models and trace.models[name].probabilities is not None for name in names)
        return Confidence(float(match[2]), pools_scores=bool(match[1]) or (known and len(names) > 1)), None
    if match := re.fullmatch(rf"entropy\s*<=\s*{NUMBER}", text):
        return LowEntropy(float(match[1])), None
    if match := re.fullmatch(rf"random {NUMBER} seed (\d+)", text):
        return AtRandom(by_chance(float(match[1]), int(match[2]), number, len(trace))), None
    if text == "where right":
        return Ideal(dict(zip(trace.ids, trace.labels.tolist(), strict=True))), None
    if len(names) == 1:
        raise ValueError(
            f"one member always agrees with itself, so this tier would never defer "
            f'(add members, or write "{names[0]}@confidence>=0.8")'
        )
    return parse_agreement(text or "unanimous", len(names))


def calibrated_tiers(calibration: Calibration, trace: Trace) -> list[TierSpec]:
    """The tiers of a cascade that was calibrated, over the trace.

    Raises:
        ConfigError: a member is not in the trace, or a label of the trace not in the table.
    """
    findings = [
        f'--calibration: no model "{member.name}" in the trace (known: {", ".join(trace.models)})'
        for tier in calibration.tiers
        for member in tier
        if member.name not in trace.models
    ]
    highest = max(int(trace.labels.max()), *(int(one.predictions.max()) for one in trace.models.values()))
    if highest >= len(calibration.labels):
        findings.append(f"--calibration: expected labels below {len(calibration.labels)}, got {highest} in the trace")
    if findings:
        raise ConfigError(findings)
    specs = []
    for tier, rule in zip(calibration.tiers, rules_of(calibration, [1] * len(calibration.tiers)), strict=True):
        if isinstance(rule, Confidence) and len(tier) == 1:
            rule = replace(rule, pools_scores=False)  # a model's own score, which a trace may have alone
        specs.append(TierSpec(tuple(member.name for member in tier), rule))
    return specs


def to_cascade(specs: Sequence[TierSpec], trace: Trace, early: Sequence[bool] = ()) -> Cascade:
    """The cascade over the trace: it decides `trace.batch()`. The last tier always answers.

    Args:
        early: of each tier, whether its members are asked in turn until the outcome is settled; none are by default.
    """
    rules = [*(spec.rule for spec in specs[:-1]), as_last(specs[-1].rule)]
    return Cascade(
        [
            RecordedTier(f"tier {number}", vote_of(trace, (*spec.earlier, *spec.members), rule, early=ends), rule)
            for number, (spec, rule, ends) in enumerate(
                zip(specs, rules, early or [False] * len(specs), strict=True), start=1
            )
        ]
    )
