"""Traces: recorded predictions of real models, and how they become tiers of a cascade.

Those that come with the project: `sim/traces/bundled.py` says where they lie and what they are called.
"""

from .bundled import CALIBRATION, TEST
from .costs import Costs, pick
from .parquet import write_parquet
from .read import read_costs, read_trace
from .tiers import TierSpec, TraceTier, batches, parse_tiers, to_cascade
from .trace import Answers, Trace

__all__ = [
    "CALIBRATION",
    "TEST",
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
