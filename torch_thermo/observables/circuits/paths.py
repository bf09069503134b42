"""What the measurements of circuits share: the frozen network, and where a path ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.network.errors import unreadable
from torch_thermo.network.joins import Join
from torch_thermo.network.operations import AveragePool, Elementwise, MaxPool, Weighted

Transform = Callable[[Tensor], Tensor]

_CHAINS = "for circuits chains are read, where each operation takes what the one before gives"
# Examples are taken together up to this many states of neurons, 32 MiB in float64.
_STATES_AT_ONCE = 2**22


@dataclass(frozen=True)
class FrozenNetwork:
    r"""A network whose gates and max-pool cells stay as one batch of inputs set them.

    Frozen, the network is linear in its inputs and in the weights of each layer, and its output is
    a sum over paths, `T(x) = sum of x psi` (Li, eqs. 10, 11): psi is the product of the weights
    and gates that a path passes, x the input it starts from. A transform with `t(ab) = t(a) t(b)`,
    applied to every factor, therefore gives the sum of `t(x psi)` over all paths in one pass.

    The paper's networks have neither biases nor BatchNorm. Here

    - a bias is one more weight, that leads from an extra input unit of value 1: a path may start
      at any unit that has a bias, and the sum over all paths stays T;
    - BatchNorm in eval mode is a diagonal layer: one weight, gamma / sqrt(var + eps), on each path
      that passes, and one start, by its shift.

    Attributes:
        network: what is read.
        inputs: (b, ...), float64.
        shapes: of the states, per example: the input's, then behind each operation.
        gates: for each operation the gates (Elementwise), the positions of the arg-max (MaxPool),
            else None.
        outputs: (b, K), T of each output.
    """

    network: Network
    inputs: Tensor
    shapes: tuple[torch.Size, ...]
    gates: tuple[Tensor | None, ...]
    outputs: Tensor

    @classmethod
    def record(cls, network: Network, inputs: Tensor) -> FrozenNetwork:
        """Run the network on float64 inputs and keep its gates.

        Raises:
            UnreadableNetworkError: an activation that is no gate times its argument (tanh, GELU,
                sigmoid, softmax), behind the last layer too: such a network is no sum over paths.
        """
        state = inputs
        shapes = [state.shape[1:]]
        gates: list[Tensor | None] = []
        for operation in network.operations:
            gate = None
            if isinstance(operation, MaxPool):
                gate = operation.indices(state)
                state = operation.select(state, gate)
            elif isinstance(operation, Elementwise):
                gate = operation.gate(state)
                state = gate * state
            else:
                state = operation(state)
            shapes.append(state.shape[1:])
            gates.append(gate)
        return cls(network, inputs, tuple(shapes), tuple(gates), _by_output(state))

    def sums(self, transform: Transform, divided_out: int | None = None) -> Tensor:
        """Return (b, K), the sum of `transform(x psi)` over the paths to each output.

        Args:
            transform: multiplicative, elementwise, with t(0) = 0 and t(1) = 1, so that it may be
                applied to gates of 0 and 1 as it is to slopes.
            divided_out: the number of a weighted operation whose weights become 1 (order-1 sums).
                Paths that start at its bias or behind it have no such weight and are left out.
        """
        state = transform(self.inputs)
        for number, operation in enumerate(self.network.operations):
            gate = self.gates[number]
            if isinstance(operation, Weighted):
                weight, bias = operation.weight.to(state), operation.bias
                kept = bias is not None and (divided_out is None or number < divided_out)
                state = operation.apply(
                    state,
                    torch.ones_like(weight) if number == divided_out else transform(weight),
                    transform(bias.to(state)) if bias is not None and kept else None,
                )
            elif isinstance(operation, AveragePool):
                coefficient = operation.coefficient(self.shapes[number]).to(state)
                state = transform(coefficient) * operation.total(state)
            elif isinstance(operation, MaxPool):
                assert gate is not None
                state = operation.select(state, gate)
            elif gate is not None:
                state = transform(gate) * state
            else:
                state = operation(state)
        return _by_output(state)


def freeze(
    network: Network, inputs: Tensor, device: torch.device | None = None
) -> Iterator[tuple[slice, FrozenNetwork]]:
    """Yield the network recorded on some examples at a time, and which these are.

    In float64: a deep network has more paths than float32's largest number.

    Args:
        network: what is read.
        inputs: (B, *network.input_shape).
        device: where to compute; the network's, or the CPU where that has no float64 (mps).

    Raises:
        UnreadableNetworkError: a network with skip connections; see `FrozenNetwork.record` too.
    """
    if not network.is_chain:
        joins = [(o.name, o.kind) for o in network.operations if isinstance(o, Join)]
        name, kind = joins[0] if joins else ("", "Network")
        why = "branches meet there, as in skip connections"
        raise unreadable(name, kind, why, _CHAINS)
    if device is None:
        device = torch.device("cpu") if network.device.type == "mps" else network.device
    step = max(1, _STATES_AT_ONCE // network.neurons)
    for start in range(0, len(inputs), step):
        part = slice(start, min(start + step, len(inputs)))
        yield part, FrozenNetwork.record(network, inputs[part].detach().to(device, torch.float64))


def check_inputs(network: Network, inputs: Tensor) -> None:
    """Refuse what is no batch of the network's inputs.

    Raises:
        TypeError: no Network, or no tensor.
        ValueError: another shape than (B, *network.input_shape), or no example.
    """
    if not isinstance(network, Network):
        raise TypeError(f"network must be a Network, got {type(network).__name__}")
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
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
                smaller number for all others (one-hot, +-1). Probabilities are no labels.

        Raises:
            ValueError: an output that is not there, or none chosen of several; targets of another
                shape or with other values.
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
