"""Layers of weights with their activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torch_thermo.network.base import Operation

__all__ = ["Node", "Stage", "chained", "composed", "flat", "flattened"]


@dataclass(frozen=True)
class Stage:
    """A layer of weights with what is folded into it, and its activation.

    ``x_l = f(W_l x_{l-1} + b_l)``; V. Vanchurin, *Towards a theory of machine learning*, sec. 2.

    Attributes:
        name: of the module that has the weights.
        parents: the stages whose states it reads, -1 for the input. In a chain the one before;
            in a recurrent network itself or later ones too.
        linear: operations up to the pre-activation; a max-pool may be among them, which is
            linear only where its choice is fixed.
        activation: operations from there to the state.
        shape: of the state of one example.
        wiring: for each operation of `linear` the values it takes: k >= 0 the state of
            `parents[k]`, ~j what the j-th operation gives. None: each takes what the one before
            gives, the first the state of the only parent.
    """

    name: str
    parents: tuple[int, ...]
    linear: tuple[Operation, ...]
    activation: tuple[Operation, ...]
    shape: torch.Size
    wiring: tuple[tuple[int, ...], ...] | None = None

    def pre_activation(self, *parents: Tensor) -> Tensor:
        """Return ``y = W x + b`` from the parents' states, in the order of `parents`."""
        values: list[Tensor] = []
        for operation, taken in zip(self.linear, self.takes, strict=True):
            values.append(operation(*(parents[k] if k >= 0 else values[~k] for k in taken)))
        return values[-1] if values else parents[0]

    def state(self, pre_activation: Tensor) -> Tensor:
        """Return ``f(y)``."""
        return composed(self.activation, pre_activation)

    @property
    def takes(self) -> tuple[tuple[int, ...], ...]:
        """The `wiring`, that of a chain too."""
        return chained(len(self.linear)) if self.wiring is None else self.wiring

    @property
    def size(self) -> int:
        """The number of neurons: units of the state."""
        return self.shape.numel()


class Node(NamedTuple):
    """An operation and where its arguments come from.

    Attributes:
        operation: one argument, a `Join` several.
        takes: for each argument the number of the node that gives it, -1 the network's input.
    """

    operation: Operation
    takes: tuple[int, ...]


def flattened(stages: Sequence[Stage]) -> tuple[Node, ...]:
    """Return the operations of feed-forward stages as one graph, each behind all that it takes.

    The last node gives the last stage's state.
    """
    nodes: list[Node] = []
    states: list[int] = []
    for stage in stages:
        parents = [-1 if parent < 0 else states[parent] for parent in stage.parents]
        first = len(nodes)
        for operation, taken in zip(stage.linear, stage.takes, strict=True):
            takes = tuple(parents[k] if k >= 0 else first + ~k for k in taken)
            nodes.append(Node(operation, takes))
        last = len(nodes) - 1 if stage.linear else parents[0]
        for operation in stage.activation:
            nodes.append(Node(operation, (last,)))
            last = len(nodes) - 1
        states.append(last)
    return tuple(nodes)


def chained(count: int) -> tuple[tuple[int, ...], ...]:
    """Return the wiring of operations each of which takes what the one before gives."""
    return tuple((~(place - 1),) if place else (0,) for place in range(count))


def composed(operations: Sequence[Operation], x: Tensor) -> Tensor:
    """Return x behind the operations, one after the other."""
    for operation in operations:
        x = operation(x)
    return x


def flat(x: Tensor) -> Tensor:
    """Return a batch with all axes behind the first as one, ``(B, n)``; n = 1 where none is."""
    return x[:, None].flatten(1)
