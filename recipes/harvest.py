"""A harvest: examples that a device deferred, with the labels that the cloud gave them.

A folder of files as they were captured (PNG, JPEG, `.npy` arrays, `.txt`) and `labels.jsonl`, one line per example:

{"file": "examples/3f2a.png", "id": "cam-17", "label": 3, "name": "3", "vote": 1.0, "score": 0.97, "tier": 2,
 "device_votes": [0.666667], "at": 1764000000.1}

The labels are the larger tiers' answers, not the truth: a set to distil from.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coe.cascade.errors import ConfigError
from coe.cascade.types import Array, Labels

INDEX = "labels.jsonl"
EXAMPLES = "examples"


@dataclass(frozen=True, slots=True)
class HarvestedExample:
    """One example.

    Args:
        value: its bytes as captured, or an array.
        label: the cloud's; score: the mean probability its members gave that label, NaN where not known.
    """

    id: str
    value: bytes | Array
    label: int
    name: str
    score: float


def read_harvest(folder: Path) -> Iterator[HarvestedExample]:
    """The examples whose files are still there, in the order they came; the last line of an id counts.

    Raises:
        ConfigError: the folder holds no harvest, or a line of its index is no record.
    """
    index = folder / INDEX
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError([f"expected a harvest (a folder with {INDEX}), got {folder}: {error.strerror}"]) from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            path = folder / record["file"]
            harvested = (str(record["id"]), int(record["label"]), str(record["name"]), record.get("score"))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # a device that lost its power while it wrote
                return
            raise ConfigError(
                [f"{index}: line {number}: expected a record with file, id, label, name: {error}"]
            ) from None
        if path.is_file():  # else it was dropped for newer ones
            name, label, label_name, score = harvested
            value = path.read_bytes()
            yield HarvestedExample(
                name,
                np.load(io.BytesIO(value), allow_pickle=False) if path.suffix == ".npy" else value,
                label,
                label_name,
                float("nan") if score is None else float(score),
            )


def as_images(harvested: Iterator[HarvestedExample], size: tuple[int, int], channels: int) -> tuple[Array, Labels]:
    """Pixels (B, H, W, C) uint8 at one size, and labels (B,), of harvested images.

    Args:
        size: height and width; images of another size are stretched.
    Raises:
        InputError: an example is no image.
    """
    from coe.models.input_spec import InputSpec
    from coe.models.inputs import InputDecoder

    input_spec = InputSpec("image", (*size, channels), layout="NHWC", dtype="uint8")
    door = InputDecoder(input_spec)
    images, labels = [], []
    for example in harvested:
        batch = door.batch([example.id], [example.value])
        images.append(input_spec.prepare(batch.x)[0])
        labels.append(example.label)
    shape = (0, *size, channels)
    return np.stack(images) if images else np.zeros(shape, np.uint8), np.array(labels, dtype=np.int64)
