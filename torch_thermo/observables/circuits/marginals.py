"""Which operations, channels and branches the basis circuits pass, exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.network.joins import Join
from torch_thermo.observables.circuits.paths import (
    NO_PATH,
    NOT_FINITE,
    OUT_OF_RANGE,
    Ends,
    FrozenNetwork,
    Transform,
    check_inputs,
    freeze,
    graph_of,
    is_alive,
)
from torch_thermo.observables.circuits.sums import in_range, told


@dataclass(frozen=True)
class CircuitShares:
    """Which part of an example's circuits pass an operation; float64, on the CPU, in [0, 1].

    Attributes:
        total: (B,) of those that pass the operation, or start at its bias.
        started: (B,) of those that start at its bias or shift; 0 without one.
        units: (B, C) by channel of its result, the first axis of an example, where they sum to
            `total`; (B, *shape) by unit if asked for.
        branches: (B, J) by argument: those that come from each term of a sum or part of a
            concatenation; with `started` they sum to `total`. Of the input (B, 0).
    """

    total: Tensor
    started: Tensor
    units: Tensor = field(repr=False)
    branches: Tensor = field(repr=False)


@dataclass(frozen=True)
class OperationMarginals:
    """The part of the circuits that pass one operation.

    Attributes:
        name: of its module in the model, or where its function is called; "input" for the input.
        kind: the module's class or the function.
        sources: the names of what it takes, one for each of the branches.
        paths: shares of the number of alive circuits.
        mass: shares of their mass A, the sum of abs(x psi).
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    paths: CircuitShares
    mass: CircuitShares


@dataclass(frozen=True)
class LayerMarginals:
    """Where the circuits of each example run.

    Attributes:
        operations: the input, then each operation in the order of computation; a module that is
            used twice is there twice.
        alive: (B,) N, the number of alive circuits; float64, on the CPU.
        absolute: (B,) A, their mass; float64, on the CPU.
        reason: why shares are NaN; None where none is.
    """

    operations: tuple[OperationMarginals, ...]
    alive: Tensor
    absolute: Tensor
    reason: str | None = None


@torch.inference_mode(False)
@torch.no_grad()
def layer_marginals(
    network: Network,
    inputs: Tensor,
    targets: Tensor | None = None,
    output: int | str | None = None,
    *,
    biases: bool = True,
    units: bool = False,
) -> LayerMarginals:
    r"""Measure which share of the alive circuits, and of their mass, passes where: exactly.

    The circuits of Li (eqs. 10, 11), sorted by what they pass. With all factors transformed (see
    `circuit_sums`) the output counts the paths, or sums their abs(x psi). The paths through a unit
    number the paths to it times those from it to the output, which is the gradient of the output
    with respect to it, since the transformed network is linear. So with n_u what the pass gives at
    unit u, N at the output, the share of the paths through u is

    ``n_u dN/dn_u / N``, and likewise ``a_u dA/da_u / A`` of the mass,

    from one pass forwards and one backwards for each of both. In a chain without biases every path
    passes every operation, and only channels and units differ; where branches meet, the shares say
    which of them carry the paths.

    Args:
        network: the network that is read.
        inputs: (B, *network.input_shape), measured some at a time.
        targets: labels, see `circuit_asymmetry`; here they only choose the output.
        output: where the paths end, see `circuit_asymmetry`.
        biases: whether paths start at biases and BatchNorm's shifts too.
        units: shares of each unit instead of each channel. They take as much memory as all states.

    Raises:
        UnreadableNetworkError: see `circuit_asymmetry`.
        ValueError: inputs, targets or output that do not fit the network.
        TypeError: no Network, no tensors, or an output that is no whole number.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU())
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, -2.0]]))
        >>> _ = model[0].bias.data.fill_(5.0)
        >>> x = torch.tensor([[1.0, 1.0]])
        >>> found = layer_marginals(Network.from_module(model, x), x)
        >>> [(each.name, each.mass.total.item()) for each in found.operations]
        [('input', 0.375), ('0', 1.0), ('1', 1.0)]
        >>> found.operations[0].mass.units
        tensor([[0.1250, 0.2500]], dtype=torch.float64)
    """
    check_inputs(network, inputs)
    ends = Ends.choose(network, len(inputs), output, targets)
    flows: list[list[_Flows]] = []
    finite: list[Tensor] = []
    for part, frozen in freeze(network, inputs, biases=biases):
        index = ends.index[part, None].to(frozen.outputs.device)
        finite.append(frozen.outputs.gather(1, index)[:, 0].isfinite().cpu())
        flows.append([_Flows(frozen, index, t, units) for t in (is_alive, torch.abs)])
    alive, absolute = (torch.cat([each[k].total for each in flows]) for k in (0, 1))
    alive = alive.round()
    broken = ~torch.cat(finite)
    empty = ~broken & (alive == 0)
    alive = in_range(alive, broken, empty, one_sided=True)
    absolute = in_range(absolute, broken, empty, one_sided=True)
    lost = (alive.isnan() | absolute.isnan()) & ~broken
    nodes = graph_of(network)
    names = ["input", *(node.operation.name for node in nodes)]
    # one operation that several stages share is there more than once, on different paths
    copies: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        copies.setdefault(id(node.operation), []).append(number)
    operations = []
    for numbers in ([-1], *copies.values()):
        first = numbers[0]
        paths, mass = (
            _shares([each[k] for each in flows], numbers, whole)
            for k, whole in enumerate((alive, absolute))
        )
        kind = "input" if first < 0 else nodes[first].operation.kind
        sources = () if first < 0 else tuple(names[k + 1] for k in nodes[first].takes)
        operations.append(OperationMarginals(names[first + 1], kind, sources, paths, mass))
    reason = told(
        {
            f"{NO_PATH}, so that shares are undefined": empty,
            NOT_FINITE: broken,
            OUT_OF_RANGE: lost,
        }
    )
    return LayerMarginals(tuple(operations), alive, absolute, reason)


def ways_on(frozen: FrozenNetwork, index: Tensor) -> list[Tensor]:
    """Return how many alive ways lead from each unit to the outputs `index` (b, 1).

    First of the input, then of each node, (b, ...); infinite or NaN where float64 has no number.
    """
    values, _, total = _passed(frozen, index, is_alive)
    return list(torch.autograd.grad(total, list(values.values()), torch.ones_like(total)))


class _Flows:
    """The sums over the paths through each node of some examples, on the CPU.

    Args:
        frozen: the examples.
        index: (b, 1), the output of each.
        transform: see `FrozenNetwork.sums`.
        units: by unit, not by channel.

    Attributes:
        total: (b,) over all paths; NaN where float64 does not hold what is below.
        units: by node, -1 the input: (b, C) or (b, *shape).
        branches: by node, (b, J).
        started: by node, (b,).
    """

    def __init__(
        self, frozen: FrozenNetwork, index: Tensor, transform: Transform, units: bool
    ) -> None:
        values, arguments, total = _passed(frozen, index, transform)
        wanted = [*values.values(), *(x for taken in arguments.values() for x in taken)]
        found = torch.autograd.grad(total, wanted, torch.ones_like(total))
        flows = (_through(v, g) for v, g in zip(wanted, found, strict=True))
        ways_on = dict(zip(values, found, strict=False))
        self.total = total.detach().cpu()
        self.units: dict[int, Tensor] = {}
        self.branches: dict[int, Tensor] = {}
        self.started: dict[int, Tensor] = {}
        for number in values:
            flow = next(flows)
            channels = flow.shape[1] if flow.dim() > 1 else 1
            by_channel = flow.reshape(len(flow), channels, -1).sum(2)
            self.units[number] = flow if units else by_channel
            self.branches[number] = by_channel.sum(1, keepdim=True)
            self.total.masked_fill_(~by_channel.isfinite().all(1), math.nan)
            self.started[number] = torch.zeros(len(flow), dtype=torch.float64)
        self.branches[-1] = self.branches[-1][:, :0]
        for number, taken in arguments.items():
            self.branches[number] = torch.stack([_whole(next(flows)) for _ in taken], 1)
            if frozen.bias(number) is not None:
                begun = frozen.step(number, [torch.zeros_like(x) for x in taken], transform)
                self.started[number] = _whole(_through(begun, ways_on[number]))


def _through(value: Tensor, ways_on: Tensor) -> Tensor:
    # more than float64 counts lead to, or from, where no path passes
    nothing = (value == 0) | (ways_on == 0)
    return (value * ways_on).masked_fill(nothing, 0.0).detach().cpu()


def _whole(flow: Tensor) -> Tensor:
    return flow.reshape(len(flow), -1).sum(1)


@torch.enable_grad()
def _passed(
    frozen: FrozenNetwork, index: Tensor, transform: Transform
) -> tuple[dict[int, Tensor], dict[int, list[Tensor]], Tensor]:
    """Return the transformed values by node, arguments by node, and the chosen outputs.

    Arguments only where not all that passes comes from one other node: where branches meet, or
    paths start at a bias. They are tensors of their own, since one node may take a value twice,
    and others may take it too.
    """
    values = {-1: transform(frozen.inputs).requires_grad_()}
    arguments: dict[int, list[Tensor]] = {}
    for number, node in enumerate(frozen.nodes):
        taken = [values[k] for k in node.takes]
        if isinstance(node.operation, Join) or frozen.bias(number) is not None:
            taken = arguments[number] = [x.view_as(x) for x in taken]
        value = frozen.step(number, taken, transform)
        # a tensor of its own too, where the step gives the very one that it took
        values[number] = value.view_as(value) if any(value is x for x in taken) else value
    last = values[len(frozen.nodes) - 1]
    return values, arguments, last.reshape(len(last), -1).gather(1, index)[:, 0]


def _shares(flows: list[_Flows], numbers: list[int], whole: Tensor) -> CircuitShares:
    """Return shares of the whole over all examples, of nodes that are one operation.

    Where no path is alive all flows are 0, and shares NaN.
    """

    def share(what: str) -> Tensor:
        parts = [torch.stack([getattr(each, what)[k] for k in numbers]).sum(0) for each in flows]
        found = torch.cat(parts)
        return found / whole.reshape(-1, *(1,) * (found.dim() - 1))

    units = share("units")
    return CircuitShares(_whole(units), share("started"), units, share("branches"))
