"""Networks small enough for every path of theirs to be enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_thermo.network import Network


@dataclass(frozen=True)
class Case:
    """A model in float64 and in eval mode, and a batch of its inputs."""

    model: nn.Sequential
    inputs: Tensor

    @property
    def network(self) -> Network:
        return Network.from_module(self.model, self.inputs)


class Residual(nn.Module):
    """`body(x) + coefficient shortcut(x)`; without a shortcut x itself."""

    def __init__(
        self, body: nn.Module, shortcut: nn.Module | None = None, coefficient: float = 1.0
    ) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.coefficient = coefficient

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.shortcut is None else self.shortcut(x)
        return torch.add(self.body(x), around, alpha=self.coefficient)


class Concatenated(nn.Module):
    """The channels of several branches, one behind the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def mlp() -> list[nn.Module]:
    """600 paths: 5 x 6 x 5 x 4 x 1."""
    widths = (5, 6, 5, 4)
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o, bias=False), nn.ReLU()]
    return [*layers, nn.Linear(4, 1, bias=False)]


def conv_max_pool() -> list[nn.Module]:
    """4,800 paths: 5 hidden units x 30 pooled cells x (2 channels x 4 taps) x 4 taps."""
    return [
        nn.Conv2d(1, 2, 2, bias=False),
        nn.ReLU(),
        nn.Conv2d(2, 3, 2, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(30, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 1, bias=False),
    ]


def strided() -> list[nn.Module]:
    """Stride, padding, dilation and groups, different along the two axes."""
    return [
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(
            4, 6, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2, bias=False
        ),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 1, bias=False),
    ]


def average_pool() -> list[nn.Module]:
    """Divisors that differ at the border, and the windows' cells overlap."""
    return [
        nn.Conv2d(1, 3, 2, bias=False),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        nn.Conv2d(3, 2, 2, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2, padding=1),
        nn.Flatten(),
        nn.Linear(18, 1, bias=False),
    ]


def biases() -> list[nn.Module]:
    """A start at every unit, two kinds of slopes, and overlapping max-pools."""
    return [
        nn.Conv2d(1, 3, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(3, 2, 2),
        nn.PReLU(init=-0.3),
        nn.Flatten(),
        nn.Linear(8, 4),
        nn.ReLU(),
        nn.Linear(4, 1),
    ]


def batch_norm() -> list[nn.Module]:
    return [
        nn.Conv2d(1, 3, 2, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 2, stride=2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 1, bias=False),
    ]


def classes() -> list[nn.Module]:
    """Three outputs, one of them gated."""
    return [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.LeakyReLU(0.5)]


def residual() -> list[nn.Module]:
    """BatchNorm and biases; a block around which x goes as it is, one with a shortcut's weights."""
    return [
        nn.Conv2d(1, 2, 2, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))),
        nn.ReLU(),
        Residual(
            nn.Sequential(nn.Conv2d(2, 3, 2, stride=2, padding=1, bias=False), nn.BatchNorm2d(3)),
            nn.Conv2d(2, 3, 1, stride=2),
        ),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 1),
    ]


def leaky_residual() -> list[nn.Module]:
    """No biases; blocks in a block, a coefficient, and one number broadcast to many units."""
    inner = nn.Sequential(
        Residual(nn.Conv2d(2, 2, 1, stride=2, bias=False), nn.MaxPool2d(3, 2, 1)),
        nn.LeakyReLU(0.3),
    )
    mean = nn.Sequential(nn.AvgPool2d(3), nn.Conv2d(2, 2, 1, bias=False))
    return [
        nn.Conv2d(1, 2, 2, bias=False),
        nn.LeakyReLU(0.1),
        Residual(inner, nn.Conv2d(2, 1, 1, stride=2, bias=False), -0.5),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(2, 1, padding=1),
        Residual(nn.Conv2d(2, 2, 1, bias=False), mean),
        nn.Flatten(),
        nn.Linear(18, 1, bias=False),
    ]


def concatenation() -> list[nn.Module]:
    """Branches of one, two and no layers, from the input on."""
    return [
        Concatenated(
            nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.LeakyReLU(), nn.MaxPool2d(3, 1, 1)),
            nn.MaxPool2d(3, 1, 1),
        ),
        nn.Conv2d(5, 2, 2, stride=2, groups=1, bias=False),
        nn.ReLU(),
        Concatenated(nn.Conv2d(2, 1, 1), nn.BatchNorm2d(2)),
        nn.Flatten(),
        nn.Linear(12, 1, bias=False),
    ]


SHAPES: dict[Callable[[], list[nn.Module]], tuple[int, ...]] = {
    mlp: (5,),
    conv_max_pool: (1, 12, 6),
    strided: (2, 7, 7),
    average_pool: (1, 6, 6),
    biases: (1, 6, 6),
    batch_norm: (1, 6, 6),
    classes: (4,),
    residual: (1, 4, 4),
    leaky_residual: (1, 4, 4),
    concatenation: (1, 4, 4),
}
NAMES = [build.__name__ for build in SHAPES]


def case(name: str, examples: int = 3, pruned: float = 0.0, seed: int = 43) -> Case:
    """The network of that name with all its numbers drawn from one generator.

    Args:
        name: of a function above.
        examples: B.
        pruned: the share of weights, biases and inputs that is set to exactly 0.
        seed: of all numbers.
    """
    build = next(build for build in SHAPES if build.__name__ == name)
    return drawn(nn.Sequential(*build()), (examples, *SHAPES[build]), pruned, seed)


def drawn(model: nn.Sequential, shape: tuple[int, ...], pruned: float, seed: int) -> Case:
    """A model with all its numbers drawn, and inputs of a shape; see `case`."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()

    def draw(shape: torch.Size | tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values * (torch.rand(shape, generator=generator) >= pruned)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.PReLU):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.copy_(draw(parameter.shape))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(draw(module.running_mean.shape))
                module.running_var.copy_(draw(module.running_var.shape).square() + 0.1)
    return Case(model, draw(shape))


def output_of(name: str) -> int | None:
    """The output that is measured: None where there is one."""
    return 1 if name == "classes" else None
