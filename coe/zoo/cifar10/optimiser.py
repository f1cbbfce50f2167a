"""Muon: gradient steps whose matrices are made orthogonal, so that all directions are learned alike.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. Weights are kept at a fixed
norm, because a normalisation follows each of these convolutions and their scale means nothing.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def orthogonal(g: Tensor, steps: int = 3) -> Tensor:
    """(R, C) nearly orthogonal, in the directions of g (R, C); Newton-Schulz, with coefficients that hurry."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    x = x / (x.norm() + 1e-7)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    out: Tensor = (x.T if g.shape[0] > g.shape[1] else x).to(g.dtype)
    return out


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, on convolution weights (O, I, H, W) of norm sqrt(O)."""

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.6) -> None:
        super().__init__(list(weights), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                kept = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                kept.mul_(group["momentum"]).add_(weight.grad)
                direction = weight.grad.add(kept, alpha=group["momentum"])
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                update = orthogonal(direction.reshape(len(weight), -1)).reshape(weight.shape)
                weight.add_(update, alpha=-group["lr"])


def optimisers(network: nn.Module, lr: float, rest_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions that mix channels, AdamW for everything else."""
    mixing = [
        layer.weight
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.bias is None and layer.weight.requires_grad
    ]
    known = {id(weight) for weight in mixing}
    rest = [p for p in network.parameters() if id(p) not in known and p.requires_grad]
    matrices, free = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": free, "weight_decay": 0.0}]
    return [Muon(mixing, lr), torch.optim.AdamW(groups, lr=rest_lr, betas=(0.9, 0.95))]
