"""What the architectures are built of. Pictures are (B, C, H, W) all along."""

import torch
from torch import Tensor, nn

from coe.zoo.network import Residual

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
