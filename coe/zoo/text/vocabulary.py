"""The tokenizers of tier 1, each of another kind, and what their tokens' embeddings start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coe.models.base import import_runtime
from coe.models.text import IDS, MASK, MEND, TYPES, Tokens
from coe.zoo.text.minilm import MiniLM

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[START]", "[END]"
SPECIAL = [PAD, UNKNOWN, START, END]
SIZES = {"words": 6000, "bpe": 4000, "unigram": 3000}  # tokens, by kind
LINKS = r"https?://\S+|www\.\S+"  # say nothing of a text, and each comes once
CONTINUES, BEGINS = "##", "▁"  # how tokens say that they go on, or begin a word
CHUNK = 256


def trained(kind: str, texts: Sequence[str]) -> bytes:
    """A tokenizer.json, learned from train texts alone; where pairs are equally frequent, the library takes any.

    Args:
        kind: "words" (whole words that come at least twice), "bpe" or "unigram" (parts of words).
    """
    library: Any = import_runtime("tokenizers", "text", MEND)
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
    library: Any = import_runtime("tokenizers", "text", MEND)
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
