"""Decoding of what a caller sends into a batch, and encoding of a batch as it is sent to a server.

An example is decoded once (`InputDecoder.batch`): encoded images become uint8 pixels and are checked, so that a bad one
fails alone. Each member then prepares the batch by its own input spec (`InputSpec.prepare`); members that share one
share the prepared array.

A form is made from a batch once its first tiers have not settled it, so it costs the deferred examples alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from coe.cascade.errors import InputError, RuntimeMissing
from coe.cascade.types import Array, Batch

from .input_spec import InputSpec, stack
from .loading import import_runtime
from .text import TextInputSpec, read_texts

MAX_PIXELS = 50_000_000  # of a batch; headers that claim more are refused before their image is decoded
MAX_TEXT_BYTES = 2**16  # of one text
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")  # of the last, the first frame
TURNED = ("JPEG", "WEBP", "TIFF")  # as their EXIF says
PNG = b"\x89PNG\r\n\x1a\n"
STARTS = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp", b"II*\0": ".tif", b"MM\0*": ".tif"}
STARTS |= {b"GIF8": ".gif", b"BM": ".bmp"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif")
LEAST_SCALE = 2  # large JPEGs are decoded at 1/2, 1/4 or 1/8, and still this many times the task's input


@dataclass(frozen=True)
class InputDecoder:
    """Where examples come in: decodes and checks them against the task's input spec.

    Args:
        input_spec: of the task; a tier's members may each have another size.
        max_pixels: of a batch's encoded images together, by their headers.
        max_text_bytes: of one text.
    """

    input_spec: InputSpec
    max_pixels: int = MAX_PIXELS
    max_text_bytes: int = MAX_TEXT_BYTES

    def batch(self, ids: Sequence[str], values: Sequence[bytes | Array] | Array, deadline: float = math.inf) -> Batch:
        """A batch from one value per example: encoded bytes, or arrays; of a task of texts, UTF-8 bytes.

        Raises:
            InputError: names the first example that cannot be read.
        """
        if self.input_spec.kind == "text":
            input_spec = self.input_spec if isinstance(self.input_spec, TextInputSpec) else None
            return read_texts(ids, values, self.max_text_bytes, deadline, input_spec)
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
        is_encoded = all(isinstance(value, bytes) for value in values)
        captured = np.array(values, dtype=object) if is_encoded else None
        return Batch(tuple(ids), stack(rows), captured, deadline)

    def warm_up(self) -> None:
        """Load what decoding needs, so that the first example does not wait for it."""
        if self.input_spec.kind == "image":
            from PIL import Image

            dot = io.BytesIO()
            Image.new("L", (1, 1)).save(dot, "PNG")
            self.batch(["dot"], [dot.getvalue()])

    def blank(self) -> Batch:
        """One blank example, captured as those of the task are: a PNG, or a short text."""
        x = self.input_spec.blank()
        return self.batch(["blank"], [_picture(x[0], {"format": "PNG"})] if self.input_spec.kind == "image" else x)

    def row(self, value: bytes | Array, max_pixels: int | None = None) -> Array:
        """One example's x: (H, W, C) uint8 pixels, or a tensor of the task's shape.

        Args:
            max_pixels: of an encoded image; None: the decoder's own.
        Raises:
            InputError: what was expected, what came.
        """
        if isinstance(value, bytes):
            if self.input_spec.kind != "image":
                raise InputError(f"expected a tensor of shape {list(self.input_spec.shape)}, got encoded bytes")
            limit = self.max_pixels if max_pixels is None else max_pixels
            height, width, channels = self.input_spec.shape
            pixels = decode_image(value, channels, limit, LEAST_SCALE * max(height, width))
            shown: Array = self.input_spec.on_its_ground(pixels[None])[0]
            return shown
        if self.input_spec.kind == "image" and value.ndim == 2 and value.dtype == np.uint8:
            value = value[..., None]
        x: Array = self._tensor(value[None])[0]
        return x

    def _tensor(self, x: Array) -> Array:
        """(B, *S) checked: pixels as uint8, or floats as the model takes them."""
        input_spec = self.input_spec
        if input_spec.kind == "image" and x.dtype == np.uint8:
            channels = input_spec.shape[2]
            if x.ndim == 4 and x.shape[3] == channels and 0 < x.shape[1] * x.shape[2] <= self.max_pixels:
                return input_spec.on_its_ground(x)
            raise InputError(f"expected uint8 pixels [height, width, {channels}], got shape {list(x.shape[1:])}")
        if x.shape[1:] != input_spec.model_shape:
            raise InputError(f"expected shape {list(input_spec.model_shape)}, got {list(x.shape[1:])}")
        if x.dtype.kind == "f":
            largest = input_spec.largest
            if not (-largest <= x.min(initial=0) and x.max(initial=0) <= largest):  # a NaN is neither
                raise InputError(f"expected finite numbers in {input_spec.dtype}, got NaN, infinity or too large a one")
            return x
        if input_spec.kind == "image" or x.dtype.kind not in "iub":
            raise InputError(f"expected uint8 pixels or floats, got {x.dtype}")
        return x


def suffix_of(data: bytes) -> str:
    """The suffix of an encoded image's file, by its first bytes; ".bin" of other content."""
    return next((suffix for start, suffix in STARTS.items() if data.startswith(start)), ".bin")


def decode_image(data: bytes, channels: int, max_pixels: int = MAX_PIXELS, least_side: int = 0) -> Array:
    """(H, W, C) uint8 pixels of an encoded image, turned upright as its EXIF says; grey or RGB by `channels`.

    Args:
        least_side: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which takes a fraction of the time, where both
            sides are still as long; 0: at its own size.
    Raises:
        InputError: not such an image, damaged, or more pixels than allowed (checked before decoding).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError
    from PIL.PngImagePlugin import PngImageFile

    mode = "L" if channels == 1 else "RGB"
    try:
        file = io.BytesIO(data)  # opening it reads the header alone; Pillow's search for its format costs as much
        image: Any = PngImageFile(file) if data.startswith(PNG) else _opened(data, file)
        if image.width * image.height > max_pixels:
            raise InputError(f"expected at most {max_pixels} pixels, got {image.width} x {image.height}")
        if image.format == "JPEG" and least_side:
            image.draft(None, (least_side, least_side))
        if image.format in TURNED:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey: convert() would clip them to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode != mode:
            image = image.convert(mode)
        pixels = image.tobytes()
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises a dozen kinds for damaged files
        head = data[:8].hex(" ") or "nothing"
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"  # its text is an address in memory
        raise InputError(f"expected a PNG or JPEG image, got {len(data)} bytes ({head}){why}") from None
    return np.frombuffer(pixels, dtype=np.uint8).reshape(image.height, image.width, channels)


def _opened(data: bytes, file: io.BytesIO) -> Any:
    """The image, its header read; HEIC by a package that is installed for it."""
    from PIL import Image

    if data[4:8] != b"ftyp":
        return Image.open(file, formats=FORMATS)
    try:
        import_runtime("pillow_heif", "HEIC", "pip install pillow-heif").register_heif_opener()
    except RuntimeMissing as error:
        raise InputError(f"expected a PNG or JPEG image, got HEIC or AVIF ({error.fix}, or send JPEG)") from None
    return Image.open(file, formats=("HEIF",))


KINDS = ("captured", "pixels", "model-size", "png", "jpeg")
OF_PICTURES = ("model-size", "png", "jpeg")  # these need pixels; numbers that are prepared already go as they are

Encode = Callable[[Batch], Array]


@dataclass(frozen=True)
class Payload:
    """How examples are sent.

    Args:
        kind: "captured": the file as it came, or the decoded pixels where there was none; "pixels": decoded, at
            their own size; "model-size": decoded and resized to the task's input, as uint8; "png" and "jpeg":
            encoded anew, at their own size.
        quality: of JPEG, 1 to 100.
    """

    kind: str = "captured"
    quality: int = 85

    def __str__(self) -> str:
        return f"jpeg {self.quality}" if self.kind == "jpeg" else self.kind

    def encoder(self, input_spec: InputSpec) -> Encode:
        """What makes a batch's form: (B,) `bytes` objects, or a tensor (B, *S).

        Args:
            input_spec: of the task.
        """
        return partial(_encode, self, input_spec)


def _encode(payload: Payload, input_spec: InputSpec, batch: Batch) -> Array:
    if payload.kind == "captured" and batch.captured is not None:
        return batch.captured
    x = batch.x
    if payload.kind not in OF_PICTURES or input_spec.kind != "image":
        return x
    if any(row.dtype != np.uint8 for row in (x if x.dtype == object else (x,))):
        return x  # numbers that are prepared already
    if payload.kind == "model-size":
        return input_spec.resized(x)
    how: dict[str, Any] = {"format": "PNG"} if payload.kind == "png" else {"format": "JPEG", "quality": payload.quality}
    return np.array([_picture(row, how) for row in x], dtype=object)


def _picture(pixels: Array, how: dict[str, Any]) -> bytes:
    """One image (H, W, C) uint8, encoded."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, **how)
    return file.getvalue()
