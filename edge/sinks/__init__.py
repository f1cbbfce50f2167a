"""Where decisions go."""

from .base import Outcome, Sink
from .open import open_sink
from .ordered import Reorder

__all__ = ["Outcome", "Reorder", "Sink", "open_sink"]
