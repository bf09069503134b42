"""Numbers, weights and the dense oracle that the tests of the bulk loss share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def fill(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Give a model weights of its own, in float64."""
    model = model.double()
    for number, parameter in enumerate(model.parameters()):
        fan = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data = noise(*parameter.shape, seed=number + 1, scale=scale / math.sqrt(fan))
    return model.eval()


def least_squares(model: nn.Sequential, x: Tensor, target: Tensor) -> float:
    """The bulk loss of one example of linear layers: all residuals are linear in the states."""
    hidden = [layer.out_features for layer in model][:-1]

    def residuals(states: Tensor) -> Tensor:
        before, found = x, []
        for layer, state in zip(model, (*states.split(hidden), target), strict=True):
            found.append(state - layer(before))
            before = state
        return torch.cat(found)

    zero = torch.zeros(sum(hidden), dtype=torch.float64)
    matrix, constant = torch.func.jacrev(residuals)(zero), residuals(zero).detach()
    states = torch.linalg.lstsq(matrix, -constant[:, None]).solution[:, 0]
    return 0.5 * residuals(states).square().sum().item()
