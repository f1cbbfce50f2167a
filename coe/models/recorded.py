"""Members and cascades that answer from recorded outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Agreement, Always, Batch, Cascade, Decisions, DeferralRule, LocalTier
from coe.cascade.types import Array


class TableMember:
    """Row `x[b, 0]` of its table answers example b.

    Args:
        table: (N, L) probabilities.
        name: how errors and reports call it.
    """

    runs_on = "a table"

    def __init__(self, table: Array, name: str = "table") -> None:
        self.name = name
        self.table = np.asarray(table, dtype=np.float32)
        self.n_labels = self.table.shape[1]
        self.n_asked = 0
        self.prepare = _as_it_is

    def predict(self, x: Array) -> Array:
        """(B, L) from x (B, 1) of row numbers."""
        self.n_asked += len(x)
        output: Array = self.table[x[:, 0].astype(np.intp)]
        return output

    def close(self) -> None:
        pass


def _as_it_is(x: Array) -> Array:
    return x


AGREEMENTS = {"2/3": Agreement(Fraction(2, 3)), "unanimous": Agreement(Fraction(1))}
Outputs = NDArray[np.float32]  # (B, L)
Tiers = Sequence[Mapping[str, Outputs]]  # of each tier: member -> what it said


def decide(tiers: Tiers, agreements: Sequence[str]) -> Decisions:
    """The cascade of these tiers on all B examples; one agreement for each but the last, which always answers."""
    rules: list[DeferralRule] = [*(AGREEMENTS[name] for name in agreements), Always()]
    seats = [
        LocalTier(str(number), [TableMember(outputs, name) for name, outputs in tier.items()], rule)
        for number, (tier, rule) in enumerate(zip(tiers, rules, strict=True), start=1)
    ]
    return Cascade(seats).decide(_row_numbers(tiers[0]))


def plurality_of(tier: Mapping[str, Outputs]) -> NDArray[np.int64]:
    """(B,) the label that the tier's members give where they must all answer."""
    every = Always(asks_all=True)
    seats = [TableMember(outputs, name) for name, outputs in tier.items()]
    labels: NDArray[np.int64] = LocalTier("alone", seats, every).vote(_row_numbers(tier), every).labels
    return labels


def _row_numbers(tier: Mapping[str, Outputs]) -> Batch:
    rows = np.arange(len(next(iter(tier.values()))))  # (B,)
    return Batch(tuple(map(str, rows)), rows[:, None])
