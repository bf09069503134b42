"""Relaxation over the residuals of a feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary.arguments import chunk
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss, Potential
from torch_thermo.observables.bulk_boundary.lbfgs import lbfgs
from torch_thermo.observables.bulk_boundary.levenberg_marquardt import Descent, descend
from torch_thermo.observables.bulk_boundary.proximal import settle_at_kinks
from torch_thermo.observables.bulk_boundary.relaxed import Ends, Relaxed
from torch_thermo.observables.bulk_boundary.response import Response
from torch_thermo.observables.bulk_boundary.starts import starts_of

_CHEAPER = 5
"""Quasi-Newton steps for each of Levenberg-Marquardt, which takes M reverse passes."""
# rows (an example from one start) that descend together: so that their Jacobians stay in the cache
_TOGETHER_BYTES = 2**24


def relax_residuals(
    network: Network,
    inputs: Tensor,
    targets: Tensor,
    loss: ExampleLoss,
    starts: int,
    seed: int,
    iterations: int,
    tolerance: float,
) -> Relaxed:
    """Minimise `1/2 sum_l |r_l|^2 + loss(o(r), t)`; arguments as those of `relax`."""
    first = Response(network, inputs[:1])
    most = chunk(network, first.size, inputs.device)
    bytes_of_one = 8 * first.size * max(1, first.hidden)
    size = max(1, min(most, _TOGETHER_BYTES // bytes_of_one) // starts)
    return Relaxed.joined(
        [
            _chunk_relaxed(Response(network, x), x, t, loss, starts, seed, iterations, tolerance)
            for x, t in zip(inputs.split(size), targets.split(size), strict=True)
        ]
    )


def _chunk_relaxed(
    response: Response,
    inputs: Tensor,
    targets: Tensor,
    loss: ExampleLoss,
    starts: int,
    seed: int,
    iterations: int,
    tolerance: float,
) -> Relaxed:
    count = len(inputs)
    rows = torch.arange(count, device=inputs.device)
    potential = Potential(loss, targets, response.outputs, response.elementwise)
    at_zero = inputs.new_zeros(count, response.hidden)
    boundary = potential.boundary(response.values(at_zero, rows))
    finite = inputs.reshape(count, -1).isfinite().all(1) & boundary.isfinite()
    boundary = torch.where(finite, boundary, torch.nan)
    ends = Ends.none(starts, at_zero)
    chosen = rows[finite]
    if len(chosen):
        begin = starts_of(response, potential, chosen, starts, seed).flatten(0, 1)
        together = chosen.repeat(starts)
        end = descend(response, potential, begin, together, iterations, tolerance)
        ends.put(chosen, _finished(response, potential, end, together, iterations))
    residuals, values, converged, spread = ends.lowest()
    if not loss.squared_error:
        lowest = Descent(residuals, values, converged)
        residuals, values, converged = settle_at_kinks(
            response, potential, lowest, rows, boundary, iterations
        )
    # r = 0 is feasible; rounding may say otherwise
    values = torch.where(finite, torch.minimum(values, boundary), torch.nan)
    states = response.states(residuals, rows)
    if loss.squared_error:
        states[-1] = targets
    return Relaxed(states, response.split(residuals), values, converged, spread, boundary)


def _finished(
    response: Response, potential: Potential, end: Descent, rows: Tensor, iterations: int
) -> Descent:
    """Go on by quasi-Newton steps where descents did not converge.

    A step of Levenberg-Marquardt knows no curvature of the response: where that is large, close to
    a saddle, each gains only a share of what is left.
    """
    open_ = (~end.converged & end.values.isfinite()).nonzero()[:, 0]
    residuals, values, converged = (part.clone() for part in end)

    def function(r: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        phi, pull = response.pull(r, rows[open_[which]], potential)
        return phi + 0.5 * r.square().sum(1), r + pull

    found = lbfgs(function, residuals[open_], _CHEAPER * iterations)
    residuals[open_], values[open_], converged[open_] = found
    return Descent(residuals, values, converged)
