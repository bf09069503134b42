"""What the measurements of circuits share: the frozen network, and where a path ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.network.base import Operation
from torch_thermo.network.errors import unreadable
from torch_thermo.network.joins import Sum
from torch_thermo.network.operations import AveragePool, Elementwise, MaxPool, Weighted
from torch_thermo.network.stages import Node

Transform = Callable[[Tensor], Tensor]

# Why an example has no numbers.
NO_PATH = "no path is alive"
NOT_FINITE = "the output is not finite"
OUT_OF_RANGE = "a sum is out of float64's range"

# Examples are taken together up to this many states of neurons, 32 MiB in float64.
_STATES_AT_ONCE = 2**22


@dataclass(frozen=True)
class FrozenNetwork:
    r"""A network whose gates and max-pool cells stay as one batch of inputs set them.

    Frozen, the network is linear in its inputs and in the weights of each layer, and its output is
    a sum over paths, `T(x) = sum of x psi` (Li, eqs. 10, 11): psi is the product of the weights
    and gates that a path passes, x the input it starts from. A transform with `t(ab) = t(a) t(b)`,
    applied to every factor, therefore gives the sum of `t(x psi)` over all paths in one pass.

    The paper's networks are chains without biases and BatchNorm. Here

    - a bias is one more weight, that leads from an extra input unit of value 1: a path may start
      at any unit that has a bias, and the sum over all paths stays T;
    - BatchNorm in eval mode is a diagonal layer: one weight, gamma / sqrt(var + eps), on each path
      that passes, and one start, by its shift;
    - where branches meet in a sum, a path comes from one of its terms, with the term's coefficient
      as a factor; a term that is broadcast leads to several units, and one that is there twice
      brings its paths twice. A concatenation only renumbers units;
    - a multiple by a tensor of the model is a diagonal layer as well (of a quotient x / p its
      weight is 1 / p), and a shift by one a bias. A number in the forward pass (x / 255, -x) is no
      weight: it is a factor as a gate is, see `has_weight`.

    Without `biases` the paths that start at a bias or a shift are left out. What is left sums to
    the part of T that is linear in x, `x . dT/dx` with the gates as they are.

    Attributes:
        network: what is read.
        nodes: its `graph`; nodes are known by their numbers, -1 is the input.
        inputs: (b, ...), float64.
        shapes: of each node's value, per example; see `shape_of`.
        gates: of each node the gates (Elementwise), the positions of the arg-max (MaxPool), else
            None; (b, ...).
        outputs: (b, K), the sum of x psi over the paths to each output: T, if `biases`.
        biases: whether paths may start at biases and shifts.
    """

    network: Network
    nodes: tuple[Node, ...]
    inputs: Tensor
    shapes: tuple[torch.Size, ...]
    gates: tuple[Tensor | None, ...]
    outputs: Tensor
    biases: bool = True

    @classmethod
    def record(cls, network: Network, inputs: Tensor, biases: bool = True) -> FrozenNetwork:
        """Run the network on float64 inputs and keep its gates.

        Raises:
            UnreadableNetworkError: an activation that is no gate times its argument (tanh, GELU,
                sigmoid, softmax), behind the last layer too: such a network is no sum over paths.
                A recurrent network is refused too.
        """
        nodes = graph_of(network)
        shapes: list[torch.Size] = []
        gates: list[Tensor | None] = []
        values = {-1: inputs}
        for number, (node, done) in enumerate(zip(nodes, _last_uses(nodes), strict=True)):
            operation, taken = node.operation, [values[k] for k in node.takes]
            gate = None
            if isinstance(operation, MaxPool):
                gate = operation.indices(taken[0])
                state = operation.select(taken[0], gate)
            elif isinstance(operation, Elementwise):
                gate = operation.gate(taken[0])
                state = gate * taken[0]
            else:
                state = operation(*taken)
            values[number] = state
            shapes.append(state.shape[1:])
            gates.append(gate)
            for k in done:
                del values[k]
        outputs = _by_output(values[len(nodes) - 1])
        frozen = cls(network, nodes, inputs, tuple(shapes), tuple(gates), outputs, biases)
        return frozen if biases else replace(frozen, outputs=frozen.sums(unchanged))

    def shape_of(self, number: int) -> torch.Size:
        """Return the shape of a node's value per example; of the input for -1."""
        return self.shapes[number] if number >= 0 else self.inputs.shape[1:]

    def bias(self, number: int) -> Tensor | None:
        """Return the live bias at which paths start at a node; None where none do."""
        operation = self.nodes[number].operation
        return operation.bias if self.biases and isinstance(operation, Weighted) else None

    def sums(self, transform: Transform, divided_out: Sequence[int] = ()) -> Tensor:
        """Return (b, K), the sum of `transform(x psi)` over the paths to each output.

        Args:
            transform: multiplicative, elementwise, with t(0) = 0 and t(1) = 1, so that it may be
                applied to gates of 0 and 1 as it is to slopes.
            divided_out: numbers of weighted nodes whose weights become 1: one for order-1 sums,
                two for order-2 sums. Paths that do not have these weights are left out: those that
                start at a node's bias or behind it, or go around it on another branch.
        """
        values = {-1: transform(self.inputs)}
        first = min(divided_out, default=len(self.nodes))
        for number, (node, done) in enumerate(zip(self.nodes, self.last_uses, strict=True)):
            taken = [values[k] for k in node.takes]
            if number in divided_out:
                values = {k: torch.zeros_like(value) for k, value in values.items()}
                values[number] = self.step(number, taken, torch.ones_like, starts=False)
            else:
                values[number] = self.step(number, taken, transform, starts=number < first)
            for k in done:
                del values[k]
        return _by_output(values[len(self.nodes) - 1])

    def step(
        self, number: int, taken: Sequence[Tensor], transform: Transform, starts: bool = True
    ) -> Tensor:
        """Return a node's value with every factor transformed.

        Args:
            number: of the node.
            taken: the values that it takes.
            transform: see `sums`.
            starts: whether paths start at its bias, if it has one.
        """
        operation, gate = self.nodes[number].operation, self.gates[number]
        state = taken[0]
        if isinstance(operation, Weighted):
            weight, bias = operation.weight.to(state), self.bias(number) if starts else None
            shift = None if bias is None else transform(bias.to(state))
            return operation.apply(state, transform(weight), shift)
        if isinstance(operation, AveragePool):
            coefficient = operation.coefficient(state.shape[1:]).to(state)
            return transform(coefficient) * operation.total(state)
        if isinstance(operation, Sum):
            factors = transform(torch.tensor(operation.coefficients, dtype=state.dtype)).tolist()
            return Sum(operation.name, operation.kind, factors)(*taken)
        if isinstance(operation, MaxPool):
            assert gate is not None
            return operation.select(state, gate)
        return operation(*taken) if gate is None else transform(gate) * state

    @cached_property
    def last_uses(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes, -1 the input, whose values nothing behind it takes."""
        return _last_uses(self.nodes)


def has_weight(operation: Operation) -> bool:
    """Whether paths pass a weight of the model there: what circuits of order 1 and 2 divide out."""
    return isinstance(operation, Weighted) and not operation.constant


def graph_of(network: Network) -> tuple[Node, ...]:
    """Return the network's graph.

    Raises:
        UnreadableNetworkError: the network is recurrent.
    """
    for number, stage in enumerate(network.stages):
        if max(stage.parents) >= number:
            why = "it reads its own state or a later one, so that paths never end"
            raise unreadable(
                *(stage.name, "recurrent stage", why), "for circuits feed-forward networks are read"
            )
    return network.graph


def freeze(
    network: Network,
    inputs: Tensor,
    device: torch.device | None = None,
    biases: bool = True,
) -> Iterator[tuple[slice, FrozenNetwork]]:
    """Yield the network recorded on some examples at a time, and which these are.

    In float64: a deep network has more paths than float32's largest number.

    Args:
        network: what is read.
        inputs: (B, *network.input_shape).
        device: where to compute; the network's, or the CPU where that has no float64 (mps).
        biases: whether paths may start at biases and shifts.

    Raises:
        UnreadableNetworkError: see `FrozenNetwork.record`.
    """
    if device is None:
        device = torch.device("cpu") if network.device.type == "mps" else network.device
    step = max(1, _STATES_AT_ONCE // network.neurons)
    for start in range(0, len(inputs), step):
        part = slice(start, min(start + step, len(inputs)))
        some = inputs[part].detach().to(device, torch.float64)
        yield part, FrozenNetwork.record(network, some, biases)


def is_alive(factor: Tensor) -> Tensor:
    """Return 1 where the factor is not 0: the transform whose sum is N."""
    return (factor != 0).to(factor)


def unchanged(factor: Tensor) -> Tensor:
    """Return the factor itself: the transform whose sum is T."""
    return factor


def check_inputs(network: Network, inputs: Tensor) -> None:
    """Refuse what is no batch of the network's inputs.

    Raises:
        TypeError: no Network, or no tensor.
        ValueError: another shape than (B, *network.input_shape), no example, complex numbers.
    """
    if not isinstance(network, Network):
        raise TypeError(f"network must be a Network, got {type(network).__name__}")
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    if inputs.is_complex():
        raise ValueError(f"inputs must be real numbers, got {inputs.dtype}")
    if inputs.shape[1:] != network.input_shape or not inputs.dim() or not len(inputs):
        expected = ", ".join(["B", *map(str, network.input_shape)])
        raise ValueError(
            f"inputs must have shape ({expected}), at least one example, got {tuple(inputs.shape)}"
        )


@dataclass(frozen=True)
class Ends:
    """Where the paths of each example end, and the sign of its label there.

    Attributes:
        index: (B,) int64, the output among the K of the network.
        label: (B,) float64, y = +1 or -1: +1 where the chosen output is that of the example's
            class; None without targets.
    """

    index: Tensor
    label: Tensor | None

    @classmethod
    def choose(
        cls,
        network: Network,
        examples: int,
        output: int | str | None,
        targets: Tensor | None,
    ) -> Ends:
        """Choose one output an example.

        Args:
            network: its output decides whether the targets are signs or classes.
            examples: B.
            output: None, an index, or "target", the logit of each example's class. None is
                "target" where there are several outputs and targets; the only output is both.
            targets: of one output: +1 and -1, (B,) or (B, 1), or 0 and 1, where 0 counts as -1. Of
                K outputs: integer classes (B,), or rows (B, K) with a 1 for the class and one
                smaller number for all others (one-hot, +-1). Probabilities are no labels. An
                output with several axes that are not 1 has no classes: choose by index there.

        Raises:
            ValueError: an output that is not there, or none chosen of several; targets of another
                shape or with other values, or where the output has no one axis of classes.
            TypeError: an output that is no whole number and not "target"; targets that are no
                tensor.
        """
        outputs = math.prod(network.output_shape)
        place = _place(output, outputs)
        if targets is not None and not isinstance(targets, Tensor):
            raise TypeError(f"targets must be a tensor, got {type(targets).__name__}")
        if outputs == 1:
            label = None if targets is None else _signs(targets, examples)
            return cls(torch.zeros(examples, dtype=torch.int64), label)
        shape = network.output_shape
        if targets is not None and sum(size > 1 for size in shape) > 1:
            raise ValueError(
                "targets must be left out, and output be an index: an output of shape "
                f"{tuple(shape)} has no one axis of classes"
            )
        classes = None if targets is None else _classes(targets, examples, outputs)
        if place is not None:
            index = torch.full((examples,), place)
            return cls(index, None if classes is None else 2.0 * (classes == place).double() - 1.0)
        if classes is None:
            raise ValueError(
                f"output must be an index from 0 to {outputs - 1}, or targets be given for "
                f'output="target": the network has {outputs} outputs'
            )
        return cls(classes, torch.ones(examples, dtype=torch.float64))


def _place(output: object, outputs: int) -> int | None:
    """Return the number of the output; None where each example's class decides."""
    if output is None or (isinstance(output, str) and output == "target"):
        return None
    wanted = f'output must be None, "target" or an index from 0 to {outputs - 1}'
    if isinstance(output, bool) or not isinstance(output, str | Integral):
        raise TypeError(f"{wanted}, got a {type(output).__name__}")
    if isinstance(output, str) or not 0 <= int(output) < outputs:
        raise ValueError(f"{wanted}, got {output!r}")
    return int(output)


def _last_uses(nodes: Sequence[Node]) -> tuple[tuple[int, ...], ...]:
    last = {taken: number for number, node in enumerate(nodes) for taken in node.takes}
    done: list[list[int]] = [[] for _ in nodes]
    for taken, number in last.items():
        done[number].append(taken)
    return tuple(map(tuple, done))


def _by_output(state: Tensor) -> Tensor:
    return state.reshape(len(state), -1)


def _signs(targets: Tensor, examples: int) -> Tensor:
    if targets.shape not in ((examples,), (examples, 1)):
        raise ValueError(
            f"targets must have shape ({examples},) for a scalar output, got {tuple(targets.shape)}"
        )
    values = targets.detach().cpu().double().reshape(-1)
    found = set(values.unique().tolist())
    if not (found <= {-1.0, 1.0} or found <= {0.0, 1.0}):
        raise ValueError(
            "targets of a scalar output must be +1 and -1, or 1 and 0, got values "
            f"{sorted(found)[:5]}"
        )
    return torch.where(values > 0, 1.0, -1.0).double()


def _classes(targets: Tensor, examples: int, outputs: int) -> Tensor:
    targets = targets.detach().cpu()
    if targets.shape == (examples, outputs):
        rows = targets.double()
        others = rows.masked_fill(rows == 1, -math.inf).amax(1, keepdim=True)
        one = ((rows == 1).sum(1) == 1) & ((rows == 1) | ((rows == others) & (rows < 1))).all(1)
        if not bool(one.all()):
            raise ValueError(
                "rows of targets must have a 1 for the class and one smaller number for all "
                f"others, and row {int((~one).nonzero()[0])} has not"
            )
        return rows.argmax(1)
    if targets.shape != (examples,) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(
            f"targets must be integer classes ({examples},) or rows ({examples}, {outputs}), got "
            f"{targets.dtype} of shape {tuple(targets.shape)}"
        )
    if examples and not (0 <= int(targets.min()) and int(targets.max()) < outputs):
        raise ValueError(
            f"targets must be classes from 0 to {outputs - 1}, got {int(targets.min())} to "
            f"{int(targets.max())}"
        )
    return targets.long()
