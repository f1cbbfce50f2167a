"""torchvision's weights: their `transforms()` and `meta` say what a picture becomes and what the labels are.

Written where the model is exported, since the settings live in the package and in no file:

    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    torch.onnx.export(torchvision.models.resnet50(weights=weights).eval(), torch.zeros(1, 3, 224, 224), "resnet50.onnx")
    write_manifest(describe(weights, "resnet50"), "imagenet", [Path("resnet50.onnx")])
"""

from typing import Any

from coe.cascade.errors import ConfigError

from .described import Described, distinct, image_input, scaling_notes

NEEDED = ("crop_size", "resize_size", "mean", "std", "interpolation")


def describe(weights: Any, architecture: str) -> Described:
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
