"""Paths on their way back from the output, and what is known of them so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Paths that have come to the same node of the graph.

    Attributes:
        paths: (n,) int64, their numbers in the walk; None: all of it, in order.
        units: (n,) int64, the flat index of the unit that each has come to.
    """

    paths: Tensor | None
    units: Tensor

    @property
    def rows(self) -> Tensor | slice:
        """What selects the group's paths among those of the walk."""
        return slice(None) if self.paths is None else self.paths

    def at(self, units: Tensor) -> Group:
        """Return the same paths at other units."""
        return Group(self.paths, units)

    def where(self, chosen: Tensor) -> Group:
        """Return the paths marked in `chosen` (n,), bool."""
        paths = chosen.nonzero()[:, 0] if self.paths is None else self.paths[chosen]
        return Group(paths, self.units[chosen])

    @classmethod
    def together(cls, groups: list[Group]) -> Group:
        """Return the paths of several groups, at least one, as one.

        Raises:
            ValueError: one of several has all paths of the walk.
        """
        if len(groups) == 1:
            return groups[0]
        paths = [group.paths for group in groups if group.paths is not None]
        if len(paths) < len(groups):
            raise ValueError("a group of all paths has no other beside it")
        return cls(torch.cat(paths), torch.cat([group.units for group in groups]))


class Walk:
    """The paths of one walk through one example.

    Args:
        paths: how many, P.
        layers: W, the weighted nodes of the graph.
        nodes: of the graph, if units and entries are to be kept, else None.

    Attributes:
        log_abs: (P,) float64, natural logarithm of the product of the factors passed so far.
        negative: (P,) bool, whether that product is below 0.
        value: (P,) float64, the input a path has come to: 1 at a bias, NaN while it is on its way.
        weights: (W, P) float64, the weight passed at each weighted node, NaN where none is.
        units: (nodes, P) int64, the unit passed behind each node, -1 where none is.
        starts: (P,) int64, the flat index of the input; -1 at a bias.
        entries: (W, P) int64, the flat index of the weight passed, -1 where none is.
    """

    def __init__(self, paths: int, layers: int, nodes: int | None = None) -> None:
        self.log_abs = torch.zeros(paths, dtype=torch.float64)
        self.negative = torch.zeros(paths, dtype=torch.bool)
        self.value = torch.full((paths,), torch.nan, dtype=torch.float64)
        self.weights = torch.full((layers, paths), torch.nan, dtype=torch.float64)
        kept = nodes is not None
        self.units = torch.full((nodes or 0, paths), -1)
        self.starts = torch.full((paths if kept else 0,), -1)
        self.entries = torch.full((layers if kept else 0, paths), -1)

    def multiply(self, group: Group, factor: Tensor) -> None:
        """Pass the factor (n,) of each path of the group."""
        self.log_abs[group.rows] += factor.double().abs().log()
        self.negative[group.rows] ^= factor < 0

    def pass_weight(self, group: Group, layer: int, weight: Tensor, entry: Tensor) -> None:
        """Pass the weight (n,) of each path of the group, one of its layer's flat entries."""
        self.multiply(group, weight)
        self.weights[layer, group.rows] = weight.double()
        if len(self.entries):
            self.entries[layer, group.rows] = entry

    def pass_node(self, number: int, group: Group) -> None:
        """Note which units the group passes behind a node."""
        if len(self.units):
            self.units[number, group.rows] = group.units

    def end_at_bias(self, group: Group, bias: Tensor) -> None:
        """End the group, with the bias (n,) that each path starts from."""
        self.multiply(group, bias)
        self.value[group.rows] = 1.0

    def end_at_inputs(self, group: Group, inputs: Tensor) -> None:
        """End the group at the flat inputs."""
        self.value[group.rows] = inputs[group.units]
        if len(self.starts):
            self.starts[group.rows] = group.units
