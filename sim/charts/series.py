"""What a chart is given: one method's points. Free of matplotlib, so that a study that only prints needs none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OURS = "cascade of ensembles"


@dataclass(frozen=True, slots=True)
class Series:
    """One method's points, by rising cost; `names` are written beside them."""

    method: str
    costs: Sequence[float]
    accuracies: Sequence[float]
    names: Sequence[str] = ()
