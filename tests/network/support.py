"""Models to read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_thermo.network import Network


def randomised(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with other weights and running statistics than at the start, none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    model.to(dtype)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.1)
    return model


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(model: nn.Module, *shape: int) -> Network:
    return Network.from_module(model, randn(*shape))


class LeNet(nn.Module):
    """A module with functions and tensor methods in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 4, 3)
        self.hidden = nn.Linear(16, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = F.avg_pool2d(torch.tanh(self.second(x)), 1)
        x = x.view(x.size(0), -1)
        x = F.dropout(self.hidden(x).relu(), training=self.training)
        return F.linear(x, self.last.weight, self.last.bias)
