"""A member that answers from recorded outputs: the fake of tests and examples, which needs no runtime."""

from __future__ import annotations

import numpy as np

from coe.cascade.types import Array

from .python import unchanged


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
        self.prepare = unchanged

    def predict(self, x: Array) -> Array:
        """(B, L) from x (B, 1) of row numbers."""
        self.n_asked += len(x)
        output: Array = self.table[x[:, 0].astype(np.intp)]
        return output

    def close(self) -> None:
        pass
