"""What a published model says of itself, and the manifest that says it our way."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from coe.cascade.errors import ConfigError

SUFFIX = ".onnx"
RESAMPLING = ("bilinear", "bicubic")


@dataclass(frozen=True, slots=True)
class Described:
    """One model, or several exports of it, as a manifest has it.

    Args:
        labels: in the order of the model's outputs.
        input: the manifest's `input:`.
        output: "probabilities" or "logits".
        architecture: as its publisher calls it.
        notes: where our input differs from the publisher's: what to know before comparing accuracies.
    """

    labels: tuple[str, ...]
    input: Mapping[str, Any]
    output: str
    architecture: str
    notes: Sequence[str] = field(default=())


def model_files(folder: Path) -> list[Path]:
    """The ONNX files of a folder, and of its `onnx` folder, where exporters put them.

    Raises:
        ConfigError: there are none.
    """
    found = sorted(folder.glob(f"*{SUFFIX}")) or sorted(folder.glob(f"onnx/*{SUFFIX}"))
    if not found:
        raise ConfigError([f"{folder}: expected an exported model ({SUFFIX}), got none (export it; see own-models.md)"])
    return found


def write_manifest(described: Described, task: str, files: Sequence[Path]) -> Path:
    """The manifest beside the files, with their checksums. A manifest that is there keeps its other models.

    Raises:
        ConfigError: the manifest that is there is of another task.
    """
    path = files[0].parent / "manifest.yaml"
    content: dict[str, Any] = {"task": task, "labels": list(described.labels), "input": _of_task(described.input)}
    models: dict[str, Any] = {}
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        if (before.get("task"), before.get("labels")) != (task, content["labels"]):
            raise ConfigError(
                [f"{path}: expected the task {task} with {len(described.labels)} labels, got {before.get('task')} "
                 f"with {len(before.get('labels', []))} (write into another folder, or take the file away)"]
            )  # fmt: skip
        content["input"], models = before["input"], before["models"]
    for file in files:
        models[file.name] = {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "output": described.output,
            "architecture": described.architecture,
            "input": dict(described.input),
        }
    notes = "".join(f"# {line}\n" for line in described.notes)
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    text += yaml.safe_dump({"models": models}, sort_keys=False, default_flow_style=None, width=100)
    path.write_text(notes + text, encoding="utf-8")
    return path


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Labels told apart: of two that are called "crane", as in ImageNet, the later gets its number."""
    seen: set[str] = set()
    found = []
    for number, name in enumerate(names):
        found.append(f"{name} ({number})" if name in seen else name)
        seen.add(name)
    return tuple(found)


def _of_task(model_input: Mapping[str, Any]) -> dict[str, Any]:
    """What an example is, without one model's own tokenizer."""
    return {key: value for key, value in model_input.items() if not key.startswith("tokenizer")}


def image_input(
    size: Sequence[int],
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    fit: str,
    crop_share: float = 1.0,
    resample: str = "bilinear",
) -> dict[str, Any]:
    """An image `input:`; size (height, width). Scaling that is neither bilinear nor bicubic becomes bilinear."""
    found = {
        "kind": "image",
        "size": list(size),
        "channels": len(mean) if len(mean) in (1, 3) else 3,
        "layout": "NCHW",
        "dtype": "float32",
        "scale": scale,
        "mean": list(mean),
        "std": list(std),
        "fit": fit,
    }
    if fit == "crop" and abs(crop_share - 1) > 1e-3:
        found["crop_share"] = round(crop_share, 4)
    return found | ({"resample": resample} if resample == "bicubic" else {})


def scaling_notes(resample: str) -> list[str]:
    """Where pixels are not scaled as published."""
    return [] if resample in RESAMPLING else [f"Published with {resample} scaling; here it is bilinear."]
