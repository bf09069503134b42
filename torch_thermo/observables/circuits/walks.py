"""Alive paths counted forwards and walked backwards, one example at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_thermo.network.operations import AveragePool, MaxPool, Weighted
from torch_thermo.observables.circuits.fans import Fan, Table
from torch_thermo.observables.circuits.paths import FrozenNetwork

# A candidate with a weight of exactly 0 is drawn again so many times. What is left then is drawn
# among the candidates with nonzero weights, which takes one row of a table for each unit.
_REDRAWS = 16
# Entries of such a table held at once, 32 MiB.
_TABLE_ENTRIES = 2**22


class Walk:
    """Paths of one example on their way back from the output, all at the same operation.

    Args:
        paths: how many.
        unit: the flat index of the output that they start back from.

    Attributes:
        log_abs: (paths,) natural logarithm of the product of the factors passed so far.
        negative: (paths,) whether that product is below 0.
        value: (paths,) the input a path has come to: 1 at a bias, NaN while it is on its way.
        going: the paths still on their way.
        unit: of each of these, where it is.
    """

    def __init__(self, paths: int, unit: int) -> None:
        self.log_abs = torch.zeros(paths, dtype=torch.float64)
        self.negative = torch.zeros(paths, dtype=torch.bool)
        self.value = torch.full((paths,), torch.nan, dtype=torch.float64)
        self.going: Tensor | slice = slice(None)
        self.unit = torch.full((paths,), unit)

    def multiply(self, factor: Tensor) -> None:
        """Pass the factor of each path that is on its way."""
        self.log_abs[self.going] += factor.double().abs().log()
        self.negative[self.going] ^= factor < 0

    def end_at_bias(self, ends: Tensor, bias: Tensor) -> None:
        """End the paths marked in `ends`, with the bias that each of these starts from."""
        paths = torch.arange(len(self.value))[self.going]
        self.going = paths[ends]
        self.multiply(bias)
        self.value[self.going] = 1.0
        self.going, self.unit = paths[~ends], self.unit[~ends]

    def end_at_inputs(self, inputs: Tensor) -> None:
        """End the remaining paths at their inputs, given flat."""
        self.value[self.going] = inputs[self.unit]


class Layer:
    """What is read of a weighted operation or an average-pool once, for all examples.

    Args:
        operation: the operation.
        shape: of its input, per example.
        output: of its output, per example.
    """

    def __init__(
        self, operation: Weighted | AveragePool, shape: torch.Size, output: torch.Size
    ) -> None:
        self.fan = Fan.of(operation, shape)
        self.output = output

    def count(self, counts: Tensor) -> Tensor:
        """Return (1, *output), the number of alive paths to each unit of the output."""
        raise NotImplementedError

    def back(self, walk: Walk, before: Tensor, after: Tensor, generator: torch.Generator) -> None:
        """Take each path one operation back.

        Args:
            walk: paths at alive units of the output.
            before: number of alive paths to each unit of the input, flat.
            after: to each unit of the output, flat.
            generator: of the draws.
        """
        raise NotImplementedError

    def _arrivals(self, unit: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the row each unit is in, and the sources and counts of the rows that occur."""
        row = self.fan.row(unit)
        occurs = torch.zeros(self.output.numel() // self.fan.outputs, dtype=torch.bool)
        occurs[row] = True
        sources = self.fan.sources(occurs.nonzero()[:, 0])
        # -1, padding, reads the 0 that is put at the end
        counts = torch.cat([before, before.new_zeros(1)])[sources]
        return (occurs.cumsum(0) - 1)[row], sources, counts


class AverageLayer(Layer):
    """An average-pool: each unit's paths come from its window, with the window's coefficient."""

    def __init__(self, operation: AveragePool, shape: torch.Size, output: torch.Size) -> None:
        super().__init__(operation, shape, output)
        self._operation = operation
        self._coefficient = operation.coefficient(shape).flatten()

    def count(self, counts: Tensor) -> Tensor:
        """See `Layer.count`."""
        return self._operation.total(counts)

    def back(self, walk: Walk, before: Tensor, after: Tensor, generator: torch.Generator) -> None:
        """See `Layer.back`."""
        walk.multiply(self._coefficient[walk.unit % len(self._coefficient)])
        row, sources, counts = self._arrivals(walk.unit, before)
        walk.unit = sources[row, Table(counts).draw(row, generator)]


class WeightedLayer(Layer):
    """A convolution, linear layer or batch normalisation."""

    def __init__(self, operation: Weighted, shape: torch.Size, output: torch.Size) -> None:
        super().__init__(operation, shape, output)
        self._operation = operation
        weight, bias = operation.weight.detach().cpu(), operation.bias
        self._weight = weight.reshape(len(weight), -1)
        self._bias = None if bias is None else bias.detach().cpu()
        alive = weight != 0
        self._sparse = not bool(alive.all())
        # Where no weight is 0, all outputs of a block have the same counts: one of each will do.
        self._alive = (alive if self._sparse else alive[:: self.fan.outputs]).double()

    def count(self, counts: Tensor) -> Tensor:
        """See `Layer.count`."""
        after = self._operation.apply(counts, self._alive, None)
        if not self._sparse:
            places = len(self.fan.windows)
            after = after.reshape(-1, 1, places).expand(-1, self.fan.outputs, -1)
        after = after.reshape(1, *self.output)
        if self._bias is None:
            return after
        return after + self._starts(torch.arange(after.numel())).reshape(after.shape)

    def back(self, walk: Walk, before: Tensor, after: Tensor, generator: torch.Generator) -> None:
        """See `Layer.back`."""
        if self._bias is not None:
            chance = torch.rand(len(walk.unit), dtype=torch.float64, generator=generator)
            ends = chance * after[walk.unit] < self._starts(walk.unit)
            walk.end_at_bias(ends, self._bias[self._channel(walk.unit[ends])])
        channel = self._channel(walk.unit)
        row, sources, counts = self._arrivals(walk.unit, before)
        table = Table(counts)
        pick = table.draw(row, generator)
        if self._sparse:
            pick = self._redraw(pick, row, channel, table, counts, generator)
        walk.multiply(self._weight[channel, pick])
        walk.unit = sources[row, pick]

    def _channel(self, unit: Tensor) -> Tensor:
        """Return which row of the weight leads to each unit."""
        return unit // len(self.fan.windows) % len(self._weight)

    def _starts(self, unit: Tensor) -> Tensor:
        """Return 1 for each unit with a bias that is not 0, else 0."""
        assert self._bias is not None
        return (self._bias != 0).double()[self._channel(unit)]

    def _redraw(
        self,
        pick: Tensor,
        row: Tensor,
        channel: Tensor,
        table: Table,
        counts: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Replace candidates whose weight is 0, so that alive ones keep their relative chances."""
        wrong = (self._weight[channel, pick] == 0).nonzero()[:, 0]
        for _ in range(_REDRAWS):
            if not len(wrong):
                return pick
            pick[wrong] = table.draw(row[wrong], generator)
            wrong = wrong[self._weight[channel[wrong], pick[wrong]] == 0]
        outputs = len(self._weight)
        unit, which = (row[wrong] * outputs + channel[wrong]).unique(return_inverse=True)
        step = max(1, _TABLE_ENTRIES // counts.shape[1])
        for start in range(0, len(unit), step):
            some = unit[start : start + step]
            masses = counts[some // outputs] * (self._weight[some % outputs] != 0)
            here = (which >= start) & (which < start + step)
            pick[wrong[here]] = Table(masses).draw(which[here] - start, generator)
        return pick


def layers_of(frozen: FrozenNetwork) -> list[Layer | None]:
    """Return a layer for each weighted operation and average-pool, else None."""
    found: list[Layer | None] = []
    for number, operation in enumerate(frozen.network.operations):
        shape, output = frozen.shapes[number : number + 2]
        if isinstance(operation, Weighted):
            found.append(WeightedLayer(operation, shape, output))
        elif isinstance(operation, AveragePool):
            found.append(AverageLayer(operation, shape, output))
        else:
            found.append(None)
    return found


def count_paths(
    frozen: FrozenNetwork, layers: Sequence[Layer | None], example: int
) -> list[Tensor]:
    """Return (1, ...) the number of alive paths to each unit: the inputs, then by operation."""
    counts = [(frozen.inputs[example, None] != 0).double()]
    for operation, layer, gate in zip(frozen.network.operations, layers, frozen.gates, strict=True):
        state = counts[-1]
        if layer is not None:
            counts.append(layer.count(state))
        elif gate is None:
            counts.append(operation(state))
        elif isinstance(operation, MaxPool):
            counts.append(operation.select(state, gate[example, None]))
        else:
            counts.append(state * (gate[example, None] != 0))
    return counts


def walk_back(
    frozen: FrozenNetwork,
    layers: Sequence[Layer | None],
    counts: Sequence[Tensor],
    example: int,
    walk: Walk,
    generator: torch.Generator,
) -> None:
    """Take paths from an alive output back to where they start, uniformly over the alive paths."""
    for number in reversed(range(len(layers))):
        layer, gate = layers[number], frozen.gates[number]
        before, after = counts[number].flatten(), counts[number + 1].flatten()
        if layer is not None:
            layer.back(walk, before, after, generator)
        elif gate is None:
            continue  # a reshape keeps the flat index
        elif isinstance(frozen.network.operations[number], MaxPool):
            places = gate[0, 0].numel()
            positions = frozen.shapes[number][1:].numel()
            winner = gate[example].flatten()[walk.unit]
            walk.unit = walk.unit // places * positions + winner
        else:
            walk.multiply(gate[example].flatten()[walk.unit])
    walk.end_at_inputs(frozen.inputs[example].flatten())
