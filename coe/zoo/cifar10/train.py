"""The training recipe: Muon with a falling rate on mirrored, moved and cut pictures, averaged weights.

The best model learns from the labels. Most of the smaller ones learn from the labels and, to a part, from the best
model's probabilities for the very same views (distillation). All see train alone.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from coe.zoo.cifar10 import augment
from coe.zoo.cifar10.data import Split
from coe.zoo.cifar10.layers import Whitening
from coe.zoo.cifar10.networks import build
from coe.zoo.cifar10.optimiser import optimisers
from coe.zoo.network import Network, follow

BATCH = 500
TEACHER = "summit"
N_VIEWS, VIEW_SEED, VIEW_MOST = 8, 1002, 2  # the views that the teacher answers
TIERS = {
    "stride": 1,
    "feather": 1,
    "tiles": 1,
    "stair": 2,
    "weave": 2,
    "gate": 2,
    "ladder": 3,
    "tower": 3,
    "funnel": 3,
    "summit": 4,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one network is trained."""

    epochs: int
    seed: int
    lr: float = 0.1  # of the convolutions, at its highest
    rest_lr: float = 4e-3  # of everything else
    warm_share: float = 0.1  # of the steps, in which the rates rise
    smoothing: float = 0.1  # of the labels
    move: int = 2  # pixels
    cut: int = 0  # side of the square
    teacher_share: float = 0.0  # of the loss; the labels have the rest
    temperature: float = 2.0
    average: float = 0.99  # decay a step of the averaged weights


# Members that learned from one teacher err where it errs, and agree there. In tier 1, whose agreement decides most
# examples, only one of them does.
RECIPES: dict[str, Recipe] = {
    "summit": Recipe(epochs=18, seed=41, move=3, cut=8),
    "ladder": Recipe(epochs=10, seed=31, teacher_share=0.6),
    "tower": Recipe(epochs=10, seed=32, teacher_share=0.6),
    "funnel": Recipe(epochs=10, seed=33, teacher_share=0.6),
    "stair": Recipe(epochs=18, seed=21, teacher_share=0.7),
    "weave": Recipe(epochs=16, seed=22, teacher_share=0.7),
    "gate": Recipe(epochs=14, seed=23, teacher_share=0.7),
    "stride": Recipe(epochs=30, seed=11, smoothing=0.0),
    "feather": Recipe(epochs=24, seed=12, teacher_share=0.7),
    "tiles": Recipe(epochs=24, seed=13, smoothing=0.0),
}
Told = Callable[[str, int, float, Network], None]


def train(name: str, split: Split, teacher: Tensor | None = None, told: Told = lambda *_: None) -> Network:
    """The network `name`, trained.

    Args:
        name: an architecture that has a recipe.
        split: what it learns from.
        teacher: (N_VIEWS, B, 10), the best model's logits for each view; needed where the recipe has a share for it.
        told: called after each epoch with the name, its number, its mean loss, and the averaged network.
    """
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    network = _channels_last(build(name))
    labels = torch.from_numpy(split.labels)
    for layer in network.modules():
        if isinstance(layer, Whitening):
            layer.fit(augment.as_input(torch.from_numpy(split.pixels[:5000])))
    averaged = copy.deepcopy(network)
    steps = recipe.epochs * -(-len(labels) // BATCH)
    working = optimisers(network, recipe.lr, recipe.rest_lr)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, _triangle(steps, recipe.warm_share)) for one in working]
    for epoch in range(recipe.epochs):
        pixels, soft = _shown(split.pixels, epoch, recipe, teacher)  # (B, 32, 32, 3), (B, 10)
        total = 0.0
        for rows in torch.split(torch.randperm(len(labels)), BATCH):
            x = augment.cut_out(augment.as_input(pixels[rows]), recipe.cut)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network.logits(x)
            loss = _loss(logits.float(), labels[rows], None if soft is None else soft[rows], recipe)
            network.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for one, schedule in zip(working, schedules, strict=True):
                one.step()
                schedule.step()
            follow(averaged, network, recipe.average)
            total += float(loss.detach()) * len(rows)
        told(name, epoch + 1, total / len(labels), averaged)
    return averaged.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


def _shown(
    pixels: NDArray[np.uint8], epoch: int, recipe: Recipe, teacher: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What an epoch learns from: its view of the pictures and, where there is a teacher, its logits for it."""
    if recipe.teacher_share == 0:
        return augment.view(pixels, epoch, recipe.seed, recipe.move), None
    if teacher is None:
        raise ValueError("expected the best model's logits, which this network learns from")
    number = epoch % N_VIEWS
    return augment.view(pixels, number, VIEW_SEED, VIEW_MOST), teacher[number]


def _triangle(steps: int, warm_share: float) -> Callable[[int], float]:
    warm = max(1, round(steps * warm_share))
    return lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))


def _loss(logits: Tensor, labels: Tensor, teacher: Tensor | None, recipe: Recipe) -> Tensor:
    hard = F.cross_entropy(logits, labels, label_smoothing=0.0 if teacher is not None else recipe.smoothing)
    if teacher is None:
        return hard
    hot = recipe.temperature
    soft = F.kl_div(
        (logits / hot).log_softmax(1), (teacher / hot).log_softmax(1), reduction="batchmean", log_target=True
    )
    return recipe.teacher_share * hot**2 * soft + (1 - recipe.teacher_share) * hard


def _channels_last(network: Network) -> Network:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own stubs lack it
    return network


@torch.no_grad()
def logits_of(network: Network, pixels: Tensor) -> Tensor:
    """The network's logits, (B, 10), for pixels (B, 32, 32, 3) uint8."""
    network = _channels_last(copy.deepcopy(network)).eval()
    out = []
    for rows in torch.split(pixels, BATCH):
        with torch.autocast("cpu", torch.bfloat16):
            out.append(network.logits(augment.as_input(rows)).float())
    return torch.cat(out)


def teacher_logits(teacher: Network, split: Split, told: Callable[[int], None] = lambda _: None) -> Tensor:
    """(N_VIEWS, B, 10), the teacher's logits for each view of the train pictures."""
    answers = []
    for number in range(N_VIEWS):
        answers.append(logits_of(teacher, augment.view(split.pixels, number, VIEW_SEED, VIEW_MOST)))
        told(number + 1)
    return torch.stack(answers)


def timed_training(name: str, split: Split, teacher: Tensor | None, told: Told) -> tuple[Network, float]:
    """The trained network, and the seconds of one core it took (which waiting for other programs does not change)."""
    started = time.process_time()
    network = train(name, split, teacher, told)
    return network, time.process_time() - started
