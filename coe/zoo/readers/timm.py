"""A folder with a timm model's config.json, as its hub repositories have it, beside the exported model.onnx.

`pretrained_cfg` says what a picture becomes: input_size, mean, std, crop_pct, interpolation.
"""

from pathlib import Path

from coe.settings import Fields

from .described import Described, distinct, image_input, scaling_notes
from .huggingface import read_json


def is_timm(folder: Path) -> bool:
    """Whether the folder's config.json is timm's."""
    path = folder / "config.json"
    return path.exists() and read_json(path).has("pretrained_cfg")


def describe(folder: Path) -> Described:
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
    labels = _labels(config, settings)
    config.report.check()
    channels = size[0]
    given = image_input(size[1:], 1 / 255, _each(mean, channels), _each(std, channels), fit, share, resample)
    return Described(labels, given, "logits", config.text("architecture", "timm"), scaling_notes(resample))


def _labels(config: Fields, settings: Fields) -> tuple[str, ...]:
    """Their names where they are told, else their numbers."""
    for fields in (config, settings):
        names = fields.texts("label_names", [])
        if names:
            return distinct(names)
    owner = config if config.has("num_classes") else settings
    return tuple(str(number) for number in range(owner.integer("num_classes", low=2)))


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values
