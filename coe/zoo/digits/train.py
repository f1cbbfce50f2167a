"""The training recipe: one-cycle AdamW on distorted copies, averaged weights, distillation from the best.

The best model learns from the labels. Most of the smaller ones learn from the labels and, to a lesser part, from
the best model's probabilities for the very same distorted digits. All of them see the 3,000 train digits alone.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coe.zoo.digits.networks import build
from coe.zoo.network import Network, follow

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
