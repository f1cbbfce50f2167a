"""Where decisions go."""

from __future__ import annotations

from .base import Event, Outcome, Record, ReorderBuffer, Rereadable, Writer, as_record
from .config import SinkConfig, read_sinks
from .open import Sinks, open_sinks, outbox_names

__all__ = [
    "Event",
    "Outcome",
    "Record",
    "ReorderBuffer",
    "Rereadable",
    "SinkConfig",
    "Sinks",
    "Writer",
    "as_record",
    "open_sinks",
    "outbox_names",
    "read_sinks",
]
