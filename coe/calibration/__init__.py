"""Votes fitted on labelled examples, and what they can promise. NumPy only."""

from __future__ import annotations

from .rule import CalibratedVote, rules_of
from .table import Bound, Calibration, TableMember
from .vote import StageVote

__all__ = ["Bound", "CalibratedVote", "Calibration", "StageVote", "TableMember", "rules_of"]
