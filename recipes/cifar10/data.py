"""CIFAR-10 from a folder: the original python batches, or npz files that hold its pictures as JPEG.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The pictures are not part of this
package. The 50,000 train pictures are split for good into train and calibration; test is read on its own, so that
nothing can be chosen on it.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.models import decode_image

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
MEAN = (0.4914, 0.4822, 0.4465)  # of the train pixels in [0, 1], per channel
STD = (0.247, 0.2435, 0.2616)
CALIBRATION_SHARE = 0.1
SPLIT_SEED = 20240702

TRAIN_NPZ, TEST_NPZ = "cifar10_train.npz", "cifar10_test.npz"
BATCHES = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCHES = ("test_batch",)
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Inputs = NDArray[np.float32]
ALLOWED = {  # all that the original files need; whatever else a pickle names is refused
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True, slots=True)
class Split:
    """Pictures with their labels."""

    ids: tuple[str, ...]
    pixels: NDArray[np.uint8]  # (B, 32, 32, 3)
    labels: NDArray[np.int64]  # (B,)
    payload_bytes: NDArray[np.int32]  # (B,) of each picture as it would be sent

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Split:
        """The pictures at `rows`, in that order."""
        ids = tuple(self.ids[row] for row in rows)
        return Split(ids, self.pixels[rows], self.labels[rows], self.payload_bytes[rows])

    def x(self) -> NDArray[np.float32]:
        """The pictures as every model takes them: (B, 3, 32, 32), normalised."""
        return normalised(self.pixels)


@dataclass(frozen=True, slots=True)
class Learning:
    """Models learn from train, choices are made on calibration."""

    train: Split
    calibration: Split


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(B, 3, 32, 32) float32 from (B, 32, 32, 3) uint8: (pixel / 255 - mean) / std."""
    gain = (1 / 255 / np.asarray(STD)).astype(np.float32)
    offset = (-np.asarray(MEAN) / np.asarray(STD)).astype(np.float32)
    x = pixels * gain + offset  # (B, 32, 32, 3)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def load_learning(folder: Path) -> Learning:
    """Train and calibration, the same ones each time.

    Raises:
        FileNotFoundError: the folder holds neither form of the data.
        ValueError: a file is not what its name says.
    """
    whole = _load(folder, "train", TRAIN_NPZ, TRAIN_BATCHES)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(whole))
    n_calibration = round(len(whole) * CALIBRATION_SHARE)
    return Learning(whole.take(order[n_calibration:]), whole.take(order[:n_calibration]))


def load_test(folder: Path) -> Split:
    """The test pictures, in the order of their file; for the report alone. Raises as load_learning does."""
    return _load(folder, "test", TEST_NPZ, TEST_BATCHES)


def test_examples(folder: Path, limit: int | None = None) -> list[tuple[str, bytes, int]]:  # noqa: PT028
    """The test pictures in the order of their file, as (id, encoded picture, label); the first `limit` if given.

    JPEG as the npz file holds them; PNG where the original batches are read. Raises as load_learning does.
    """
    npz = folder / TEST_NPZ
    if not npz.exists():
        test = load_test(folder)
        rows = range(len(test))[:limit]
        return [(test.ids[row], _png(test.pixels[row]), int(test.labels[row])) for row in rows]
    jpeg, offsets, labels = _arrays(npz)
    files = jpeg.tobytes()
    spans = list(pairwise(offsets.tolist()))[:limit]
    return [(f"test-{row:05d}", files[start:end], int(labels[row])) for row, (start, end) in enumerate(spans)]


# pytest would collect a function of this name from any test module that imports it.
test_examples.__test__ = False  # type: ignore[attr-defined]


def _load(folder: Path, name: str, npz: str, batches: tuple[str, ...]) -> Split:
    if (folder / npz).exists():
        return _read_npz(folder / npz, name)
    for place in (folder / BATCHES, folder):
        if (place / batches[0]).exists():
            return _read_batches([place / batch for batch in batches], name)
    raise FileNotFoundError(f"{folder}: expected {npz}, or {BATCHES}/{batches[0]}, and found neither")


def _read_npz(path: Path, name: str) -> Split:
    jpeg, offsets, labels = _arrays(path)
    files = jpeg.tobytes()
    images = [decode_image(files[start:end], 3) for start, end in pairwise(offsets)]
    return _checked(path, name, np.stack(images), labels, np.diff(offsets))


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """All files in a row, where each starts and the last ends, labels."""
    with np.load(path, allow_pickle=False) as archive:
        missing = {"jpeg", "offsets", "labels"} - set(archive.files)
        if missing:
            raise ValueError(
                f"{path}: expected the arrays jpeg, offsets and labels; {', '.join(sorted(missing))} missing"
            )
        jpeg, offsets, labels = archive["jpeg"], archive["offsets"], archive["labels"]  # each read once
    if len(offsets) != len(labels) + 1 or offsets[-1] != len(jpeg):
        raise ValueError(f"{path}: expected {len(labels) + 1} offsets that end at {len(jpeg)}")
    return jpeg, offsets, labels


def _read_batches(paths: list[Path], name: str) -> Split:
    pixels, labels = [], []
    for path in paths:
        with path.open("rb") as file:
            batch = _Unpickler(file, encoding="bytes").load()
        try:
            rows = np.asarray(batch[b"data"]).reshape(-1, 3, SIDE, SIDE)
            labels.append(np.asarray(batch[b"labels"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected data (B, 3072) and labels, as in the original files: {error}") from None
        pixels.append(rows.transpose(0, 2, 3, 1))
    together = np.ascontiguousarray(np.concatenate(pixels))  # (B, 32, 32, 3)
    sizes = np.array([len(_png(image)) for image in together])
    return _checked(paths[0], name, together, np.concatenate(labels), sizes)


def _checked(path: Path, name: str, pixels: NDArray[Any], labels: NDArray[Any], sizes: NDArray[Any]) -> Split:
    if pixels.shape != (len(labels), SIDE, SIDE, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"{path}: expected {len(labels)} uint8 pictures of 32 x 32 x 3, got {pixels.shape}")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(LABELS):
        raise ValueError(f"{path}: expected labels from 0 to {len(LABELS) - 1}")
    ids = tuple(f"{name}-{row:05d}" for row in range(len(labels)))
    return Split(ids, pixels, labels.astype(np.int64), sizes.astype(np.int32))


def _png(image: NDArray[np.uint8]) -> bytes:
    """A picture as it is sent without loss."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


class _Unpickler(pickle.Unpickler):
    """Reads arrays, lists and strings, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"expected the original CIFAR-10 batches, got a pickle that asks for {module}.{name}"
            )
        if name == "_reconstruct":  # numpy.core is numpy._core since numpy 2
            return np.empty(0).__reduce__()[0]
        return getattr(np, name)
