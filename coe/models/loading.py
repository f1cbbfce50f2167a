"""The description of a model file, and its loading: verified, opened by its runtime, and tried once.

A runtime is one module with a `load(data, spec, options) -> LoadedMember`, which may be the member's class. To add one:
write that module, name it in `RUNTIMES`, and add it to the tests of all runtimes. Those of ONNX and TFLite have
`read_signature`, too.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coe.cascade.errors import ModelError, RuntimeMissing
from coe.cascade.tier import Member
from coe.cascade.types import Array

from .input_spec import InputSpec
from .onnx_file import external_files, inlined, labels_in, labels_of_text


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
    _check_digest(data, path, sha256)
    return data


def _check_digest(data: bytes, path: Path, sha256: str | None) -> None:
    if sha256 is not None:
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ModelError(
                f"{path}: expected sha256 {sha256[:16]}.., got {found[:16]}.. "
                f"(the file changed: fetch it again, or declare its new checksum)"
            )


FORMATS = {  # by file suffix
    ".onnx": "onnx",
    ".tflite": "tflite",
    ".pt": "torch",
    ".pt2": "torch-export",
    ".ts": "torchscript",
}
SKLEARN = "skl2onnx.to_onnx(model, x[:1].astype('float32'), options={'zipmap': False})"
EXPORTS = {  # of formats that are not run here: what makes ONNX of them
    ".joblib": SKLEARN,
    ".pkl": SKLEARN,
    ".pickle": SKLEARN,
    ".ubj": "onnxmltools.convert_xgboost(model, initial_types=[('x', FloatTensorType([None, N]))])",
    ".keras": "model.export('model.onnx', format='onnx')",
    ".safetensors": "optimum-cli export onnx --model FOLDER OUT, or torch.onnx.export(model, x, 'model.onnx')",
    ".pb": "python -m tf2onnx.convert --saved-model FOLDER --output model.onnx",
}
EXPORTS |= {
    ".h5": EXPORTS[".keras"],
    ".pth": "torch.onnx.export(model.eval(), x, 'model.onnx', dynamic_shapes=({0: 'batch'},))",
    ".bst": EXPORTS[".ubj"],
    ".json": EXPORTS[".ubj"],
    ".txt": "onnxmltools.convert_lightgbm(model, initial_types=[('x', FloatTensorType([None, N]))], zipmap=False)",
}


@dataclass(frozen=True)
class ModelSpec:
    """One model file and what is declared of it.

    Args:
        name: how reports call it.
        sha256: hex digest the file must have; None: not checked.
        pinned: the digest comes from the operator's own config, not from a manifest that travels with the file.
        output: "probabilities" or "logits".
        output_name: of the output to take; None: the one with a place for each label.
        own_labels: names of the model's outputs in its own order, where that is not the task's. A name that is none of
            the task's is left out; a label that the model does not have gets probability 0.
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
    output_name: str | None = None
    own_labels: tuple[str, ...] = ()

    def digest(self) -> str | None:
        """The declared digest, or else the file's; None where it cannot be read, which is found as it is loaded."""
        if self.sha256 is not None:
            return self.sha256
        try:
            return hashlib.sha256(b"".join(_read_parts(self).values())).hexdigest()
        except ModelError:
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
        limits: of a quantised one: the numbers that its smallest and its largest integer stand for.
    """

    name: str
    dtype: str
    dims: tuple[int | None, ...]
    limits: tuple[float, float] | None = None


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
        export = EXPORTS.get(path.suffix)
        fix = "set `format:` or rename the file" if export is None or declared else f"export it to ONNX: {export}"
        raise ModelError(
            f"{path}: expected a model format ({', '.join(known)}), got {declared or path.suffix or 'no suffix'!r} "
            f"({fix})"
        )
    return found


def first_line(error: Exception) -> str:
    """What a runtime's error says, cut to one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def as_rows(output: Array, n_labels: int, *, is_logits: bool) -> Array:
    """(B, L) of an output whose other axes are 1 long; for two labels, of one number an example: of the second."""
    output = output.reshape(len(output), -1)
    if n_labels == 2 and output.shape[1] == 1:
        first = np.zeros_like(output) if is_logits else 1 - output
        return np.concatenate([first, output], axis=1, dtype=np.float32)
    return output.astype(np.float32, copy=False)


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
    _check_labels(spec, data)
    runtime = importlib.import_module(RUNTIMES[spec.format])
    own = replace(spec, labels=spec.own_labels) if spec.own_labels else spec
    member: LoadedMember = runtime.load(data, own, options or RunOptions())
    try:
        try_out(member, own)
    except BaseException:
        member.close()
        raise
    return RelabelledMember(member, spec) if own.labels != spec.labels else member


class RelabelledMember:
    """A member whose outputs are put into the order of the task's labels."""

    def __init__(self, member: LoadedMember, spec: ModelSpec) -> None:
        self.name, self.prepare, self.runs_on = member.name, member.prepare, member.runs_on
        self.n_labels = len(spec.labels)
        self._member = member
        self._to = [at for at, label in enumerate(spec.labels) if label in spec.own_labels]
        self._from = [spec.own_labels.index(spec.labels[at]) for at in self._to]
        self._is_whole = len(self._from) == len(spec.own_labels)

    def predict(self, x: Array) -> Array:
        own = self._member.predict(x)
        output = np.zeros((len(own), self.n_labels), dtype=np.float32)
        output[:, self._to] = own[:, self._from]
        if not self._is_whole:  # shares of the labels that are the task's
            output /= np.maximum(output.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return output

    def close(self) -> None:
        self._member.close()


def file_labels(path: Path, data: bytes, n_labels: int) -> tuple[str, ...]:
    """The names of the outputs that a model file holds; () where it holds none, or only their numbers."""
    if FORMATS.get(path.suffix) == "onnx":
        found = labels_in(data)
    elif FORMATS.get(path.suffix) == "tflite" and b"PK\5\6" in data[-(2**16) :]:
        import zipfile

        with zipfile.ZipFile(io.BytesIO(data)) as files:  # that its metadata puts behind it
            texts = [files.read(name) for name in files.namelist() if name.lower().endswith(".txt")]
        found = [labels_of_text(text.decode("utf-8", "replace")) for text in texts]
    else:
        found = []
    numbers = tuple(map(str, range(n_labels)))
    return next((labels for labels in found if len(labels) == n_labels and labels != numbers), ())


def own_labels(found: Sequence[str], labels: tuple[str, ...]) -> tuple[str, ...]:
    """The `labels:` of a member whose file names its outputs so: the task's names in that order, or in their own where
    the file has other names; () where both are the same.
    """
    here, there = ([label.strip().casefold() for label in names] for names in (found, labels))
    if not here or here == there:
        return ()
    return tuple(labels[there.index(one)] for one in here) if sorted(here) == sorted(there) else labels


def _check_labels(spec: ModelSpec, data: bytes) -> None:
    """An error where the file names its outputs otherwise than the task; where a member says `labels:`, that counts."""
    found = () if spec.own_labels else file_labels(spec.path, data, len(spec.labels))
    own = own_labels(found, spec.labels)
    if not own:
        return
    fix = f"add `labels: [{', '.join(own)}]` to this member"
    if own == spec.labels:
        fix = "add `labels:` to this member, the task's names in the order of its outputs"
    shown = [", ".join(labels[:10]) + (", .." if len(labels) > 10 else "") for labels in (spec.labels, found)]
    raise ModelError(f"{spec.path}: expected outputs for {shown[0]}, got a file that names them {shown[1]} ({fix})")


def read_signature(path: Path) -> ModelSignature:
    """Inputs and outputs of an ONNX or TFLite file.

    Raises:
        ModelError: it cannot be read, or its runtime cannot load it.
        RuntimeMissing: the package that runs this format is not installed.
    """
    runtime = importlib.import_module(RUNTIMES[format_of(path)])
    data = read_file(path, None, "the model file")
    if format_of(path) == "onnx" and (names := external_files(data)):
        data = inlined(data, {name: read_file(path.parent / name, None, "its external data") for name in names})
    signature: ModelSignature = runtime.read_signature(data, path)
    return signature


def read_verified(spec: ModelSpec) -> bytes:
    """The bytes of a model file, with those of an ONNX file's external data in it.

    Raises:
        ModelError: missing, unreadable, or another checksum than declared: that of the file and of its external data
            behind it, as `cat model.onnx model.onnx.data | sha256sum` gives it.
    """
    parts = _read_parts(spec)
    whole = b"".join(parts.values()) if len(parts) > 1 else parts[spec.path.name]
    _check_digest(whole, spec.path, spec.sha256)
    return inlined(parts[spec.path.name], parts) if len(parts) > 1 else whole


def _read_parts(spec: ModelSpec) -> dict[str, bytes]:
    """A model's files by name, its own first."""
    data = read_file(spec.path, None, "the model file", spec.made_by)
    parts = {spec.path.name: data}
    try:
        for name in external_files(data) if spec.format == "onnx" else ():
            parts[name] = read_file(spec.path.parent / name, None, "its external data")
    except ModelError as error:
        fix = " (copy it too, or export with external_data=False)" if "cannot be read" in str(error) else ""
        raise ModelError(f"{spec.path}: {error}{fix}") from None
    return parts


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
