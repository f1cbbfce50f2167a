"""The paper: votes, deferral rules, tiers, Algorithm 1, the accountings. NumPy only, no I/O."""

from __future__ import annotations

from .accounting import Accounting, average_cost, communication, communication_ratio, tier_charges
from .cascade import Cascade, Decisions, Run
from .errors import (
    CascadeError,
    ConfigError,
    InputError,
    ModelError,
    RuntimeMissing,
    TierError,
    TierFailed,
    TierOverloaded,
    TierRefused,
    TierRejected,
    TierTimeout,
    TierUnavailable,
)
from .rule import Agreement, Always, Confidence, DeferralRule, Ideal, parse_agreement
from .tier import LocalTier, Member, Tier
from .types import NO_LABEL, Batch, CallCost, Decision, Vote

__all__ = [
    "NO_LABEL",
    "Accounting",
    "Agreement",
    "Always",
    "Batch",
    "CallCost",
    "Cascade",
    "CascadeError",
    "Confidence",
    "ConfigError",
    "Decision",
    "Decisions",
    "DeferralRule",
    "Ideal",
    "InputError",
    "LocalTier",
    "Member",
    "ModelError",
    "Run",
    "RuntimeMissing",
    "Tier",
    "TierError",
    "TierFailed",
    "TierOverloaded",
    "TierRefused",
    "TierRejected",
    "TierTimeout",
    "TierUnavailable",
    "Vote",
    "average_cost",
    "communication",
    "communication_ratio",
    "parse_agreement",
    "tier_charges",
]
