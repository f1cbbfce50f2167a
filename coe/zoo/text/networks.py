"""The small networks of tier 1: a bag of words and pairs, a convolution, and a little transformer.

Each takes token ids and their mask, (B, T) int64 both, and gives logits (B, L); padding changes nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coe.zoo.text.minilm import Layer

WIDTH = 64  # of an embedding
LONGEST = 128  # tokens
DROPOUT = 0.3
N_PAIRS, HASH = 1024, 31_337  # buckets for pairs of tokens, and what spreads them


class Bag(nn.Module):
    """The weighted mean of the tokens and of their pairs, and one hidden layer (as fastText, with learned weights)."""

    def __init__(self, n_tokens: int, n_labels: int) -> None:
        super().__init__()
        self.words, self.word_weights = nn.Embedding(n_tokens, WIDTH), nn.Embedding(n_tokens, 1)
        self.pairs, self.pair_weights = nn.Embedding(N_PAIRS, WIDTH), nn.Embedding(N_PAIRS, 1)
        self.hidden, self.head = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, n_labels)
        self.dropout = nn.Dropout(DROPOUT)
        for table in (self.pairs, self.word_weights, self.pair_weights):
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        pairs = (ids[:, :-1] * HASH + ids[:, 1:]) % N_PAIRS
        both = torch.cat(
            [
                _mean(self.words(ids), self.word_weights(ids), mask),
                _mean(self.pairs(pairs), self.pair_weights(pairs), mask[:, 1:]),
            ],
            dim=1,
        )
        out: Tensor = self.head(self.dropout(F.relu(self.hidden(self.dropout(both)))))
        return out


class Convolution(nn.Module):
    """Filters over two, three and four tokens, and the strongest answer of each (Kim, 2014)."""

    def __init__(self, n_tokens: int, n_labels: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_tokens, WIDTH)
        self.filters = nn.ModuleList(nn.Conv1d(WIDTH, 48, size, padding=size - 1) for size in (2, 3, 4))
        self.head = nn.Linear(3 * 48, n_labels)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(self.words(ids)) * mask[..., None].to(torch.float32)  # (B, T, D)
        x = x.transpose(1, 2)
        tops = []
        for one in self.filters:
            found = F.relu(one(x))  # (B, 48, T + size - 1)
            there = F.pad(mask, (found.shape[2] - mask.shape[1], 0), value=1)  # where a filter sees any token
            tops.append((found * there[:, None].to(found.dtype)).amax(dim=2))
        out: Tensor = self.head(self.dropout(torch.cat(tops, dim=1)))
        return out


class Attention(nn.Module):
    """A transformer of two narrow layers, and the mean of its tokens."""

    def __init__(self, n_tokens: int, n_labels: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(n_tokens, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer(WIDTH, 4, 2 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, n_labels)
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        x = self.dropout(x)
        bias = (1.0 - mask[:, None, None, :].to(torch.float32)) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        there = mask[..., None].to(torch.float32)
        out: Tensor = self.head(self.dropout((x * there).sum(dim=1) / there.sum(dim=1)))
        return out


def _mean(x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """(B, D), the mean of x (B, T, D) by e^weights (B, T, 1); 0 where there is nothing."""
    shares = weights.exp() * mask[..., None].to(x.dtype)  # (B, T, 1)
    total: Tensor = (shares.transpose(1, 2) @ x).squeeze(1) / shares.sum(dim=1).clamp(min=1e-6)
    return total
