"""Every path of a small model, one by one: the oracle of the circuits.

Written from the modules' weights and the definitions alone: loops over units and taps in plain
Python, no function of torch's that slides a window, and nothing of torch_thermo.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.observables.circuits.cases import Concatenated, Residual


@dataclass(frozen=True)
class Edge:
    """What leads into a unit: a unit of the layer below (None: the unit of value 1 of a bias)."""

    source: int | None
    factor: float
    entry: int | None = None
    """Flat index of the weight in its module; None for gates and biases."""
    taken: int = 0
    """Which of the layers that this one takes the unit is of."""


Edges = list[list[Edge]]  # by unit, in row-major order


@dataclass(frozen=True)
class Layer:
    """The edges into each unit of a module or sum, and the numbers of the layers they come from."""

    name: str
    edges: Edges
    takes: tuple[int, ...]


@dataclass(frozen=True)
class Path:
    """One basis circuit: its input's value, its factors, and the weights among them."""

    start: int | None
    value: float
    factors: tuple[float, ...]
    visits: tuple[tuple[str, int], ...]
    """The layers it passes, and the unit of each behind which it goes on; from its start on."""
    uses: dict[str, tuple[int, int]]
    """{weighted module: (flat index of the weight, place among the factors)}."""

    @property
    def psi(self) -> float:
        return math.prod(self.factors)

    @property
    def alive(self) -> bool:
        return self.value != 0 and all(factor != 0 for factor in self.factors)

    @property
    def entries(self) -> dict[str, tuple[int, float]]:
        """{weighted module: (flat index of the weight, product of all other factors)}."""
        return {name: (entry, self.without(name)) for name, (entry, _) in self.uses.items()}

    def without(self, *divided: str) -> float:
        """The product of all factors but the weights of these modules: order 1, or 2."""
        places = {self.uses[name][1] for name in divided}
        return math.prod(f for place, f in enumerate(self.factors) if place not in places)


def enumerate_paths(model: nn.Sequential, x: Tensor, output: int = 0) -> list[Path]:
    """All paths of one example `x` (without a batch axis) to one output, dead ones too.

    Taps on padding and max-pool cells that are not the arg-max are left out.
    """
    read = Reading(model, x)
    return [
        Path(
            start=start,
            value=1.0 if start is None else read.values[-1][start],
            factors=tuple(edge.factor for _, _, edge in steps),
            visits=tuple((layer.name, unit) for layer, unit, _ in steps),
            uses={
                layer.name: (edge.entry, place)
                for place, (layer, _, edge) in enumerate(steps)
                if edge.entry is not None
            },
        )
        for start, steps in read.backward(len(read.layers) - 1, output)
    ]


class Reading:
    """The layers of edges with the gates of `x`, checked against the model's own output.

    Attributes:
        layers: in order.
        values: of each layer's units by its number, -1 the input's.
    """

    def __init__(self, model: nn.Sequential, x: Tensor) -> None:
        self.layers: list[Layer] = []
        self.values = {-1: [float(v) for v in x.double().flatten()]}
        self._shapes = {-1: tuple(x.shape)}
        self._joins = Counter[str]()
        last = self._add(model, -1, "")
        expected = model.eval()(x.unsqueeze(0))[0].double().flatten()
        found = torch.tensor(self.values[last], dtype=torch.float64)
        torch.testing.assert_close(found, expected)

    def number_of_paths(self) -> int:
        """To the first output, dead ones too."""
        counts = {-1: [1] * len(self.values[-1])}
        for number, layer in enumerate(self.layers):
            counts[number] = [
                sum(1 if e.source is None else counts[layer.takes[e.taken]][e.source] for e in into)
                for into in layer.edges
            ]
        return counts[len(self.layers) - 1][0]

    def backward(
        self, number: int, unit: int
    ) -> Iterator[tuple[int | None, tuple[tuple[Layer, int, Edge], ...]]]:
        """Where each path to a unit starts, and its steps."""
        if number < 0:
            yield unit, ()
            return
        layer = self.layers[number]
        for edge in layer.edges[unit]:
            step = (layer, unit, edge)
            if edge.source is None:
                yield None, (step,)
                continue
            for start, steps in self.backward(layer.takes[edge.taken], edge.source):
                yield start, (*steps, step)

    def _add(self, module: nn.Module, at: int, name: str) -> int:
        """Read a module behind layer `at`; the number of the layer that it ends with."""
        inside = f"{name}." if name else ""
        match module:
            case nn.Sequential():
                for place, each in enumerate(module):
                    at = self._add(each, at, f"{inside}{place}")
                return at
            case Residual():
                body = self._add(module.body, at, f"{inside}body")
                around = at
                if module.shortcut is not None:
                    around = self._add(module.shortcut, at, f"{inside}shortcut")
                return self._sum(body, around, module.coefficient, f"{inside}{self._next('add')}")
            case Concatenated():
                ends = [
                    self._add(each, at, f"{inside}branches.{place}")
                    for place, each in enumerate(module.branches)
                ]
                return self._concatenation(ends, f"{inside}{self._next('cat')}")
        edges, shape = _edges(module, self._shapes[at], self.values[at])
        return self._end(name, edges, shape, at)

    def _next(self, join: str) -> str:
        """What torch.fx calls the next sum or concatenation."""
        number = self._joins[join]
        self._joins[join] += 1
        return f"{join}_{number}" if number else join

    def _sum(self, body: int, around: int, coefficient: float, name: str) -> int:
        shape, other = self._shapes[body], self._shapes[around]
        edges = []
        for place in itertools.product(*map(range, shape)):
            # an axis of length 1 is broadcast
            seen = [p if size > 1 else 0 for p, size in zip(place, other, strict=True)]
            edges.append(
                [
                    Edge(_flat(place, shape), 1.0, taken=0),
                    Edge(_flat(seen, other), coefficient, taken=1),
                ]
            )
        return self._end(name, edges, shape, body, around)

    def _concatenation(self, ends: list[int], name: str) -> int:
        edges = [
            [Edge(unit, 1.0, taken=k)]
            for k, end in enumerate(ends)
            for unit in range(len(self.values[end]))
        ]
        channels = sum(self._shapes[end][0] for end in ends)
        return self._end(name, edges, (channels, *self._shapes[ends[0]][1:]), *ends)

    def _end(self, name: str, edges: Edges, shape: tuple[int, ...], *takes: int) -> int:
        number = len(self.layers)
        self.layers.append(Layer(name, edges, takes))
        self._shapes[number] = shape
        self.values[number] = [
            math.fsum(
                e.factor * (1.0 if e.source is None else self.values[takes[e.taken]][e.source])
                for e in into
            )
            for into in edges
        ]
        return number


def _flat(place, shape) -> int:
    unit = 0
    for p, size in zip(place, shape, strict=True):
        unit = unit * size + p
    return unit


def _edges(module, shape, values) -> tuple[Edges, tuple[int, ...]]:
    match module:
        case nn.Linear():
            return _linear(module), (module.out_features,)
        case nn.Conv2d():
            return _convolution(module, shape)
        case nn.BatchNorm2d():
            return _batchnorm(module, shape), shape
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


def _linear(module: nn.Linear) -> Edges:
    weight = module.weight.double()
    layer = []
    for o in range(module.out_features):
        edges = [
            Edge(i, weight[o, i].item(), o * module.in_features + i)
            for i in range(module.in_features)
        ]
        if module.bias is not None:
            edges.append(Edge(None, module.bias[o].item()))
        layer.append(edges)
    return layer


def _convolution(module: nn.Conv2d, shape) -> tuple[Edges, tuple[int, ...]]:
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
            edges.append(Edge(source, weight[o, i, a, b].item(), flat))
        if module.bias is not None:
            edges.append(Edge(None, module.bias[o].item()))
        layer.append(edges)
    return layer, (module.out_channels, rows, columns)


def _batchnorm(module: nn.BatchNorm2d, shape) -> Edges:
    channels, height, width = shape
    layer = []
    for c in range(channels):
        variance = module.running_var[c].item() + module.eps
        factor = module.weight[c].item() / math.sqrt(variance)
        shift = module.bias[c].item() - module.running_mean[c].item() * factor
        for position in range(height * width):
            unit = c * height * width + position
            layer.append([Edge(unit, factor, c), Edge(None, shift)])
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


def _max_pool(module: nn.MaxPool2d, shape, values) -> tuple[Edges, tuple[int, ...]]:
    windows, shape = _windows(module, shape)
    # max() keeps the first of equals, as torch does
    return [[Edge(max(cells, key=lambda u: values[u]), 1.0)] for cells in windows], shape


def _average_pool(module: nn.AvgPool2d, shape) -> tuple[Edges, tuple[int, ...]]:
    kernel = module.kernel_size
    full = kernel[0] * kernel[1] if isinstance(kernel, tuple) else kernel**2
    windows, shape = _windows(module, shape)
    layer = []
    for cells in windows:
        share = 1.0 / (full if module.count_include_pad else len(cells))
        layer.append([Edge(unit, share) for unit in cells])
    return layer, shape
