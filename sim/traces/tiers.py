"""Recorded answers as tiers of the one cascade: `coe.cascade` votes, decides and charges; nothing is run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coe.cascade import Always, Batch, Cascade, Confidence, ConfigError, DeferralRule, Vote, parse_agreement
from coe.cascade.types import Array
from coe.cascade.vote import plurality, pool

from .trace import Trace

CHUNK = 2048  # examples decided together: bounds the memory that a thousand labels take


class TraceTier:
    """An ensemble that says again what was recorded; row `x[b, 0]` of the trace answers example b.

    Where probabilities are known the vote is the usual one; with top-1 scores alone a tie goes to the label whose
    voters' mean score is higher, then to the lower label. All members are asked.
    """

    n_tiers = 1
    waits = False

    def __init__(self, name: str, trace: Trace, members: Sequence[str], rule: DeferralRule) -> None:
        self.name = name
        self.rule = rule
        self.members = tuple(members)
        self._answers = [trace.models[member] for member in members]

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        rows = batch.x[:, 0].astype(np.intp)
        ballots = np.stack([answers.predictions[rows] for answers in self._answers]).astype(np.int64)  # (M, B)
        probabilities = self._stacked("probabilities", rows)  # (M, B, L)
        if rule.pools_scores:
            if probabilities is None:
                raise ConfigError([f"tier {self.name}: expected probabilities in the trace, got none (record them)"])
            labels, score = pool(probabilities)
            count = (ballots == labels).sum(axis=0)
        else:
            top_scores = self._stacked("scores", rows) if probabilities is None else None
            labels, count, score = plurality(ballots, probabilities, top_scores)
        asked = np.full(len(rows), len(self.members), dtype=np.int64)
        return Vote(labels, count, asked, len(self.members), score)

    def _stacked(self, column: str, rows: Array) -> Array | None:
        """A column of every member, side by side; None where one does not have it."""
        found = [getattr(answers, column) for answers in self._answers]
        if any(values is None for values in found):
            return None
        return np.stack([values[rows] for values in found])

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def close(self) -> None:
        pass


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


def to_cascade(specs: Sequence[TierSpec], trace: Trace) -> Cascade:
    """The cascade over the trace; ask it about `rows`."""
    return Cascade(
        [TraceTier(f"tier {number}", trace, spec.members, spec.rule) for number, spec in enumerate(specs, start=1)]
    )


def batches(trace: Trace) -> list[Batch]:
    """Every example of the trace, in order, in pieces."""
    return [
        Batch(trace.ids[start : start + CHUNK], np.arange(start, min(start + CHUNK, len(trace)))[:, None])
        for start in range(0, len(trace), CHUNK)
    ]
