"""The CIFAR-10 architectures and the layers they are built on.

Members of one tier are built on different ideas, so that they err on different pictures: their agreement is the
deferral rule, and it is worth something only where their errors have little in common.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from coe_zoo.networks import Network, Residual
from torch import Tensor, nn

N_LABELS = 10


def conv(c_in: int, c_out: int, size: int, stride: int = 1, *, groups: int = 1) -> nn.Sequential:
    """Convolution, normalisation (folded into it at export) and ReLU."""
    return nn.Sequential(*linear_conv(c_in, c_out, size, stride, groups=groups), nn.ReLU(inplace=True))


def linear_conv(c_in: int, c_out: int, size: int, stride: int = 1, *, groups: int = 1) -> nn.Sequential:
    """Convolution and normalisation, no activation; the size halves exactly at stride 2."""
    padding = (size - 1) // 2
    layer = nn.Conv2d(c_in, c_out, size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out))


class Gated(nn.Module):
    """Squeeze and excite: each channel is scaled by what the whole picture says of it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class Grown(nn.Module):
    """x with the channels of body(x) laid beside it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


class Scaled(nn.Module):
    """x times a constant, which keeps the logits small where training begins."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def head(width: int) -> list[nn.Module]:
    """The mean over all places, and one linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, N_LABELS)]


def block(width: int, groups: int = 1) -> nn.Module:
    """Two 3 x 3 convolutions around which the picture may pass unchanged."""
    body = nn.Sequential(conv(width, width, 3, groups=groups), linear_conv(width, width, 3, groups=groups))
    return Residual(body, after=nn.ReLU(inplace=True))


def separable(c_in: int, c_out: int, *, halved: bool = False) -> nn.Sequential:
    """A 3 x 3 filter for each channel, then a mixture of channels, at half the size if so wanted."""
    pool: list[nn.Module] = [nn.AvgPool2d(2)] if halved else []
    return nn.Sequential(*conv(c_in, c_in, 3, groups=c_in), *pool, *conv(c_in, c_out, 1))


class Whitening(nn.Conv2d):
    """2 x 2 patches along their principal directions, each direction and its opposite; set once, not trained."""

    def __init__(self) -> None:
        super().__init__(3, 24, 2, bias=True)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Sets the directions from pictures x, (B, 3, 32, 32), normalised."""
        patches = x.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)  # (P, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))  # ascending
        directions = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        self.weight.copy_(torch.cat([directions, -directions]))


def stride() -> nn.Module:
    """Tier 1: plain 3 x 3 convolutions that halve the picture at nearly every step."""
    return nn.Sequential(
        conv(3, 16, 3, 2),  # (B, 16, 16, 16)
        conv(16, 40, 3, 2),  # (B, 40, 8, 8)
        conv(40, 64, 3),
        conv(64, 112, 3, 2),  # (B, 112, 4, 4)
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(112 * 16, N_LABELS),
    )


def feather() -> nn.Module:
    """Tier 1: depthwise-separable convolutions, many of them."""
    return nn.Sequential(
        conv(3, 24, 3, 2),  # (B, 24, 16, 16)
        separable(24, 48),
        separable(48, 96, halved=True),  # (B, 96, 8, 8)
        Residual(separable(96, 96)),
        Residual(separable(96, 96)),
        separable(96, 176, halved=True),  # (B, 176, 4, 4)
        Residual(separable(176, 176)),
        *head(176),
    )


def tiles() -> nn.Module:
    """Tier 1: patches that do not overlap, merged two by two; wide depthwise filters look between them."""

    def mix(width: int, size: int) -> nn.Module:
        return Residual(nn.Sequential(*conv(width, width, size, groups=width), *linear_conv(width, width, 1)))

    return nn.Sequential(
        *linear_conv(3, 32, 2, 2),  # (B, 32, 16, 16)
        mix(32, 3),
        *linear_conv(32, 72, 2, 2),  # (B, 72, 8, 8)
        mix(72, 5),
        mix(72, 5),
        *linear_conv(72, 144, 2, 2),  # (B, 144, 4, 4)
        mix(144, 3),
        nn.ReLU(),
        *head(144),
    )


def stair() -> nn.Module:
    """Tier 2: a small residual network."""
    return nn.Sequential(
        conv(3, 32, 3, 2),  # (B, 32, 16, 16)
        block(32),
        conv(32, 64, 3, 2),  # (B, 64, 8, 8)
        block(64),
        conv(64, 96, 3, 2),  # (B, 96, 4, 4)
        *head(96),
    )


def weave() -> nn.Module:
    """Tier 2: densely connected; every layer sees all that came before it."""

    def grow(width: int, growth: int, layers: int) -> list[nn.Module]:
        return [Grown(conv(width + place * growth, growth, 3)) for place in range(layers)]

    return nn.Sequential(
        conv(3, 24, 3, 2),  # (B, 24, 16, 16)
        *grow(24, 16, 2),
        nn.AvgPool2d(2),  # (B, 56, 8, 8)
        conv(56, 64, 1),
        *grow(64, 32, 4),
        nn.AvgPool2d(2),  # (B, 192, 4, 4)
        conv(192, 96, 1),
        *grow(96, 24, 3),
        *head(168),
    )


def gate() -> nn.Module:
    """Tier 2: inverted residuals, wide inside, whose channels are gated by squeeze and excite."""

    def inverted(c_in: int, inner: int, c_out: int, *, halved: bool = False) -> nn.Module:
        pool: list[nn.Module] = [nn.AvgPool2d(2)] if halved else []
        body = nn.Sequential(
            *conv(c_in, inner, 1),
            *pool,
            *conv(inner, inner, 3, groups=inner),
            *linear_conv(inner, c_out, 1),
            Gated(c_out, c_out // 4),
        )
        return Residual(body) if c_in == c_out else body

    return nn.Sequential(
        conv(3, 24, 3, 2),  # (B, 24, 16, 16)
        conv(24, 56, 3, 2),  # (B, 56, 8, 8)
        inverted(56, 224, 56),
        inverted(56, 224, 56),
        inverted(56, 224, 56),
        inverted(56, 256, 96, halved=True),  # (B, 96, 4, 4)
        inverted(96, 384, 96),
        conv(96, 192, 1),
        *head(192),
    )


def ladder() -> nn.Module:
    """Tier 3: a residual network of two stages."""
    return nn.Sequential(
        conv(3, 32, 3),  # (B, 32, 32, 32)
        conv(32, 64, 3, 2),  # (B, 64, 16, 16)
        block(64),
        conv(64, 64, 3),
        conv(64, 128, 3, 2),  # (B, 128, 8, 8)
        block(128),
        *head(128),
    )


def tower() -> nn.Module:
    """Tier 3: plain 3 x 3 convolutions and maxima of neighbours."""
    return nn.Sequential(
        conv(3, 32, 3),  # (B, 32, 32, 32)
        *(nn.Conv2d(32, 48, 3, 1, 1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(48), nn.SiLU()),
        conv(48, 96, 3),  # (B, 96, 16, 16)
        *(nn.Conv2d(96, 112, 3, 1, 1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(112), nn.SiLU()),
        conv(112, 176, 3),  # (B, 176, 8, 8)
        nn.MaxPool2d(2),
        conv(176, 128, 3),  # (B, 128, 4, 4)
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(128, N_LABELS),
    )


def funnel() -> nn.Module:
    """Tier 3: patches, then residual bottlenecks: narrow where the filters are wide, and wide in between."""

    def bottleneck(width: int, inner: int) -> nn.Module:
        body = nn.Sequential(*conv(width, inner, 1), *conv(inner, inner, 3), *linear_conv(inner, width, 1))
        return Residual(body, after=nn.ReLU(inplace=True))

    return nn.Sequential(
        conv(3, 128, 2, 2),  # (B, 128, 16, 16)
        bottleneck(128, 56),
        bottleneck(128, 56),
        conv(128, 192, 2, 2),  # (B, 192, 8, 8)
        bottleneck(192, 96),
        bottleneck(192, 96),
        bottleneck(192, 96),
        *head(192),
    )


def summit() -> nn.Module:
    """Tier 4: few wide convolutions after a whitening one, as in K. Jordan, "94% on CIFAR-10 in 3.29 seconds"."""

    def step(c_in: int, c_out: int) -> list[nn.Module]:
        first = nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False)
        second = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        return [first, nn.MaxPool2d(2), nn.BatchNorm2d(c_out), nn.GELU(), second, nn.BatchNorm2d(c_out), nn.GELU()]

    return nn.Sequential(
        Whitening(),  # (B, 24, 31, 31)
        nn.GELU(),
        *step(24, 64),  # (B, 64, 15, 15)
        *step(64, 256),  # (B, 256, 7, 7)
        *step(256, 256),  # (B, 256, 3, 3)
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(256, N_LABELS, bias=False),
        Scaled(1 / 9),
    )


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "stride": stride,
    "feather": feather,
    "tiles": tiles,
    "stair": stair,
    "weave": weave,
    "gate": gate,
    "ladder": ladder,
    "tower": tower,
    "funnel": funnel,
    "summit": summit,
}


def build(name: str) -> Network:
    """An untrained network of that name.

    Raises:
        KeyError: there is no such architecture; the message names those there are.
    """
    if name not in ARCHITECTURES:
        raise KeyError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    return Network(ARCHITECTURES[name]())
