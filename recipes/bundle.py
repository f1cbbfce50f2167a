"""The manifest that lies beside a task's bundled model files, and the log of the recipes that write it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe.config import format_yaml, read_yaml

FORMATS = {".onnx": "onnx", ".tflite": "tflite", ".pt": "torch"}


def log(text: str) -> None:
    """A line on standard output, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model file's line in the manifest.

    Args:
        made_by: the command that makes the file, where it is not bundled.
    """

    file: str
    architecture: str
    tier: int
    flops: int
    parameters: int
    calibration_accuracy: float
    made_by: str | None = None

    def as_yaml(self, folder: Path) -> dict[str, Any]:
        made = {} if self.made_by is None else {"made_by": self.made_by}
        return {
            "tier": self.tier,
            "sha256": hashlib.sha256((folder / self.file).read_bytes()).hexdigest(),
            "output": "probabilities",
            "flops": self.flops,
            "parameters": self.parameters,
            "calibration_accuracy": round(self.calibration_accuracy, 4),
            "architecture": self.architecture,
            "format": FORMATS[Path(self.file).suffix],
            **made,
        }


def write_manifest(folder: Path, header: str, contract: Mapping[str, Any], entries: Sequence[ModelEntry]) -> None:
    """Writes manifest.yaml; files that `entries` leaves out keep the lines they had.

    Args:
        header: comment lines.
        contract: the task, its labels and its input, as the manifest says them.
    """
    path = folder / "manifest.yaml"
    models: dict[str, Any] = {}
    if path.exists():
        models.update(read_yaml(path)["models"])
    models.update({entry.file: entry.as_yaml(folder) for entry in entries})
    models = {name: models[name] for name in sorted(models, key=lambda name: (models[name]["tier"], name))}
    text = format_yaml(dict(contract), default_flow_style=None, width=100)
    text += format_yaml({"models": models}, default_flow_style=False)
    path.write_text(header + text, encoding="utf-8")


def read_entries(folder: Path) -> list[ModelEntry]:
    """The manifest's lines, as they were written."""
    models = read_yaml(folder / "manifest.yaml")["models"]
    return [
        ModelEntry(
            file,
            one["architecture"],
            one["tier"],
            one["flops"],
            one["parameters"],
            one["calibration_accuracy"],
            one.get("made_by"),
        )
        for file, one in models.items()
    ]
