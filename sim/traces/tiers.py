"""Recorded answers as tiers of the one cascade: `coe.cascade` votes, decides and charges; nothing is run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Always, Batch, Cascade, Confidence, ConfigError, DeferralRule, Vote, parse_agreement
from coe.cascade.types import NO_LABEL, Array, Labels
from coe.cascade.vote import is_settled, leaders, plurality, pool
from coe.link import Clock

from .trace import Answers, Trace

CHUNK = 2048  # examples voted on together: bounds the memory that a thousand labels take


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
    return Vote(labels, count, asked, len(members), score)


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
    """A tier as a command line names it: 'a,b,c@2/3'."""

    members: tuple[str, ...]
    rule: DeferralRule


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
        try:
            found, warning = _rule(rule.strip(), names, trace, is_last=number == len(texts))
        except ValueError as error:
            findings.append(f"--tiers: tier {number}: {error}")
            continue
        specs.append(TierSpec(names, found))
        warnings += [f"--tiers: tier {number}: {warning}"] if warning else []
    if findings:
        raise ConfigError(findings)
    return specs, warnings


def _rule(text: str, names: Sequence[str], trace: Trace, is_last: bool) -> tuple[DeferralRule, str | None]:
    if is_last:
        return Always(), f'the last tier always answers, so "@{text}" has no effect (leave it out)' if text else None
    if match := re.fullmatch(r"confidence\s*>=\s*([\d.]+)", text):
        pools = all(name in trace.models and trace.models[name].probabilities is not None for name in names)
        return Confidence(float(match[1]), pools_scores=pools), None
    if len(names) == 1:
        raise ValueError(
            f"one member always agrees with itself, so this tier would never defer "
            f'(add members, or write "{names[0]}@confidence>=0.8")'
        )
    return parse_agreement(text or "unanimous", len(names))


def to_cascade(specs: Sequence[TierSpec], trace: Trace, early: Sequence[bool] = ()) -> Cascade:
    """The cascade over the trace: it decides `trace.batch()`. The last tier always answers.

    Args:
        early: of each tier, whether its members are asked in turn until the outcome is settled; none are by default.
    """
    rules = [*(spec.rule for spec in specs[:-1]), Always(specs[-1].rule.pools_scores)]
    return Cascade(
        [
            RecordedTier(f"tier {number}", vote_of(trace, spec.members, rule, early=ends), rule)
            for number, (spec, rule, ends) in enumerate(
                zip(specs, rules, early or [False] * len(specs), strict=True), start=1
            )
        ]
    )
