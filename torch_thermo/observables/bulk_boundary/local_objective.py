"""The bulk loss as a function of the states, with a local objective of the neurons (eq. 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.network.stages import Stage

Interaction = Tensor | Callable[[list[Tensor]], Tensor]
"""J (n, n), symmetric, over the n hidden and output neurons; or from the states to (B,)."""

_SLACK = 1e-9


class LocalObjective:
    r"""`H(x) = 1/2 sum_l |x_l - f(W_l x_{l-1} + b_l)|^2 - m/2 sum_i x_i^2 + V(x)`.

    V. Vanchurin, *Towards a theory of machine learning*, eq. 3.4 ff.: beside its part in the loss
    of the whole, each neuron has an objective of its own. The sums are over the hidden and the
    output neurons; the input is clamped, with targets the output as well, and without it is free.
    With m > 0 a neuron is rewarded for a signal of either sign. The paper leaves the interaction
    between neurons open; here V is any function of the states, or `-1/2 x^T J x` for a symmetric
    matrix J of couplings (a positive one aligns two neurons).

    With m > 0 or V the states are kept in the box [-1, 1]: without it H has no minimum. In it H
    without V is at least `-(m/2) (N_hidden + N_output)` (for targets in the box). The box is kept
    by projection; `x = tanh(u)` with free u needs ten times the steps and more, for minima lie on
    the walls, where tanh is flat. With m = 0 and no V the states are free: as m falls to 0 the
    minimum goes to the exact bulk loss only where its states lie in the box.

    Args:
        network: any, recurrent too: each stage reads the states given.
        inputs: (B, *input_shape), float64.
        targets: (B, *output_shape), float64; None: the output is free.
        m: at least 0.
        interaction: V, or J.

    Attributes:
        boxed: whether states are kept in the box.
        size: D, the number of free neurons.

    Raises:
        ValueError: a J that is not symmetric or of another size; in a box, an activation that
            leaves it.
    """

    def __init__(
        self,
        network: Network,
        inputs: Tensor,
        targets: Tensor | None,
        m: float = 0.0,
        interaction: Interaction | None = None,
    ) -> None:
        self.network, self.inputs, self.targets, self.m = network, inputs, targets, m
        self.boxed = m > 0 or interaction is not None
        free = network.stages if targets is None else network.stages[:-1]
        self.shapes = [stage.shape for stage in free]
        self.size = sum(stage.size for stage in free)
        if isinstance(interaction, Tensor):
            interaction = interaction.detach().to(inputs)
        self.interaction = interaction

    def states(self, flat: Tensor, rows: Tensor) -> list[Tensor]:
        """Return the states of all stages from those of the free neurons (n, D)."""
        sizes = [shape.numel() for shape in self.shapes]
        parts = flat.split(sizes, 1) if sizes else ()
        found = [p.reshape(-1, *s) for p, s in zip(parts, self.shapes, strict=True)]
        return found if self.targets is None else [*found, self.targets[rows]]

    def free(self, states: Sequence[Tensor]) -> Tensor:
        """Return the free neurons' part (n, D) of the states of all stages."""
        parts = [_flat(x) for x in states[: len(self.shapes)]]
        return torch.cat(parts, 1) if parts else self.inputs.new_zeros(len(states[0]), 0)

    def values(self, states: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Return H (n,) of the examples `rows` (n,) in these states of all stages."""
        expected = self.network.one_step(self.inputs[rows], states)
        total = self.inputs.new_zeros(len(rows))
        for x, f in zip(states, expected, strict=True):
            total = total + 0.5 * _flat(x - f).square().sum(1)
            if self.m:
                total = total - 0.5 * self.m * _flat(x).square().sum(1)
        if isinstance(self.interaction, Tensor):
            x = torch.cat([_flat(x) for x in states], 1)
            total = total - 0.5 * ((x @ self.interaction) * x).sum(1)
        elif self.interaction is not None:
            total = total + self._called(self.interaction, states)
        return total

    def slopes(self, free: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return H (n,) and its gradient in the free neurons (n, D)."""
        free = free.detach().requires_grad_()
        values = self.values(self.states(free, rows), rows)
        (gradient,) = torch.autograd.grad(
            values.sum(), free, allow_unused=True, materialize_grads=True
        )
        return values.detach(), gradient

    def _called(
        self, interaction: Callable[[list[Tensor]], Tensor], states: Sequence[Tensor]
    ) -> Tensor:
        found = interaction(list(states))
        count = len(states[0])
        if not isinstance(found, Tensor) or found.shape != (count,):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"interaction must return one number an example ({count},), got {what}"
            )
        return found.double()


def check_objective(
    network: Network, targets: Tensor | None, m: float, interaction: Interaction | None
) -> None:
    """Refuse an objective without a minimum or of other neurons.

    Raises:
        ValueError: see `LocalObjective`.
        TypeError: an interaction that is neither a tensor nor callable.
    """
    if isinstance(interaction, Tensor):
        size = network.neurons - network.sizes[0]
        if interaction.shape != (size, size):
            raise ValueError(
                f"interaction must be ({size}, {size}), over the hidden and output neurons, "
                f"got {tuple(interaction.shape)}"
            )
        if not torch.allclose(interaction, interaction.mT, rtol=1e-6, atol=0):
            raise ValueError("interaction must be a symmetric matrix")
    elif interaction is not None and not callable(interaction):
        raise TypeError(
            f"interaction must be a matrix or callable, got {type(interaction).__name__}"
        )
    if m > 0 or interaction is not None:
        free = network.stages if targets is None else network.stages[:-1]
        for stage in free:
            _check_bounded(stage, network)


def _check_bounded(stage: Stage, network: Network) -> None:
    """Refuse a stage whose state leaves [-1, 1] for some pre-activation.

    The activation is elementwise: it is tried at 0 and 2,000 numbers up to 1e6 of either sign.
    """
    positive = torch.logspace(-3, 6, 1000, dtype=torch.float64, device=network.device)
    tried = torch.cat([-positive, positive.new_zeros(1), positive])
    with torch.no_grad():
        shape = _pre_activation_shape(network, stage)
        y = tried.reshape(-1, *(1 for _ in shape)).expand(-1, *shape)
        largest = max(float(stage.state(part).abs().max()) for part in y.split(64))
    if not largest <= 1 + _SLACK:
        why = (
            f"the activation of stage {stage.name!r} goes to {largest:.3g}: the neurons would be "
            "held away from their own activation"
            if stage.activation
            else f"stage {stage.name!r} has no activation that bounds it"
        )
        raise ValueError(
            f"with m > 0 or an interaction the states are kept in [-1, 1], and {why}; "
            "take a bounded one (tanh, sigmoid, softsign, hardtanh)"
        )


def _pre_activation_shape(network: Network, stage: Stage) -> torch.Size:
    example = torch.zeros(1, *network.input_shape, dtype=torch.float64, device=network.device)
    states = [example.new_zeros(1, *s.shape) for s in network.stages]
    read = [example if p < 0 else states[p] for p in stage.parents]
    return stage.pre_activation(*read).shape[1:]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)
