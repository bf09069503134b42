"""Networks with a propagator, and its matrices by autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.network.support import randn
from torch_thermo.network import Network


def dense_step(network: Network, inputs: Tensor, states: list[Tensor]) -> Tensor:
    """I - M by autograd of the one-step map at one point, (N, N)."""
    shapes = [x.shape for x in (inputs, *states)]

    def residuals(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        x = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return torch.cat([y.flatten() for y in (inputs, *network.one_step(x[0], x[1:]))])

    flat = torch.cat([x.flatten() for x in (inputs, *states)])
    return torch.eye(len(flat), dtype=flat.dtype) - torch.autograd.functional.jacobian(
        residuals, flat
    )


def mean_step(network: Network, inputs: Tensor) -> Tensor:
    """I - M at the mean state."""
    states, _ = network.states(inputs)
    point = [x.detach().mean(0, keepdim=True) for x in (inputs, *states)]
    return dense_step(network, point[0], point[1:])


def logs(step: Tensor) -> Tensor:
    """Log of the eigenvalues of G, ascending."""
    return 2 * torch.linalg.svdvals(step).log().flip(0)


def chain(
    *widths: int, gain: float = 1.0, seed: int = 0, act: type[nn.Module] = nn.Tanh
) -> Network:
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layer = nn.Linear(widths[i], widths[i + 1]).double()
        layer.weight.data = gain * randn(*layer.weight.shape, seed=10 * seed + i) / widths[i] ** 0.5
        layer.bias.data = 0.1 * randn(widths[i + 1], seed=10 * seed + i + 100)
        layers += [layer, act()]
    return Network.from_module(nn.Sequential(*layers), randn(2, widths[0]))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(4 * 16, 30), nn.Tanh(), nn.Linear(30, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.first(x) + x)
        x = torch.relu(self.down(x))
        x = torch.tanh(self.second(x) + x)
        return self.out(x.flatten(1))


def images(model: nn.Module, gain: float = 1.0, count: int = 12) -> tuple[Network, Tensor]:
    """A network of 1,576 or 1,674 neurons with normal weights of variance gain^2 / fan_in."""
    model.double()
    for i, parameter in enumerate(model.parameters()):
        scale = gain / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.0
        parameter.data = scale * randn(*parameter.shape, seed=i)
    x = randn(count, 1, 16, 16, seed=50).abs()
    return Network.from_module(model, x), x
