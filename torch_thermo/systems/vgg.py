"""Bias-free ReLU networks of the VGG family with one output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["VGG"]

# Output channels of each convolution (3 x 3, padding 1), grouped by the max-pools behind them, and
# the width of the hidden linear layer.
PLANS: dict[int, tuple[tuple[tuple[int, ...], ...], int]] = {
    10: (((8,), (16,), (32, 32), (64, 64), (64, 64)), 256),
    12: (((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)), 512),
}


class VGG(nn.Module):
    """VGG without biases: 3 x 3 convolutions, ReLU, max-pool, two linear layers, one output.

    A bias-free ReLU network is homogeneous of degree L in its weights, so its output is a sum over
    basis circuits and its Hessian under the hinge loss obeys the identities of S. W. M. Li,
    *Complexity from Adaptive-Symmetries Breaking* (eqs. 10, 15). The paper names a 12-layer VGG
    and gives no widths; ours are

    ===== ======================================= ============================ ==========
    depth convolutions                            linear layers                parameters
    ===== ======================================= ============================ ==========
    10    8 16 32 32 64 64 64 64 (VGG-11's, / 8)  (64, 256), (256, 1)          160,712
    12    64 64 128 128 256 256 512 512 512 512   (512, 512), (512, 1)         9,664,704
    ===== ======================================= ============================ ==========

    (parameters: depth 10 with one input channel, depth 12 with three).

    Weights are Kaiming-normal, ``std = sqrt(2 / fan_in)``, which keeps the second moment of the
    activations through ReLU layers without biases; the last layer has ``std = sqrt(1 / fan_in)``.

    Args:
        depth: number of weight layers, 10 or 12.
        in_channels: channels of the images, at least 1.
        seed: of the initial weights, drawn from a generator of their own.

    Raises:
        ValueError: an unknown depth, or fewer than one channel.

    Shape:
        ``(batch, in_channels, 32, 32)`` to ``(batch,)``: the scalar T(x) of the hinge loss
        ``max(0, 1 - y T(x))``, without a trailing axis, so that it multiplies ``(batch,)`` targets.

    Example:
        >>> VGG(depth=10)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(self, depth: int = 10, in_channels: int = 1, seed: int = 0) -> None:
        super().__init__()
        if depth not in PLANS:
            raise ValueError(f"depth must be one of {sorted(PLANS)}, got {depth}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        self.depth = depth
        groups, hidden = PLANS[depth]
        channels = in_channels
        stages: list[nn.Module] = []
        for group in groups:
            for width in group:
                # skip_init: torch's own initialisation would draw from the global generator.
                convolution = nn.utils.skip_init(
                    nn.Conv2d, channels, width, 3, padding=1, bias=False
                )
                stages += [convolution, nn.ReLU()]
                channels = width
            stages.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(
            nn.utils.skip_init(nn.Linear, channels, hidden, bias=False),
            nn.ReLU(),
            nn.utils.skip_init(nn.Linear, hidden, 1, bias=False),
        )
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        weights = list(self.parameters())
        for weight in weights[:-1]:
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        nn.init.kaiming_normal_(weights[-1], nonlinearity="linear", generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, 32, 32)`` to ``(batch,)``."""
        output: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return output.squeeze(1)
