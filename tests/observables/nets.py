"""Nets of the kinds that the identities are said to hold of, and to break on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def hinge(output: Tensor, target: Tensor) -> Tensor:
    return (1 - target * output.reshape(-1)).clamp(min=0)


def squared_hinge(output: Tensor, target: Tensor) -> Tensor:
    return hinge(output, target).square()


def logistic(output: Tensor, target: Tensor) -> Tensor:
    return F.softplus(-target * output.reshape(-1))


LOSSES = {"hinge": hinge, "squared hinge": squared_hinge, "cross entropy": logistic}


def mlp(activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = False, depth: int = 3):
    widths = [16, *(6,) * (depth - 1), 1]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def convolutions(pool: nn.Module, norm: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        *([nn.BatchNorm2d(4)] if norm else []),
        nn.ReLU(),
        pool,
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 1, bias=False),
    )


class Residual(nn.Module):
    """A convolution, and a block with a skip connection."""

    def __init__(self, bias: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(3, 3, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.last = nn.Linear(48, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last((x + self.norm(self.second(x))).relu().flatten(1))


class Tied(nn.Module):
    """One weight matrix applied twice: three weights, four applications."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 6, bias=False)
        self.twice = nn.Linear(6, 6, bias=False)
        self.last = nn.Linear(6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        return self.last(self.twice(self.twice(x).relu()).relu())


NETS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": mlp,
    "ReLU, 2 layers": lambda: mlp(depth=2),
    "leaky ReLU": lambda: mlp(lambda: nn.LeakyReLU(0.2)),
    "max-pool": lambda: convolutions(nn.MaxPool2d(2)),
    "average-pool": lambda: convolutions(nn.AvgPool2d(2)),
    "biases": lambda: mlp(bias=True),
    "BatchNorm": lambda: convolutions(nn.MaxPool2d(2), norm=True),
    "residual": Residual,
    "residual, biases, BatchNorm": lambda: Residual(bias=True, norm=True),
    "tied": Tied,
    "GELU": lambda: mlp(nn.GELU),
    "tanh": lambda: mlp(nn.Tanh),
}


def filled(model: nn.Module, seed: int = 0, gain: float = 1.5) -> nn.Module:
    """Weights of unit scale, in float64; norms with statistics that are no identity."""
    model = model.double().eval()
    for place, p in enumerate(model.parameters()):
        fan_in = p[0].numel() if p.dim() > 1 else 1
        p.data = gain * randn(*p.shape, seed=100 * seed + place) / fan_in**0.5
    for place, (name, b) in enumerate(model.named_buffers()):
        if b.is_floating_point():
            noise = randn(*b.shape, seed=100 * seed + 50 + place)
            b.copy_(noise.exp() if name.endswith("var") else noise)
    return model


def batches(examples: int = 18, size: int = 6, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    x, y = randn(examples, 1, 4, 4, seed=seed + 7), randn(examples, seed=seed + 8).sign()
    return list(zip(x.split(size), y.split(size), strict=True))
