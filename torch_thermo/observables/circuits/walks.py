"""Alive paths counted forwards and walked backwards, one example at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torch_thermo.network.joins import Concatenate, Sum
from torch_thermo.network.operations import AveragePool, Elementwise, MaxPool, Weighted
from torch_thermo.observables.circuits.groups import Group, Walk
from torch_thermo.observables.circuits.layers import AverageStep, WeightedStep
from torch_thermo.observables.circuits.paths import FrozenNetwork, has_weight
from torch_thermo.observables.circuits.steps import (
    Around,
    ConcatenateStep,
    GateStep,
    MaxPoolStep,
    Step,
    SumStep,
)

_STEPS: dict[type, type[Step]] = {
    AveragePool: AverageStep,
    Elementwise: GateStep,
    MaxPool: MaxPoolStep,
    Sum: SumStep,
    Concatenate: ConcatenateStep,
}


def steps_of(frozen: FrozenNetwork) -> list[Step]:
    """Return the step over each node; they serve all examples."""
    steps: list[Step] = []
    layer = 0
    for number, node in enumerate(frozen.nodes):
        if isinstance(node.operation, Weighted):
            counted = has_weight(node.operation)
            steps.append(WeightedStep(frozen, number, layer if counted else None))
            layer += counted
            continue
        kind = next((s for o, s in _STEPS.items() if isinstance(node.operation, o)), Step)
        steps.append(kind(frozen, number))
    return steps


def one_example(frozen: FrozenNetwork, row: int) -> FrozenNetwork:
    """Return the network frozen at one of its examples."""
    part = slice(row, row + 1)
    gates = tuple(None if gate is None else gate[part] for gate in frozen.gates)
    return replace(frozen, inputs=frozen.inputs[part], gates=gates, outputs=frozen.outputs[part])


def count_paths(frozen: FrozenNetwork, steps: Sequence[Step]) -> list[Tensor]:
    """Return (1, ...) the number of alive paths to each unit of one example.

    First of the input, then of each node, in float64.
    """
    counts = [(frozen.inputs != 0).double()]
    for node, step in zip(frozen.nodes, steps, strict=True):
        counts.append(step.count(frozen, [counts[k + 1] for k in node.takes]))
    return counts


def walk_back(
    frozen: FrozenNetwork,
    steps: Sequence[Step],
    counts: Sequence[Tensor],
    walk: Walk,
    unit: int,
    generator: torch.Generator,
) -> None:
    """Take paths from an alive output back to where they start, uniformly over the alive paths.

    Nodes are gone through from the last to the first: then all paths that pass a node have come to
    it before the walk goes on from there.

    Args:
        frozen: one example.
        steps: over each node.
        counts: of the alive paths.
        walk: takes what is found.
        unit: the flat index of the output that the paths start back from.
        generator: of the draws.
    """
    waiting: list[list[Group]] = [[] for _ in counts]
    waiting[-1].append(Group(None, torch.full((len(walk.value),), unit)))
    flat = [count.flatten() for count in counts]
    for number in reversed(range(len(steps))):
        if not waiting[number + 1]:
            continue
        group = Group.together(waiting[number + 1])
        walk.pass_node(number, group)
        takes, gate = frozen.nodes[number].takes, frozen.gates[number]
        around = Around(
            before=tuple(flat[k + 1] for k in takes),
            after=flat[number + 1],
            gate=None if gate is None else gate.flatten(),
        )
        came = steps[number].back(group, walk, around, generator)
        for taken, part in zip(takes, came, strict=True):
            if len(part.units):
                waiting[taken + 1].append(part)
    if waiting[0]:
        walk.end_at_inputs(Group.together(waiting[0]), frozen.inputs.flatten())
