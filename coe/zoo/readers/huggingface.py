"""A folder that Hugging Face's exporters write: config.json, model.onnx, and the tokenizer's or image processor's file.

`config.json` has the labels (`id2label`) and what the model is; `tokenizer.json` with `tokenizer_config.json`, or
`preprocessor_config.json`, how an example becomes its input. Nothing of the folder is run.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coe.cascade.errors import ConfigError
from coe.settings import Fields, Report

from .described import Described, distinct, image_input, scaling_notes

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


def describe(folder: Path) -> Described:
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
