"""What an exported file of texts does: its answers one by one, their time, and its arithmetic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coe.models import LoadedMember
from coe.models.text import MASK
from coe.zoo.text.train import Probabilities, n_inputs

WARM_UP = 50
REPEATS = 3  # of each timing; the best counts


def one_by_one(
    member: LoadedMember, texts: Sequence[str], repeats: int = REPEATS
) -> tuple[Probabilities, NDArray[np.float32]]:
    """(B, L) probabilities and (B,) seconds: each text alone, its tokenizer included."""
    x = np.empty(len(texts), dtype=object)
    x[:] = texts
    for place in range(WARM_UP):
        row = place % len(x)
        member.predict(member.prepare(x[row : row + 1]))
    outputs: list[Any] = [None] * len(x)
    seconds = np.empty((repeats, len(x)), dtype=np.float32)
    for repeat in range(repeats):
        for row in range(len(x)):
            started = time.perf_counter()
            outputs[row] = member.predict(member.prepare(x[row : row + 1]))
            seconds[repeat, row] = time.perf_counter() - started
    best: NDArray[np.float32] = seconds.min(axis=0)
    return np.concatenate(outputs).astype(np.float32), best


def mean_length(member: LoadedMember, texts: Sequence[str]) -> int:
    """Tokens that the member sees of a text, on average."""
    x = np.empty(len(texts), dtype=object)
    x[:] = texts
    return round(float(member.prepare(x)[:, MASK].sum(axis=1).mean()))


def flops(network: nn.Module, n_tokens: int) -> int:
    """Two for each multiply-add of matrix products and convolutions, for one text of so many tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    one = torch.ones(1, n_tokens, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*[one] * n_inputs(network))
    return int(counter.get_total_flops())
