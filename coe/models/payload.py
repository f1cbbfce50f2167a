"""What of an example goes to a server: as captured, or in a form that is smaller, at a price in what can be seen.

A form is made from a batch once its first tiers have not settled it, so it costs the deferred examples alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from coe.cascade.types import Array, Batch

from .contract import Contract

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

    def encoder(self, contract: Contract) -> Encode:
        """What makes a batch's form: (B,) `bytes` objects, or a tensor (B, *S).

        Args:
            contract: of the task.
        """
        return partial(_encode, self, contract)


def _encode(payload: Payload, contract: Contract, batch: Batch) -> Array:
    if payload.kind == "captured" and batch.captured is not None:
        return batch.captured
    x = batch.x
    if payload.kind not in OF_PICTURES or contract.kind != "image" or not _has_pixels(x):
        return x
    if payload.kind == "model-size":
        return contract.resized(x)
    how: dict[str, Any] = {"format": "PNG"} if payload.kind == "png" else {"format": "JPEG", "quality": payload.quality}
    encoded = np.empty(len(x), dtype=object)
    encoded[:] = [_picture(row, how) for row in x]
    return encoded


def _has_pixels(x: Array) -> bool:
    """Whether x is pixels rather than numbers that are prepared already."""
    return all(row.dtype == np.uint8 for row in x) if x.dtype == object else x.dtype == np.uint8


def _picture(pixels: Array, how: dict[str, Any]) -> bytes:
    """One image (H, W, C) uint8, encoded."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, **how)
    return file.getvalue()
