"""Many cascades at once over a trace."""

from .engine import Configuration, Outcomes, sweep
from .panel import Panel, SweptTier

__all__ = ["Configuration", "Outcomes", "Panel", "SweptTier", "sweep"]
