"""What an example is, for Python users: images, tensors or texts, in whatever form they are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from coe.cascade.errors import InputError
from coe.cascade.types import Array
from coe.models.input_spec import InputSpec


@dataclass(frozen=True)
class Image:
    """Examples are images: uint8 pixels, encoded bytes (PNG, JPEG), paths of such files, or PIL images.

    A member takes (pixel * scale - mean) / std, per channel; images of another size are resized.

    Args:
        height, width: pixels, as the members take them.
        channels: 1 (grey) or 3 (RGB).
        layout: "NCHW", "NHWC", "HW" (grey, without an axis for it) or "flat", of the members' input.
        dtype: "float32", "float16" or "uint8", of the members' input.
        fit: "stretch" an image of another size, or "crop" its middle; `crop_share`: how much of it, 0.1 to 1.
        resample: "bilinear" or "bicubic".
        channel_order: "RGB" or "BGR", of the members' input.
    """

    height: int
    width: int
    channels: int = 3
    layout: str = "NCHW"
    dtype: str = "float32"
    scale: float = 1.0
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    fit: str = "stretch"
    crop_share: float = 1.0
    resample: str = "bilinear"
    channel_order: str = "RGB"

    def settings(self) -> dict[str, Any]:
        """The same as a config's `input:`."""
        own = {key: value for key, value in vars(self).items() if key not in ("height", "width")}
        return {"kind": "image", "size": [self.height, self.width], **own}


@dataclass(frozen=True)
class Tensor:
    """Examples are arrays of numbers, passed on as they are: `Tensor(4)` rows of four, `Tensor(3, 32, 32)` arrays.

    Args:
        shape: of one example.
        dtype: of the members' input.
    """

    shape: tuple[int, ...]
    dtype: str

    def __init__(self, *shape: int, dtype: str = "float32") -> None:
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", dtype)

    def settings(self) -> dict[str, Any]:
        """The same as a config's `input:`."""
        return {"kind": "tensor", "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class Text:
    """Examples are texts: strings, UTF-8 bytes, or paths (`pathlib.Path`) of text files.

    Args:
        tokenizer: of members that are ONNX files: their tokenizer.json, in the folder of each; callables and
            scikit-learn pipelines take the strings themselves.
        max_length: tokens, special ones included; longer texts are cut.
        padding: "longest" of the batch, or always "max_length".
        choices: of multiple choice, how many endings; 0: plain texts.
    """

    tokenizer: str | None = None
    max_length: int = 128
    padding: str = "longest"
    choices: int = 0

    def settings(self) -> dict[str, Any]:
        """The same as a config's `input:`."""
        return {"kind": "text", **{key: value for key, value in vars(self).items() if value is not None}}


Input: TypeAlias = Image | Tensor | Text


def as_values(x: Any, spec: InputSpec) -> Any:
    """What the decoder takes: an array of B examples, or a list of one value an example.

    Raises:
        InputError: what was expected, what came.
    """
    if isinstance(x, str | bytes | Path) or _is_picture(x):
        return [_as_value(x, spec, "0")]
    if isinstance(x, np.ndarray) or (hasattr(x, "__array__") and not isinstance(x, list | tuple)):
        return _as_array(np.asarray(x), spec)
    if not hasattr(x, "__iter__") or isinstance(x, Mapping):
        raise InputError(f"expected {_expected(spec)}, got {type(x).__name__}")
    rows = list(x)
    if rows and spec.kind == "tensor" and not any(isinstance(row, str | bytes | Path | np.ndarray) for row in rows):
        try:
            return _as_array(np.asarray(rows, dtype=np.float64), spec)
        except (ValueError, TypeError):
            raise InputError(f"expected {_expected(spec)}, got rows that are no array of numbers") from None
    return [_as_value(row, spec, str(number)) for number, row in enumerate(rows)]


def _as_array(x: Array, spec: InputSpec) -> Any:
    """An array as a batch; one example becomes a batch of one."""
    if spec.kind == "text" and (x.ndim > 1 or x.dtype.kind not in "OUS"):
        raise InputError(f"expected {_expected(spec)}, got an array of {x.dtype} {list(x.shape)}")
    if x.dtype.kind in "OUS":
        return [_as_value(one, spec, str(number)) for number, one in enumerate(np.atleast_1d(x).tolist())]
    if spec.kind == "image" and x.dtype == np.uint8:
        if spec.shape[2] == 1 and x.ndim in (2, 3) and x.shape[-1] != 1:
            x = x[..., None]  # grey images without an axis for the channel
        return x[None] if x.ndim == 3 else x
    return x[None] if x.shape == spec.model_shape else x


def _as_value(value: Any, spec: InputSpec, name: str) -> Any:
    """One example of a list as the decoder takes it: encoded bytes, or an array."""
    if spec.kind == "text":
        if isinstance(value, str):
            return value.encode()
        if not isinstance(value, bytes | Path):
            raise InputError(f"example {name}: expected a text, got {type(value).__name__}")
    elif isinstance(value, str):
        value = Path(value)
    if isinstance(value, Path):
        try:
            return np.load(value, allow_pickle=False) if value.suffix == ".npy" else value.read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"example {name}: {value} cannot be read: {why}") from None
    if _is_picture(value):
        return np.asarray(value.convert("L" if spec.shape[-1:] == (1,) else "RGB"))
    if isinstance(value, bytes):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InputError(f"example {name}: expected {_expected(spec)}, got {type(value).__name__}")
    return array


def _is_picture(x: Any) -> bool:
    """True for a PIL image; Pillow is not imported to find out."""
    return hasattr(x, "convert") and hasattr(x, "mode") and hasattr(x, "getbands")


def _expected(spec: InputSpec) -> str:
    if spec.kind == "text":
        return "texts (strings)"
    if spec.kind == "image":
        return "images (uint8 arrays, paths, bytes or PIL images)"
    return f"an array [B, {', '.join(map(str, spec.shape))}] or rows of that many numbers"
