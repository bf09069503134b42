"""Minima of `1/2 |r|^2 + phi(y(r))` at kinks of phi."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo.observables.bulk_boundary.example_loss import Potential
from torch_thermo.observables.bulk_boundary.levenberg_marquardt import Descent
from torch_thermo.observables.bulk_boundary.newton import (
    MOST_KINKED,
    factor_of,
    minimise,
)
from torch_thermo.observables.bulk_boundary.response import Response

TOLERANCE = 1e-6
"""Of the loss at r = 0: what the linearised problem may promise at a minimum."""

_ROUNDS = 60
# the damping at which r no longer moves: at a kink of the response, not of phi
_STUCK = 1e4


def settle_at_kinks(
    response: Response,
    potential: Potential,
    start: Descent,
    rows: Tensor,
    scale: Tensor,
    iterations: int,
) -> Descent:
    r"""Go on where second derivatives do not help: the response linearised, the loss kept.

    `min_d 1/2 |r + d|^2 + mu/2 |d|^2 + phi(y + J d)` is solved as the small problems of "logit"
    are, by cutting planes where phi has kinks (A. Lewis and S. Wright, *A proximal method for
    composite minimization*, Math. Program. 158, 2016). With `w = sqrt(a) (d + r/a)`, a = 1 + mu, it
    is `min_w 1/2 |w|^2 + phi(y - J r/a + J w/sqrt(a))` up to a constant. mu grows while the value
    does not fall.

    Args:
        response: y.
        potential: phi.
        start: where descents from n starts ended.
        rows: (n,), which example each is of.
        scale: (n,), the loss at r = 0.
        iterations: at most so many rounds, and 60.

    Returns:
        The same with those that had not converged moved on; converged is where the linearised
        problem is solved and promises at most 1e-6 of the loss at r = 0.
    """
    residuals, values, converged = (part.clone() for part in start)
    index = (~converged & values.isfinite()).nonzero()[:, 0]
    if min(response.size, max(response.hidden, 1)) > MOST_KINKED:
        return start
    r, value, rows, scale = residuals[index], values[index], rows[index], scale[index]
    damping = torch.zeros_like(value)
    for _ in range(min(_ROUNDS, iterations)):
        if not len(index):
            break
        trial, promised, sure = _proximal(response, potential, r, value, rows, damping)
        reached = 0.5 * trial.square().sum(1)
        reached = reached + potential.values(response.values(trial, rows), rows).detach()
        gain = value - reached
        # with a damping any problem promises little
        at_rest = sure & (damping == 0) & (promised <= TOLERANCE * scale)
        better = (gain >= 0.01 * promised) & (gain > 0)
        r, value = torch.where(better[:, None], trial, r), torch.where(better, reached, value)
        eased = torch.where(damping > 1, 0.2 * damping, 0.0)
        damping = torch.where(better, eased, (5 * damping).clamp(min=1.0))
        residuals[index], values[index], converged[index] = r, value, at_rest
        going = ~at_rest & (damping < _STUCK)
        index, r, value, rows = index[going], r[going], value[going], rows[going]
        scale, damping = scale[going], damping[going]
    return Descent(residuals, values, converged)


def _proximal(
    response: Response,
    potential: Potential,
    r: Tensor,
    value: Tensor,
    rows: Tensor,
    damping: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return r + d (n, H), by how much the model falls (n,), and whether it is solved (n,)."""
    y, jacobian = response.jacobian(r, rows)
    a = (1 + damping)[:, None]
    factor = factor_of(jacobian)
    centre = y - (jacobian @ r[..., None])[..., 0] / a
    bent = not response.at_outputs
    found = minimise(potential.take(rows), centre, factor / a.sqrt()[..., None], bent)
    # w = J^T (J J^T)^+ L z, the shortest with J w = L z; the columns of L are orthogonal
    squares = factor.square().sum(1)
    z = torch.where(squares > 0, found.points / squares, 0.0)
    w = ((factor @ z[..., None]).mT @ jacobian)[:, 0]
    trial = r - r / a + w / a.sqrt()
    model = found.values + 0.5 * r.square().sum(1) * (damping / (1 + damping))
    return trial, value - model, found.converged
