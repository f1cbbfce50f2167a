"""Accuracy against average cost: cascades of ensembles, and everything the paper compares them with."""

from .choose import Choices
from .show import as_part
from .study import Study, run

__all__ = ["Choices", "Study", "as_part", "run"]
