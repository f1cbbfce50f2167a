"""Training the CIFAR-10 networks, keeping them between runs, and exporting them.

Every epoch sees another view of each picture. A view has a number, and the same number is the same view: so a
teacher can answer it once for all the networks that learn from it.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. Weights are kept at a fixed
norm, because a normalisation follows each of these convolutions and their scale means nothing.

The best model learns from the labels. Most of the smaller ones learn from the labels and, to a part, from the best
model's probabilities for the very same views (distillation). All see train alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from coe_zoo.networks import Network, follow
from numpy.typing import NDArray
from torch import Tensor, nn

from recipes import bundle, export
from recipes.bundle import ModelEntry, log
from recipes.export import flops, opened, parameters, to_int8_onnx

from .data import LABELS, MEAN, SIDE, STD, Learning, Split
from .networks import Whitening, build


def view(pixels: NDArray[np.uint8], number: int, seed: int, most: int) -> Tensor:
    """One view of each picture, (B, 32, 32, 3) uint8.

    Args:
        pixels: (B, 32, 32, 3).
        number: of the view; from one to the next every picture is mirrored, so that two show both sides.
        most: pixels it moves at most, in each direction; what comes into sight is the mirror of the border.
    """
    mirrored = np.random.default_rng(seed).random(len(pixels)) < 0.5
    mirrored ^= number % 2 == 1
    places = np.random.default_rng([seed, number]).integers(0, 2 * most + 1, (2, len(pixels)))
    padded = np.pad(pixels, ((0, 0), (most, most), (most, most), (0, 0)), mode="reflect")
    out = np.empty_like(pixels)
    for top in range(2 * most + 1):
        for left in range(2 * most + 1):
            here = (places[0] == top) & (places[1] == left)
            seen = padded[:, top : top + SIDE, left : left + SIDE]
            out[here & ~mirrored] = seen[here & ~mirrored]
            out[here & mirrored] = seen[here & mirrored, :, ::-1]
    return torch.from_numpy(out)


def as_input(pixels: Tensor) -> Tensor:
    """(B, 3, 32, 32) normalised float32 in the channels-last order of its (B, 32, 32, 3) uint8 pixels."""
    x = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return x.permute(0, 3, 1, 2)


def cut_out(x: Tensor, size: int) -> Tensor:
    """x, (B, 3, 32, 32), with a grey square of `size` pixels somewhere in each picture."""
    if size == 0:
        return x
    corner = torch.randint(0, SIDE - size + 1, (2, len(x), 1))
    place = torch.arange(SIDE)
    down, across = (place >= corner) & (place < corner + size)  # (B, 32) each
    return x.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0.0)


def orthogonal(g: Tensor, steps: int = 3) -> Tensor:
    """(R, C) nearly orthogonal, in the directions of g (R, C); Newton-Schulz, with coefficients that hurry."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    x = x / (x.norm() + 1e-7)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    out: Tensor = (x.T if g.shape[0] > g.shape[1] else x).to(g.dtype)
    return out


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, on convolution weights (O, I, H, W) of norm sqrt(O)."""

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.6) -> None:
        super().__init__(list(weights), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                kept = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                kept.mul_(group["momentum"]).add_(weight.grad)
                direction = weight.grad.add(kept, alpha=group["momentum"])
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                update = orthogonal(direction.reshape(len(weight), -1)).reshape(weight.shape)
                weight.add_(update, alpha=-group["lr"])


def optimisers(network: nn.Module, lr: float, rest_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions that mix channels, AdamW for everything else."""
    mixing = [
        layer.weight
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.bias is None and layer.weight.requires_grad
    ]
    known = {id(weight) for weight in mixing}
    rest = [p for p in network.parameters() if id(p) not in known and p.requires_grad]
    matrices, free = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": free, "weight_decay": 0.0}]
    return [Muon(mixing, lr), torch.optim.AdamW(groups, lr=rest_lr, betas=(0.9, 0.95))]


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
OnEpoch = Callable[[str, int, float, Network], None]


def train(name: str, split: Split, teacher: Tensor | None = None, on_epoch: OnEpoch = lambda *_: None) -> Network:
    """The network `name`, trained.

    Args:
        name: an architecture that has a recipe.
        split: what it learns from.
        teacher: (N_VIEWS, B, 10), the best model's logits for each view; needed where the recipe has a share for it.
        on_epoch: called after each epoch with the name, its number, its mean loss, and the averaged network.
    """
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    network = _channels_last(build(name))
    labels = torch.from_numpy(split.labels)
    for layer in network.modules():
        if isinstance(layer, Whitening):
            layer.fit(as_input(torch.from_numpy(split.pixels[:5000])))
    averaged = copy.deepcopy(network)
    steps = recipe.epochs * -(-len(labels) // BATCH)
    working = optimisers(network, recipe.lr, recipe.rest_lr)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, _triangle(steps, recipe.warm_share)) for one in working]
    for epoch in range(recipe.epochs):
        pixels, soft = _shown(split.pixels, epoch, recipe, teacher)  # (B, 32, 32, 3), (B, 10)
        total = 0.0
        for rows in torch.split(torch.randperm(len(labels)), BATCH):
            x = cut_out(as_input(pixels[rows]), recipe.cut)
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
        on_epoch(name, epoch + 1, total / len(labels), averaged)
    return averaged.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


def _shown(
    pixels: NDArray[np.uint8], epoch: int, recipe: Recipe, teacher: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What an epoch learns from: its view of the pictures and, where there is a teacher, its logits for it."""
    if recipe.teacher_share == 0:
        return view(pixels, epoch, recipe.seed, recipe.move), None
    if teacher is None:
        raise ValueError("expected the best model's logits, which this network learns from")
    number = epoch % N_VIEWS
    return view(pixels, number, VIEW_SEED, VIEW_MOST), teacher[number]


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
            out.append(network.logits(as_input(rows)).float())
    return torch.cat(out)


def teacher_logits(teacher: Network, split: Split, on_view: Callable[[int], None] = lambda _: None) -> Tensor:
    """(N_VIEWS, B, 10), the teacher's logits for each view of the train pictures."""
    answers = []
    for number in range(N_VIEWS):
        answers.append(logits_of(teacher, view(split.pixels, number, VIEW_SEED, VIEW_MOST)))
        on_view(number + 1)
    return torch.stack(answers)


def timed_training(name: str, split: Split, teacher: Tensor | None, on_epoch: OnEpoch) -> tuple[Network, float]:
    """The trained network, and the seconds of one core it took (which waiting for other programs does not change)."""
    started = time.process_time()
    network = train(name, split, teacher, on_epoch)
    return network, time.process_time() - started


@dataclass(frozen=True, slots=True)
class Trained:
    """A network, and the seconds of one core that its training took."""

    name: str
    network: Network
    seconds: float


def keep(trained: Trained, folder: Path) -> None:
    """Writes NAME.pt, whole or not at all."""
    path = folder / f"{trained.name}.pt"
    content = {
        "state": trained.network.state_dict(),
        "seconds": trained.seconds,
        "recipe": asdict(RECIPES[trained.name]),
    }
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def kept(name: str, folder: Path) -> Trained | None:
    """The network `name` as it was trained before; None where it was not, or by another recipe."""
    path = folder / f"{name}.pt"
    if not path.exists():
        return None
    content = torch.load(path, weights_only=True)
    if content["recipe"] != asdict(RECIPES[name]):
        return None
    network = build(name)
    network.load_state_dict(content["state"])
    return Trained(name, network.eval(), float(content["seconds"]))


def keep_logits(logits: Tensor, folder: Path) -> None:
    """Writes what the teacher answers on each view, (N_VIEWS, B, 10)."""
    torch.save(logits, folder / "teacher.part")
    (folder / "teacher.part").replace(folder / "teacher_logits.pt")


def kept_logits(folder: Path) -> Tensor | None:
    """The teacher's answers on each view; None where the file is older than the teacher, or of other views."""
    path, teacher = folder / "teacher_logits.pt", folder / f"{TEACHER}.pt"
    if not (path.exists() and teacher.exists()) or path.stat().st_mtime < teacher.stat().st_mtime:
        return None
    logits: Tensor = torch.load(path, weights_only=True)
    return logits if len(logits) == N_VIEWS else None


CHUNK = 250
WARM_UP = 50


def answers(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, 10), the probabilities that the file gives for x (B, 3, 32, 32), on one thread."""
    predict = opened(path)
    return np.concatenate([predict(rows) for rows in np.array_split(x, max(1, len(x) // CHUNK))])


def one_by_one(path: Path, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(B, 10) probabilities and (B,) seconds: each picture alone, once, on one thread."""
    predict = opened(path)
    rows, seconds = [], []
    for place in range(WARM_UP):
        predict(x[place % len(x)][None])
    for picture in x:
        one = picture[None]
        started = time.perf_counter()
        rows.append(predict(one))
        seconds.append(time.perf_counter() - started)
    return np.concatenate(rows), np.array(seconds, dtype=np.float32)


PRODUCER = "coe.zoo.cifar10"
SHAPE = (3, SIDE, SIDE)  # of one picture, as models take it
INPUT = {
    "kind": "image",
    "size": [SIDE, SIDE],
    "channels": 3,
    "layout": "NCHW",
    "dtype": "float32",
    "scale": 1 / 255,
    "mean": list(MEAN),
    "std": list(STD),
}
DISTILLED = [name for name in TIERS if RECIPES[name].teacher_share]
HEADER = f"""\
# The models of the CIFAR-10 task, written by `python -m recipes.cifar10`; do not edit.
# All learned from the same 45,000 train pictures; {", ".join(DISTILLED)}
# also, to a part, from {TEACHER}'s answers to them (distillation). calibration_accuracy is that of the file itself on
# the 5,000 calibration pictures. An example is (32, 32, 3) uint8 RGB pixels, or a JPEG or PNG of them.
"""
SUFFIXES = {  # what is exported, by tier
    1: ("onnx", "int8.onnx", "tflite", "int8.tflite"),
    2: ("onnx", "int8.tflite"),
    3: ("onnx",),
    4: ("onnx",),
}
NOT_BUNDLED = {1: ("tflite",), 2: ("int8.tflite",)}  # for their size; the recipe makes them, as the manifest says
MADE_BY = "python -m recipes.cifar10 --data DIR"
N_RANGES = 512  # train pictures on which 8-bit files read the ranges of their activations
MOST_APART = 1e-2  # between the probabilities of weights in 16 and in 32 bits


def exported(one: Trained, learning: Learning, folder: Path) -> list[ModelEntry]:
    """Writes the network's files and measures each of them on calibration."""
    tier = TIERS[one.name]
    for suffix in SUFFIXES[tier]:
        _export(one, suffix, learning, folder)
    x, labels = learning.calibration.x(), learning.calibration.labels
    entries = []
    for suffix in SUFFIXES[tier]:
        file = f"{one.name}.{suffix}"
        accuracy = float((answers(folder / file, x).argmax(axis=1) == labels).mean())
        log(f"{file}: {accuracy:.2%} on calibration, {(folder / file).stat().st_size:,} bytes")
        made_by = MADE_BY if suffix in NOT_BUNDLED.get(tier, ()) else None
        entries.append(
            ModelEntry(file, one.name, tier, flops(one.network, SHAPE), parameters(one.network), accuracy, made_by)
        )
    return entries


def _export(one: Trained, suffix: str, learning: Learning, folder: Path) -> None:
    path = folder / f"{one.name}.{suffix}"
    if suffix == "onnx":
        export.to_onnx(one.network, path, SHAPE, PRODUCER)
        x = learning.calibration.x()
        exact = answers(path, x)
        export.to_onnx(one.network, path, SHAPE, PRODUCER, half=True)
        apart = float(np.abs(answers(path, x) - exact).max())
        if apart > MOST_APART:  # keep the weights as they are
            export.to_onnx(one.network, path, SHAPE, PRODUCER)
    elif suffix == "int8.onnx":
        pictures = learning.train.take(np.arange(N_RANGES)).x()
        to_int8_onnx(folder / f"{one.name}.onnx", path, pictures, PRODUCER)
    else:
        export.to_tflite(one.network, path, SHAPE, int8=suffix == "int8.tflite")


def write_manifest(folder: Path, entries: list[ModelEntry]) -> None:
    """Writes manifest.yaml."""
    bundle.write_manifest(folder, HEADER, {"task": "cifar10", "labels": list(LABELS), "input": INPUT}, entries)
