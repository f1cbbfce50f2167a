"""Distorted copies of the train digits: turned, scaled, slanted, moved, bent, and drawn with another pen.

3,000 digits are few. A digit that is bent a little is still the same digit, so each epoch sees new ones.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDE = 28
TURN_DEG, SCALE, SLANT, SHIFT_PX, BEND_PX = 15.0, 0.15, 0.2, 2.0, 2.2
BEND_GRID = 5  # control points a side of the smooth displacement field


def distort(x: Tensor, generator: torch.Generator) -> Tensor:
    """One distorted copy of each digit in x, (B, 1, 28, 28) in [0, 1]."""
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    turn = uniform(n) * math.radians(TURN_DEG)
    scale_x, scale_y = 1 + uniform(n) * SCALE, 1 + uniform(n) * SCALE
    slant = uniform(n) * SLANT
    shift = uniform(n, 2) * SHIFT_PX * 2 / SIDE  # grid_sample's image is 2 wide
    cos, sin = torch.cos(turn), torch.sin(turn)
    matrix = torch.stack(
        [
            torch.stack([cos * scale_x, (slant * cos - sin) * scale_y, shift[:, 0]], 1),
            torch.stack([sin * scale_x, (slant * sin + cos) * scale_y, shift[:, 1]], 1),
        ],
        1,
    )  # (B, 2, 3)
    grid = F.affine_grid(matrix, [n, 1, SIDE, SIDE], align_corners=False)  # (B, 28, 28, 2)
    bend = uniform(n, 2, BEND_GRID, BEND_GRID) * BEND_PX * 2 / SIDE
    bend = F.interpolate(bend, size=(SIDE, SIDE), mode="bicubic", align_corners=True)  # (B, 2, 28, 28)
    x = F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), align_corners=False)
    return _another_pen(x, uniform(n))


def _another_pen(x: Tensor, weight: Tensor) -> Tensor:
    """A thicker line where weight is near 1, a thinner one near -1, the same in between."""
    thick = F.max_pool2d(x, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-x, (2, 2), stride=1, padding=(1, 1))[:, :, :SIDE, :SIDE]
    more = (weight - 0.5).clamp(min=0).view(-1, 1, 1, 1)
    less = (-weight - 0.5).clamp(min=0).view(-1, 1, 1, 1)
    return (x + more * (thick - x) + less * (thin - x)).clamp(0, 1)


def copies(pixels: NDArray[np.uint8], n_copies: int, seed: int) -> Tensor:
    """n_copies distorted copies of every digit, (n_copies, B, 28, 28) uint8."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(pixels)[:, None].float() / 255  # (B, 1, 28, 28)
    made = [(distort(x, generator) * 255).round().to(torch.uint8)[:, 0] for _ in range(n_copies)]
    return torch.stack(made)
