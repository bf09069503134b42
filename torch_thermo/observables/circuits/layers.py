"""How paths go back over convolutions, linear layers, batch normalisation and average-pools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_thermo.network.operations import AveragePool, Weighted
from torch_thermo.observables.circuits.fans import Fan, Table
from torch_thermo.observables.circuits.groups import Group, Walk
from torch_thermo.observables.circuits.paths import FrozenNetwork
from torch_thermo.observables.circuits.steps import Around, Step

# A candidate with a weight of exactly 0 is drawn again so many times. What is left then is drawn
# among the candidates with nonzero weights, which takes one row of a table for each unit.
_REDRAWS = 16
# Entries of such a table held at once, 32 MiB.
_TABLE_ENTRIES = 2**22


class _FanStep(Step):
    """A step over an operation in which a unit has a fan of candidates."""

    def __init__(self, frozen: FrozenNetwork, number: int) -> None:
        super().__init__(frozen, number)
        operation = frozen.nodes[number].operation
        assert isinstance(operation, Weighted | AveragePool)
        self.fan = Fan.of(operation, self.shapes[0])

    def _arrivals(self, units: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the row each unit is in, and the sources and counts of the rows that occur."""
        row = self.fan.row(units)
        occurs = torch.zeros(self.output.numel() // self.fan.outputs, dtype=torch.bool)
        occurs[row] = True
        sources = self.fan.sources(occurs.nonzero()[:, 0])
        # -1, padding, reads the 0 that is put at the end
        counts = torch.cat([before, before.new_zeros(1)])[sources]
        return (occurs.cumsum(0) - 1)[row], sources, counts


class AverageStep(_FanStep):
    """Over an average-pool: each unit's paths come from its window, with its coefficient."""

    def __init__(self, frozen: FrozenNetwork, number: int) -> None:
        super().__init__(frozen, number)
        operation = frozen.nodes[number].operation
        assert isinstance(operation, AveragePool)
        self._operation = operation
        self._coefficient = operation.coefficient(self.shapes[0]).flatten()

    def count(self, frozen: FrozenNetwork, taken: Sequence[Tensor]) -> Tensor:
        """See `Step.count`."""
        return self._operation.total(taken[0])

    def back(
        self, group: Group, walk: Walk, around: Around, generator: torch.Generator
    ) -> Sequence[Group]:
        """See `Step.back`."""
        walk.multiply(group, self._coefficient[group.units % len(self._coefficient)])
        row, sources, counts = self._arrivals(group.units, around.before[0])
        return (group.at(sources[row, Table(counts).draw(row, generator)]),)


class WeightedStep(_FanStep):
    """Over a convolution, linear layer or batch normalisation.

    Args:
        frozen: see `Step`.
        number: of the node.
        layer: its number among those with weights; None for a scale by a constant.
    """

    def __init__(self, frozen: FrozenNetwork, number: int, layer: int | None) -> None:
        super().__init__(frozen, number)
        operation = frozen.nodes[number].operation
        assert isinstance(operation, Weighted)
        self._operation = operation
        self._layer = layer
        weight, bias = operation.weight.detach(), frozen.bias(number)
        # copies: between the parts of a stream the model may be trained on
        weight = weight.to("cpu", copy=True)
        self._weight = weight.reshape(len(weight), -1)
        self._bias = None if bias is None else bias.detach().to("cpu", copy=True)
        alive = weight != 0
        self._sparse = not bool(alive.all())
        # Where no weight is 0, all outputs of a block have the same counts: one of each will do.
        self._alive = (alive if self._sparse else alive[:: self.fan.outputs]).double()

    def count(self, frozen: FrozenNetwork, taken: Sequence[Tensor]) -> Tensor:
        """See `Step.count`."""
        after = self._operation.apply(taken[0], self._alive, None)
        if not self._sparse:
            places = len(self.fan.windows)
            after = after.reshape(-1, 1, places).expand(-1, self.fan.outputs, -1)
        after = after.reshape(1, *self.output)
        if self._bias is None:
            return after
        return after + self._starts(torch.arange(after.numel())).reshape(after.shape)

    def back(
        self, group: Group, walk: Walk, around: Around, generator: torch.Generator
    ) -> Sequence[Group]:
        """See `Step.back`."""
        if self._bias is not None:
            group = self._start(group, walk, self._bias, around.after, generator)
        channel = self._channel(group.units)
        pick, sources = self._draw(group.units, channel, around.before[0], generator)
        weight = self._weight[channel, pick]
        if self._layer is None:
            walk.multiply(group, weight)
        else:
            entry = channel * self._weight.shape[1] + pick
            walk.pass_weight(group, self._layer, weight, entry)
        return (group.at(sources),)

    def _start(
        self, group: Group, walk: Walk, bias: Tensor, after: Tensor, generator: torch.Generator
    ) -> Group:
        """End the paths that start at the bias; return the others."""
        chance = torch.rand(len(group.units), dtype=torch.float64, generator=generator)
        ends = chance * after[group.units] < self._starts(group.units)
        if not bool(ends.any()):
            return group
        ended = group.where(ends)
        walk.end_at_bias(ended, bias[self._channel(ended.units)])
        return group.where(~ends)

    def _draw(
        self, units: Tensor, channel: Tensor, before: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return for each unit the candidate its path comes from, and where that is."""
        if self._weight.shape[1] == 1:  # batch normalisation: there is one candidate
            return torch.zeros_like(units), self.fan.sources(self.fan.row(units))[:, 0]
        row, sources, counts = self._arrivals(units, before)
        table = Table(counts)
        pick = table.draw(row, generator)
        if self._sparse:
            pick = self._redraw(pick, row, channel, table, counts, generator)
        return pick, sources[row, pick]

    def _channel(self, units: Tensor) -> Tensor:
        """Return which row of the weight leads to each unit."""
        return units // len(self.fan.windows) % len(self._weight)

    def _starts(self, units: Tensor) -> Tensor:
        """Return 1 for each unit with a bias that is not 0, else 0."""
        assert self._bias is not None
        return (self._bias != 0).double()[self._channel(units)]

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
