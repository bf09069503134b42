"""Basis circuits, summed exactly: how many paths are alive, their signs and their magnitudes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from torch_thermo.network import Network
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
    has_weight,
    is_alive,
    unchanged,
)


@dataclass(frozen=True)
class CircuitSums:
    r"""Exact sums over the basis circuits of each example that end at its chosen output.

    A circuit is a path from an input unit, or from a bias (see `FrozenNetwork`), to the output; psi
    is the product of its weights and gates, x its input (Li, eqs. 10, 11, 16, 19). A path is alive
    when no factor, input included, is exactly 0. All tensors are (B,), float64, on the CPU.

    Attributes:
        alive: N, the number of alive paths; 0 for a dead example.
        signed: N S, the number of positive x psi minus that of negative ones.
        absolute: A, the sum of abs(x psi).
        output: T, the sum of x psi: the network's output, or without biases x . dT/dx.
        moments: {q: sum of (x psi)^q}.
        order_one: {weighted operation: the total of its order-1 sums}, the sum of dT/dw over the
            entries of that layer's weight. A layer that is used twice has one total, over all uses.
            Single entries are dT/dw, by autograd. Empty unless asked for.
        order_two: {(weighted operation, later one): the total of their order-2 sums}, the sum of
            d2T / dw dw' over the entries of both layers' weights. A layer that is used twice is a
            pair with itself, of two different uses: each two of them once, half of the sum of d2T
            over its own block. Empty unless asked for.
        reason: why values are NaN, or N is 0; None where there is nothing to say.
    """

    alive: Tensor
    signed: Tensor
    absolute: Tensor
    output: Tensor
    moments: Mapping[int, Tensor] = field(repr=False)
    order_one: Mapping[str, Tensor] = field(repr=False)
    order_two: Mapping[tuple[str, str], Tensor] = field(repr=False)
    reason: str | None = None

    @property
    def sign_balance(self) -> Tensor:
        """S = (N+ - N-) / N in [-1, 1]; NaN for a dead example."""
        return self.signed / self.alive

    @property
    def mass_balance(self) -> Tensor:
        """T / A in [-1, 1]; NaN for a dead example."""
        return self.output / self.absolute


@dataclass(frozen=True)
class CircuitAsymmetry:
    """How far the circuits of each example are from symmetric; tensors (B,), float64, on the CPU.

    Attributes:
        alive: N, the number of alive paths.
        sign_balance: S = (N+ - N-) / N in [-1, 1]; 0 is symmetric.
        mass_asymmetry: y T / A in [-1, 1], the net share of the circuits' mass that speaks for the
            example's label; T / A without targets.
        output: T.
        reason: why values are NaN; None where none is.
    """

    alive: Tensor
    sign_balance: Tensor
    mass_asymmetry: Tensor
    output: Tensor
    reason: str | None = None


def circuit_asymmetry(
    network: Network,
    inputs: Tensor,
    targets: Tensor | None = None,
    output: int | str | None = None,
    *,
    biases: bool = True,
) -> CircuitAsymmetry:
    r"""Measure the symmetry of the basis circuits, exactly (Li, eqs. 10, 11, 19, Fig. 3b).

    `S = sum sign(x psi) / N` and `y T / A = y sum x psi / sum abs(x psi)` over all alive paths of
    an example. The paper shows a histogram of sampled circuits; a product of many signed factors
    looks symmetric there whatever the network has learned. y T / A does not: it goes from mixed
    signs to all positive with training.

    Args:
        network: the network that is read.
        inputs: (B, *network.input_shape).
        targets: labels. One output: y = +1 and -1, (B,) or (B, 1), or 1 and 0, where 0 counts as
            -1. Several: integer classes (B,), or rows (B, K) with a 1 for the class and one smaller
            number for all others; y = +1 where the chosen output is the example's class, else -1.
        output: where the paths end: None (the only output; of several, each example's class), an
            index, or "target", the output of each example's class (of one output, that one).
        biases: whether paths start at biases and BatchNorm's shifts too. If not, T is the part of
            the output that is linear in x, x . dT/dx.

    Raises:
        UnreadableNetworkError: an activation that is no gate times its argument (tanh, GELU,
            sigmoid, softmax), or a recurrent network; the message names the module.
        ValueError: inputs, targets or output that do not fit the network.
        TypeError: no Network, no tensors, or an output that is no whole number.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -3.0]]))
        >>> x = torch.ones(1, 2)
        >>> found = circuit_asymmetry(Network.from_module(model, x), x, torch.tensor([-1]))
        >>> found.alive.item(), found.sign_balance.item(), found.mass_asymmetry.item()
        (2.0, 0.0, 0.5)
    """
    check_inputs(network, inputs)
    ends = Ends.choose(network, len(inputs), output, targets)
    sums = _sums(network, inputs, ends, biases)
    mass = sums.mass_balance
    return CircuitAsymmetry(
        alive=sums.alive,
        sign_balance=sums.sign_balance,
        mass_asymmetry=mass if ends.label is None else ends.label * mass,
        output=sums.output,
        reason=sums.reason,
    )


def circuit_sums(
    network: Network,
    inputs: Tensor,
    targets: Tensor | None = None,
    output: int | str | None = None,
    *,
    moments: int | Iterable[int] = (2,),
    order_one: bool = False,
    order_two: bool = False,
    biases: bool = True,
) -> CircuitSums:
    r"""Sum over all circuits of each example: N, N S, A, T, moments, order-1 and order-2 totals.

    With the gates of the example frozen, one float64 pass with every factor transformed gives

    ===================== ====================================
    transform of a factor the pass gives
    ===================== ====================================
    [w != 0]              N
    sign w                N S
    abs(w)                A = sum of abs(x psi)
    w                     T
    w^q                   sum of (x psi)^q
    layer l to 1          total of layer l's order-1 sums
    layers l, m to 1      total of their order-2 sums
    ===================== ====================================

    Factors are weights, biases, inputs, and the gates that are not 0 or 1: slopes and the 1/k^2 of
    average-pools (Li, eqs. 10, 11, 16, 19), and numbers in the forward pass. A sum that float64
    cannot hold is NaN: more than 1.8e308 paths, or terms so small that all vanish.

    Args:
        network: the network that is read.
        inputs: (B, *network.input_shape).
        targets: labels, see `circuit_asymmetry`; here they only choose the output.
        output: where the paths end, see `circuit_asymmetry`.
        moments: exponents q, at least 1, or one; one pass each.
        order_one: also total each layer's order-1 sums, one pass a layer.
        order_two: also total the order-2 sums of each two layers, one pass a pair.
        biases: see `circuit_asymmetry`.

    Raises:
        UnreadableNetworkError: see `circuit_asymmetry`.
        ValueError: exponents below 1; inputs, targets or output that do not fit the network.
        TypeError: no Network, no tensors, or output or exponents that are no whole numbers.
    """
    check_inputs(network, inputs)
    exponents = tuple(moments) if isinstance(moments, Iterable) else (moments,)
    for exponent in exponents:
        if isinstance(exponent, bool) or not isinstance(exponent, int):
            raise TypeError(f"moments must be whole numbers, got {exponent!r}")
        if exponent < 1:
            raise ValueError(f"moments must be at least 1, got {exponent}")
    ends = Ends.choose(network, len(inputs), output, targets)
    return _sums(network, inputs, ends, biases, exponents, order_one, order_two)


@torch.no_grad()
def _sums(
    network: Network,
    inputs: Tensor,
    ends: Ends,
    biases: bool,
    exponents: tuple[int, ...] = (),
    order_one: bool = False,
    order_two: bool = False,
) -> CircuitSums:
    layers = {
        number: node.operation
        for number, node in enumerate(graph_of(network))
        if has_weight(node.operation)
    }
    ones = list(layers) if order_one else []
    twos = [
        (one, other)
        for one, other in itertools.combinations(layers if order_two else (), 2)
        # one operation that several stages share is there more than once, on different paths
        if layers[one] is not layers[other]
    ]
    alive, signed, absolute, output, *others = _passes(
        network,
        inputs,
        ends.index,
        biases,
        [
            # Whole numbers: rounding takes away what a convolution by Fourier transforms, as some
            # devices choose, leaves where no path is alive.
            lambda frozen: frozen.sums(is_alive).round(),
            lambda frozen: frozen.sums(torch.sign).round(),
            lambda frozen: frozen.sums(torch.abs),
            partial(_held, unchanged, ()),
            *(partial(_held, partial(torch.pow, exponent=exponent), ()) for exponent in exponents),
            *(partial(_held, unchanged, (number,)) for number in ones),
            *(partial(_held, unchanged, pair) for pair in twos),
        ],
    )
    # that T is lost where all terms vanish does not make the others so
    broken = ~output.isfinite() & (absolute != 0)
    empty = ~broken & (alive == 0)
    kept = partial(in_range, broken=broken, empty=empty)
    rest = iter(others)
    powers = {exponent: kept(moment) for exponent, moment in zip(exponents, rest, strict=False)}
    totals: dict[str, Tensor] = {}
    for number, total in zip(ones, rest, strict=False):
        name = layers[number].name
        totals[name] = kept(total) + totals.get(name, 0.0)
    order = [operation.name for operation in layers.values()]
    pairs: dict[tuple[str, str], Tensor] = {}
    for (one, other), total in zip(twos, rest, strict=True):
        # a shared operation comes before what takes it, and again behind that
        first, last = sorted((layers[one].name, layers[other].name), key=order.index)
        pairs[first, last] = kept(total) + pairs.get((first, last), 0.0)
    sums = CircuitSums(
        alive=kept(alive, one_sided=True),
        signed=kept(signed),
        absolute=kept(absolute, one_sided=True),
        output=kept(output),
        moments=powers,
        order_one=totals,
        order_two=pairs,
    )
    return replace(sums, reason=_reason(sums, broken, empty))


def _passes(
    network: Network,
    inputs: Tensor,
    index: Tensor,
    biases: bool,
    passes: Sequence[Callable[[FrozenNetwork], Tensor]],
) -> list[Tensor]:
    """Return for each pass (B,), what it gives at each example's output, on the CPU."""
    found = [torch.empty(len(inputs), dtype=torch.float64) for _ in passes]
    for part, frozen in freeze(network, inputs, biases=biases):
        for values, one_pass in zip(found, passes, strict=True):
            values[part] = one_pass(frozen).cpu().gather(1, index[part, None])[:, 0]
    return found


def _held(transform: Transform, divided_out: Sequence[int], frozen: FrozenNetwork) -> Tensor:
    """Return a signed sum, NaN where it is 0 because all of its terms are too small for float64.

    Terms that cancel sum to 0 too: those have sizes. Where a sum has no term it is 0.
    """
    plain = transform is unchanged and not divided_out
    found = frozen.outputs if plain else frozen.sums(transform, divided_out)
    if bool(found.all()):
        return found
    sizes = frozen.sums(lambda factor: transform(factor.abs()), divided_out)
    alive = frozen.sums(is_alive, divided_out).round()
    return found.masked_fill((found == 0) & (sizes == 0) & (alive != 0), math.nan)


def in_range(values: Tensor, broken: Tensor, empty: Tensor, one_sided: bool = False) -> Tensor:
    """Put NaN where float64 did not hold a sum: infinite, or 0 with nothing but positive terms."""
    lost = broken | ~values.isfinite()
    if one_sided:
        lost |= (values == 0) & ~empty
    return values.masked_fill(lost, math.nan)


def _reason(sums: CircuitSums, broken: Tensor, empty: Tensor) -> str | None:
    numbers = [sums.alive, sums.signed, sums.absolute, *sums.moments.values()]
    numbers += [*sums.order_one.values(), *sums.order_two.values()]
    lost = torch.stack(numbers).isnan().any(0) & ~broken
    return told(
        {
            f"{NO_PATH}, so that S and T/A are undefined": empty,
            NOT_FINITE: broken,
            OUT_OF_RANGE: lost,
        }
    )


def told(causes: Mapping[str, Tensor]) -> str | None:
    """Return how many examples have no value for each of these causes; None where all have."""
    parts = [
        f"{int(which.sum())} of {len(which)} examples: {why}"
        for why, which in causes.items()
        if which.any()
    ]
    return "; ".join(parts) or None
