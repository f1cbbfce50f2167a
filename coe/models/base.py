"""What every runtime shares: the description of a model file, how members run, and small helpers."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coe.cascade.errors import ModelError
from coe.cascade.tier import Member
from coe.cascade.types import Array

from .contract import Contract

FORMATS = {  # by file suffix
    ".onnx": "onnx",
    ".tflite": "tflite",
    ".pt": "torch",
    ".pt2": "torch-export",
    ".ts": "torchscript",
}


@dataclass(frozen=True)
class ModelSpec:
    """One model file and what is declared of it.

    Args:
        name: how reports call it.
        sha256: hex digest the file must have; None: not checked.
        pinned: the digest comes from the operator's own config, not from a manifest that travels with the file.
        output: "probabilities" or "logits".
        flops: operations for one example (a multiply-add counts as two); None: not known.
        made_by: the command that makes the file, where a manifest names one that is not bundled.
    """

    name: str
    path: Path
    format: str
    labels: tuple[str, ...]
    contract: Contract
    output: str = "probabilities"
    sha256: str | None = None
    pinned: bool = False
    flops: float | None = None
    parameters: int | None = None
    calibration_accuracy: float | None = None
    architecture: str | None = None
    made_by: str | None = None


@dataclass(frozen=True)
class RunOptions:
    """How members run.

    Args:
        threads: of one member; `coe.models.threads` splits a tier's budget.
        providers: ONNX Runtime execution providers by preference: "cpu", "cuda", "tensorrt".
        device: torch device.
    """

    threads: int = 1
    providers: tuple[str, ...] = ("cpu",)
    device: str = "cpu"


class LoadedMember(Member, Protocol):
    """A member that also says what runs it, for the start-up line."""

    @property
    def runs_on(self) -> str: ...


def format_of(path: Path, declared: str | None = None) -> str:
    """The format of a model file, declared or by its suffix.

    Raises:
        ModelError: neither says.
    """
    known = FORMATS.values()
    found = declared or FORMATS.get(path.suffix)
    if found is None or found not in known:
        raise ModelError(
            f"{path}: expected a model format ({', '.join(known)}), got {declared or path.suffix or 'no suffix'!r} "
            f"(set `format:` or rename the file)"
        )
    return found


def softmax(logits: Array) -> Array:
    """(B, L) float32 probabilities."""
    logits = logits.astype(np.float32, copy=False)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def import_runtime(module: str, runtime: str, mend: str) -> Any:
    """A runtime's module, imported only when a model needs it.

    Raises:
        RuntimeMissing: it is not installed, or its own import fails.
    """
    from coe.cascade.errors import RuntimeMissing

    try:
        return importlib.import_module(module)
    except ImportError as error:
        detail = "" if isinstance(error, ModuleNotFoundError) else f" (importing {module} failed: {error})"
        raise RuntimeMissing(runtime, mend + detail) from None
