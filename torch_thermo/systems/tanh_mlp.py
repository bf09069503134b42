"""The tanh network: fully connected, tanh on every layer."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["TanhMLP"]


class TanhMLP(nn.Module):
    """Fully connected network with tanh on all layers, the output included.

    ``x_l = tanh(W_l x_{l-1} + b_l)``, targets +-1. Weights are Glorot-uniform, biases 0. With the
    default sizes this is the deep network of V. Vanchurin, *Towards a theory of machine learning*
    (784 inputs, hidden layers of 40 and 20, 10 outputs; 32,430 parameters).

    Args:
        sizes: inputs, hidden layers, outputs; at least two numbers, each at least 1.
        seed: of the initial weights, drawn from a generator of their own.

    Raises:
        ValueError: fewer than two sizes, or a size below 1.

    Shape:
        ``(batch, ...)`` with ``sizes[0]`` numbers an example (images are flattened) to
        ``(batch, sizes[-1])``, each in (-1, 1).

    Example:
        >>> TanhMLP((4, 3, 2))(torch.zeros(5, 2, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, sizes: tuple[int, ...] = (784, 40, 20, 10), seed: int = 0) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be at least two numbers of at least 1, got {sizes}")
        self.sizes = tuple(sizes)
        generator = torch.Generator().manual_seed(seed)
        stages: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            # skip_init: torch's own initialisation would draw from the global generator.
            layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
            stages += [layer, nn.Tanh()]
        self.layers = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, ...)`` to ``(batch, outputs)``."""
        output: Tensor = self.layers(torch.flatten(x, 1))
        return output
