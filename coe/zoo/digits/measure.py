"""What an exported file does: its answers, its time."""

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coe.zoo import measure
from coe.zoo.digits.networks import build
from coe.zoo.measure import Predict
from coe.zoo.network import Network


def opened(path: Path, architecture: str) -> Predict:
    """The file as a function from digits (B, 1, 28, 28) to probabilities (B, 10), run on one thread."""
    if path.suffix != ".pt":
        return measure.opened(path)
    network = build(architecture).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    return lambda x: probabilities_of(network, x)


def probabilities_of(network: Network, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's own answers, (B, 10)."""
    with torch.no_grad():
        out: NDArray[np.float32] = network(torch.from_numpy(x)).numpy()
        return out


def latency_us(predict: Predict, x: NDArray[np.float32], runs: int = 2000) -> float:
    """Median time of one example, in microseconds."""
    one = np.ascontiguousarray(x[:1])
    for _ in range(100):
        predict(one)
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        predict(one)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000
