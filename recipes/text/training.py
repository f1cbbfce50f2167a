"""Training the members of a text task, and keeping them between runs.

MiniLM answers every train text and parts of them (spans of words). Those answers are what a small network learns
from, where its recipe says so: that is distillation. All see train alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from coe_zoo.networks import follow
from numpy.typing import NDArray
from torch import Tensor, nn

from coe.models.text import Tokens

from . import networks
from .data import Split
from .networks import WIDTH, Attention, Bag, Convolution

Probabilities = NDArray[np.float32]  # (B, L)
Told = Callable[[int, float, nn.Module], None]
CHUNK = 64  # texts answered at once
STEP = 8  # tokens
SORTED = 20  # batches that are cut from texts sorted by length


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one network is trained."""

    epochs: int
    seed: int
    lr: float
    batch: int = 32
    decay: float = 0.01  # of the weights
    average: float = 0.99  # decay a step of the averaged weights
    teacher_share: float = 0.0  # of a train text's target; its label has the rest


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is learned from: texts, and what to say of each."""

    texts: Sequence[str]
    targets: Probabilities


def from_labels(split: Split, n_labels: int) -> Lesson:
    return Lesson(split.texts, np.eye(n_labels, dtype=np.float32)[split.labels])


def from_teacher(split: Split, on_texts: Probabilities, spans: Lesson, share: float) -> Lesson:
    """The train texts with labels and the teacher's answers mixed, and the spans with its answers alone.

    Args:
        on_texts: (B, L), the teacher's answers to the train texts.
        share: of the teacher's answers in the former.
    """
    labels = np.eye(on_texts.shape[1], dtype=np.float32)[split.labels]
    mixed = (share * on_texts + (1 - share) * labels).astype(np.float32)
    return Lesson([*split.texts, *spans.texts], np.concatenate([mixed, spans.targets]))


def spans_of(texts: Sequence[str], views: int, seed: int) -> list[str]:
    """`views` runs of words of each text, a third of it or longer."""
    dice = np.random.default_rng(seed)
    found = []
    for text in texts:
        words = text.split()
        for _ in range(views):
            size = int(dice.integers(max(1, len(words) // 3), len(words) + 1))
            start = int(dice.integers(0, len(words) - size + 1))
            found.append(" ".join(words[start : start + size]))
    return found


def train(
    network: nn.Module, tokens: Tokens, lesson: Lesson, recipe: Recipe, told: Told = lambda *_: None
) -> nn.Module:
    """The network with its weights averaged over the last steps.

    Args:
        told: called after each epoch with its number, its mean loss and the averaged network.
    """
    torch.manual_seed(recipe.seed)
    dice = np.random.default_rng(recipe.seed)
    averaged = copy.deepcopy(network).eval()
    targets = torch.from_numpy(lesson.targets)
    lengths = np.array([len(text) for text in lesson.texts])
    steps = recipe.epochs * -(-len(lengths) // recipe.batch)
    heavy = [weights for weights in network.parameters() if weights.ndim > 1]
    light = [weights for weights in network.parameters() if weights.ndim <= 1]
    groups = [{"params": heavy, "weight_decay": recipe.decay}, {"params": light, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _triangle(steps))
    network.train()
    for epoch in range(recipe.epochs):
        total = 0.0
        for rows in _batches(lengths, recipe.batch, dice):
            with _arithmetic(network):
                logits = network(*_fed(network, tokens.of([lesson.texts[row] for row in rows])))
            loss = F.cross_entropy(logits.float(), targets[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            follow(averaged, network, recipe.average)
            total += float(loss.detach()) * len(rows)
        told(epoch + 1, total / len(lengths), averaged)
    return averaged


def timed_training(
    network: nn.Module, tokens: Tokens, lesson: Lesson, recipe: Recipe, told: Told
) -> tuple[nn.Module, float]:
    """The trained network, and the seconds of one core it took (which waiting for other programs does not change)."""
    started = time.process_time()
    trained = train(network, tokens, lesson, recipe, told)
    return trained, time.process_time() - started


@torch.no_grad()
def answers(network: nn.Module, tokens: Tokens, texts: Sequence[str]) -> Probabilities:
    """(B, L), the network's own probabilities."""
    network.eval()
    order = np.argsort([len(text) for text in texts], kind="stable")
    out: Probabilities | None = None
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        with _arithmetic(network):
            logits = network(*_fed(network, tokens.of([texts[row] for row in rows])))
        outputs = logits.float().softmax(dim=1).numpy()
        if out is None:
            out = np.empty((len(texts), outputs.shape[1]), dtype=np.float32)
        out[rows] = outputs
    if out is None:
        raise ValueError("expected at least one text, got none")
    return out


def n_inputs(network: nn.Module) -> int:
    """How many rows of a prepared text it is fed: ids and mask, MiniLM segments too."""
    return 3 if hasattr(network, "types") else 2


def _arithmetic(network: nn.Module) -> torch.autocast:
    """bfloat16 for MiniLM; small networks would only wait for its kernels to be compiled."""
    return torch.autocast("cpu", torch.bfloat16, enabled=n_inputs(network) == 3)


def _fed(network: nn.Module, x: NDArray[np.int64]) -> Sequence[Tensor]:
    """The rows of prepared texts (B, 3, T), with padding to few lengths: torch compiles its kernels for each anew."""
    padded = F.pad(torch.from_numpy(x), (0, -x.shape[2] % STEP))
    return padded.unbind(dim=1)[: n_inputs(network)]


def _batches(lengths: NDArray[np.int64], size: int, dice: np.random.Generator) -> list[NDArray[np.intp]]:
    """All rows once, in random batches of texts of about one length."""
    order = dice.permutation(len(lengths))
    found: list[NDArray[np.intp]] = []
    for start in range(0, len(order), size * SORTED):
        part = order[start : start + size * SORTED]
        part = part[np.argsort(lengths[part], kind="stable")]
        found += [part[first : first + size] for first in range(0, len(part), size)]
    return [found[place] for place in dice.permutation(len(found))]


def _triangle(steps: int, warm_share: float = 0.1) -> Callable[[int], float]:
    warm = max(1, round(steps * warm_share))
    return lambda step: min((step + 1) / warm, max(steps - step, 0) / max(steps - warm, 1))


TEACHER = "minilm"
N_TIERS = 2
VIEWS, VIEW_SEED = 8, 7  # spans of each train text that the teacher answers


@dataclass(frozen=True, slots=True)
class Small:
    """A member of tier 1.

    Args:
        tokenizer: its kind, as `networks.trained` knows it.
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
        return networks.pretrained_minilm(n_labels, BEST.seed)
    small = SMALL[name]
    tokens = networks.tokens_of(tokenizer)
    path = networks.minilm_folder() / "tokenizer.json"
    whole, theirs = networks.pretrained_minilm(n_labels, BEST.seed), Tokens(path.read_bytes(), path, max_length)
    torch.manual_seed(small.recipe.seed)
    network = small.build(len(tokens), n_labels)
    words = network.get_submodule("words")
    assert isinstance(words, nn.Embedding)
    with torch.no_grad():
        words.weight.copy_(networks.first_vectors(tokens, whole, theirs, WIDTH))
    return network


def empty(name: str, tokenizer: bytes, n_labels: int) -> nn.Module:
    """The network for weights that are at hand."""
    if name == TEACHER:
        return networks.MiniLM(n_labels)
    return SMALL[name].build(len(networks.tokens_of(tokenizer)), n_labels)


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with its tokenizer, and the seconds of one core that its training took."""

    name: str
    network: nn.Module
    tokenizer: bytes
    seconds: float


def keep(trained: Trained, folder: Path) -> None:
    """Writes NAME.pt, whole or not at all."""
    path = folder / f"{trained.name}.pt"
    content = {
        "state": trained.network.state_dict(),
        "tokenizer": trained.tokenizer.decode(),
        "seconds": trained.seconds,
        "recipe": _recipes(trained.name),
    }
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def kept(name: str, n_labels: int, folder: Path) -> Trained | None:
    """The network `name` as it was trained before; None where it was not, or by another recipe."""
    path = folder / f"{name}.pt"
    if not path.exists():
        return None
    content = torch.load(path, weights_only=True)
    if content["recipe"] != _recipes(name):
        return None
    tokenizer = content["tokenizer"].encode()
    network = empty(name, tokenizer, n_labels)
    network.load_state_dict(content["state"])
    return Trained(name, network.eval(), tokenizer, float(content["seconds"]))


def _recipes(name: str) -> list[dict[str, Any]]:
    """The network's own, and that of the one it may have learned from."""
    return [asdict(recipe_of(name)), asdict(recipe_of(TEACHER))]


def keep_answers(on_texts: Probabilities, spans: Lesson, folder: Path) -> None:
    """Writes what the teacher answers on the train texts and of their spans."""
    np.savez(folder / "teacher.part.npz", on_texts=on_texts, spans=np.array(spans.texts), on_spans=spans.targets)
    (folder / "teacher.part.npz").replace(folder / "teacher.npz")


def kept_answers(folder: Path) -> tuple[Probabilities, Lesson] | None:
    """The teacher's answers; None where it was not asked, or the file is older than the teacher."""
    path, teacher = folder / "teacher.npz", folder / f"{TEACHER}.pt"
    if not (path.exists() and teacher.exists()) or path.stat().st_mtime < teacher.stat().st_mtime:
        return None
    with np.load(path) as told:
        return told["on_texts"], Lesson(told["spans"].tolist(), told["on_spans"])
