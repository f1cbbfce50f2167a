"""The models in a folder: what their files say of them, and what labelled examples do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from coe import zoo
from coe.cascade.errors import CascadeError, ConfigError, ModelError
from coe.config import read_yaml
from coe.config.manifest import NAME, read_manifest
from coe.models.input_spec import InputSpec
from coe.models.labelled import LabelledExamples
from coe.models.loading import (
    EXPORTS,
    ModelSignature,
    ModelSpec,
    TensorInfo,
    file_labels,
    format_of,
    load,
    own_labels,
    read_signature,
)
from coe.models.onnx_file import labels_in, labels_of_text
from coe.models.text import TextInputSpec
from edge.config import read_config

from .accuracy import ask_members, read_spread

SUFFIXES = (".onnx", ".tflite")  # where a model is there in both, the first
FLOATS = ("float32", "float16", "float64", "int8")  # int8 models take floats, and are given them quantised
IMAGE_SCALE = 1 / 255
EMBEDDING = 64  # numbers an example, that are none a label


@dataclass(frozen=True)
class FoundModel:
    """One model file.

    Args:
        reference: its path as a config writes it.
        output: "probabilities" or "logits".
        input_spec: of its input; None: a manifest has it.
        path: of its file, where there is no manifest.
        labels: of its outputs, where they are in another order than the task's.
        in_file: the names of its outputs in its file.
    """

    reference: str
    output: str = "probabilities"
    input_spec: InputSpec | None = None
    path: Path | None = None
    labels: tuple[str, ...] = ()
    in_file: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundModels:
    """Models that make one ensemble.

    Args:
        task: its name; with a manifest, the path of that.
        labels: of a manifest or a labels file; empty where there is neither.
        n_labels: size of the models' outputs.
        input_spec: of the task; None: the manifest has it.
        agreement: as a config writes it.
        is_tried: its input was found by labelled examples.
    """

    task: str
    models: tuple[FoundModel, ...]
    labels: tuple[str, ...]
    n_labels: int
    input_spec: InputSpec | None = None
    agreement: str = "unanimous"
    is_tried: bool = False

    def of_labels(self, labels: tuple[str, ...]) -> FoundModels:
        """The same, with `labels:` at the models whose files name their outputs otherwise."""
        models = (replace(one, labels=one.labels or own_labels(one.in_file, labels)) for one in self.models)
        return replace(self, models=tuple(models))


def find_models(reference: str, folder: Path) -> FoundModels:
    """The models at `zoo:TASK`, or in a folder.

    Args:
        folder: of the config to be written; paths in it are relative to this folder.
    Raises:
        ConfigError: there are none, or they do not fit each other.
        RuntimeMissing: the package that runs them is not installed.
    """
    if reference.startswith("zoo:"):
        return _from_zoo(reference)
    place = Path(reference).expanduser()
    if not place.is_dir():
        raise ConfigError([f"--models: expected a folder of .onnx or .tflite files or zoo:digits, got {reference}"])
    if (place / "config.json").is_file() and not (place / NAME).is_file():
        _write_manifest(place)
    if (place / NAME).is_file():
        return _from_manifest(place, folder)
    return _from_files(place, folder)


def _write_manifest(place: Path) -> None:
    """The manifest of a folder as Hugging Face or timm publish them, beside its model."""
    try:
        readers = import_module("recipes.readers.models")
    except ModuleNotFoundError:
        command = f"python -m recipes.readers {place} --task NAME"
        message = f"{place}: expected a {NAME} beside config.json of Hugging Face or timm, got none"
        raise ConfigError([f"{message} (in a checkout, {command} writes it)"]) from None
    describe = readers.describe_timm if readers.is_timm(place) else readers.describe_huggingface
    written = readers.write_manifest(describe(place), place.resolve().name, readers.model_files(place))
    print(f"wrote {written}, of what config.json says")


def _from_zoo(reference: str) -> FoundModels:
    """Models and rule of the task's bundled config."""
    name = reference.removeprefix("zoo:")
    path = zoo.find(name) / "edge.yaml"
    config = read_config(path)
    tier = config.cascade.local_tiers[0]
    models = tuple(FoundModel(f"zoo:{name}/{spec.path.name}") for spec in tier.members)
    written = read_yaml(path)["tiers"][config.cascade.tiers.index(tier)]
    labels = config.cascade.task.labels
    return FoundModels(reference, models, labels, len(labels), agreement=str(written.get("agreement", "unanimous")))


def _from_manifest(place: Path, folder: Path) -> FoundModels:
    manifest = read_manifest(place)
    files = _one_format_each([spec.path for spec in manifest.models.values()])
    if not files:
        raise ConfigError(["expected the models of this folder in it, got none"], str(place / NAME))
    models = tuple(FoundModel(_reference(path, folder)) for path in files)
    return FoundModels(_reference(place / NAME, folder), models, manifest.task.labels, len(manifest.task.labels))


def _from_files(place: Path, folder: Path) -> FoundModels:
    """Models without a manifest: the files hold their shapes, not what their outputs mean or how pixels are scaled."""
    files = _one_format_each([path for path in sorted(place.iterdir()) if path.suffix in SUFFIXES])
    if not files:
        others = [path for path in sorted(place.iterdir()) if path.suffix in EXPORTS and path.name != "labels.txt"]
        fix = f"export {others[0].name} to ONNX: {EXPORTS[others[0].suffix]}" if others else "copy them there"
        raise ConfigError([f"expected .onnx or .tflite files, got none in {place} ({fix})"])
    labels_file = place / "labels.txt"
    labels = read_labels(labels_file) if labels_file.is_file() else ()
    inputs, counts = {}, {}
    for path in files:
        signature = _signature(path)
        counts[path.name] = _n_labels(path, signature, len(labels))
        inputs[path] = input_spec_of(path, signature.inputs[0])
    n_labels = max(counts.values())
    if set(counts.values()) != {n_labels}:
        listed = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise ConfigError(
            [f"expected models with one number of labels, got {listed} (move the others elsewhere)"], str(place)
        )
    in_files = {path: file_labels(path, path.read_bytes(), n_labels) for path in files}
    labels = labels or next(filter(None, in_files.values()), ())
    models = []
    for path, input_spec in inputs.items():
        names = in_files[path] or tuple(map(str, range(n_labels)))
        spec = ModelSpec(path.name, path, format_of(path), names, input_spec)
        output = _output_of(spec)
        models.append(FoundModel(_reference(path, folder), output, input_spec, path, (), in_files[path]))
    return FoundModels(place.resolve().name, tuple(models), labels, n_labels, models[0].input_spec)


def _signature(path: Path) -> ModelSignature:
    try:
        return read_signature(path)
    except ModelError as error:
        kind = "an onnx" if path.suffix == ".onnx" else f"a {format_of(path)}"
        reason = str(error).removeprefix(f"{path}: ")
        raise ConfigError([f"expected {kind} model, got something else ({reason})"], str(path)) from None


def input_spec_of(path: Path, tensor: TensorInfo) -> InputSpec:
    """The input spec that follows from a model's input: an image where that has 1 or 3 channels.

    Raises:
        ConfigError: another dimension than the batch's is free, or no member takes its dtype.
    """
    dims = tensor.dims[1:]
    if tensor.dtype == "string":
        return TextInputSpec()
    if not dims or None in dims:
        shown = ", ".join("free" if dim is None else str(dim) for dim in tensor.dims)
        raise ConfigError([f"expected an input of one size but for the batch, got [{shown}] (export it so)"], str(path))
    shape = tuple(dim for dim in dims if dim is not None)
    if tensor.dtype not in (*FLOATS, "uint8", "int32", "int64"):
        raise ConfigError([f"expected an input of floats, uint8 or integers, got {tensor.dtype}"], str(path))
    dtype = "float32" if tensor.dtype == "int8" else tensor.dtype
    if len(shape) != 3 or dtype in ("int32", "int64", "float64") or not {shape[0], shape[2]} & {1, 3}:
        return InputSpec("tensor", shape, "NHWC", dtype)
    layout = "NCHW" if shape[0] in (1, 3) else "NHWC"
    height, width, channels = (shape[1], shape[2], shape[0]) if layout == "NCHW" else shape
    scale, mean = (1.0, 0.0) if dtype == "uint8" else (IMAGE_SCALE, 0.0)
    if tensor.limits is not None and dtype == "float32":  # of a quantised input: what 0 and 255 become
        low, high = tensor.limits
        near = (round(low), round(high))
        low, high = near if max(abs(low - near[0]), abs(high - near[1])) < 0.02 * (high - low) else (low, high)
        scale, mean = (high - low) / 255, -low
    return InputSpec("image", (height, width, channels), layout, dtype, scale, (mean,))


def _n_labels(path: Path, signature: ModelSignature, wanted: int) -> int:
    """How many labels a model's outputs have; where it has several such outputs, `wanted` if that is one of them."""
    if len(signature.inputs) != 1:
        names = [tensor.name for tensor in signature.inputs]
        fix = "models of texts need a manifest: docs/own-models.md" if "input_ids" in names else "export it with one"
        raise ConfigError([f"expected one input, got {len(names)} ({fix})"], str(path))
    sizes = []
    for tensor in signature.outputs:
        inner = [dim for dim in tensor.dims[1:] if dim != 1]
        if tensor.dtype.startswith("seq(map"):
            sizes.append(len(file_labels(path, path.read_bytes(), wanted)) or wanted or _n_by_label(path))
        elif tensor.dtype in FLOATS or tensor.dtype == "uint8":
            if len(inner) > 1 or "box" in tensor.name.lower() or tensor.name == "variable":
                raise ConfigError([f"expected a classifier, got {_looks_like(signature)} (export one)"], str(path))
            sizes.append((inner[0] or 0) if inner else 2)
    n_labels = wanted if wanted in sizes or not sizes else min((size for size in sizes if size > 1), default=0)
    if n_labels < 2 or (wanted and wanted not in sizes):
        got = _looks_like(signature)
        labels = f"{wanted}] for the labels" if wanted else "labels] with two labels or more"
        raise ConfigError([f"expected an output [batch, {labels}, got {got} (export a classifier)"], str(path))
    return n_labels


def _n_by_label(path: Path) -> int:
    """How many labels a file's ZipMap has, whatever their names."""
    return max(map(len, labels_in(path.read_bytes())), default=0)


def _looks_like(signature: ModelSignature) -> str:
    """What a model that is no classifier seems to be."""
    shapes = [list(tensor.dims[1:]) for tensor in signature.outputs]
    shown = ", ".join(f"{one.name} {['free' if dim is None else dim for dim in one.dims]}" for one in signature.outputs)
    names = " ".join(tensor.name.lower() for tensor in signature.outputs)
    if "box" in names or any(
        len(shape) == 2 and (4 in shape or min(dim or 9 for dim in shape) > 4) for shape in shapes
    ):
        return f"what looks like a detector: {shown}"
    if any(len(shape) == 3 for shape in shapes):
        return f"what looks like a segmentation: {shown}"
    if names == "variable":  # as skl2onnx calls it
        return f"what looks like a regression: {shown}"
    if max((shape[0] or 0 for shape in shapes if len(shape) == 1), default=0) >= EMBEDDING:
        return f"what looks like an embedding: {shown}"
    return f"outputs {shown}"


def _output_of(spec: ModelSpec) -> str:
    """ "probabilities" or "logits", from a trial run; "probabilities" where the model cannot be loaded."""
    try:
        load(spec).close()
    except CascadeError as error:
        return "logits" if "output: logits" in str(error) else "probabilities"
    return "probabilities"


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels of a file with one on each line, in the order of the models' outputs."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot be read: {getattr(error, 'strerror', None) or error}"], str(path)) from None
    return labels_of_text("\n".join([*lines, ""]))


def _one_format_each(paths: list[Path]) -> list[Path]:
    """Each model once, in the first of SUFFIXES that it has a file of; smallest files first."""
    chosen: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in paths:
            if path.suffix == suffix:
                chosen.setdefault(path.name.split(".")[0], path)
    return sorted(chosen.values(), key=lambda path: (path.stat().st_size if path.is_file() else 0, path.name))


def _reference(path: Path, folder: Path) -> str:
    """The path relative to the config's folder where it is below that, else absolute."""
    whole = path.resolve()
    return str(whole.relative_to(folder.resolve())) if whole.is_relative_to(folder.resolve()) else str(whole)


def fitted(
    found: FoundModels, place: Path, read_labels: Callable[[FoundModels], tuple[str, ...]], *, are_given: bool
) -> tuple[FoundModels, tuple[str, ...]]:
    """The models with the input settings and the order of labels that fit the examples clearly best; the labels.

    Args:
        place: of the examples.
        read_labels: gives the task's labels; `are_given`: whatever the examples say.
    """
    examples, found = _examples_for(found, place)
    if not are_given and not found.labels:  # as Keras and torchvision number folders
        names = sorted({str(label) for label in examples.written}, key=_as_counted)
        found = replace(found, labels=tuple(names)) if len(names) == found.n_labels else found
    labels = read_labels(found)
    found = found.of_labels(labels)
    assert found.input_spec is not None
    specs = [_spec_of(model, labels) for model in found.models]
    truth = examples.numbers(labels)
    answers, rows = ask_members(specs, examples, found.input_spec, tries=True)
    models = []
    for model, one in zip(found.models, answers, strict=True):
        form, spec = one.best(truth[rows])
        order = one.order(truth[rows], form)
        if form != next(iter(one.forms)):
            print(f"{model.reference}: its input is {form}: that fits the examples best")
        if order:
            print(f"{model.reference}: its labels are in another order than the task's: `labels:` gives it")
        models.append(replace(model, input_spec=spec, labels=order or model.labels))
    return replace(found, models=tuple(models), input_spec=models[0].input_spec, is_tried=True), labels


def _as_counted(name: str) -> tuple[float, str]:
    return (float(name) if name.isdigit() else math.inf), name


def _spec_of(model: FoundModel, labels: tuple[str, ...]) -> ModelSpec:
    assert model.path is not None
    assert model.input_spec is not None
    spec = ModelSpec(model.path.name, model.path, format_of(model.path), labels, model.input_spec, model.output)
    return replace(spec, own_labels=model.labels)


def _examples_for(found: FoundModels, place: Path) -> tuple[LabelledExamples, FoundModels]:
    """The examples, and the models; those that take rows of numbers take images, where these are what there is."""
    assert found.input_spec is not None
    try:
        return read_spread(place, found.input_spec), found
    except ConfigError:
        specs = [None if model.input_spec is None else _as_image(model.input_spec) for model in found.models]
        if None in specs:
            raise
        models = tuple(replace(model, input_spec=spec) for model, spec in zip(found.models, specs, strict=True))
        found = replace(found, models=models, input_spec=specs[0])
        assert found.input_spec is not None
        return read_spread(place, found.input_spec), found


def _as_image(spec: InputSpec) -> InputSpec | None:
    """Images for a model that takes [height, width], or as many numbers as a square one has; None: it takes none."""
    if spec.kind != "tensor" or spec.dtype not in ("float32", "float16", "uint8") or len(spec.shape) > 2:
        return None
    if len(spec.shape) == 2:
        return InputSpec("image", (*spec.shape, 1), "HW", spec.dtype, IMAGE_SCALE)
    for channels in (1, 3):
        side = math.isqrt(spec.shape[0] // channels)
        if side > 1 and channels * side * side == spec.shape[0]:
            return InputSpec("image", (side, side, channels), "flat", spec.dtype, IMAGE_SCALE)
    return None
