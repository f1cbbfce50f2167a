"""Trained networks as the recipe keeps them between its steps, so that a stopped run resumes at the next model."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from coe.zoo.cifar10.networks import build
from coe.zoo.cifar10.train import N_VIEWS, RECIPES, TEACHER
from coe.zoo.network import Network


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
    """Writes what the teacher said of each view, (N_VIEWS, B, 10)."""
    torch.save(logits, folder / "teacher.part")
    (folder / "teacher.part").replace(folder / "teacher_logits.pt")


def kept_logits(folder: Path) -> Tensor | None:
    """What the teacher said of each view; None where the file is older than the teacher, or of other views."""
    path, teacher = folder / "teacher_logits.pt", folder / f"{TEACHER}.pt"
    if not (path.exists() and teacher.exists()) or path.stat().st_mtime < teacher.stat().st_mtime:
        return None
    logits: Tensor = torch.load(path, weights_only=True)
    return logits if len(logits) == N_VIEWS else None
