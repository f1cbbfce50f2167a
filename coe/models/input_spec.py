"""What a model takes in, and how an example becomes that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from coe.cascade.errors import InputError
from coe.cascade.types import Array


@dataclass(frozen=True)
class InputSpec:
    """What a model takes in.

    Args:
        kind: "image", "tensor" (the caller's numbers as they are), or "text" (a TextInputSpec).
        shape: image: (height, width, channels) with 1 or 3 channels; tensor: the shape S of one example.
        layout: image: "NCHW", "NHWC", "HW" (grey, without an axis for the channel) or "flat" (rows of pixels).
        channel_order: image: "RGB" or "BGR", as the model takes them.
        dtype: what the model's input takes: "float32", "float16" or "uint8".
        scale, mean, std: image: (pixel * scale - mean) / std, per channel.
        fit: image of another size: "stretch" it, or "crop" its middle at the right aspect.
        crop_share: how much of that middle "crop" takes, along each side.
        resample: how pixels are scaled: "bilinear" or "bicubic".
        invert: "when-light": an image whose mean is above the middle is inverted as it is decoded, for models that
            know light on dark alone; or "never".
    """

    kind: str
    shape: tuple[int, ...]
    layout: str = "NCHW"
    dtype: str = "float32"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fit: str = "stretch"
    crop_share: float = 1.0
    resample: str = "bilinear"
    invert: str = "never"
    channel_order: str = "RGB"

    @cached_property
    def model_shape(self) -> tuple[int, ...]:
        """Shape of one example as the model takes it."""
        if self.kind != "image" or self.layout == "NHWC":
            return self.shape
        height, width, channels = self.shape
        if self.layout == "HW":
            return height, width
        return (channels, height, width) if self.layout == "NCHW" else (height * width * channels,)

    @cached_property
    def _rows_shape(self) -> tuple[int, ...]:
        return -1, *self.model_shape

    @cached_property
    def largest(self) -> np.float64:
        """The largest number its dtype holds."""
        kind = np.dtype(self.dtype)
        return np.float64(np.finfo(kind).max if kind.kind == "f" else np.iinfo(kind).max)

    @cached_property
    def _gain(self) -> Array:
        return (self.scale / np.asarray(self.std)).astype(np.float32)

    @cached_property
    def _offset(self) -> Array | None:
        offset = (-np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        return offset if offset.any() else None

    @cached_property
    def _grey_values(self) -> Array | None:
        """(256,) what each grey value becomes, where that is all there is to do; looking up beats arithmetic."""
        if self.kind != "image" or self.shape[2] != 1 or self.dtype == "uint8":
            return None
        return self._normalised(np.arange(256, dtype=np.uint8)[:, None])[:, 0]

    def _normalised(self, x: Array) -> Array:
        """(..., C) pixels as (pixel * scale - mean) / std, in the model's dtype."""
        x = np.multiply(x, self._gain, dtype=np.float32)
        if self._offset is not None:
            x += self._offset
        return x.astype(self.dtype, copy=False)

    def blank(self) -> Array:
        """One example (1, *S) of zeros, as a caller sends it."""
        if self.kind == "image":
            return np.zeros((1, *self.shape), dtype=np.uint8)
        return np.zeros((1, *self.shape), dtype=self.dtype)

    def trial(self, n_rows: int) -> Array:
        """(n_rows, *model_shape) of zeros, as a model takes them."""
        return np.zeros((n_rows, *self.model_shape), dtype=self.dtype)

    def takes(self, examples: InputSpec) -> bool:
        """True if examples of a task with that input spec can be prepared for this one: images of any size can."""
        if self.kind == "image":
            return examples.kind == "image" and examples.shape[-1] == self.shape[-1]
        return (examples.kind, examples.shape) == (self.kind, self.shape)

    def prepare(self, x: Array) -> Array:
        """(B, *model_shape) in the model's dtype from a batch's x.

        Args:
            x: (B, H, W, C) uint8 pixels of any size, (B,) objects where sizes differ, or (B, *model_shape)
                floats that are prepared already; in the model's dtype these come back as they are, uncopied.

        Raises:
            InputError: prepared already, but for a model of another shape.
        """
        if x.dtype == np.uint8 and self._grey_values is not None and x.shape[1:] == self.shape:
            return self._grey_values.take(x, mode="wrap").reshape(self._rows_shape)  # no index is out of bounds
        if x.dtype == object:
            return np.concatenate([self.prepare(row[None]) for row in x])
        if x.dtype.kind == "f" or self.kind == "tensor":
            if x.shape[1:] != self.model_shape:
                raise InputError(f"expected shape {list(self.model_shape)}, got {list(x.shape[1:])} (or send pixels)")
            return x.astype(self.dtype, copy=False)
        x = self.resized(x)
        if self.channel_order == "BGR":
            x = x[..., ::-1]
        if self.dtype != "uint8":
            x = self._normalised(x)  # (B, H, W, C)
        if self.layout == "NCHW" and self.shape[2] > 1:
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return np.ascontiguousarray(x).reshape(len(x), *self.model_shape)

    def on_its_ground(self, x: Array) -> Array:
        """(B, H, W, C) uint8 pixels, the light ones of B inverted where that is asked for."""
        if self.invert == "never":
            return x
        light = 2 * x.sum(axis=(1, 2, 3), dtype=np.int64) > 255 * x[0].size
        return np.where(light[:, None, None, None], 255 - x, x) if light.any() else x

    def resized(self, x: Array) -> Array:
        """(B, H, W, C) uint8 pixels at this input spec's size, from (B, ...) of any, or (B,) objects of several."""
        if x.dtype != object and x.shape[1:3] == self.shape[:2]:
            return x
        return np.stack([self._resized(image) for image in x])

    def _resized(self, image: Array) -> Array:
        """(H, W, C) uint8 at this input spec's size."""
        if image.shape[:2] == self.shape[:2]:
            return image
        from PIL import Image, ImageOps

        height, width, channels = self.shape
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        method = Image.Resampling[self.resample.upper()]
        if self.fit == "crop":
            picture = ImageOps.fit(picture, (width, height), method, bleed=(1 - self.crop_share) / 2)
        else:
            picture = picture.resize((width, height), method)
        return np.asarray(picture).reshape(height, width, channels)


def stack(rows: Sequence[Array]) -> Array:
    """(B, *S), or (B,) objects where the rows differ in shape."""
    if len(rows) == 1:
        return rows[0][None]
    if len({(row.shape, row.dtype) for row in rows}) <= 1:
        return np.stack(rows) if rows else np.empty(0, dtype=object)
    ragged = np.empty(len(rows), dtype=object)
    ragged[:] = rows
    return ragged
