"""The PyTorch architectures of the digit models, and the base class of every recipe's networks.

Members of one tier are built on different ideas, so that they err on different digits: their agreement is the
deferral rule, and it is worth something only where their errors have little in common.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A classifier: `logits` while training, probabilities (softmax inside the graph) once exported."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out  # (B, L)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).softmax(dim=1)


class Residual(nn.Module):
    """x + body(x), with an optional activation after the sum."""

    def __init__(self, body: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.after = after if after is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(x + self.body(x))
        return out


@torch.no_grad()
def follow(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Moves the averaged weights, and the normalisation's statistics, a little towards the network's."""
    theirs = network.state_dict()
    for key, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(theirs[key], 1 - decay)
        else:
            value.copy_(theirs[key])


class Transpose(nn.Module):
    """Swaps the last two dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)


class Tokens(nn.Module):
    """Lays a picture's places in a row: (B, C, H, W) to (B, C, H * W), the sizes written into the graph."""

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.channels, self.places = channels, places

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.channels, self.places)


def conv(c_in: int, c_out: int, size: int, stride: int = 1, *, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, normalisation (folded into it at export) and ReLU; the size halves exactly at stride 2."""
    padding = dilation * (size - 1) // 2 if stride < size else 0
    layer = nn.Conv2d(c_in, c_out, size, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU())


def stroke() -> nn.Module:
    """Tier 1: three strided convolutions; sees local strokes, then how they meet."""
    return nn.Sequential(
        conv(1, 12, 5, 2),  # (B, 12, 14, 14)
        conv(12, 16, 3, 2),  # (B, 16, 7, 7)
        conv(16, 24, 3, 2),  # (B, 24, 4, 4)
        nn.Flatten(),
        nn.Linear(384, 10),
    )


def loom() -> nn.Module:
    """Tier 1: whole rows and whole columns in turn; no convolution, no locality."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(28, 28), nn.ReLU(), Transpose()]  # (B, 1, 28, 28)
    layers += [nn.Linear(28, 24), nn.ReLU(), nn.Flatten()]  # (B, 672)
    return nn.Sequential(*layers, nn.Linear(672, 10))


def mosaic() -> nn.Module:
    """Tier 1: patches of 4 x 4 pixels that do not overlap, mixed by depthwise-separable convolutions."""
    return nn.Sequential(
        conv(1, 48, 4, 4),  # (B, 48, 7, 7)
        conv(48, 48, 3, groups=48),
        conv(48, 96, 1),  # (B, 96, 7, 7)
        conv(96, 96, 7, 7, groups=96),  # (B, 96, 1, 1) a template per channel
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def pyramid() -> nn.Module:
    """Tier 2: plain 3 x 3 convolutions, wider as the picture shrinks."""
    return nn.Sequential(
        conv(1, 24, 3, 2),  # (B, 24, 14, 14)
        conv(24, 48, 3),
        conv(48, 64, 3, 2),  # (B, 64, 7, 7)
        conv(64, 96, 3),
        conv(96, 128, 3, 2),  # (B, 128, 4, 4)
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def lattice() -> nn.Module:
    """Tier 2: an MLP-mixer; 49 patches, mixed across places and across channels in turn."""
    width = 64
    layers: list[nn.Module] = [nn.Conv2d(1, width, 6, 4, 1), Tokens(width, 49)]  # (B, width, 49)
    for _ in range(4):
        layers += [
            Residual(nn.Sequential(nn.LayerNorm(49), nn.Linear(49, 98), nn.ReLU(), nn.Linear(98, 49))),
            Transpose(),
            Residual(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, width))),
            Transpose(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 49, 10))


def ripple() -> nn.Module:
    """Tier 2: depthwise convolutions of growing reach; each place looks further at each step."""

    def step(width: int, dilation: int) -> nn.Module:
        return Residual(nn.Sequential(conv(width, width, 3, dilation=dilation, groups=width), conv(width, width, 1)))

    return nn.Sequential(
        conv(1, 32, 5, 2),
        conv(32, 64, 1),  # (B, 64, 14, 14)
        step(64, 1),
        step(64, 2),
        conv(64, 64, 3, 2, groups=64),
        conv(64, 192, 1),  # (B, 192, 7, 7)
        step(192, 1),
        conv(192, 192, 7, 7, groups=192),  # (B, 192, 1, 1) a template per channel
        nn.Flatten(),
        nn.Linear(192, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )


def resnet() -> nn.Module:
    """Tier 3: a small residual network, the best single model."""

    def block(width: int) -> nn.Module:
        second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        return Residual(nn.Sequential(conv(width, width, 3), second), after=nn.ReLU())

    return nn.Sequential(
        conv(1, 32, 3),  # (B, 32, 28, 28)
        conv(32, 48, 3, 2),  # (B, 48, 14, 14)
        block(48),
        conv(48, 96, 3, 2),  # (B, 96, 7, 7)
        block(96),
        conv(96, 128, 3, 2),  # (B, 128, 4, 4)
        block(128),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "stroke": stroke,
    "loom": loom,
    "mosaic": mosaic,
    "pyramid": pyramid,
    "lattice": lattice,
    "ripple": ripple,
    "resnet": resnet,
}


def build(name: str) -> Network:
    """An untrained network of that name.

    Raises:
        KeyError: there is no such architecture; the message names those there are.
    """
    if name not in ARCHITECTURES:
        raise KeyError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    return Network(ARCHITECTURES[name]())


BUILDERS = {name: partial(build, name) for name in ARCHITECTURES}  # as the entry point `coe.architectures` offers them
