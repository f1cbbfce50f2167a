"""What a person wants to know of the models served: what they are made of, and where they run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coe.assembly import CascadeConfig, LocalTierConfig, RemoteTierConfig
from coe.assembly.config import TierConfig
from coe.cascade.rule import Agreement, Confidence
from coe.models.base import ModelSpec


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """One member. `sha256`: of the file; `accuracy`: on the calibration split, None where unknown."""

    name: str
    format: str
    sha256: str
    runs_on: str
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class TierFacts:
    """One tier. `rule`: when it answers, in words. `address`: of the server that holds it; "": this one."""

    name: str
    rule: str
    address: str = ""
    members: tuple[MemberFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model of the protocol: a cascade of these tiers, or one of them alone."""

    name: str
    version: str
    tiers: tuple[TierFacts, ...]

    def tier_name(self, number: int) -> str:
        """Of tier `number`, from 1; those behind another server have no name here but their number."""
        return self.tiers[number - 1].name if number <= len(self.tiers) else str(number)


@dataclass(frozen=True, slots=True)
class Watched:
    """The running server, as it is asked by those who watch it. All three are called often, and must be quick.

    Args:
        is_ready: of the server (""), or of a model by name.
        facts: of all models, as served now.
        queued: rows waiting now, by queue: a tier's, or a model's.
    """

    is_ready: Callable[[str], bool]
    facts: Callable[[], Sequence[ModelFacts]]
    queued: Callable[[], Mapping[str, int]]


def describe(cascade: CascadeConfig, model: str, runs_on: Mapping[str, str] | None = None) -> tuple[ModelFacts, ...]:
    """The whole cascade as `model`, and each local tier alone as `model-tier`. Reads files that have no checksum yet.

    Args:
        runs_on: what runs a member, by its name, as LoadedMember says; where it is not known, its tier's options.
    """
    runs_on = runs_on or {}
    tiers = tuple(_tier(tier, runs_on, is_last=tier is cascade.tiers[-1]) for tier in cascade.tiers)
    alone = [
        ModelFacts(f"{model}-{facts.name}", cascade.task.fingerprint, (facts,)) for facts in tiers if not facts.address
    ]
    return (ModelFacts(model, cascade.task.fingerprint, tiers), *alone)


def _tier(tier: TierConfig, runs_on: Mapping[str, str], is_last: bool) -> TierFacts:
    rule = _rule(tier, is_last)
    if isinstance(tier, RemoteTierConfig):
        return TierFacts(tier.name, rule, f"{tier.model} at {tier.address}")
    members = tuple(
        MemberFacts(
            spec.name,
            spec.format,
            spec.sha256 or _checksum(spec),
            runs_on.get(spec.name) or _options(tier, spec),
            spec.calibration_accuracy,
        )
        for spec in tier.members
    )
    return TierFacts(tier.name, rule, "", members)


def _rule(tier: TierConfig, is_last: bool) -> str:
    if is_last:
        return "always answers"
    if isinstance(tier.rule, Agreement):
        theta = tier.rule.theta
        if theta == 1:
            return "answers when all members agree"
        if isinstance(tier, LocalTierConfig):
            return f"answers when {tier.rule.needed(len(tier.members))} of {len(tier.members)} members agree"
        return f"answers when {theta} of the members agree"
    if isinstance(tier.rule, Confidence):
        return f"answers when its confidence is at least {tier.rule.threshold:g}"
    return "always answers"


def _options(tier: LocalTierConfig, spec: ModelSpec) -> str:
    where = tier.options.device if spec.format.startswith("torch") else ", ".join(tier.options.providers)
    threads = tier.options.threads
    return f"{spec.format}, {where}, {threads} thread{'' if threads == 1 else 's'}"


def _checksum(spec: ModelSpec) -> str:
    try:
        return hashlib.sha256(spec.path.read_bytes()).hexdigest()
    except OSError:
        return ""
