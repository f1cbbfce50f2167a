"""Yes or no of every example, 64 to a word: a cascade's bookkeeping becomes AND and a count of ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_ONES_OF_16_BITS = np.array([bin(value).count("1") for value in range(1 << 8)], dtype=np.uint8)
_ONES_OF_16_BITS = (_ONES_OF_16_BITS[:, None] + _ONES_OF_16_BITS[None]).reshape(-1)


def packed(yes: NDArray[np.bool_]) -> Words:
    """(W,) words from (B,) answers; the bits after the last example are 0."""
    n_bytes = -(-len(yes) // 64) * 8
    data = np.zeros(n_bytes, dtype=np.uint8)
    bits = np.packbits(yes)
    data[: len(bits)] = bits
    return data.view(np.uint64)


def ones(words: Words) -> NDArray[np.int64]:
    """How many bits are set along the last axis."""
    counted: Any = getattr(np, "bitwise_count", None)  # NumPy 2
    per_word = counted(words) if counted else _ONES_OF_16_BITS[words.view(np.uint16)]
    total: NDArray[np.int64] = per_word.sum(axis=-1, dtype=np.int64)
    return total
