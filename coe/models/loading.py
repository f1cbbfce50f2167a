"""The description of a model file, and its loading: verified, opened by its runtime, and tried once.

A runtime is one module with a `load(data, spec, options) -> LoadedMember`, which may be the member's class. To add one:
write that module, name it in `RUNTIMES`, and add it to the tests of all runtimes. Those of ONNX and TFLite have
`read_signature`, too.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coe.cascade.errors import ModelError, RuntimeMissing
from coe.cascade.tier import Member
from coe.cascade.types import Array

from .input_spec import InputSpec


def read_file(path: Path, sha256: str | None, what: str, made_by: str | None = None) -> bytes:
    """The bytes of a file, which are then what is loaded: nothing can change in between.

    Args:
        sha256: hex digest it must have; None: not checked.
        what: what it is, for errors.
        made_by: the command that makes it, where it is not there to begin with.
    Raises:
        ModelError: missing, unreadable, or another checksum than declared.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        fix = "" if made_by is None else f" (it is not bundled; {made_by} makes it)"
        raise ModelError(f"{path}: {what} cannot be read: {error.strerror}{fix}") from None
    if sha256 is not None:
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ModelError(
                f"{path}: expected sha256 {sha256[:16]}.., got {found[:16]}.. "
                f"(the file changed: fetch it again, or declare its new checksum)"
            )
    return data


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
    input_spec: InputSpec
    output: str = "probabilities"
    sha256: str | None = None
    pinned: bool = False
    flops: float | None = None
    parameters: int | None = None
    calibration_accuracy: float | None = None
    architecture: str | None = None
    made_by: str | None = None

    def digest(self) -> str | None:
        """The declared digest, or else the file's; None where it cannot be read, which is found as it is loaded."""
        if self.sha256 is not None:
            return self.sha256
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError:
            return None


@dataclass(frozen=True)
class RunOptions:
    """How members run.

    Args:
        threads: of one member; `coe.models.pool` splits a tier's budget.
        providers: ONNX Runtime execution providers by preference: "cpu", "cuda", "tensorrt".
        device: torch device.
    """

    threads: int = 1
    providers: tuple[str, ...] = ("cpu",)
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a model file.

    Args:
        dtype: as NumPy names it, or as its runtime does, where NumPy has none.
        dims: None where one is free; the first is the batch's.
    """

    name: str
    dtype: str
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """What a model file takes and gives, as its runtime says."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


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


def first_line(error: Exception) -> str:
    """What a runtime's error says, cut to one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def softmax(logits: Array) -> Array:
    """(B, L) float32 probabilities."""
    logits = logits.astype(np.float32, copy=False)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def import_runtime(module: str, runtime: str, fix: str) -> Any:
    """A runtime's module, imported only when a model needs it.

    Raises:
        RuntimeMissing: it is not installed, or its own import fails.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        detail = "" if isinstance(error, ModuleNotFoundError) else f" (importing {module} failed: {error})"
        raise RuntimeMissing(runtime, fix + detail) from None


RUNTIMES = {  # format -> module, imported only when a model needs it
    "onnx": "coe.models.onnx",
    "tflite": "coe.models.tflite",
    "torch": "coe.models.torch",
    "torch-export": "coe.models.torch",
    "torchscript": "coe.models.torch",
}


def load(spec: ModelSpec, options: RunOptions | None = None) -> LoadedMember:
    """The member in a model file: its checksum verified, loaded, tried once on zeros.

    Raises:
        ModelError: missing, changed, not loadable, or not of the declared input or number of labels.
        RuntimeMissing: the package that runs this format is not installed.
    """
    data = read_verified(spec)
    runtime = importlib.import_module(RUNTIMES[spec.format])
    member: LoadedMember = runtime.load(data, spec, options or RunOptions())
    try:
        try_out(member, spec)
    except BaseException:
        member.close()
        raise
    return member


def read_signature(path: Path) -> ModelSignature:
    """Inputs and outputs of an ONNX or TFLite file.

    Raises:
        ModelError: it cannot be read, or its runtime cannot load it.
        RuntimeMissing: the package that runs this format is not installed.
    """
    runtime = importlib.import_module(RUNTIMES[format_of(path)])
    signature: ModelSignature = runtime.read_signature(read_file(path, None, "the model file"), path)
    return signature


def read_verified(spec: ModelSpec) -> bytes:
    """The bytes of a model file.

    Raises:
        ModelError: missing, unreadable, or another checksum than declared.
    """
    return read_file(spec.path, spec.sha256, "the model file", spec.made_by)


def try_out(member: Member, spec: ModelSpec) -> None:
    """Two blank examples: the shapes fit, the numbers are probabilities, and the model is warm."""
    x = spec.input_spec.trial(2)
    try:
        output = member.predict(x)
        member.predict(x[:1])  # a runtime plans each batch size anew; one example at a time is what devices do
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - each runtime raises its own kinds
        declared = f"{spec.input_spec.dtype} {list(x.shape)} as declared"
        raise ModelError(f"{spec.path}: the model does not take {declared}: {first_line(error)}") from None
    if output.shape != (2, len(spec.labels)):
        raise ModelError(
            f"{spec.path}: expected an output of [2, {len(spec.labels)}] for two examples (one probability per label), "
            f"got {list(output.shape)}"
        )
    total = float(output[0].sum())
    if not abs(total - 1.0) < 0.02 or float(output.min()) < -1e-3:
        raise ModelError(
            f"{spec.path}: expected probabilities that sum to 1, got a sum of {total:.4g} "
            f"(declare `output: logits` if it ends before the softmax)"
        )
