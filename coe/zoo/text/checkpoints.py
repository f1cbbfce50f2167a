"""What the recipe keeps between its steps, so that a stopped run resumes at the next network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coe.zoo.text.members import TEACHER, empty, recipe_of
from coe.zoo.text.train import Lesson, Probabilities


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
    """Writes what the teacher said of the train texts and of their spans."""
    np.savez(folder / "teacher.part.npz", on_texts=on_texts, spans=np.array(spans.texts), on_spans=spans.targets)
    (folder / "teacher.part.npz").replace(folder / "teacher.npz")


def kept_answers(folder: Path) -> tuple[Probabilities, Lesson] | None:
    """What the teacher said; None where it was not asked, or the file is older than the teacher."""
    path, teacher = folder / "teacher.npz", folder / f"{TEACHER}.pt"
    if not (path.exists() and teacher.exists()) or path.stat().st_mtime < teacher.stat().st_mtime:
        return None
    with np.load(path) as told:
        return told["on_texts"], Lesson(told["spans"].tolist(), told["on_spans"])
