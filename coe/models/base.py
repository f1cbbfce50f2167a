"""The small interface every runtime fits, and the check every loaded member must pass.

A runtime is one module with one function, `load(data, spec, options) -> Member`; `coe.models.load` picks it by
the file's format. To add one: write that module, name it in `RUNTIMES`, and add it to the contract tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coe.cascade.errors import ModelError
from coe.cascade.tier import Member
from coe.cascade.types import Array

from .inputs import Contract

RUNTIMES = {  # file suffix -> format, format -> module
    "suffix": {
        ".onnx": "onnx",
        ".tflite": "tflite",
        ".pt": "torch",
        ".pt2": "torch-export",
        ".ts": "torchscript",
    },
    "module": {
        "onnx": "coe.models.onnx",
        "tflite": "coe.models.tflite",
        "torch": "coe.models.torch",
        "torch-export": "coe.models.torch",
        "torchscript": "coe.models.torch",
    },
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


@dataclass(frozen=True)
class RunOptions:
    """How members run.

    Args:
        threads: of one member; members side by side take this many each.
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


Loader = Callable[[bytes, ModelSpec, RunOptions], LoadedMember]


def load(spec: ModelSpec, options: RunOptions | None = None) -> LoadedMember:
    """The member in a model file: its checksum verified, loaded, tried once on zeros.

    Raises:
        ModelError: missing, changed, not loadable, or not of the declared input or number of labels.
        RuntimeMissing: the package that runs this format is not installed.
    """
    from .manifest import read_verified

    data = read_verified(spec)
    module = importlib.import_module(RUNTIMES["module"][spec.format])
    loader: Loader = module.load
    member = loader(data, spec, options or RunOptions())
    try:
        try_out(member, spec)
    except BaseException:
        member.close()
        raise
    return member


def format_of(path: Path, declared: str | None = None) -> str:
    """The format of a model file, declared or by its suffix.

    Raises:
        ModelError: neither says.
    """
    known = RUNTIMES["module"]
    found = declared or RUNTIMES["suffix"].get(path.suffix)
    if found not in known:
        raise ModelError(
            f"{path}: expected a model format ({', '.join(known)}), got {declared or path.suffix or 'no suffix'!r} "
            f"(set `format:` or rename the file)"
        )
    return found


def try_out(member: Member, spec: ModelSpec) -> None:
    """One prediction on zeros: the shapes fit, the numbers are probabilities, and the model is warm."""
    x = np.zeros((1, *spec.contract.model_shape), dtype=spec.contract.dtype)
    try:
        output = member.predict(x)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - each runtime raises its own kinds
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{spec.path}: the model does not take {spec.contract.dtype} {list(x.shape)} as declared: {reason}"
        ) from None
    if output.shape != (1, len(spec.labels)):
        raise ModelError(
            f"{spec.path}: expected an output of [1, {len(spec.labels)}] (one probability per label), "
            f"got {list(output.shape)}"
        )
    total = float(output.sum())
    if not abs(total - 1.0) < 0.02 or float(output.min()) < -1e-3:
        raise ModelError(
            f"{spec.path}: expected probabilities that sum to 1, got a sum of {total:.4g} "
            f"(declare `output: logits` if it ends before the softmax)"
        )


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
