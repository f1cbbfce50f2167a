"""What the architectures of every recipe are built on."""

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
