"""The models that a first config is made for: bundled ones, a folder with a manifest, or a folder of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe import zoo
from coe.assembly import LocalTierConfig
from coe.cascade.errors import CascadeError, ConfigError, ModelError
from coe.models.base import ModelSpec
from coe.models.contract import Contract
from coe.models.loading import load
from coe.models.manifest import NAME, read_manifest
from coe.settings import read_yaml

from ..config import read_config
from .shapes import Shape, Tensor, shape_of

SUFFIXES = (".onnx", ".tflite")  # where a model is there in both, the first
FLOATS = ("float32", "float16", "int8")  # int8 models take floats, and are given them quantised
IMAGE_SCALE = 1 / 255


@dataclass(frozen=True)
class FoundModel:
    """One model file.

    Args:
        reference: as a config writes it.
        output: "probabilities" or "logits".
        contract: what it takes; None: a manifest says it.
    """

    reference: str
    output: str = "probabilities"
    contract: Contract | None = None


@dataclass(frozen=True)
class Found:
    """Models that make one ensemble.

    Args:
        task: its name; or, with a manifest, where that is.
        labels: as far as known: those of a manifest or of a labels file.
        n_labels: of the models' outputs.
        contract: of the task; None: the manifest says it.
        agreement: as a config writes it.
    """

    task: str
    models: tuple[FoundModel, ...]
    labels: tuple[str, ...]
    n_labels: int
    contract: Contract | None = None
    agreement: str = "unanimous"


def find_models(reference: str, folder: Path) -> Found:
    """The models at `zoo:TASK`, or in a folder.

    Args:
        folder: of the config that is written; its paths start there.
    Raises:
        ConfigError: there are none, or they do not fit each other.
    """
    if reference.startswith("zoo:"):
        return _bundled(reference)
    place = Path(reference).expanduser()
    if not place.is_dir():
        raise ConfigError([f"--models: expected a folder of .onnx or .tflite files or zoo:digits, got {reference}"])
    if (place / NAME).is_file():
        return _described(place, folder)
    return _looked_at(place, folder)


def _bundled(reference: str) -> Found:
    """The bundled config of that task names its models and their order."""
    name = reference.removeprefix("zoo:")
    path = zoo.find(name) / "edge.yaml"
    config = read_config(path)
    tier = next(tier for tier in config.cascade.tiers if isinstance(tier, LocalTierConfig))
    models = tuple(FoundModel(f"zoo:{name}/{spec.path.name}") for spec in tier.members)
    said = read_yaml(path)["tiers"][config.cascade.tiers.index(tier)]
    labels = config.cascade.task.labels
    return Found(reference, models, labels, len(labels), agreement=str(said.get("agreement", "unanimous")))


def _described(place: Path, folder: Path) -> Found:
    manifest = read_manifest(place)
    files = _one_each([spec.path for spec in manifest.models.values()])
    if not files:
        raise ConfigError(["expected the models of this folder in it, got none"], str(place / NAME))
    models = tuple(FoundModel(_reference(path, folder)) for path in files)
    return Found(_reference(place / NAME, folder), models, manifest.task.labels, len(manifest.task.labels))


def _looked_at(place: Path, folder: Path) -> Found:
    """No manifest: the files say what they take, but not what their outputs mean, nor how pixels are scaled."""
    files = _one_each([path for path in sorted(place.iterdir()) if path.suffix in SUFFIXES])
    if not files:
        raise ConfigError([f"expected .onnx or .tflite files, got none in {place} (copy them there)"])
    shapes = [(path, shape_of(path)) for path in files]
    counts = {path.name: _n_labels(path, shape) for path, shape in shapes}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise ConfigError(
            [f"expected models with one number of labels, got {told} (move the others elsewhere)"], str(place)
        )
    n_labels = next(iter(counts.values()))
    labels = _labels_in(place)
    models = []
    for path, shape in shapes:
        contract = contract_of(path, shape.inputs[0])
        models.append(FoundModel(_reference(path, folder), _output_of(path, contract, n_labels), contract))
    return Found(place.resolve().name, tuple(models), labels, n_labels, models[0].contract)


def contract_of(path: Path, taken: Tensor) -> Contract:
    """What an example is, as far as a model's input tells: an image where it has 1 or 3 channels.

    Raises:
        ConfigError: its input has another free dimension than the batch, or a type that no member takes.
    """
    dims = taken.dims[1:]
    if not dims or None in dims:
        shown = ", ".join("free" if dim is None else str(dim) for dim in taken.dims)
        raise ConfigError([f"expected an input of one size but for the batch, got [{shown}] (export it so)"], str(path))
    shape = tuple(dim for dim in dims if dim is not None)
    if taken.dtype not in (*FLOATS, "uint8", "int32", "int64"):
        raise ConfigError([f"expected an input of floats, uint8 or integers, got {taken.dtype}"], str(path))
    dtype = "float32" if taken.dtype == "int8" else taken.dtype
    if len(shape) != 3 or dtype in ("int32", "int64") or not {shape[0], shape[2]} & {1, 3}:
        return Contract("tensor", shape, "NHWC", dtype)
    layout = "NCHW" if shape[0] in (1, 3) else "NHWC"
    height, width, channels = (shape[1], shape[2], shape[0]) if layout == "NCHW" else shape
    scale = 1.0 if dtype == "uint8" else IMAGE_SCALE
    return Contract("image", (height, width, channels), layout, dtype, scale)


def _n_labels(path: Path, shape: Shape) -> int:
    if len(shape.inputs) != 1:
        mend = "models of texts need a manifest: docs/own-models.md"
        raise ConfigError([f"expected one input, got {len(shape.inputs)} ({mend})"], str(path))
    sizes = [tensor.dims[1] for tensor in shape.outputs if len(tensor.dims) == 2 and tensor.dims[1]]
    if not sizes or (sizes[0] or 0) < 2:
        raise ConfigError(["expected an output [batch, labels] with two labels or more (export it so)"], str(path))
    return sizes[0] or 0


def _output_of(path: Path, contract: Contract, n_labels: int) -> str:
    """Whether it ends in probabilities, tried; taken for so where it cannot be loaded here."""
    kind = "tflite" if path.suffix == ".tflite" else "onnx"
    spec = ModelSpec(path.name, path, kind, tuple(map(str, range(n_labels))), contract)
    try:
        load(spec).close()
    except ModelError as error:
        return "logits" if "output: logits" in str(error) else "probabilities"
    except CascadeError:
        return "probabilities"
    return "probabilities"


def _labels_in(place: Path) -> tuple[str, ...]:
    path = place / "labels.txt"
    return read_labels(path) if path.is_file() else ()


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line, in the order of the models' outputs."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot be read: {getattr(error, 'strerror', None) or error}"], str(path)) from None
    return tuple(line.strip() for line in lines if line.strip())


def _one_each(paths: list[Path]) -> list[Path]:
    """Each model once, where it is there in several formats."""
    chosen: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in paths:
            if path.suffix == suffix:
                chosen.setdefault(path.name.split(".")[0], path)
    return sorted(chosen.values(), key=lambda path: (path.stat().st_size if path.is_file() else 0, path.name))


def _reference(path: Path, folder: Path) -> str:
    """Relative to the config's folder where it is below that."""
    whole = path.resolve()
    return str(whole.relative_to(folder.resolve())) if whole.is_relative_to(folder.resolve()) else str(whole)
