"""The bulk loss with the response to the hidden residuals linearised: "linear" and "logit"."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary.arguments import bounded, chunk
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss, Potential
from torch_thermo.observables.bulk_boundary.newton import Minimum, factor_of, minimise
from torch_thermo.observables.bulk_boundary.response import Response


def linearised(
    network: Network, inputs: Tensor, targets: Tensor, loss: ExampleLoss, outputs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boundary losses (B,), the minima of the linearised problems, and their convergence.

    Args:
        network: not recurrent.
        inputs: (B, *input_shape), float64.
        targets: one entry an example.
        loss: of the outputs.
        outputs: "linear", the outputs are linearised; else "logit".

    Raises:
        MemoryError: as `bulk_boundary_loss` says.
        ValueError: as `bulk_boundary_loss` says.
    """
    first = Response(network, inputs[:1], outputs)
    size = chunk(network, first.size, inputs.device)
    closed = first.at_outputs and loss.squared_error
    bounded(len(inputs), network, first.size, closed, loss.squared_error)
    parts = [
        _solved(Response(network, x, outputs), x, t, loss)
        for x, t in zip(inputs.split(size), targets.split(size), strict=True)
    ]
    boundary, values, converged = (torch.cat(column) for column in zip(*parts, strict=True))
    return boundary, values, converged


def _solved(
    response: Response, inputs: Tensor, targets: Tensor, loss: ExampleLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boundary losses, the minima and their convergence of a chunk."""
    count = len(inputs)
    rows = torch.arange(count, device=inputs.device)
    centre, jacobian = response.jacobian(inputs.new_zeros(count, response.hidden), rows)
    potential = Potential(loss, targets, response.outputs, response.elementwise)
    boundary = potential.boundary(centre)
    finite = inputs.reshape(count, -1).isfinite().all(1) & boundary.isfinite()
    finite &= jacobian.flatten(1).isfinite().all(1)
    values = torch.full_like(boundary, torch.nan)
    converged = torch.zeros_like(finite)
    if finite.any():
        centre, targets = centre[finite], targets[finite]
        factor = factor_of(jacobian[finite])
        if response.at_outputs and loss.squared_error:
            flat = targets.reshape(len(targets), -1)
            values[finite] = _closed_form(centre, factor, flat, boundary[finite])
            converged = finite
        else:
            potential = Potential(loss, targets, response.outputs, response.elementwise)
            found = _minimum(response, potential, centre, factor)
            values[finite], converged[finite] = found.values, found.converged
    return torch.where(finite, boundary, torch.nan), values, converged


def _minimum(response: Response, potential: Potential, centre: Tensor, factor: Tensor) -> Minimum:
    """Minimise the small problems.

    Raises:
        ValueError: the loss is defined at the network's outputs, but not where the linearised ones
            go.
    """
    try:
        return minimise(potential, centre, factor, bent=not response.at_outputs)
    except (ValueError, RuntimeError) as error:
        # the activation that keeps outputs in their range is applied
        if not response.at_outputs or response.linear:
            raise
        raise ValueError(
            'loss_fn failed where method="linear" led the outputs: linearised, they may leave '
            f'its domain, such as [0, 1]; method="logit" keeps the output activation: {error}'
        ) from error


def _closed_form(centre: Tensor, factor: Tensor, targets: Tensor, boundary: Tensor) -> Tensor:
    """`1/2 |e - L z|^2 + 1/2 |z|^2` at z = (I + L^T L)^-1 L^T e, where L^T L is diagonal.

    It is `1/2 e^T (I + A)^-1 e`; errors of z enter squared, also where A is 1/eps.
    """
    error = targets - centre
    z = (factor.mT @ error[..., None])[..., 0] / (1 + factor.square().sum(1))
    rest = error - (factor @ z[..., None])[..., 0]
    bulk = 0.5 * (rest.square().sum(1) + z.square().sum(1))
    return torch.minimum(bulk, boundary)
