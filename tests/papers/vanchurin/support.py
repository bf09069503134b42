"""A small training set of easy pictures, and the trainings that the engine is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo import data
from torch_thermo.papers.vanchurin.recipe import Budget, Digits, Recipe
from torch_thermo.systems import TanhMLP


def patterns(samples: int = 37, pixels: int = 30, classes: int = 4) -> Digits:
    """Bytes as pixels, most of them 0, as of MNIST."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(samples) % classes
    images = torch.randint(0, 256, (samples, pixels), generator=generator)
    images[torch.rand(samples, pixels, generator=generator) < 0.7] = 0
    targets = data.sign_targets(labels, classes, torch.float64)
    return Digits(images.double() / 255, targets, labels, "patterns")


def budget(batch: int, seeds: tuple[int, ...] = (0,), epochs: int = 7) -> Budget:
    return Budget(f"b{batch}", batch, 0.05, seeds, epochs, 4)


def small(digits: Digits, kind: Budget, hidden: tuple[int, ...] = (6, 5)) -> Recipe:
    sizes = (digits.inputs.shape[1], *hidden, digits.targets.shape[1])
    return Recipe("deep", sizes, kind, len(digits))


def parameters(network: TanhMLP) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def by_torch(network: TanhMLP, digits: Digits, order: Tensor, batch: int, rate: float) -> None:
    """An epoch as anyone would write it."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for chosen in order.split(batch):
        optimizer.zero_grad()
        errors = network(digits.inputs[chosen]) - digits.targets[chosen]
        (0.5 * errors.square().sum(1).mean()).backward()
        optimizer.step()
