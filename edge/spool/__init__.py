"""What survives the agent: examples that wait for a later answer, and what has been done."""

from __future__ import annotations

from .config import SpoolConfig, read_spool, read_state

__all__ = ["SpoolConfig", "read_spool", "read_state"]
