"""Who sits in the two tiers of a text task: three small networks, each with a tokenizer of its own kind, and MiniLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from coe.models.text import Tokens
from coe.zoo.text import minilm, vocabulary
from coe.zoo.text.networks import WIDTH, Attention, Bag, Convolution
from coe.zoo.text.train import Recipe

TEACHER = "minilm"
N_TIERS = 2
VIEWS, VIEW_SEED = 8, 7  # spans of each train text that the teacher answers


@dataclass(frozen=True, slots=True)
class Small:
    """A member of tier 1.

    Args:
        tokenizer: its kind, as `vocabulary.trained` knows it.
        build: from the numbers of tokens and labels.
    """

    tokenizer: str
    build: Callable[[int, int], nn.Module]
    recipe: Recipe


SMALL = {
    "bag": Small("words", Bag, Recipe(epochs=3, seed=11, lr=3e-3, batch=128, teacher_share=0.5)),
    "filters": Small("bpe", Convolution, Recipe(epochs=4, seed=12, lr=2e-3, batch=128, teacher_share=0.5)),
    "attention": Small("unigram", Attention, Recipe(epochs=3, seed=13, lr=1e-3, batch=128, teacher_share=0.5)),
}
BEST = Recipe(epochs=3, seed=1, lr=1e-4)
FILES = {name: f"{name}.onnx" for name in SMALL} | {TEACHER: f"{TEACHER}.int8.onnx"}
TIERS = dict.fromkeys(SMALL, 1) | {TEACHER: 2}


def member_files(tier: int) -> list[str]:
    """The files of a tier's members, the fastest first, as manifest and traces name them."""
    return [FILES[name] for name, number in TIERS.items() if number == tier]


def recipe_of(name: str) -> Recipe:
    return BEST if name == TEACHER else SMALL[name].recipe


def tokenizer_file(name: str) -> str:
    return f"{name}.tokenizer.json"


def untrained(name: str, tokenizer: bytes, n_labels: int, max_length: int) -> nn.Module:
    """The network as training begins: MiniLM's own weights; of the others, its view of their tokens."""
    if name == TEACHER:
        return minilm.pretrained(n_labels, BEST.seed)
    small = SMALL[name]
    tokens = vocabulary.tokens_of(tokenizer)
    path = minilm.folder() / "tokenizer.json"
    whole, theirs = minilm.pretrained(n_labels, BEST.seed), Tokens(path.read_bytes(), path, max_length)
    torch.manual_seed(small.recipe.seed)
    network = small.build(len(tokens), n_labels)
    words = network.get_submodule("words")
    assert isinstance(words, nn.Embedding)
    with torch.no_grad():
        words.weight.copy_(vocabulary.first_vectors(tokens, whole, theirs, WIDTH))
    return network


def empty(name: str, tokenizer: bytes, n_labels: int) -> nn.Module:
    """The network for weights that are at hand."""
    if name == TEACHER:
        return minilm.MiniLM(n_labels)
    return SMALL[name].build(len(vocabulary.tokens_of(tokenizer)), n_labels)
