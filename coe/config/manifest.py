"""The manifest beside the models: what they are, what they take, and what their files must hash to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from coe.cascade.errors import ModelError
from coe.models.input_spec import InputSpec
from coe.models.loading import ModelSpec, format_of
from coe.models.text import PADDINGS, ChoicesInputSpec, TextInputSpec

from . import Fields, Report, read_yaml

NAME = "manifest.yaml"
OUTPUTS = ("probabilities", "logits")
DTYPES = ("float32", "float16", "uint8", "int32", "int64", "float64")


@dataclass(frozen=True)
class Task:
    """What is decided: its name, its labels, and what an example is."""

    name: str
    labels: tuple[str, ...]
    input_spec: InputSpec

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over labels and contract: two ends that differ here must not talk to each other.

        Only what an example is counts (kind, shape), not how a member normalises it.
        """
        said = repr((self.labels, self.input_spec.kind, self.input_spec.shape))
        return hashlib.sha256(said.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Manifest:
    task: Task
    models: Mapping[str, ModelSpec]


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path` (a file, or the folder it is in).

    Raises:
        ConfigError: every setting that is wrong, at once.
    """
    path = path / NAME if path.is_dir() else path
    report = Report(str(path))
    fields = Fields(read_yaml(path), report)
    task = read_task(fields)
    models = {}
    for file, entry in fields.entries("models"):
        spec = read_model(entry, path.parent / file, task)
        entry.raw("tier", None)  # for people, and for the recipe's report
        entry.finish()
        models[file] = spec
    fields.finish()
    report.check()
    return Manifest(task, models)


def read_task(fields: Fields) -> Task:
    """`task`, `labels` and `input` of a manifest or a config."""
    name = fields.text("task")
    labels = fields.texts("labels")
    is_whole = len(labels) == len(fields.content.get("labels") or ())  # each of them is a text
    if is_whole and fields.has("labels") and len(set(labels)) < max(len(labels), 2):
        fields.wrong("labels", f"expected two labels or more, all different, got {len(labels)}")
    return Task(name, labels, read_input_spec(fields.section("input")))


def read_input_spec(fields: Fields) -> InputSpec:
    """An `input:` section.

    image: `size: [height, width]`, `channels`, `layout`, `dtype`, `scale`, `mean`, `std`, `fit`,
    `crop_share`, `resample`;
    tensor: `shape: [...]`, `dtype`;
    text: `tokenizer`, `tokenizer_sha256`, `max_length`, `padding`; `choices`: of multiple choice, how many endings.
    """
    kind = fields.choice("kind", ("image", "tensor", "text"))
    input_spec: InputSpec
    if kind == "text":
        input_spec = _read_text(fields)
    elif kind == "tensor":
        shape = fields.integers("shape")
        if shape and min(shape) < 1:
            fields.wrong("shape", f"expected whole numbers from 1, got {list(shape)}")
        input_spec = InputSpec("tensor", shape, "NHWC", fields.choice("dtype", DTYPES, "float32"))
    else:
        size = fields.integers("size")
        if size and (len(size) != 2 or min(size) < 1):
            fields.wrong("size", f"expected [height, width], got {list(size)}")
            size = (1, 1)
        channels = fields.integer("channels", 3)
        if channels not in (1, 3):
            fields.wrong("channels", f"expected 1 (grey) or 3 (RGB), got {channels}")
        input_spec = InputSpec(
            "image",
            (*size, channels),
            fields.choice("layout", ("NCHW", "NHWC"), "NCHW"),
            fields.choice("dtype", DTYPES[:3], "float32"),
            fields.number("scale", 1.0),
            _per_channel(fields, "mean", 0.0, channels),
            _per_channel(fields, "std", 1.0, channels),
            fields.choice("fit", ("stretch", "crop"), "stretch"),
            fields.number("crop_share", 1.0, 0.1, 1.0),
            fields.choice("resample", ("bilinear", "bicubic"), "bilinear"),
        )
    fields.finish()
    return input_spec


def read_model(
    entry: Fields, path: Path, task: Task, pinned: bool = False, known_format: str | None = None
) -> ModelSpec:
    """One model's entry in a manifest, or in a config (`pinned`), where the manifest may have told its format."""
    sha256 = _read_sha256(entry, "sha256", path.name)
    try:
        kind = format_of(path, entry.text("format", known_format))
    except ModelError as error:
        entry.wrong("format", str(error))
        kind = "onnx"
    input_spec = read_input_spec(entry.section("input")) if entry.has("input") else task.input_spec
    if isinstance(input_spec, TextInputSpec):
        input_spec = _of_texts(entry, input_spec, path, kind)
    return ModelSpec(
        name=path.name,
        path=path,
        format=kind,
        labels=task.labels,
        input_spec=input_spec,
        output=entry.choice("output", OUTPUTS, "probabilities"),
        sha256=sha256,
        pinned=pinned and sha256 is not None,
        flops=entry.number("flops", None, high=1e18),
        parameters=entry.integer("parameters", None, high=2**50),
        calibration_accuracy=entry.number("calibration_accuracy", None, high=1.0),
        architecture=entry.text("architecture", None),
        made_by=entry.text("made_by", None),
    )


def _read_text(fields: Fields) -> TextInputSpec:
    tokenizer = fields.text("tokenizer", None)
    n_choices = fields.integer("choices", 0, 0, 64)
    kind = TextInputSpec if n_choices == 0 else partial(ChoicesInputSpec, shape=(n_choices,))
    return kind(
        tokenizer=None if tokenizer is None else Path(tokenizer),
        tokenizer_sha256=_read_sha256(fields, "tokenizer_sha256", tokenizer or "FILE"),
        max_length=fields.integer("max_length", 128, 1, 2**16),
        padding=fields.choice("padding", PADDINGS, "longest"),
    )


def _of_texts(entry: Fields, input_spec: TextInputSpec, path: Path, kind: str) -> TextInputSpec:
    """The contract of the model at `path`, in whose folder its tokenizer is."""
    if kind != "onnx":
        entry.wrong("format", f"expected onnx for a model of texts, got {kind} (export it)")
    if input_spec.tokenizer is None:
        entry.wrong("input.tokenizer", "expected the model's tokenizer.json, got nothing (add it)")
        return input_spec
    return replace(input_spec, tokenizer=path.parent / input_spec.tokenizer)


def _read_sha256(fields: Fields, key: str, file: str) -> str | None:
    sha256 = fields.text(key, None)
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        fields.wrong(key, f'expected 64 hex digits, got "{sha256}" (sha256sum {file})')
    return sha256


def _per_channel(fields: Fields, key: str, default: float, channels: int) -> tuple[float, ...]:
    values = fields.numbers(key, [default])
    if len(values) not in (1, channels):
        wanted = "1 number" if channels == 1 else f"1 or {channels} numbers"
        fields.wrong(key, f"expected {wanted}, got {len(values)}")
        return (default,)
    if key == "std" and not np.all(np.asarray(values) > 0):
        fields.wrong(key, f"expected numbers above 0, got {list(values)}")
        return (default,)
    return values
