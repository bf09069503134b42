"""Where the derivative of the one-step map is taken: at the mean state, averaged, or per sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_thermo.network import Network, StepDerivative, activation_slopes

__all__ = ["Point", "averaged", "each_sample", "mean_state", "slopes_of_each"]

# what the states of a chunk of examples may take
_CHUNK_BYTES = 2**27
_NOT_FINITE = "{} is not finite: inputs or weights hold NaN or infinity"


@dataclass(frozen=True)
class Point:
    """Where the derivative is taken.

    Attributes:
        inputs: ``(1, *input_shape)``.
        states: of all stages, ``(1, *stage.shape)`` each.
        slopes: f' to take instead of those at `states`, one a stage; None: those.
    """

    inputs: Tensor
    states: list[Tensor]
    slopes: list[Tensor | None] | None = None

    def derivative(self, network: Network) -> StepDerivative:
        """Return M."""
        return StepDerivative(network, self.inputs, self.states, self.slopes)

    def flat_slopes(self, network: Network) -> Tensor:
        """Return f' of all neurons but the input's, ``(1, N - inputs)``; 1 without activation."""
        slopes = self.slopes
        if slopes is None:
            slopes = activation_slopes(network, self.inputs, self.states)
        return _side_by_side(network, slopes, self.inputs)


def mean_state(network: Network, inputs: Tensor, damping: float = 0.0) -> Point:
    """The mean feed-forward state <h> over the examples: `y = W_l <h_{l-1}> + b_l` (eq. 5.4).

    Raises:
        FloatingPointError: it is not finite, or an example has no fixed point.
    """
    totals: list[Tensor] = []
    for part, states in _chunks(network, inputs, damping):
        sums = [x.sum(0, keepdim=True) for x in (part, *states)]
        totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
    first, *rest = [total / len(inputs) for total in totals]
    if not all(bool(torch.isfinite(x).all()) for x in (first, *rest)):
        raise FloatingPointError(_NOT_FINITE.format("the mean state"))
    return Point(first, rest)


def averaged(network: Network, inputs: Tensor, mean: Point, damping: float = 0.0) -> Point:
    """The mean of the slopes f'(y) over the examples; max-pools choose as at the mean state."""
    means: list[Tensor | None] = [None] * len(network.stages)
    for part, states in _chunks(network, inputs, damping):
        for i, slope in enumerate(activation_slopes(network, part, states)):
            if slope is not None:
                before, share = means[i], slope.sum(0, keepdim=True) / len(inputs)
                means[i] = share if before is None else before + share
    return Point(mean.inputs, mean.states, means)


def each_sample(network: Network, inputs: Tensor, damping: float = 0.0) -> Iterator[Point]:
    """The feed-forward state of each example in turn.

    Raises:
        FloatingPointError: one is not finite, or an example has no fixed point.
    """
    for part, states in _chunks(network, inputs, damping):
        if not all(bool(torch.isfinite(x).all()) for x in (part, *states)):
            raise FloatingPointError(_NOT_FINITE.format("an example's state"))
        for i in range(len(part)):
            yield Point(part[i : i + 1], [x[i : i + 1] for x in states])


def slopes_of_each(network: Network, inputs: Tensor, damping: float = 0.0) -> Tensor:
    """Return f' of all neurons but the input's at each example's state, ``(B, N - inputs)``."""
    return torch.cat(
        [
            _side_by_side(network, activation_slopes(network, part, states), part)
            for part, states in _chunks(network, inputs, damping)
        ]
    )


def _chunks(
    network: Network, inputs: Tensor, damping: float
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield examples with their states, some at a time; of a recurrent network all at once."""
    if network.is_recurrent:
        yield inputs, _settled(network, inputs, damping)
        return
    size = max(1, _CHUNK_BYTES // (16 * network.neurons))
    for part in inputs.split(size):
        yield part, network.states(part)[0]


def _settled(network: Network, inputs: Tensor, damping: float) -> list[Tensor]:
    """Return the fixed points; an example without one would leave a mean over fewer."""
    found = network.fixed_point(inputs, damping=damping)
    missing = int((~found.converged).sum())
    if missing:
        raise FloatingPointError(
            f"{missing} of {len(inputs)} examples have no fixed point that the iteration with "
            f"damping={damping} reaches from 0, or an input or a weight is not finite: give a "
            "damping nearer to 1, or leave these examples out"
        )
    return found.states


def _side_by_side(network: Network, slopes: list[Tensor | None], inputs: Tensor) -> Tensor:
    return torch.cat(
        [
            inputs.new_ones(len(inputs), stage.size)
            if slope is None
            else slope.reshape(len(inputs), -1)
            for stage, slope in zip(network.stages, slopes, strict=True)
        ],
        1,
    )
