"""Tiny models in every format, and the folder they are written to."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import LinearModel

from coe.cascade.types import Array
from coe.config.manifest import read_manifest
from coe.models import InputSpec, LoadedMember, ModelSpec
from coe.zoo import digits

CONTRACT = InputSpec("image", (4, 4, 1), scale=1 / 255)
LABELS = ("a", "b", "c")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Shelf:
    """Writes model files into one folder and declares them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, data: bytes, **declared: Any) -> ModelSpec:
        path = self.folder / name
        path.write_bytes(data)
        suffixes = {".onnx": "onnx", ".tflite": "tflite", ".pt": "torch", ".pt2": "torch-export", ".ts": "torchscript"}
        spec = ModelSpec(name, path, suffixes[path.suffix], LABELS, CONTRACT, sha256=digest(data))
        return replace(spec, **declared)


@dataclass(frozen=True)
class Case:
    """A member to hold to the contract, and examples (B, ...) as they come through the door."""

    open: Callable[[], LoadedMember]
    examples: Array
    n_labels: int
    model_shape: tuple[int, ...]
    dtype: str = "float32"


def pixels(n: int, height: int = 4, width: int = 4) -> Array:
    return np.random.default_rng(7).integers(0, 256, (n, height, width, 1), dtype=np.uint8)


def linear_module(end: str = "softmax") -> Any:
    import torch

    model = LinearModel()
    layers = [torch.nn.Flatten(), torch.nn.Linear(16, 3)]
    if end == "softmax":
        layers.append(torch.nn.Softmax(1))
    module = torch.nn.Sequential(*layers)
    with torch.no_grad():
        module[1].weight.copy_(torch.from_numpy(model.weight.T))
        module[1].bias.copy_(torch.from_numpy(model.bias))
    return module.eval()


def weights_file(end: str = "softmax") -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(linear_module(end).state_dict(), buffer)
    return buffer.getvalue()


def bundled(name: str) -> ModelSpec:
    if not (digits.MANIFEST.is_file() and (digits.FOLDER / name).is_file()):
        pytest.skip(f"the bundled model {name} is not here yet")
    return read_manifest(digits.FOLDER).models[name]
