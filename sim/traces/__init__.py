"""Traces: recorded predictions of real models, and how they become tiers of a cascade."""

from .costs import Costs, pick, read_costs
from .parquet import write_parquet
from .read import read_trace
from .tiers import TierSpec, TraceTier, batches, parse_tiers, to_cascade
from .trace import Answers, Trace

__all__ = [
    "Answers",
    "Costs",
    "TierSpec",
    "Trace",
    "TraceTier",
    "batches",
    "parse_tiers",
    "pick",
    "read_costs",
    "read_trace",
    "to_cascade",
    "write_parquet",
]
