"""Views of the train pictures: mirrored, moved a few pixels, with a square cut out.

Every epoch sees another view of each picture. A view has a number, and the same number is the same view: so a
teacher can answer it once for all the networks that learn from it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coe.zoo.cifar10.data import MEAN, SIDE, STD


def view(pixels: NDArray[np.uint8], number: int, seed: int, most: int) -> Tensor:
    """One view of each picture, (B, 32, 32, 3) uint8.

    Args:
        pixels: (B, 32, 32, 3).
        number: of the view; from one to the next every picture is mirrored, so that two show both sides.
        most: pixels it moves at most, in each direction; what comes into sight is the mirror of the border.
    """
    mirrored = np.random.default_rng(seed).random(len(pixels)) < 0.5
    mirrored ^= number % 2 == 1
    places = np.random.default_rng([seed, number]).integers(0, 2 * most + 1, (2, len(pixels)))
    padded = np.pad(pixels, ((0, 0), (most, most), (most, most), (0, 0)), mode="reflect")
    out = np.empty_like(pixels)
    for top in range(2 * most + 1):
        for left in range(2 * most + 1):
            here = (places[0] == top) & (places[1] == left)
            seen = padded[:, top : top + SIDE, left : left + SIDE]
            out[here & ~mirrored] = seen[here & ~mirrored]
            out[here & mirrored] = seen[here & mirrored, :, ::-1]
    return torch.from_numpy(out)


def as_input(pixels: Tensor) -> Tensor:
    """(B, 3, 32, 32) normalised float32 in the channels-last order of its (B, 32, 32, 3) uint8 pixels."""
    x = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return x.permute(0, 3, 1, 2)


def cut_out(x: Tensor, size: int) -> Tensor:
    """x, (B, 3, 32, 32), with a grey square of `size` pixels somewhere in each picture."""
    if size == 0:
        return x
    corner = torch.randint(0, SIDE - size + 1, (2, len(x), 1))
    place = torch.arange(SIDE)
    down, across = (place >= corner) & (place < corner + size)  # (B, 32) each
    return x.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0.0)
