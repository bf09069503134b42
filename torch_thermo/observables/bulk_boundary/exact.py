"""The exact bulk loss: the hidden states relaxed from several starts, the lowest kept."""

from __future__ import annotations

from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary.arguments import (
    check_search,
    measuring,
    taken_targets,
)
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss
from torch_thermo.observables.bulk_boundary.local_objective import Interaction, check_objective
from torch_thermo.observables.bulk_boundary.relaxed import Relaxed
from torch_thermo.observables.bulk_boundary.residuals import relax_residuals
from torch_thermo.observables.bulk_boundary.states import relax_states
from torch_thermo.spectra.arguments import require_whole

__all__ = ["ITERATIONS", "STARTS", "Relaxed", "relax"]

STARTS = 6
ITERATIONS = 100
"""Steps of Levenberg-Marquardt from each start."""
_CHEAPER = 20
"""Steps of L-BFGS for each of Levenberg-Marquardt: they take less time, and go less far."""


def relax(
    network: Network,
    inputs: Tensor,
    targets: Tensor | None,
    loss: ExampleLoss,
    starts: int = STARTS,
    seed: int = 0,
    m: float = 0.0,
    interaction: Interaction | None = None,
    iterations: int = ITERATIONS,
    tolerance: float = 1e-8,
    damping: float = 0.0,
) -> Relaxed:
    r"""Minimise the bulk loss over the states of the hidden neurons (Vanchurin, eqs. 3.2, 3.4).

    `1/2 sum_l |r_l|^2 + loss(o(r), t)` in feed-forward networks, over the residuals r by
    Levenberg-Marquardt (`descend`, `starts_of`). With a local objective, and in recurrent networks,
    `LocalObjective` over the states by L-BFGS (`settle`, `starting_states`). The lowest end of all
    starts is kept: an upper bound of the least value, for the problem has several minima.

    Args:
        network: any.
        inputs: (B, *input_shape).
        targets: one entry an example; None: the outputs are free, with m = 0 and no interaction
            the minimum is 0, at the feed-forward state.
        loss: of the outputs.
        starts: how many, at least 1.
        seed: of the random ones.
        m: of the local objective.
        interaction: of the local objective, see `LocalObjective`.
        iterations: at most so many steps from each start, then five times as many of L-BFGS where
            that did not converge; with a local objective twenty times as many of L-BFGS alone.
        tolerance: of the gradient over the residuals at a minimum, see `descend`; the value is good
            to its square.
        damping: of the iteration to a recurrent network's fixed point, one of the starts and what
            the boundary loss is measured at, see `Network.fixed_point`.

    Raises:
        ValueError: numbers out of range (see `check_search`), iterations below 1, a loss that
            autograd does not see the outputs in, another loss than the squared error with a local
            objective or in a recurrent network, and see `check_objective`.
        TypeError: see `check_search` and `check_objective`.
        MemoryError: the Jacobian of one example would not fit.
    """
    check_search(starts, seed, m, damping)
    require_whole("iterations", iterations)
    check_objective(network, targets, m, interaction)
    local = targets is None or m > 0 or interaction is not None
    if (local or network.is_recurrent) and not loss.squared_error:
        what = "with a local objective" if local else "in a recurrent network"
        raise ValueError(
            f"{what} the outputs are neurons that are clamped to the targets, or free: loss_fn "
            "must be None, for the squared error"
        )
    with measuring(inputs.device):
        inputs = inputs.detach().double()
        if targets is not None:
            targets = taken_targets(targets, inputs.device, loss.squared_error)
        if targets is not None and not local and not network.is_recurrent:
            return relax_residuals(
                *(network, inputs, targets, loss, starts, seed, iterations, tolerance)
            )
        steps = _CHEAPER * iterations
        return relax_states(
            *(network, inputs, targets, loss, starts, seed, m, interaction, steps, damping)
        )
