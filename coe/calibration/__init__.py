"""Votes fitted on labelled examples, and what they can promise. NumPy only."""

from __future__ import annotations

from .table import Bound, Calibration, TableMember
from .vote import StageVote

__all__ = ["Bound", "Calibration", "StageVote", "TableMember"]
