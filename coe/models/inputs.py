"""What an example is, and how it becomes a model's input.

An example comes in through the door once (`Door.batch`): encoded images are decoded to uint8 pixels and checked
there, so that a bad one fails alone. Each member then prepares the batch by its own contract (`Contract.prepare`);
members that share a contract share the prepared array.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from coe.cascade.errors import InputError
from coe.cascade.types import Array, Batch

MAX_PIXELS = 50_000_000  # of a batch; headers that claim more are refused before their image is decoded
MAX_TEXT_BYTES = 2**16  # of one text
FORMATS = ("PNG", "JPEG")


@dataclass(frozen=True)
class Contract:
    """What a model takes in.

    Args:
        kind: "image", "tensor" (the caller's numbers as they are), or "text" (a TextContract).
        shape: image: (height, width, channels) with 1 or 3 channels; tensor: the shape S of one example.
        layout: image: "NCHW" or "NHWC".
        dtype: what the model's input takes: "float32", "float16" or "uint8".
        scale, mean, std: image: (pixel * scale - mean) / std, per channel.
        fit: image of another size: "stretch" it, or "crop" its middle at the right aspect.
        crop_share: how much of that middle "crop" takes, along each side.
        resample: how pixels are scaled: "bilinear" or "bicubic".
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

    @cached_property
    def model_shape(self) -> tuple[int, ...]:
        """Shape of one example as the model takes it."""
        if self.kind == "image" and self.layout == "NCHW":
            height, width, channels = self.shape
            return channels, height, width
        return self.shape

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
        """One example (1, *S) of zeros, as it comes through the door."""
        if self.kind == "image":
            return np.zeros((1, *self.shape), dtype=np.uint8)
        return np.zeros((1, *self.shape), dtype=self.dtype)

    def trial(self, n_rows: int) -> Array:
        """(n_rows, *model_shape) of zeros, as a model takes them."""
        return np.zeros((n_rows, *self.model_shape), dtype=self.dtype)

    def takes(self, examples: Contract) -> bool:
        """Whether examples of a task with that contract can be prepared for this one: images of any size can."""
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
        if self.dtype != "uint8":
            x = self._normalised(x)  # (B, H, W, C)
        if self.layout == "NCHW":
            if self.shape[2] == 1:
                return x.reshape(len(x), *self.model_shape)
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return x

    def resized(self, x: Array) -> Array:
        """(B, H, W, C) uint8 pixels at this contract's size, from (B, ...) of any, or (B,) objects of several."""
        if x.dtype != object and x.shape[1:3] == self.shape[:2]:
            return x
        return np.stack([self._resized(image) for image in x])

    def _resized(self, image: Array) -> Array:
        """(H, W, C) uint8 at this contract's size."""
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


@dataclass(frozen=True)
class Door:
    """Where examples come in: decodes and checks them against the task's contract.

    Args:
        contract: of the task; a tier's members may each have another size.
        max_pixels: of a batch's encoded images together, by their headers.
        max_text_bytes: of one text.
    """

    contract: Contract
    max_pixels: int = MAX_PIXELS
    max_text_bytes: int = MAX_TEXT_BYTES

    def batch(self, ids: Sequence[str], values: Sequence[bytes | Array] | Array, deadline: float = math.inf) -> Batch:
        """A batch from one value per example: encoded bytes, or arrays; of a task of texts, UTF-8 bytes.

        Raises:
            InputError: names the first example that cannot be read.
        """
        if self.contract.kind == "text":
            from .text import TextContract, read_texts

            contract = self.contract if isinstance(self.contract, TextContract) else None
            return read_texts(ids, values, self.max_text_bytes, deadline, contract)
        if isinstance(values, np.ndarray) and values.dtype != object:
            return Batch(tuple(ids), self._tensor(values), None, deadline)
        rows = []
        left = self.max_pixels  # of the batch together: many small bombs are one large one
        for name, value in zip(ids, values, strict=True):
            try:
                rows.append(self.row(value, left))
            except InputError as error:
                raise InputError(f"example {name}: {error}") from None
            left -= rows[-1].shape[0] * rows[-1].shape[1] if isinstance(value, bytes) else 0
        captured = None
        if all(isinstance(value, bytes) for value in values):
            captured = np.empty(len(rows), dtype=object)
            captured[:] = values
        return Batch(tuple(ids), stack(rows), captured, deadline)

    def warm_up(self) -> None:
        """Load what decoding needs, so that the first example does not wait for it."""
        if self.contract.kind == "image":
            from PIL import Image

            dot = io.BytesIO()
            Image.new("L", (1, 1)).save(dot, "PNG")
            self.batch(["dot"], [dot.getvalue()])

    def row(self, value: bytes | Array, max_pixels: int | None = None) -> Array:
        """One example's x: (H, W, C) uint8 pixels, or a tensor of the contract's shape.

        Args:
            max_pixels: of an encoded image; None: the door's own.
        Raises:
            InputError: what was expected, what came.
        """
        if isinstance(value, bytes):
            if self.contract.kind != "image":
                raise InputError(f"expected a tensor of shape {list(self.contract.shape)}, got encoded bytes")
            limit = self.max_pixels if max_pixels is None else max_pixels
            return decode_image(value, self.contract.shape[2], limit)
        if self.contract.kind == "image" and value.ndim == 2 and value.dtype == np.uint8:
            value = value[..., None]
        x: Array = self._tensor(value[None])[0]
        return x

    def _tensor(self, x: Array) -> Array:
        """(B, *S) checked: pixels as uint8, or floats as the model takes them."""
        contract = self.contract
        if contract.kind == "image" and x.dtype == np.uint8:
            channels = contract.shape[2]
            if x.ndim == 4 and x.shape[3] == channels and 0 < x.shape[1] * x.shape[2] <= self.max_pixels:
                return x
            raise InputError(f"expected uint8 pixels [height, width, {channels}], got shape {list(x.shape[1:])}")
        if x.shape[1:] != contract.model_shape:
            raise InputError(f"expected shape {list(contract.model_shape)}, got {list(x.shape[1:])}")
        if x.dtype.kind == "f":
            if not (-contract.largest <= x.min(initial=0) and x.max(initial=0) <= contract.largest):  # a NaN is neither
                raise InputError(f"expected finite numbers in {contract.dtype}, got NaN, infinity or too large a one")
            return x
        if contract.kind == "image" or x.dtype.kind not in "iub":
            raise InputError(f"expected uint8 pixels or floats, got {x.dtype}")
        return x


def stack(rows: Sequence[Array]) -> Array:
    """(B, *S), or (B,) objects where the rows differ in shape."""
    if len(rows) == 1:
        return rows[0][None]
    if len({(row.shape, row.dtype) for row in rows}) <= 1:
        return np.stack(rows) if rows else np.empty(0, dtype=object)
    ragged = np.empty(len(rows), dtype=object)
    ragged[:] = rows
    return ragged


def decode_image(data: bytes, channels: int, max_pixels: int = MAX_PIXELS) -> Array:
    """(H, W, C) uint8 pixels of a PNG or JPEG, turned upright as its EXIF says; grey or RGB by `channels`.

    Raises:
        InputError: not such an image, damaged, or more pixels than allowed (checked before decoding).
    """
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    try:
        image: Any = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header alone
        if image.width * image.height > max_pixels:
            raise InputError(f"expected at most {max_pixels} pixels, got {image.width} x {image.height}")
        if image.format == "JPEG":
            image = _turned_upright(image)
        if image.mode.startswith("I"):  # 16 bits of grey: convert() would clip them to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode != mode:
            image = image.convert(mode)
        pixels = image.tobytes()
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises a dozen kinds for damaged files
        head = data[:8].hex(" ") or "nothing"
        raise InputError(f"expected a PNG or JPEG image, got {len(data)} bytes ({head}): {error}") from None
    return np.frombuffer(pixels, dtype=np.uint8).reshape(image.height, image.width, channels)


def _turned_upright(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)
