"""What an exported file does: its answers, and its time on every picture."""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.zoo.measure import opened

CHUNK = 250
WARM_UP = 50


def answers(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, 10), the probabilities that the file gives for x (B, 3, 32, 32), on one thread."""
    predict = opened(path)
    return np.concatenate([predict(rows) for rows in np.array_split(x, max(1, len(x) // CHUNK))])


def one_by_one(path: Path, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(B, 10) probabilities and (B,) seconds: each picture alone, once, on one thread."""
    predict = opened(path)
    rows, seconds = [], []
    for place in range(WARM_UP):
        predict(x[place % len(x)][None])
    for picture in x:
        one = picture[None]
        started = time.perf_counter()
        rows.append(predict(one))
        seconds.append(time.perf_counter() - started)
    return np.concatenate(rows), np.array(seconds, dtype=np.float32)
