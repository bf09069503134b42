"""Networks with skip connections, as torchvision and papers write them, small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """K. He et al., *Deep residual learning for image recognition*, fig. 5, left."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = convolution(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """The same figure, right."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, 2, 1)
        self.bn1 = nn.BatchNorm2d(2)
        self.conv2 = convolution(2, 2, 3, stride)
        self.bn2 = nn.BatchNorm2d(2)
        self.conv3 = convolution(2, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PreActivation(nn.Module):
    """K. He et al., *Identity mappings in deep residual networks*, fig. 4 e."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs)
        self.project = None
        if stride != 1 or inputs != outputs:
            self.project = convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = x if self.project is None else self.project(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return out + skip


class ResNet(nn.Module):
    """A stem, two blocks, and a head.

    Args:
        block: the class of the blocks.
        classes: outputs.
    """

    def __init__(self, block: type[Basic | Bottleneck | PreActivation], classes: int = 3) -> None:
        super().__init__()
        self.conv1 = convolution(1, 4)
        self.bn1 = nn.BatchNorm2d(4)
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = block(4, 4)
        self.layer2 = block(4, 6, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(F.relu(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(x, 1))


class Grown(nn.Module):
    """G. Huang et al., *Densely connected convolutional networks*: each layer takes all before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(1, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2 + 3 * i) for i in range(3))
        self.layers = nn.ModuleList(convolution(2 + 3 * i, 3) for i in range(3))
        self.transition = convolution(11, 2, 1)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        y = F.avg_pool2d(self.transition(torch.cat(features, dim=1)), 2)
        return self.head(y.mean((2, 3)))


class UNet(nn.Module):
    """An encoder and a decoder that sees what the encoder saw."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = convolution(1, 2)
        self.down2 = convolution(2, 3)
        self.bottom = convolution(3, 3)
        self.up2 = convolution(6, 2)
        self.up1 = convolution(4, 2)
        self.last = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.down1(x))
        second = torch.tanh(self.down2(first))
        y = torch.tanh(self.bottom(second))
        y = torch.tanh(self.up2(torch.cat((y, second), 1)))
        y = torch.tanh(self.up1(torch.concat([first, y], dim=-3)))
        return self.last(y)
