"""Residual ReLU networks with biases and BatchNorm, as He et al. built them for CIFAR-10."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ResNet"]


class _Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, added to the input; ReLU after the sum.

    Where the block halves the image and changes the channels, the input passes a 1 x 1 convolution
    with a bias and no BatchNorm.

    Args:
        channels: of the input.
        width: of the output.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _convolution(channels, width, 3, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _convolution(width, width, 3, 1),
            nn.BatchNorm2d(width),
        )
        same = channels == width and stride == 1
        self.shortcut = (
            nn.Identity() if same else _convolution(channels, width, 1, stride, bias=True)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, n, n)`` to ``(batch, width, n / stride, n / stride)``."""
        output: Tensor = self.relu(self.branch(x) + self.shortcut(x))
        return output


class ResNet(nn.Module):
    """A residual network of ``6 n + 2`` weight layers: three stages of n blocks, one linear layer.

    It leaves what the analysis of S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking*,
    assumes: it has biases (the linear layer's, those of the shortcuts, the shifts of BatchNorm),
    scales (BatchNorm in eval mode) and paths of many lengths. The trace of the functional part of
    its Hessian is still 0; it is not homogeneous in its weights. After K. He et al., *Deep Residual
    Learning for Image Recognition*, section 4.2; ``depth=20, width=16`` is theirs but for the
    shortcuts.

    Convolution and linear weights are Kaiming-normal, ``std = sqrt(2 / fan_in)``, those of the last
    layer ``std = sqrt(1 / fan_in)``; biases and shifts are 0, scales 1.

    Args:
        depth: number of weight layers on the longest path, 8, 14, 20, ...
        in_channels: channels of the images, at least 1.
        outputs: at least 1.
        width: channels of the first stage; the second has twice, the third four times as many.
        seed: of the initial weights, drawn from a generator of their own.

    Raises:
        ValueError: a depth that is not 6 n + 2, or another number below 1.

    Shape:
        ``(batch, in_channels, 32, 32)`` to ``(batch,)`` with one output, as `VGG`, else
        ``(batch, outputs)``.

    Example:
        >>> ResNet(depth=8, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        depth: int = 8,
        in_channels: int = 3,
        outputs: int = 1,
        width: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 8, 14, 20, ..., 6 n + 2, got {depth}")
        for name, number in (("in_channels", in_channels), ("outputs", outputs), ("width", width)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.depth, self.outputs = depth, outputs
        stem = [_convolution(in_channels, width, 3, 1), nn.BatchNorm2d(width), nn.ReLU()]
        stages: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range(blocks):
                wide = width * 2**stage
                stages.append(_Block(channels, wide, 2 if stage and not block else 1))
                channels = wide
        self.features = nn.Sequential(*stem, *stages)
        self.pool = nn.AvgPool2d(8)
        self.classifier = nn.utils.skip_init(nn.Linear, channels, outputs)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                last = parameter is self.classifier.weight
                nn.init.kaiming_normal_(
                    parameter, nonlinearity="linear" if last else "relu", generator=generator
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, 32, 32)`` to ``(batch,)`` or ``(batch, outputs)``."""
        output: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return output.squeeze(1) if self.outputs == 1 else output


def _convolution(
    channels: int, width: int, size: int, stride: int, bias: bool = False
) -> nn.Conv2d:
    """A convolution that keeps the image's size but for the stride, its weights not yet set."""
    # skip_init: torch's own initialisation would draw from the global generator
    convolution: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, channels, width, size, stride=stride, padding=size // 2, bias=bias
    )
    return convolution
