"""Basis circuits, drawn at random from those that are alive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.circuits.paths import Ends, check_inputs, freeze
from torch_thermo.observables.circuits.walks import (
    Layer,
    Walk,
    count_paths,
    layers_of,
    walk_back,
)

# To one unit. Below float64's largest number by more than any unit's candidates: no sum overflows.
_MOST_PATHS = 1e290


@dataclass(frozen=True)
class CircuitSample:
    """Circuits psi without their inputs, uniform over the alive paths of each example.

    Magnitudes of products over many layers leave float32's range, so that sign and logarithm are
    kept apart. All tensors are (P,), on the CPU, in the order of the examples.

    Attributes:
        sign: of psi, int8, +1 or -1.
        log_abs: natural logarithm of abs(psi), float64.
        inputs: x, the input that the path starts from, float64; 1 for a path from a bias.
        examples: the row of `inputs` a path belongs to, int64.
        reason: which examples have no paths here, and why; None when all have.
    """

    sign: Tensor
    log_abs: Tensor
    inputs: Tensor
    examples: Tensor
    reason: str | None = None

    def values(self) -> Tensor:
        """Return psi (P,), float64; one below 1e-308 in magnitude is 0 or loses digits."""
        return self.sign * self.log_abs.exp()

    def weighted(self) -> tuple[Tensor, Tensor]:
        """Return sign (P,) int8 and log_abs (P,) float64 of x psi."""
        sign = self.sign * self.inputs.sign().to(torch.int8)
        return sign, self.log_abs + self.inputs.abs().log()


@torch.no_grad()
def sample_circuits(
    network: Network,
    inputs: Tensor,
    paths: int,
    order: int = 0,
    output: int | str | None = None,
    seed: int = 0,
    targets: Tensor | None = None,
) -> CircuitSample:
    r"""Draw basis circuits uniformly from those that are alive (Li, eqs. 10, 11, Fig. 3b).

    With the gates of an example frozen, the alive paths to each unit are counted forwards, in
    float64; then each path is drawn backwards from the output, at each unit with probability
    proportional to the counts behind it. Uniform draws over all paths would be useless: in a
    12-layer VGG some 3e-6 of them are alive.

    Where no weight is exactly 0, all output channels of a convolution share one law a position.
    Otherwise a candidate whose weight is 0 is drawn again, which leaves the law uniform over the
    alive paths. A bias starts a path of its own (see `FrozenNetwork`).

    Args:
        network: the network that is read.
        inputs: (B, *network.input_shape).
        paths: in total, spread evenly over the examples, the first ones taking what is left over.
            An example without alive paths gives none.
        order: 0, the circuits themselves.
        output: where the paths end: None (the only output; of several, with targets, each
            example's class), an index, or "target".
        seed: of the draws.
        targets: labels, see `circuit_asymmetry`; here they only choose the output.

    Raises:
        UnreadableNetworkError: an activation that is no gate times its argument (tanh, GELU,
            sigmoid, softmax); the message names the module.
        ValueError: paths below 1, an order other than 0; inputs, targets or output that do not fit
            the network.
        TypeError: no Network, no tensors, or paths or output that are no whole number.
    """
    check_inputs(network, inputs)
    if isinstance(paths, bool) or not isinstance(paths, int):
        raise TypeError(f"paths must be a whole number, got {paths!r}")
    if paths < 1:
        raise ValueError(f"paths must be at least 1, got {paths}")
    if order != 0:
        raise ValueError(f"order must be 0, circuits with no weight divided out, got {order!r}")
    ends = Ends.choose(network, len(inputs), output, targets)
    share, more = divmod(paths, len(inputs))
    generator = torch.Generator().manual_seed(seed)
    walks: list[Walk] = []
    sizes = torch.zeros(len(inputs), dtype=torch.int64)
    problems: Counter[str] = Counter()
    layers: list[Layer | None] | None = None
    for part, frozen in freeze(network, inputs, torch.device("cpu")):
        layers = layers or layers_of(frozen)
        for row, example in enumerate(range(part.start, part.stop)):
            counts = count_paths(frozen, layers, row)
            end = int(ends.index[example])
            problem = _problem(counts, end, float(frozen.outputs[row, end]))
            if problem is not None:
                problems[problem] += 1
                continue
            sizes[example] = share + (example < more)
            walk = Walk(int(sizes[example]), end)
            walk_back(frozen, layers, counts, row, walk, generator)
            walks.append(walk)
    told = [f"{n} of {len(inputs)} examples: {problem}" for problem, n in problems.items()]
    return CircuitSample(
        sign=1 - 2 * _joined([walk.negative for walk in walks], torch.int8),
        log_abs=_joined([walk.log_abs for walk in walks], torch.float64),
        inputs=_joined([walk.value for walk in walks], torch.float64),
        examples=torch.repeat_interleave(sizes),
        reason="; ".join(told) or None,
    )


def _problem(counts: Sequence[Tensor], end: int, output: float) -> str | None:
    if not math.isfinite(output):
        return "the output is not finite"
    if not all(float(units.max()) <= _MOST_PATHS for units in counts):
        return f"more than {_MOST_PATHS:g} paths are alive"
    return None if counts[-1].flatten()[end] else "no path is alive"


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *(part.to(dtype) for part in parts)])
