"""LiteRT/TFLite members: ai-edge-litert, or the older tflite-runtime where that is what is installed."""

from __future__ import annotations

import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from coe.cascade.errors import ModelError, RuntimeMissing
from coe.cascade.tier import Prepare
from coe.cascade.types import Array

from .loading import (
    ModelSignature,
    ModelSpec,
    RunOptions,
    TensorInfo,
    as_rows,
    first_line,
    import_runtime,
    softmax,
)

INSTALL = "pip install 'coe-cascade[tflite]'"


class TfliteMember:
    """One interpreter, one example at a time: files are converted for batch 1. Calls take turns.

    An example is copied once, into the interpreter's own buffer: it takes no memory of others.
    """

    def __init__(self, data: bytes, spec: ModelSpec, options: RunOptions) -> None:
        interpreter, package = find_interpreter()
        self.name = spec.name
        self.n_labels = len(spec.labels)
        self.prepare: Prepare = spec.input_spec.prepare
        self._is_logits = spec.output == "logits"
        self._turn = threading.Lock()  # an interpreter holds one input and one output buffer
        self._net: Any = _open(interpreter, package, data, spec.path, options.threads)
        inputs, outputs = self._net.get_input_details(), self._net.get_output_details()
        if len(inputs) != 1:
            raise ModelError(f"{spec.path}: expected one input, got {len(inputs)} (export it with one)")
        output = _pick_output(outputs, spec)
        shape, wanted = inputs[0]["shape"].tolist(), [1, *spec.input_spec.model_shape]
        if shape != wanted:
            raise ModelError(
                f"{spec.path}: its input is {shape}, the input spec says {wanted} "
                f"(change `input:` in the manifest or config)"
            )
        self._input, self._output = inputs[0]["index"], output["index"]
        self._in_type, self._in_scale = inputs[0]["dtype"], inputs[0]["quantization"]
        self._out_scale = output["quantization"]
        self.runs_on = f"{package}, CPU, {options.threads} thread(s)"

    def predict(self, x: Array) -> Array:
        with self._turn:
            output = self._run(x) if len(x) == 1 else np.concatenate([self._run(row[None]) for row in x])
        if output.ndim != 2 or output.shape[1] != self.n_labels:
            output = as_rows(output, self.n_labels, is_logits=self._is_logits)
        return softmax(output) if self._is_logits else output

    def _run(self, x: Array) -> Array:
        if x.dtype != self._in_type:
            x = self._quantised(x)
        self._net.set_tensor(self._input, x)
        self._net.invoke()
        output: Array = self._net.get_tensor(self._output)
        scale, zero = self._out_scale
        return (output.astype(np.float32) - zero) * np.float32(scale) if scale else output

    def _quantised(self, x: Array) -> Array:
        """Floats as the integers an int8 model takes: round(x / scale) + zero point."""
        scale, zero = self._in_scale
        if not scale:
            raise ModelError(f"{self.name}: its input is {self._in_type.__name__}, the input spec says {x.dtype}")
        limits = np.iinfo(self._in_type)
        quantised: Array = np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(self._in_type)
        return quantised

    def close(self) -> None:
        with self._turn:
            self._net = None


def _pick_output(outputs: list[dict[str, Any]], spec: ModelSpec) -> dict[str, Any]:
    """The named output, or the only one, or the one with a place for each label."""
    n_labels = len(spec.labels)
    fits = [one for one in outputs if int(np.prod(one["shape"])) == n_labels]
    if spec.output_name is not None:
        fits = [one for one in outputs if one["name"] == spec.output_name]
    elif len(outputs) == 1:
        fits = outputs
    if len(fits) != 1:
        shapes = ", ".join(f"{one['name']} {one['shape'].tolist()}" for one in outputs)
        fix = "name it as `output_name:`"
        raise ModelError(f"{spec.path}: expected one output [1, {n_labels}] for the labels, got {shapes} ({fix})")
    return fits[0]


load = TfliteMember


def read_signature(data: bytes, path: Path) -> ModelSignature:
    """Inputs and outputs of a file."""
    net = _open(*find_interpreter(), data, path, threads=1)
    return ModelSignature(_tensors(net.get_input_details()), _tensors(net.get_output_details()))


def _tensors(details: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            entry["name"],
            np.dtype(entry["dtype"]).name,
            tuple(n if n > 0 else None for n in entry["shape_signature"].tolist() or entry["shape"].tolist()),
            _limits(entry),
        )
        for entry in details
    )


def _limits(entry: dict[str, Any]) -> tuple[float, float] | None:
    scale, zero = entry["quantization"]
    if not scale or np.dtype(entry["dtype"]).kind not in "iu":
        return None
    whole = np.iinfo(entry["dtype"])
    return float((whole.min - zero) * scale), float((whole.max - zero) * scale)


def _open(interpreter: Any, package: str, data: bytes, path: Path, threads: int) -> Any:
    try:
        net = interpreter(model_content=data, num_threads=threads)
        net.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: {package} cannot load it: {first_line(error)}") from None
    return net


def find_interpreter() -> tuple[Any, str]:
    """The Interpreter class and the name and version of its package.

    Raises:
        RuntimeMissing: neither package is there, or tflite-runtime with a NumPy it cannot work with.
    """
    if version := _version("ai-edge-litert"):
        module = import_runtime("ai_edge_litert.interpreter", "TFLite", INSTALL)
        return module.Interpreter, f"ai-edge-litert {version}"
    if version := _version("tflite-runtime"):
        numpy_version = _version("numpy") or np.__version__
        if int(numpy_version.split(".")[0]) >= 2:  # its import passes, its Interpreter then fails obscurely
            raise RuntimeMissing(
                "TFLite",
                f"tflite-runtime {version} needs numpy<2, got {numpy_version} ({INSTALL}, or 'numpy<2')",
            )
        module = import_runtime("tflite_runtime.interpreter", "TFLite", INSTALL)
        return module.Interpreter, f"tflite-runtime {version}"
    raise RuntimeMissing("TFLite", INSTALL)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
