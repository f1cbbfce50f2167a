"""Models exported from Hugging Face, timm and torchvision, and the manifest that describes them.

`config.json` has the labels (`id2label`) and what the model is; `tokenizer.json` with `tokenizer_config.json`, or
`preprocessor_config.json`, how an example becomes its input. Nothing of the folder is run.

`pretrained_cfg` says what a picture becomes: input_size, mean, std, crop_pct, interpolation.

Written where the model is exported, since the settings live in the package and in no file:

    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    torch.onnx.export(torchvision.models.resnet50(weights=weights).eval(), torch.zeros(1, 3, 224, 224), "resnet50.onnx")
    write_manifest(describe(weights, "resnet50"), "imagenet", [Path("resnet50.onnx")])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError
from coe.config import Fields, Report, format_yaml, read_yaml

SUFFIX = ".onnx"
RESAMPLING = ("bilinear", "bicubic")


@dataclass(frozen=True, slots=True)
class Described:
    """One model, or several exports of it, as a manifest has it.

    Args:
        labels: in the order of the model's outputs.
        input: the manifest's `input:`.
        output: "probabilities" or "logits".
        architecture: as its publisher calls it.
        notes: where our input differs from the publisher's: what to know before comparing accuracies.
    """

    labels: tuple[str, ...]
    input: Mapping[str, Any]
    output: str
    architecture: str
    notes: Sequence[str] = field(default=())


def model_files(folder: Path) -> list[Path]:
    """The ONNX files of a folder, and of its `onnx` folder, where exporters put them.

    Raises:
        ConfigError: there are none.
    """
    found = sorted(folder.glob(f"*{SUFFIX}")) or sorted(folder.glob(f"onnx/*{SUFFIX}"))
    if not found:
        raise ConfigError([f"{folder}: expected an exported model ({SUFFIX}), got none (export it; see own-models.md)"])
    return found


def write_manifest(described: Described, task: str, files: Sequence[Path]) -> Path:
    """The manifest beside the files, with their checksums. A manifest that is there keeps its other models.

    Raises:
        ConfigError: the manifest that is there is of another task.
    """
    path = files[0].parent / "manifest.yaml"
    content: dict[str, Any] = {"task": task, "labels": list(described.labels), "input": _of_task(described.input)}
    models: dict[str, Any] = {}
    if path.exists():
        before = read_yaml(path)
        if (before.get("task"), before.get("labels")) != (task, content["labels"]):
            raise ConfigError(
                [f"{path}: expected the task {task} with {len(described.labels)} labels, got {before.get('task')} "
                 f"with {len(before.get('labels', []))} (write into another folder, or take the file away)"]
            )  # fmt: skip
        content["input"], models = before["input"], before["models"]
    for file in files:
        models[file.name] = {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "output": described.output,
            "architecture": described.architecture,
            "input": dict(described.input),
        }
    notes = "".join(f"# {line}\n" for line in described.notes)
    text = format_yaml(content, default_flow_style=None, width=100)
    text += format_yaml({"models": models}, default_flow_style=None, width=100)
    path.write_text(notes + text, encoding="utf-8")
    return path


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Labels told apart: of two that are called "crane", as in ImageNet, the later gets its number."""
    seen: set[str] = set()
    found = []
    for number, name in enumerate(names):
        found.append(f"{name} ({number})" if name in seen else name)
        seen.add(name)
    return tuple(found)


def _of_task(model_input: Mapping[str, Any]) -> dict[str, Any]:
    """What an example is, without one model's own tokenizer."""
    return {key: value for key, value in model_input.items() if not key.startswith("tokenizer")}


def image_input(
    size: Sequence[int],
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    fit: str,
    crop_share: float = 1.0,
    resample: str = "bilinear",
) -> dict[str, Any]:
    """An image `input:`; size (height, width). Scaling that is neither bilinear nor bicubic becomes bilinear."""
    found = {
        "kind": "image",
        "size": list(size),
        "channels": len(mean) if len(mean) in (1, 3) else 3,
        "layout": "NCHW",
        "dtype": "float32",
        "scale": scale,
        "mean": list(mean),
        "std": list(std),
        "fit": fit,
    }
    if fit == "crop" and abs(crop_share - 1) > 1e-3:
        found["crop_share"] = round(crop_share, 4)
    return found | ({"resample": resample} if resample == "bicubic" else {})


def scaling_notes(resample: str) -> list[str]:
    """Where pixels are not scaled as published."""
    return [] if resample in RESAMPLING else [f"Published with {resample} scaling; here it is bilinear."]


MOST_TOKENS = 512  # where the folder names no bound: tokenizers say 1e30 for none
UNSAID = {"0": "LABEL_0", "1": "LABEL_1"}  # what config.json leaves out where nobody named the two labels
N_CHOICES = 4  # of multiple choice, which has no labels of its own
OFFSET = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}  # positions that count from the padding token on
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def read_json(path: Path) -> Fields:
    """A JSON object, to be read with an error trail.

    Raises:
        ConfigError: it is not there, or none.
    """
    report = Report(str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], str(path)) from None
    except ValueError as error:
        raise ConfigError([f"expected JSON: {error}"], str(path)) from None
    return Fields(content, report)


def describe_huggingface(folder: Path) -> Described:
    """What the model in the folder takes in and says.

    Raises:
        ConfigError: a file is missing or says what cannot be; every finding of a file at once.
    """
    config = read_json(folder / "config.json")
    kinds = config.texts("architectures", [])
    architecture = kinds[0] if kinds else config.text("model_type", "")
    labels = _labels(config, architecture)
    config.report.check()
    if (folder / "tokenizer.json").exists():
        return Described(labels, _text(folder, config, architecture), "logits", architecture)
    if (folder / "preprocessor_config.json").exists():
        fields = read_json(folder / "preprocessor_config.json")
        given, notes = _image(fields)
        fields.report.check()
        return Described(labels, given, "logits", architecture, notes)
    raise ConfigError(
        [f"{folder}: expected tokenizer.json (texts) or preprocessor_config.json (images), got neither "
         "(export the fast tokenizer or the image processor too)"]
    )  # fmt: skip


def _labels(config: Fields, architecture: str) -> tuple[str, ...]:
    """In the order of the outputs."""
    if architecture.endswith("ForMultipleChoice"):
        return tuple(str(number) for number in range(N_CHOICES))
    names = config.raw("id2label", UNSAID)
    if not isinstance(names, dict) or sorted(names, key=_as_number) != [str(number) for number in range(len(names))]:
        config.wrong("id2label", 'expected labels numbered from 0, {"0": "negative", "1": ..} (export it with them)')
        return ()
    return distinct([str(names[str(number)]) for number in range(len(names))])


def _as_number(key: Any) -> int:
    return int(key) if str(key).isdigit() else -1


def _text(folder: Path, config: Fields, architecture: str) -> dict[str, Any]:
    tokenizer = folder / "tokenizer.json"
    kind = config.text("model_type", "")
    bounds = [MOST_TOKENS]
    if config.has("max_position_embeddings"):
        bounds.append(config.integer("max_position_embeddings") - OFFSET.get(kind, 0))
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        fields = read_json(settings)
        bounds.append(int(min(fields.number("model_max_length", MOST_TOKENS, high=float("inf")), MOST_TOKENS)))
        fields.report.check()
    given: dict[str, Any] = {
        "kind": "text",
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
        "max_length": min(bound for bound in bounds if bound > 0),
    }
    return given | ({"choices": N_CHOICES} if architecture.endswith("ForMultipleChoice") else {})


def _image(fields: Fields) -> tuple[dict[str, Any], list[str]]:
    scale = fields.number("rescale_factor", 1 / 255) if fields.flag("do_rescale", True) else 1.0
    mean, std = (fields.numbers(f"image_{name}", [default] * 3) for name, default in (("mean", 0.0), ("std", 1.0)))
    if not fields.flag("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    edge, size = _size(fields, "size")
    _, crop = _size(fields, "crop_size")
    resample = RESAMPLE.get(fields.integer("resample", 2), "other")
    if fields.flag("do_center_crop", False) and crop is not None:
        share = 1.0 if edge is None else min(crop) / edge
        return image_input(crop, scale, mean, std, "crop", share, resample), scaling_notes(resample)
    if size is not None:
        return image_input(size, scale, mean, std, "stretch", resample=resample), scaling_notes(resample)
    if edge is not None:  # the shorter side to size / crop_pct, then its middle
        share = fields.number("crop_pct", 1.0)
        return image_input((edge, edge), scale, mean, std, "crop", share, resample), scaling_notes(resample)
    fields.wrong("size", "expected the size of a picture, got none (height and width, or shortest_edge)")
    return image_input((1, 1), scale, mean, std, "stretch"), []


def _size(fields: Fields, key: str) -> tuple[int | None, Sequence[int] | None]:
    """(shortest edge, (height, width)): whichever is given; a number alone is a square."""
    value = fields.raw(key, None)
    if value is None:
        return None, None
    if isinstance(value, int):
        return value, (value, value)
    section = fields.section(key)
    if section.has("shortest_edge"):
        return section.integer("shortest_edge", low=1), None
    return None, (section.integer("height", low=1), section.integer("width", low=1))


def is_timm(folder: Path) -> bool:
    """Whether the folder's config.json is timm's."""
    path = folder / "config.json"
    return path.exists() and read_json(path).has("pretrained_cfg")


def describe_timm(folder: Path) -> Described:
    """What the model in the folder takes in and says.

    Raises:
        ConfigError: config.json lacks something, or says what cannot be; every finding at once.
    """
    config = read_json(folder / "config.json")
    settings = config.section("pretrained_cfg")
    size = settings.integers("input_size")
    if len(size) != 3 or size[0] not in (1, 3):
        settings.wrong("input_size", f"expected [channels, height, width], got {list(size)}")
        size = (3, 1, 1)
    mean, std = (settings.numbers(name, default) for name, default in (("mean", [0.0]), ("std", [1.0])))
    share = settings.number("crop_pct", 1.0)
    fit = "stretch" if settings.text("crop_mode", "center") == "squash" else "crop"
    resample = settings.text("interpolation", "bilinear")
    labels = _timm_labels(config, settings)
    config.report.check()
    channels = size[0]
    given = image_input(size[1:], 1 / 255, _each(mean, channels), _each(std, channels), fit, share, resample)
    return Described(labels, given, "logits", config.text("architecture", "timm"), scaling_notes(resample))


def _timm_labels(config: Fields, settings: Fields) -> tuple[str, ...]:
    """Their names where they are told, else their numbers."""
    for fields in (config, settings):
        names = fields.texts("label_names", [])
        if names:
            return distinct(names)
    owner = config if config.has("num_classes") else settings
    return tuple(str(number) for number in range(owner.integer("num_classes", low=2)))


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


NEEDED = ("crop_size", "resize_size", "mean", "std", "interpolation")


def describe_torchvision(weights: Any, architecture: str) -> Described:
    """What a model with these weights takes in and says.

    Args:
        weights: an entry of one of torchvision's weights enums, for classification.
    Raises:
        ConfigError: it is none, or its transforms are of another kind.
    """
    transforms: Any = weights.transforms() if hasattr(weights, "transforms") else None
    missing = [name for name in NEEDED if not hasattr(transforms, name)]
    categories = getattr(weights, "meta", {}).get("categories", [])
    if missing or not categories:
        raise ConfigError(
            [f"expected weights of a classifier, with transforms() and meta['categories'], got {weights!r} without "
             f"{', '.join(missing) or 'categories'}"]
        )  # fmt: skip
    (crop,), (edge,) = transforms.crop_size, transforms.resize_size
    mean, std, resample = list(transforms.mean), list(transforms.std), str(transforms.interpolation.value)
    given = image_input((crop, crop), 1 / 255, mean, std, "crop", crop / edge, resample)
    return Described(distinct(categories), given, "logits", architecture, scaling_notes(resample))
