"""How paths go back over an operation without weights: gates, max-pools, branches that meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_thermo.network.joins import Concatenate, Sum
from torch_thermo.observables.circuits.groups import Group, Walk
from torch_thermo.observables.circuits.paths import FrozenNetwork, is_alive


class Around(NamedTuple):
    """What is known of one example around a node; all flat.

    Attributes:
        before: for each value that the node takes, the number of alive paths to its units.
        after: the number of alive paths to the units of the node's own value.
        gate: the gates of these units, or a max-pool's positions; None for others.
    """

    before: tuple[Tensor, ...]
    after: Tensor
    gate: Tensor | None


class Step:
    """The step over one node, that of a reshape if nothing else is said; for all examples.

    Args:
        frozen: the network; of the examples in it nothing is kept.
        number: of the node.
    """

    def __init__(self, frozen: FrozenNetwork, number: int) -> None:
        self.number = number
        self.shapes = tuple(frozen.shape_of(k) for k in frozen.nodes[number].takes)
        self.output = frozen.shape_of(number)

    def count(self, frozen: FrozenNetwork, taken: Sequence[Tensor]) -> Tensor:
        """Return (1, *output), the number of alive paths to each unit.

        Args:
            frozen: one example.
            taken: (1, ...) each, those to the units of the values that the node takes.
        """
        return frozen.step(self.number, taken, is_alive)

    def back(
        self, group: Group, walk: Walk, around: Around, generator: torch.Generator
    ) -> Sequence[Group]:
        """Take paths back over the node.

        Args:
            group: paths at alive units of the node's value.
            walk: which they are of.
            around: the counts.
            generator: of the draws.

        Returns:
            For each value that the node takes the paths that came from there, at its units.
        """
        # a reshape keeps the flat index
        return (group,)


class GateStep(Step):
    """Over an activation: a path passes its unit's gate."""

    def back(
        self, group: Group, walk: Walk, around: Around, generator: torch.Generator
    ) -> Sequence[Group]:
        """See `Step.back`."""
        assert around.gate is not None
        gate = around.gate[group.units]
        if bool((gate != 1).any()):  # at alive units the gates of a ReLU are 1
            walk.multiply(group, gate)
        return (group,)


class MaxPoolStep(Step):
    """Over a max-pool: a path comes from the arg-max cell."""

    def back(
        self, group: Group, walk: Walk, around: Around, generator: torch.Generator
    ) -> Sequence[Group]:
        """See `Step.back`."""
        assert around.gate is not None
        places, positions = math.prod(self.output[1:]), math.prod(self.shapes[0][1:])
        return (group.at(group.units // places * positions + around.gate[group.units]),)


class SumStep(Step):
    """Over a sum: a path comes from one of the terms, and passes the term's coefficient."""

    def __init__(self, frozen: FrozenNetwork, number: int) -> None:
        super().__init__(frozen, number)
        operation = frozen.nodes[number].operation
        assert isinstance(operation, Sum)
        self._coefficients = operation.coefficients
        # of a term that is broadcast, the unit that each unit of the sum reads
        self._sources = [
            None
            if shape == self.output
            else torch.arange(shape.numel()).reshape(shape).broadcast_to(self.output).flatten()
            for shape in self.shapes
        ]

    def back(
        self, group: Group, walk: Walk, around: Around, generator: torch.Generator
    ) -> Sequence[Group]:
        """See `Step.back`."""
        units = [group.units if s is None else s[group.units] for s in self._sources]
        masses = [
            count[unit] * float(coefficient != 0)
            for count, unit, coefficient in zip(
                around.before, units, self._coefficients, strict=True
            )
        ]
        table = torch.stack(masses).cumsum(0)
        chance = torch.rand(len(group.units), dtype=torch.float64, generator=generator)
        # rounded, chance times the total stays below the total
        pick = (table <= chance * table[-1]).sum(0)
        terms = []
        for place, (unit, coefficient) in enumerate(zip(units, self._coefficients, strict=True)):
            came = pick == place
            term = group.at(unit) if bool(came.all()) else group.at(unit).where(came)
            if coefficient != 1 and len(term.units):
                walk.multiply(term, torch.full((len(term.units),), coefficient).double())
            terms.append(term)
        return terms


class ConcatenateStep(Step):
    """Over a concatenation: a unit is one of the parts'."""

    def __init__(self, frozen: FrozenNetwork, number: int) -> None:
        super().__init__(frozen, number)
        operation = frozen.nodes[number].operation
        assert isinstance(operation, Concatenate)
        axis = operation.axis - 1  # without the batch's
        numbered = [torch.arange(s.numel()).reshape(s) for s in self.shapes]
        parts = [torch.full_like(units, place) for place, units in enumerate(numbered)]
        self._part = torch.cat(parts, axis).flatten()
        self._source = torch.cat(numbered, axis).flatten()

    def back(
        self, group: Group, walk: Walk, around: Around, generator: torch.Generator
    ) -> Sequence[Group]:
        """See `Step.back`."""
        part, moved = self._part[group.units], group.at(self._source[group.units])
        return [moved.where(part == place) for place in range(len(self.shapes))]
