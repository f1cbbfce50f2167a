"""What leaves a device and what it keeps, said from its config alone."""

from .statement import HEADINGS, Statement
from .statements import state

__all__ = ["HEADINGS", "Statement", "state"]
