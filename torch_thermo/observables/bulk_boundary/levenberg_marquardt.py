"""Minima of `1/2 |r|^2 + phi(y(r))` over the residuals r, for many starts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torch_thermo.observables.bulk_boundary.example_loss import Potential
from torch_thermo.observables.bulk_boundary.newton import DROWNED
from torch_thermo.observables.bulk_boundary.response import Response

_EPS = torch.finfo(torch.float64).eps
_FIRST = 1.0
"""The damping after the first step that leads uphill."""
_STUCK = 1e12
"""The damping at which no step leads downhill: r no longer moves."""


class Descent(NamedTuple):
    """Where the descents from n starts ended.

    Attributes:
        residuals: (n, H).
        values: (n,), at most those of the starts.
        converged: (n,), whether the gradient is 0 there.
    """

    residuals: Tensor
    values: Tensor
    converged: Tensor


def descend(
    response: Response,
    potential: Potential,
    starts: Tensor,
    rows: Tensor,
    iterations: int,
    tolerance: float,
) -> Descent:
    r"""Levenberg-Marquardt from all starts at once; those that are done leave.

    With `J = dy/dr`, phi' and C >= 0 the positive part of phi'' = V V^T, the step is
    `-(a I + J^T C J)^-1 g`, a = 1 + mu, g = r + J^T phi'. It takes a solve of the size of y alone,

        -(g - K^T (a I + K K^T)^-1 K g) / a,    K = V^T J.

    Args:
        response: y.
        potential: phi.
        starts: (n, H).
        rows: (n,), which example each is of.
        iterations: at most so many steps.
        tolerance: of `|g| / (|r| + |J^T phi'|)` at a minimum.
    """
    r, damping = starts, starts.new_zeros(len(starts))
    ended, index = starts.clone(), torch.arange(len(starts), device=starts.device)
    values = torch.full_like(damping, torch.inf)
    converged = torch.zeros_like(damping, dtype=torch.bool)
    point = _Point.at(response, potential, r, rows)
    for turn in range(iterations + 1):
        gradient = r + point.pull
        norm = gradient.norm(dim=1)
        at_rest = norm <= tolerance * (r.norm(dim=1) + point.pull.norm(dim=1)) + point.rounding
        ended[index], values[index], converged[index] = r, point.value, at_rest
        going = ~at_rest & (damping < _STUCK) & (norm < torch.inf)
        if turn == iterations or not going.any():
            break
        if not going.all():
            index, r, rows, damping = index[going], r[going], rows[going], damping[going]
            gradient, norm, point = gradient[going], norm[going], point.take(going)
        step, bent = _step(point, gradient, 1 + damping)
        trial = r + step
        reached = 0.5 * trial.square().sum(1)
        reached = reached + potential.values(response.values(trial, rows), rows).detach()
        gain = point.value - reached
        # of the model 1/2 |r + d|^2 + phi + phi' J d + 1/2 |K d|^2
        promised = -(gradient * step).sum(1) - 0.5 * (step.square().sum(1) + bent)
        # near the minimum the gain drowns in the rounding of the value: the gradient decides
        close = promised <= DROWNED * point.value.abs()
        better = (gain > 1e-4 * promised) | close
        chosen = better.nonzero()[:, 0]
        if len(chosen):
            new = _Point.at(response, potential, trial[chosen], rows[chosen])
            shrunk = (trial[chosen] + new.pull).norm(dim=1) < norm[chosen]
            kept = shrunk | ~close[chosen]
            better[chosen[~kept]] = False
            r = torch.where(better[:, None], trial, r)
            point.put(better, new.take(kept))
        eased = torch.where(gain > 0.5 * promised, 0.1 * damping, damping)
        eased = torch.where(eased < 1e-3, 0.0, eased)
        damping = torch.where(better, eased, (5 * damping).clamp(min=_FIRST))
    return Descent(ended, values, converged)


@dataclass(frozen=True)
class _Point:
    """What is known at r: the value, dy/dr, J^T phi', K, and what of the gradient is rounding."""

    value: Tensor
    pull: Tensor
    root: Tensor
    rounding: Tensor

    @classmethod
    def at(cls, response: Response, potential: Potential, r: Tensor, rows: Tensor) -> _Point:
        y, jacobian = response.jacobian(r, rows)
        phi, slope, root = _curvature(potential, y, rows, jacobian)
        pull = (slope[:, None] @ jacobian)[:, 0]
        size = 1 + jacobian.flatten(1).norm(dim=1) * slope.norm(dim=1)
        return cls(0.5 * r.square().sum(1) + phi, pull, root, 64 * _EPS * size)

    def take(self, which: Tensor) -> _Point:
        return _Point(*(value[which] for value in vars(self).values()))

    def put(self, which: Tensor, other: _Point) -> None:
        for mine, its in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[which] = its


def _curvature(
    potential: Potential, y: Tensor, rows: Tensor, jacobian: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return phi (n,), phi' (n, M) and K = V^T J (n, M, H)."""
    size = y.shape[1]
    unit = torch.eye(size, dtype=y.dtype, device=y.device).expand(len(y), size, size)
    try:
        phi, slope, bend = potential.curvatures(y, rows, unit)
    except NotImplementedError:
        # its minima are those of `settle_at_kinks`
        phi, slope = potential.slopes(y, rows)
        bend = torch.zeros_like(unit)
    if potential.diagonal:
        root = bend.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        return phi, slope, root[..., None] * jacobian
    values, axes = torch.linalg.eigh(bend)
    return phi, slope, (values.clamp(min=0).sqrt()[:, None] * axes).mT @ jacobian


def _step(point: _Point, gradient: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the step (n, H) and |K step|^2 (n,)."""
    root = point.root
    matrix = root @ root.mT
    matrix.diagonal(dim1=-2, dim2=-1).add_(a[:, None])
    moved = root @ gradient[..., None]
    solved = torch.cholesky_solve(moved, torch.linalg.cholesky(matrix))
    step = (solved.mT @ root)[:, 0].sub_(gradient).div_(a[:, None])
    # K (g - K^T s) = a s where (a + K K^T) s = K g
    return step, solved[..., 0].square().sum(1)
