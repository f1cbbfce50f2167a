"""The manifest beside the models: what they are, what they take, and what their files must hash to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coe.cascade.errors import ModelError
from coe.models.input_spec import InputSpec
from coe.models.loading import ModelSpec, format_of
from coe.models.text import PADDINGS, ChoicesInputSpec, TextInputSpec

from .fields import Fields, Report, read_yaml
from .settings import REQUIRED, read_settings, setting

NAME = "manifest.yaml"
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
class ImageSettings:
    """An `input:` of images: a pixel becomes (pixel * scale - mean) / std."""

    size: tuple[int, ...] = setting(REQUIRED, "`[height, width]`, as the model takes it.")
    channels: int = setting(3, "1 for grey, 3 for RGB.")
    layout: str = setting(
        "NCHW",
        "Order of the axes of the model's input; `HW`: grey without an axis for it, `flat`: one row of pixels.",
        choices=("NCHW", "NHWC", "HW", "flat"),
    )
    channel_order: str = setting("RGB", "Order of the channels of the model's input.", choices=("RGB", "BGR"))
    dtype: str = setting("float32", "Type of the model's input.", choices=DTYPES[:3])
    scale: float = setting(1.0, "Factor of a pixel (0 to 255), first.")
    mean: tuple[float, ...] = setting((0.0,), "Subtracted next; one number, or one a channel.")
    std: tuple[float, ...] = setting((1.0,), "Divisor at last; one number, or one a channel.")
    fit: str = setting("stretch", "Stretch an image of another size, or crop its middle.", choices=("stretch", "crop"))
    crop_share: float = setting(1.0, "Share of the middle that `crop` takes, along each side.", low=0.1, high=1)
    resample: str = setting("bilinear", "How pixels are scaled.", choices=("bilinear", "bicubic"))
    invert: str = setting(
        "never",
        "`when-light`: an image whose mean is above the middle is inverted, for models of light on dark.",
        choices=("never", "when-light"),
    )


@dataclass(frozen=True)
class TensorSettings:
    """An `input:` of numbers as they are."""

    shape: tuple[int, ...] = setting(REQUIRED, "Shape of one example.")
    dtype: str = setting("float32", "Type of the model's input.", choices=DTYPES)


@dataclass(frozen=True)
class TextSettings:
    """An `input:` of texts."""

    tokenizer: Path | None = setting(
        None, "`tokenizer.json`, beside the model.", usual="none: the model takes the texts"
    )
    tokenizer_sha256: str | None = setting(None, "Hex digest of that file.", usual="not checked")
    max_length: int = setting(128, "Longest text in tokens; a longer one is cut.", low=1, high=2**16)
    padding: str = setting(
        "longest", "Pad shorter texts to the longest of the batch, or to `max_length`.", choices=PADDINGS
    )
    n_choices: int = setting(0, "Number of endings to choose from; 0: the example is one text.", key="choices", high=64)


@dataclass(frozen=True)
class ModelSettings:
    """What a manifest, or a member of a config, says of a model."""

    format: str = setting(
        REQUIRED, "Format: `onnx`, `tflite`, `torch`, `torch-export` or `torchscript`.", usual="by the file's suffix"
    )
    output: str = setting("probabilities", "What the model returns.", choices=("probabilities", "logits"))
    sha256: str | None = setting(
        None, "Hex digest that the file must have; in a config, it pins the file.", usual="not checked"
    )
    architecture: str | None = setting(None, "The network that torch weights belong to.", usual="none")
    flops: float | None = setting(
        None, "Operations for one example; a multiply-add counts as two.", usual="not known", high=1e18
    )
    parameters: int | None = setting(None, "Number of parameters.", usual="not known", high=2**50)
    calibration_accuracy: float | None = setting(None, "Accuracy on held-back examples.", usual="not known", high=1)
    own_labels: tuple[str, ...] = setting(
        (),
        "Names of the model's outputs in its own order; names that are none of the task's are left out.",
        key="labels",
        usual="the task's",
    )
    output_name: str | None = setting(
        None, "Output to take, where the file has several.", usual="the one with a place for each label"
    )
    made_by: str | None = setting(None, "The command that makes the file.", usual="none")


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
        models[file] = read_model(entry, path.parent / file, task)
        entry.raw("tier", None)  # for people, and for the recipe's report
        entry.finish()
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
    """An `input:` section, whose other settings follow from its `kind`."""
    kind = fields.choice("kind", ("image", "tensor", "text"))
    if kind == "text":
        sha256 = _read_sha256(fields, "tokenizer_sha256", str(fields.content.get("tokenizer", "FILE")))
        text = dict(vars(read_settings(TextSettings, fields, tokenizer_sha256=sha256)))
        n_choices = text.pop("n_choices")
        return TextInputSpec(**text) if n_choices == 0 else ChoicesInputSpec(shape=(n_choices,), **text)
    if kind == "tensor":
        shape = fields.integers("shape")
        if shape and min(shape) < 1:
            fields.wrong("shape", f"expected whole numbers from 1, got {list(shape)}")
        return InputSpec("tensor", **vars(read_settings(TensorSettings, fields, shape=shape)), layout="NHWC")
    size = fields.integers("size")
    if size and (len(size) != 2 or min(size) < 1):
        fields.wrong("size", f"expected [height, width], got {list(size)}")
        size = (1, 1)
    channels = fields.integer("channels", 3)
    if channels not in (1, 3):
        fields.wrong("channels", f"expected 1 (grey) or 3 (RGB), got {channels}")
    if channels == 3 and fields.content.get("layout") == "HW":
        fields.wrong("layout", "expected NCHW, NHWC or flat for RGB, got HW (grey has `channels: 1`)")
    mean, std = _per_channel(fields, "mean", 0.0, channels), _per_channel(fields, "std", 1.0, channels)
    image = read_settings(ImageSettings, fields, size=size, channels=channels, mean=mean, std=std)
    rest = {name: value for name, value in vars(image).items() if name not in ("size", "channels")}
    return InputSpec("image", (*size, channels), **rest)


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
        if kind != "onnx":
            entry.wrong("format", f"expected onnx for a model of texts, got {kind} (export it)")
        if input_spec.tokenizer is not None:
            input_spec = replace(input_spec, tokenizer=path.parent / input_spec.tokenizer)
    own = entry.texts("labels", ())
    if entry.has("labels") and (len(set(own)) < max(len(own), 2) or not set(own) & set(task.labels)):
        fix = "the task's names, in the order of its outputs"
        entry.wrong("labels", f"expected different labels, some of them the task's, got {', '.join(own)} ({fix})")
    declared = vars(read_settings(ModelSettings, entry, finish=False, format=kind, sha256=sha256, own_labels=own))
    pinned = pinned and sha256 is not None
    return ModelSpec(path.name, path, labels=task.labels, input_spec=input_spec, pinned=pinned, **declared)


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
    elif key == "std" and min(values) <= 0:
        fields.wrong(key, f"expected numbers above 0, got {list(values)}")
    else:
        return values
    return (default,)
