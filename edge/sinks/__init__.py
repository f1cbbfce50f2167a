"""Where decisions go."""

from .base import Event, Outcome, Record, Sink, Writer
from .config import SinkConfig, read_sinks
from .many import Sinks
from .open import open_sinks
from .ordered import Reorder
from .records import as_record

__all__ = [
    "Event",
    "Outcome",
    "Record",
    "Reorder",
    "Sink",
    "SinkConfig",
    "Sinks",
    "Writer",
    "as_record",
    "open_sinks",
    "read_sinks",
]
