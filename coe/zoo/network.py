"""What the architectures of every recipe are built on."""

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
