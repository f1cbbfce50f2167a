"""Traces: recorded predictions of real models, and how they become tiers of a cascade.

Those that come with the project: `sim/traces/files.py` says where they lie and what they are called.
"""

from __future__ import annotations

from .costs import Costs, pick
from .files import CALIBRATION, TEST, read_costs, read_trace, write_parquet
from .tiers import (
    RecordedTier,
    TierSpec,
    by_chance,
    calibrated_tiers,
    exact,
    members_asked,
    parse_tiers,
    to_cascade,
    vote_of,
)
from .trace import Answers, Trace

__all__ = [
    "CALIBRATION",
    "TEST",
    "Answers",
    "Costs",
    "RecordedTier",
    "TierSpec",
    "Trace",
    "by_chance",
    "calibrated_tiers",
    "exact",
    "members_asked",
    "parse_tiers",
    "pick",
    "read_costs",
    "read_trace",
    "to_cascade",
    "vote_of",
    "write_parquet",
]
