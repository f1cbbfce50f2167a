"""What leaves a device and what it keeps, said from its config alone."""

from .statements import Statement, state

__all__ = ["Statement", "state"]
