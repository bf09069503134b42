"""Every path of a small `nn.Sequential`, one by one: the oracle of the circuits.

Written from the modules' weights and the definitions alone: loops over units and taps in plain
Python, no function of torch's that slides a window, and nothing of torch_thermo.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Edge:
    """What leads into a unit: a unit of the layer below (None: the unit of value 1 of a bias)."""

    source: int | None
    factor: float
    entry: tuple[int, int] | None = None
    """(number of the weighted module, flat index of the weight); None for gates and biases."""


Layer = list[list[Edge]]  # by unit, in row-major order


@dataclass(frozen=True)
class Path:
    """One basis circuit: its input's value, its factors, and the weights among them."""

    start: int | None
    value: float
    factors: tuple[float, ...]
    entries: dict[int, tuple[int, float]]
    """{weighted module: (flat index of the weight, product of all other factors)}."""

    @property
    def psi(self) -> float:
        return math.prod(self.factors)

    @property
    def alive(self) -> bool:
        return self.value != 0 and all(factor != 0 for factor in self.factors)


def enumerate_paths(model: nn.Sequential, x: Tensor, output: int = 0) -> list[Path]:
    """All paths of one example `x` (without a batch axis) to one output, dead ones too.

    Taps on padding and max-pool cells that are not the arg-max are left out.
    """
    layers, inputs = read(model, x)
    return [
        Path(
            start=start,
            value=1.0 if start is None else inputs[start],
            factors=tuple(edge.factor for edge in edges),
            entries={
                edge.entry[0]: (edge.entry[1], others)
                for edge, others in zip(edges, _products_of_others(edges), strict=True)
                if edge.entry is not None
            },
        )
        for start, edges in _backward(layers, len(layers), output)
    ]


def read(model: nn.Sequential, x: Tensor) -> tuple[list[Layer], list[float]]:
    """The layers of edges with the gates of `x`, checked against the model's own output."""
    shape, values = tuple(x.shape), [float(v) for v in x.double().flatten()]
    inputs, layers, weighted = values, [], itertools.count()
    for module in model:
        layer, shape = _edges(module, shape, values, weighted)
        layers.append(layer)
        values = [
            math.fsum(e.factor * (1.0 if e.source is None else values[e.source]) for e in edges)
            for edges in layer
        ]
    expected = model.eval()(x.unsqueeze(0))[0].double().flatten()
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected)
    return layers, inputs


def _backward(
    layers: list[Layer], depth: int, unit: int
) -> Iterator[tuple[int | None, tuple[Edge, ...]]]:
    if depth == 0:
        yield unit, ()
        return
    for edge in layers[depth - 1][unit]:
        if edge.source is None:
            yield None, (edge,)
            continue
        for start, edges in _backward(layers, depth - 1, edge.source):
            yield start, (*edges, edge)


def _products_of_others(edges: tuple[Edge, ...]) -> list[float]:
    factors = [edge.factor for edge in edges]
    return [math.prod(factors[:i] + factors[i + 1 :]) for i in range(len(factors))]


def _edges(module, shape, values, weighted) -> tuple[Layer, tuple[int, ...]]:
    match module:
        case nn.Linear():
            return _linear(module, next(weighted)), (module.out_features,)
        case nn.Conv2d():
            return _convolution(module, shape, next(weighted))
        case nn.BatchNorm2d():
            return _batchnorm(module, shape, next(weighted)), shape
        case nn.ReLU():
            return [[Edge(u, float(v > 0))] for u, v in enumerate(values)], shape
        case nn.LeakyReLU():
            slope = module.negative_slope
            return [[Edge(u, 1.0 if v > 0 else slope)] for u, v in enumerate(values)], shape
        case nn.PReLU():
            slope = module.weight.item()
            return [[Edge(u, 1.0 if v > 0 else slope)] for u, v in enumerate(values)], shape
        case nn.MaxPool2d():
            return _max_pool(module, shape, values)
        case nn.AvgPool2d():
            return _average_pool(module, shape)
        case nn.Flatten():
            return [[Edge(u, 1.0)] for u in range(len(values))], (len(values),)
    raise TypeError(f"the oracle knows no {type(module).__name__}")


def _linear(module: nn.Linear, number: int) -> Layer:
    weight = module.weight.double()
    layer = []
    for o in range(module.out_features):
        edges = [
            Edge(i, weight[o, i].item(), (number, o * module.in_features + i))
            for i in range(module.in_features)
        ]
        if module.bias is not None:
            edges.append(Edge(None, module.bias[o].item()))
        layer.append(edges)
    return layer


def _convolution(module: nn.Conv2d, shape, number: int) -> tuple[Layer, tuple[int, ...]]:
    _, height, width = shape
    kernel, stride = module.kernel_size, module.stride
    padding, dilation = module.padding, module.dilation
    rows, columns = (
        (size + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
        for a, size in enumerate((height, width))
    )
    inputs = module.in_channels // module.groups
    outputs = module.out_channels // module.groups
    weight = module.weight.double()
    layer = []
    for o, r, c in itertools.product(range(module.out_channels), range(rows), range(columns)):
        edges = []
        for i, a, b in itertools.product(range(inputs), range(kernel[0]), range(kernel[1])):
            y = r * stride[0] - padding[0] + a * dilation[0]
            x = c * stride[1] - padding[1] + b * dilation[1]
            if not (0 <= y < height and 0 <= x < width):
                continue
            channel = (o // outputs) * inputs + i
            flat = ((o * inputs + i) * kernel[0] + a) * kernel[1] + b
            source = (channel * height + y) * width + x
            edges.append(Edge(source, weight[o, i, a, b].item(), (number, flat)))
        if module.bias is not None:
            edges.append(Edge(None, module.bias[o].item()))
        layer.append(edges)
    return layer, (module.out_channels, rows, columns)


def _batchnorm(module: nn.BatchNorm2d, shape, number: int) -> Layer:
    channels, height, width = shape
    layer = []
    for c in range(channels):
        variance = module.running_var[c].item() + module.eps
        factor = module.weight[c].item() / math.sqrt(variance)
        shift = module.bias[c].item() - module.running_mean[c].item() * factor
        for position in range(height * width):
            unit = c * height * width + position
            layer.append([Edge(unit, factor, (number, c)), Edge(None, shift)])
    return layer


def _windows(module, shape) -> tuple[list[list[int]], tuple[int, ...]]:
    """The input units below each output unit of a pool, padding left out."""
    channels, height, width = shape
    kernel, stride, padding = (
        value if isinstance(value, tuple) else (value, value)
        for value in (module.kernel_size, module.stride, module.padding)
    )
    rows, columns = (
        (size + 2 * padding[a] - kernel[a]) // stride[a] + 1
        for a, size in enumerate((height, width))
    )
    windows = []
    for channel, r, c in itertools.product(range(channels), range(rows), range(columns)):
        top, left = r * stride[0] - padding[0], c * stride[1] - padding[1]
        cells = itertools.product(range(kernel[0]), range(kernel[1]))
        places = [(top + a, left + b) for a, b in cells]
        windows.append(
            [
                (channel * height + y) * width + x
                for y, x in places
                if 0 <= y < height and 0 <= x < width
            ]
        )
    return windows, (channels, rows, columns)


def _max_pool(module: nn.MaxPool2d, shape, values) -> tuple[Layer, tuple[int, ...]]:
    windows, shape = _windows(module, shape)
    # max() keeps the first of equals, as torch does
    return [[Edge(max(cells, key=lambda u: values[u]), 1.0)] for cells in windows], shape


def _average_pool(module: nn.AvgPool2d, shape) -> tuple[Layer, tuple[int, ...]]:
    kernel = module.kernel_size
    full = kernel[0] * kernel[1] if isinstance(kernel, tuple) else kernel**2
    windows, shape = _windows(module, shape)
    layer = []
    for cells in windows:
        share = 1.0 / (full if module.count_include_pad else len(cells))
        layer.append([Edge(unit, share) for unit in cells])
    return layer, shape
