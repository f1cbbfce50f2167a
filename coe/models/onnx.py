"""ONNX Runtime members, for tensors and for tokenized texts."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coe.cascade.errors import ModelError
from coe.cascade.tier import Prepare
from coe.cascade.types import Array

from .loading import (
    LoadedMember,
    ModelSignature,
    ModelSpec,
    RunOptions,
    TensorInfo,
    as_rows,
    first_line,
    import_runtime,
    softmax,
)
from .text import IDS, MASK, TYPES, TextInputSpec

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
OTHER_DTYPES = {f"tensor({name})": name for name in ("int8", "int32", "int64")} | {"tensor(double)": "float64"}
STRINGS = "tensor(string)"
BY_LABEL = ("seq(map(string,tensor(float)))", "seq(map(int64,tensor(float)))")  # of ZipMap: a probability a label
OF_PROBABILITIES = ("prob", "class", "logit", "score", "softmax")  # words in the names of such outputs
NO_REPORTS = "ORT_DISABLE_TELEMETRY"  # or it reports to Microsoft what it runs, under an id it writes for this device
LARGEST_BOUND = 1 << 18  # bytes of an input: above it, copying one costs more than binding it saves


class OnnxMember:
    """One session with one input and one (B, L) output. Safe to call from several threads.

    On the CPU the session reads an input where it lies, uncopied, if its rows are contiguous. One example alone goes
    through memory that is bound once, unless another thread is using it.
    """

    def __init__(self, data: bytes, spec: ModelSpec, options: RunOptions) -> None:
        ort = _import_onnxruntime()
        self.name = spec.name
        self.n_labels = len(spec.labels)
        self.prepare: Prepare = spec.input_spec.prepare
        self._is_logits = spec.output == "logits"
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # Idle threads must not spin: on a device they would take the cores the next member needs.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = _available(ort, options.providers)
        self._session: Any = _open_session(ort, data, spec.path, settings, wanted)
        self._rows = self._take_inputs(spec)
        self._output, kind, dims = _pick_output(self._session, spec)
        self._own_labels = _numbers_of(spec.labels) if kind in BY_LABEL else None
        is_plain = len(dims) == 2 and kind in DTYPES and not (self.n_labels == 2 and dims[1] == 1)
        self._shape_output = None if is_plain else self._as_rows
        running = self._session.get_providers()
        for provider in wanted:
            if provider not in running:  # listed as available, but its libraries are not
                raise ModelError(f"providers: {provider} was asked for and could not start (is its driver installed?)")
        used = running[0]
        self._ort = ort
        self._can_bind = used == PROVIDERS["cpu"] and is_plain
        self._bound: _Bound | None = None
        self.runs_on = f"onnxruntime {ort.__version__}, {used}, {options.threads} thread(s)"

    def _take_inputs(self, spec: ModelSpec) -> int | None:
        """What the session is fed by name; the number of rows where that is fixed."""
        self._input, rows = _check_input(self._session, spec)
        return rows

    def predict(self, x: Array) -> Array:
        if self._rows is not None and len(x) != self._rows:
            output = np.concatenate([self._run(row[None]) for row in x])
        else:
            output = self._run(x)
        return softmax(output) if self._is_logits else output

    def _run(self, x: Array) -> Array:
        bound = self._bound
        if bound is not None and x.shape == bound.shape and x.dtype == bound.dtype and bound.take_turn(blocking=False):
            return bound.run(x)
        output: Array = self._session.run([self._output], {self._input: x})[0]
        if self._shape_output is not None:
            return self._shape_output(output)
        if bound is None and self._can_bind and len(x) == 1 and x.nbytes <= LARGEST_BOUND:
            bound = _Bound(self, x, output)
            self._can_bind = bound.take_turn() and np.array_equal(bound.run(x), output)  # else this runtime copied
            self._bound = bound if self._can_bind else None
        return output

    def _as_rows(self, output: Any) -> Array:
        if self._own_labels is None:
            return as_rows(np.asarray(output), self.n_labels, is_logits=self._is_logits)
        rows = np.zeros((len(output), self.n_labels), dtype=np.float32)
        for row, shares in zip(rows, output, strict=True):
            places = [self._own_labels.get(str(label), -1) for label in shares]
            if -1 in places:  # other names than the task's, whose order is that of `labels:`
                places = list(range(len(shares)))
            row[places] = list(shares.values())
        return rows

    def bind(self, x: Array, output: Array) -> Any:
        """A call that reads `x` and writes `output`, both (1, ...), where they lie."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, self._ort.OrtValue.ortvalue_from_numpy(x))
        binding.bind_ortvalue_output(self._output, self._ort.OrtValue.ortvalue_from_numpy(output))
        return partial(self._session.run_with_iobinding, binding)

    def close(self) -> None:
        self._bound = None
        self._session = None


class _Bound:
    """One example's input and output, bound once: a run then makes no value and looks up no name."""

    def __init__(self, member: OnnxMember, x: Array, output: Array) -> None:
        self.shape, self.dtype = x.shape, x.dtype
        self._x, self._output = np.empty_like(x), np.empty_like(output)
        self._call = member.bind(self._x, self._output)
        turn = threading.Lock()
        self.take_turn, self._end_turn = turn.acquire, turn.release

    def run(self, x: Array) -> Array:
        """(1, L), the caller's own. Call it with the turn taken; it ends the turn."""
        try:
            self._x[...] = x
            self._call()
            return self._output.copy()
        finally:
            self._end_turn()


def load(data: bytes, spec: ModelSpec, options: RunOptions) -> LoadedMember:
    """The member; one of texts is given tokens by the names of its inputs, or the texts where it has no tokenizer."""
    if not isinstance(spec.input_spec, TextInputSpec):
        return OnnxMember(data, spec, options)
    return (OnnxStringMember if spec.input_spec.tokenizer is None else OnnxTextMember)(data, spec, options)


def read_signature(data: bytes, path: Path) -> ModelSignature:
    """Inputs and outputs of a file; constants that it lists among its inputs are none."""
    ort = _import_onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is not run
    session = _open_session(ort, data, path, settings, [PROVIDERS["cpu"]])
    return ModelSignature(_tensors(session.get_inputs()), _tensors(session.get_outputs()))


def _tensors(entries: Any) -> tuple[TensorInfo, ...]:
    names = DTYPES | OTHER_DTYPES | {STRINGS: "string"}
    return tuple(
        TensorInfo(
            entry.name,
            names.get(entry.type, entry.type),
            tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in entry.shape),
        )
        for entry in entries
    )


def _import_onnxruntime() -> Any:
    os.environ.setdefault(NO_REPORTS, "1")  # read as it is imported
    return import_runtime("onnxruntime", "ONNX", "pip install onnxruntime")


def _open_session(ort: Any, data: bytes, path: Path, settings: Any, providers: list[str]) -> Any:
    try:
        return ort.InferenceSession(data, settings, providers=providers)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises its own kinds
        hint = " (export it as one file: external_data=False)" if "external" in str(error).lower() else ""
        if "locale" in str(error):  # of a text pipeline
            hint = " (sudo locale-gen en_US.UTF-8, or export with options={TfidfVectorizer: {'locale': 'C'}})"
        raise ModelError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}{hint}") from None


def _available(ort: Any, names: tuple[str, ...]) -> list[str]:
    """The providers asked for, which must be there: a GPU asked for and not used is no silent matter."""
    here = ort.get_available_providers()
    wanted = []
    for name in names:
        provider = PROVIDERS.get(name, name)
        if provider not in here:
            raise ModelError(
                f"providers: expected one of {', '.join(here)}, got {name} "
                f"(pip install onnxruntime-gpu for CUDA and TensorRT)"
            )
        wanted.append(provider)
    return wanted if PROVIDERS["cpu"] in wanted else [*wanted, PROVIDERS["cpu"]]


def _check_input(session: Any, spec: ModelSpec) -> tuple[str, int | None]:
    """The input's name, and its number of rows where that is fixed."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        got = ", ".join(entry.name for entry in inputs)
        raise ModelError(f"{spec.path}: expected one input, got {got} (export it with one of [batch, {len(inputs)}])")
    declared, wanted = inputs[0].shape, spec.input_spec.model_shape
    fits = len(declared) == 1 + len(wanted) and all(
        not isinstance(have, int) or have == want for have, want in zip(declared[1:], wanted, strict=True)
    )
    dtype = (DTYPES | OTHER_DTYPES).get(inputs[0].type, inputs[0].type)
    if not fits or dtype != spec.input_spec.dtype:
        raise ModelError(
            f"{spec.path}: its input is {dtype} {declared}, the input spec says {spec.input_spec.dtype} "
            f"[batch, {', '.join(map(str, wanted))}] (change `input:` in the manifest or config)"
        )
    rows = declared[0] if isinstance(declared[0], int) else None
    if rows not in (None, 1):
        raise ModelError(f"{spec.path}: expected a batch dimension that is free or 1, got {rows}")
    return inputs[0].name, rows


def _pick_output(session: Any, spec: ModelSpec) -> tuple[str, str, list[Any]]:
    """Name, type and shape of the output to take: the named one, or else one with a place for each label."""
    outputs = session.get_outputs()
    shapes = ", ".join(f"{entry.name} {entry.shape}" for entry in outputs)
    if spec.output_name is not None:
        fits = [entry for entry in outputs if entry.name == spec.output_name]
        if not fits:
            raise ModelError(f"{spec.path}: expected an output named {spec.output_name}, got {shapes} (correct it)")
    else:
        fits = [entry for entry in outputs if _has_labels(entry, spec)]
        named = [entry for entry in fits if any(word in entry.name.lower() for word in OF_PROBABILITIES)]
        sized = [entry for entry in fits if len(spec.labels) in entry.shape[1:]]
        fits = named or sized or fits
    if not fits:
        n_labels = len(spec.labels)
        raise ModelError(f"{spec.path}: expected an output [batch, {n_labels}] for the labels, got {shapes}")
    return str(fits[0].name), fits[0].type, list(fits[0].shape or ())


def _has_labels(entry: Any, spec: ModelSpec) -> bool:
    if entry.type in BY_LABEL:
        return True
    if entry.type not in DTYPES and entry.type != "tensor(double)" and "uint8" not in entry.type:
        return False  # the label itself
    sizes = [size for size in entry.shape[1:] if size != 1]
    if not sizes:
        return len(spec.labels) == 2 and len(entry.shape) > 0
    return len(sizes) == 1 and (sizes[0] == len(spec.labels) or not isinstance(sizes[0], int))


def _numbers_of(labels: Sequence[str]) -> dict[str, int]:
    """The place of each label, by its name and by its number."""
    numbers = {str(number): number for number in range(len(labels))}
    return (numbers if not set(numbers) & set(labels) else {}) | {label: at for at, label in enumerate(labels)}


TOKEN_INPUTS = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}
TOKEN_DTYPES = {"tensor(int64)": "int64", "tensor(int32)": "int32"}


class OnnxTextMember(OnnxMember):
    """One session with token ids in, and where it asks for them their mask and segments; one (B, L) output."""

    def _take_inputs(self, spec: ModelSpec) -> int | None:
        """Which row of a prepared text (3, T) feeds which input; the number of rows where that is fixed."""
        inputs = self._session.get_inputs()
        if len(inputs) == 1:  # whatever its name
            self._feeds = [(inputs[0].name, IDS, _token_dtype(inputs[0], spec))]
        else:
            self._feeds = [(entry.name, _token_row(entry, spec), _token_dtype(entry, spec)) for entry in inputs]
        n_rows = {_check_shape(entry, spec) for entry in inputs}
        if len(n_rows) > 1 or not n_rows <= {None, 1}:
            shapes = ", ".join(f"{entry.name} {entry.shape}" for entry in inputs)
            raise ModelError(f"{spec.path}: expected a batch dimension that is free or 1, got {shapes}")
        return n_rows.pop()

    def _run(self, x: Array) -> Array:
        feeds = {name: np.ascontiguousarray(x[..., row, :], dtype=dtype) for name, row, dtype in self._feeds}
        output: Array = self._session.run([self._output], feeds)[0]
        return output if self._shape_output is None else self._shape_output(output)


class OnnxStringMember(OnnxMember):
    """One session with the texts themselves in, as pipelines of TF-IDF have it; one (B, L) output."""

    def _take_inputs(self, spec: ModelSpec) -> int | None:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != STRINGS or len(inputs[0].shape) > 2:
            got = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
            fix = "a model of tokens needs `tokenizer:` in its `input:`"
            raise ModelError(f"{spec.path}: expected one input of strings [batch, 1], got {got} ({fix})")
        self._input = inputs[0].name
        self._is_column = len(inputs[0].shape) == 2
        rows = inputs[0].shape[0]
        return rows if isinstance(rows, int) else None

    def _run(self, x: Array) -> Array:
        texts = x.reshape(-1, 1) if self._is_column else x
        output: Array = self._session.run([self._output], {self._input: texts})[0]
        return output if self._shape_output is None else self._shape_output(output)


def _token_row(entry: Any, spec: ModelSpec) -> int:
    if entry.name not in TOKEN_INPUTS:
        known = ", ".join(TOKEN_INPUTS)
        raise ModelError(f"{spec.path}: expected inputs of the names {known}, got {entry.name} (rename it)")
    return TOKEN_INPUTS[entry.name]


def _token_dtype(entry: Any, spec: ModelSpec) -> str:
    if entry.type not in TOKEN_DTYPES:
        raise ModelError(f"{spec.path}: expected whole numbers (int64, int32) as {entry.name}, got {entry.type}")
    return TOKEN_DTYPES[entry.type]


def _check_shape(entry: Any, spec: ModelSpec) -> int | None:
    """Its number of rows where that is fixed."""
    input_spec = spec.input_spec
    assert isinstance(input_spec, TextInputSpec)
    between = input_spec.model_shape[:-2]  # endings, of multiple choice
    if len(entry.shape) != 2 + len(between) or any(
        isinstance(size, int) and size != n for size, n in zip(entry.shape[1:-1], between, strict=True)
    ):
        wanted = ", ".join(["batch", *map(str, between), "tokens"])
        raise ModelError(f"{spec.path}: expected {entry.name} as [{wanted}], got {entry.shape}")
    n_rows, n_tokens = entry.shape[0], entry.shape[-1]
    if isinstance(n_tokens, int) and (input_spec.padding, input_spec.max_length) != ("max_length", n_tokens):
        raise ModelError(
            f"{spec.path}: its input {entry.name} takes {n_tokens} tokens each time "
            f"(write `max_length: {n_tokens}` and `padding: max_length` in `input:`)"
        )
    return n_rows if isinstance(n_rows, int) else None
