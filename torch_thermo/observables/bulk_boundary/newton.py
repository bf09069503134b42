"""The small problems of the bulk loss: `min_z 1/2 |z|^2 + phi(y0 + L z)`, one for each example.

With A = L L^T and s = A u = L z this is `min_u 1/2 u^T A u + phi(y0 + A u)`: in z it is well posed
for any A, also where A is singular or 0, and its Hessian `I + L^T phi'' L` is at least 1 for a
convex phi. z has as many entries as A has rank, at most the hidden neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_thermo.observables.bulk_boundary.cutting_planes import cutting_planes
from torch_thermo.observables.bulk_boundary.example_loss import Potential

TOLERANCE = 1e-8
"""Of the relative residual `|z + L^T phi'| / (|z| + |L^T phi'|)` at a minimum."""

MOST_KINKED = 64
"""Dimensions in which minima at kinks are sought: as many planes meet there, to be found singly."""
# examples that show whether a loss has kinks
_TRIED = 4

DROWNED = 1e-9
"""Of the value: a step that promises less is judged by the gradient. The loss of a saturated output
is `1/2 e^2` with an e that is rounded to eps of the output, not of itself."""

_ITERATIONS = 100
_EPS = torch.finfo(torch.float64).eps
# of the largest element of the matrix: a step shorter by this has ceased to move
_STUCK = 1e12
# The grid of a scalar problem: points of each sign, and how many an octave. A saturated output is
# worth crossing up to |z| = sqrt(2 phi), the grid's end: with 4 an octave the other side, where it
# is narrow, is missed by up to 8 % of the squared error, with 12 not.
_GRID = 96
_OCTAVE = 12
_BISECTIONS = 64


@dataclass(frozen=True)
class Minimum:
    """Minima of the small problems.

    Attributes:
        values: (B,), the smallest value found, at most phi(y0).
        points: z (B, R) of that value.
        converged: (B,), whether that value belongs to a minimum (see `bulk_boundary_loss`).
    """

    values: Tensor
    points: Tensor
    converged: Tensor


def minimise(potential: Potential, logits: Tensor, factor: Tensor, bent: bool) -> Minimum:
    """Minimise `1/2 u^T A u + phi(y0 + A u)` for each example.

    One pre-activation: by a grid and bisection. Several: damped Newton steps from u = 0 and, with
    `bent`, from `s = -y0` on the wrong outputs; where these stop at a kink of a convex phi, or phi
    has no second derivative, by cutting planes.

    Args:
        potential: phi.
        logits: y0, (B, M).
        factor: L with A = L L^T, (B, M, R), its columns orthogonal.
        bent: whether f bends, so that there may be several minima.

    Raises:
        MemoryError: most examples end at kinks, in more dimensions than `MOST_KINKED`.
    """
    if logits.shape[1] == 1:
        return _scalar(potential, logits, factor)
    rows = torch.arange(len(logits), device=logits.device)
    # a loss of kinks is refused after a few examples, not after minutes
    parts = [rows]
    if factor.shape[2] > MOST_KINKED and len(rows) > _TRIED:
        parts = [rows[:_TRIED], rows[_TRIED:]]
    found = [_several(_Problem(potential, logits[r], factor[r], r), bent) for r in parts]
    return Minimum(
        torch.cat([part.values for part in found]),
        torch.cat([part.points for part in found]),
        torch.cat([part.converged for part in found]),
    )


def _several(problem: _Problem, bent: bool) -> Minimum:
    """Several pre-activations."""
    boundary = problem.potential.values(problem.logits, problem.rows).detach()
    dimensions = problem.factor.shape[2]
    start = boundary.new_zeros(len(boundary), dimensions)
    try:
        point, values, converged = _newton(problem, start)
        if bent:
            chosen, second = _crossed(problem)
            other, found, sure = _newton(problem.take(chosen), second)
            better = found < values[chosen]
            chosen = chosen[better]
            point[chosen], values[chosen] = other[better], found[better]
            converged[chosen] = sure[better]
    except NotImplementedError:
        point, values = start, boundary.clone()
        converged = torch.zeros_like(boundary, dtype=torch.bool)
    open_ = (~converged).nonzero()[:, 0]
    if dimensions > MOST_KINKED:
        if 2 * len(open_) > len(boundary):
            raise MemoryError(
                f"{len(open_)} of {len(boundary)} examples end at a kink of loss_fn, or it has no "
                f"second derivative: minima there are sought in at most {MOST_KINKED} dimensions, "
                f"and {problem.logits.shape[1]} outputs move in {dimensions}: give a smooth "
                "loss_fn, or one of fewer outputs"
            )
    elif len(open_):
        found, ends, sure = cutting_planes(
            problem.take(open_).slopes, point[open_], scale=boundary[open_].abs()
        )
        lower = found < values[open_]
        values[open_] = torch.where(lower, found, values[open_])
        point[open_] = torch.where(lower[:, None], ends, point[open_])
        # behind a bent f phi is not convex, and the bound is none
        converged[open_] = sure & (not bent)
    # u = 0 is feasible; rounding may say otherwise
    return Minimum(torch.minimum(values, boundary), point, converged)


def factor_of(jacobian: Tensor) -> Tensor:
    """Return L (B, M, R) with `L L^T = J J^T`, its columns orthogonal.

    R is the largest rank among the examples, at least 1; others have columns of 0. The smaller of
    `J J^T` and `J^T J` is taken apart: they have the same eigenvalues.
    """
    if jacobian.shape[1] <= jacobian.shape[2]:
        return symmetric_factor(jacobian @ jacobian.mT)
    eigenvalues, axes = _positive_axes(jacobian.mT @ jacobian)
    return jacobian @ torch.where(eigenvalues[:, None] > 0, axes, 0.0)


def symmetric_factor(gram: Tensor) -> Tensor:
    """Return L (B, M, R) with L L^T = A, its columns along A's axes; R as in `factor_of`."""
    eigenvalues, axes = _positive_axes(gram)
    return axes * eigenvalues.sqrt()[:, None]


def _positive_axes(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return A's largest eigenvalues (B, R), those that are rounding set to 0, and their axes."""
    eigenvalues, axes = torch.linalg.eigh(gram)
    floor = gram.shape[-1] * _EPS * eigenvalues[:, -1:].clamp(min=0)
    positive = eigenvalues > floor
    rank = max(1, int(positive.sum(1).max()))
    # ascending: the last are the largest
    return torch.where(positive, eigenvalues, 0.0)[:, -rank:], axes[..., -rank:]


class _Problem:
    """`Psi(z) = 1/2 |z|^2 + phi(y0 + L z)` of some of the examples."""

    def __init__(self, potential: Potential, logits: Tensor, factor: Tensor, rows: Tensor) -> None:
        self.potential = potential
        self.logits = logits
        self.factor = factor
        self.rows = rows

    def take(self, which: Tensor) -> _Problem:
        return _Problem(self.potential, self.logits[which], self.factor[which], self.rows[which])

    def at(self, z: Tensor) -> Tensor:
        """Return y0 + L z."""
        return self.logits + _apply(self.factor, z)

    def slopes(self, z: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return phi and its gradient in z of the examples `which`."""
        part = self.take(which)
        values, gradient = self.potential.slopes(part.at(z), part.rows)
        return values, _apply(part.factor.mT, gradient)

    def curvatures(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return Psi, L^T phi', its rounding, and Psi''."""
        values, gradient, bent = self.potential.curvatures(self.at(z), self.rows, self.factor)
        matrix = self.factor.mT @ bent
        matrix.diagonal(dim1=-2, dim2=-1).add_(1.0)
        # |z| is the length of the residuals: the states themselves are rounded to about eps
        size = 1 + self.factor.flatten(1).norm(dim=1) * gradient.norm(dim=1)
        values = values + 0.5 * z.square().sum(1)
        return values, _apply(self.factor.mT, gradient), 64 * _EPS * size, matrix


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[..., None])[..., 0]


def _newton(problem: _Problem, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Damped Newton steps of all examples at once; those that are done leave.

    Returns:
        z, Psi(z) and whether the residual is below the tolerance.
    """
    result = start.clone()
    found = torch.full_like(start[:, 0], torch.inf)
    converged = torch.zeros_like(found, dtype=torch.bool)
    index = torch.arange(len(start), device=start.device)
    if not len(start):
        return result, found, converged
    z, damping = start, torch.zeros_like(found)
    value, slope, rounding, matrix = problem.curvatures(z)
    for _ in range(_ITERATIONS):
        residual = z + slope
        norm = residual.norm(dim=1)
        at_rest = norm <= TOLERANCE * (z.norm(dim=1) + slope.norm(dim=1)) + rounding
        size = matrix.abs().amax(dim=(1, 2))
        result[index], found[index], converged[index] = z, value, at_rest
        # NaN in the first derivatives is not less than infinity
        going = ~at_rest & (damping < _STUCK * size) & (norm < torch.inf) & (size < torch.inf)
        if not going.any():
            break
        if not going.all():
            index, z, damping, problem = index[going], z[going], damping[going], problem.take(going)
            value, slope, rounding, matrix = (
                value[going],
                slope[going],
                rounding[going],
                matrix[going],
            )
            residual, norm, size = residual[going], norm[going], size[going]
        step = _step(matrix, damping, residual)
        trial = z + step
        new = problem.curvatures(trial)
        predicted = -0.5 * (residual * step).sum(1)
        gain = value - new[0]
        # near the minimum the gain drowns in the rounding of Psi: there the residual decides
        close = predicted <= DROWNED * value.abs()
        lower = torch.where(close, (trial + new[1]).norm(dim=1) < norm, gain > 1e-4 * predicted)
        finite = new[3].isfinite().all(dim=-1).all(dim=-1) & new[1].isfinite().all(dim=1)
        better = lower & finite
        z = torch.where(better[:, None], trial, z)
        value = torch.where(better, new[0], value)
        slope = torch.where(better[:, None], new[1], slope)
        rounding = torch.where(better, new[2], rounding)
        matrix = torch.where(better[:, None, None], new[3], matrix)
        eased = torch.where(gain > 0.25 * predicted, 0.1 * damping, damping)
        eased = torch.where(eased < 1e-4 * size, 0.0, eased)
        damping = torch.where(better, eased, torch.maximum(10 * damping, 1e-2 * size))
    return result, found, converged


def _step(matrix: Tensor, damping: Tensor, residual: Tensor) -> Tensor:
    """Return the damped Newton step; along negative curvature it goes downhill all the same."""
    damped = matrix.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
    triangle, failed = torch.linalg.cholesky_ex(damped)
    step: Tensor = -torch.cholesky_solve(residual[..., None], triangle)[..., 0]
    bent = (failed > 0).nonzero()[:, 0]
    if len(bent):
        values, vectors = torch.linalg.eigh(matrix[bent])
        values = values.abs().clamp(min=1.0) + damping[bent, None]
        step[bent] = -_apply(vectors, _apply(vectors.mT, residual[bent]) / values)
    return step


def wrong_side(potential: Potential, logits: Tensor, rows: Tensor) -> Tensor:
    """Return (n, M) whether changing the sign of that pre-activation alone lowers the loss.

    For a squared error and an odd f these are those with y0 t < 0.

    Args:
        potential: phi.
        logits: y0, (n, M).
        rows: (n,), which examples.
    """
    loss = potential.values(logits, rows).detach()
    wrong = torch.zeros_like(logits, dtype=torch.bool)
    for k in range(logits.shape[1]):
        changed = logits.clone()
        changed[:, k] *= -1
        wrong[:, k] = potential.values(changed, rows).detach() < loss
    return wrong


def _crossed(problem: _Problem) -> tuple[Tensor, Tensor]:
    """Return the examples with outputs on the wrong side, and a second start for each.

    A saturated output on the wrong side does not move from u = 0. Nor does it stay at
    its mirror image, s = -2 y0: f' is 0 there too, and |z|^2 draws it back. From s = -y0, where f
    is steepest, it goes where it should. Measured on a tanh network (784-40-20-10, squared error,
    5,000 digits): the mean of the best of u = 0 and s = -2 y0 lies above that of the best of 30
    more starts by .2 % after 1 epoch, 10 % after 10 and 54 % after 80; with s = -y0 by nothing.
    """
    logits = problem.logits
    wrong = wrong_side(problem.potential, logits, problem.rows)
    chosen = wrong.any(1).nonzero()[:, 0]
    target = torch.where(wrong, -logits, 0.0)[chosen]
    # the columns of L are orthogonal: z = L^+ s
    factor = problem.factor[chosen]
    squares = factor.square().sum(1)
    z = torch.where(squares > 0, _apply(factor.mT, target) / squares, 0.0)
    return chosen, z


def _scalar(potential: Potential, logits: Tensor, factor: Tensor) -> Minimum:
    """One pre-activation: the best of a grid, then bisection on the sign of Psi'.

    No smoothness is asked for, so that minima at kinks are found too. For phi >= 0 a minimum has
    `|z| <= sqrt(2 phi(y0))`, for a convex phi `|z| <= L |phi'(y0)|`: the grid reaches the larger.
    """
    rows = torch.arange(len(logits), device=logits.device)
    root = factor[:, 0, 0]

    def at(z: Tensor) -> tuple[Tensor, Tensor]:
        """Return Psi and Psi'."""
        value, slope = potential.slopes(logits + (root * z)[:, None], rows)
        return value + 0.5 * z.square(), z + root * slope[:, 0]

    boundary, slope = at(torch.zeros_like(root))
    reach = (1 + 1e-6) * torch.maximum((2 * boundary.clamp(min=0)).sqrt(), slope.abs())
    powers = 2.0 ** (-torch.arange(_GRID, dtype=root.dtype, device=root.device) / _OCTAVE)
    grid = torch.cat([-powers, powers.new_zeros(1), powers.flip(0)])[:, None] * reach
    values = torch.stack(
        [potential.values(logits + (root * z)[:, None], rows).detach() for z in grid]
    )
    values = values + 0.5 * grid.square()
    best = values.nan_to_num(torch.inf).argmin(0, keepdim=True)
    last = len(grid) - 1
    low, point, high = (grid.gather(0, (best + k).clamp(0, last))[0] for k in (-1, 0, 1))
    lowest = _Lowest(boundary, torch.zeros_like(root))
    lowest.note(values.gather(0, best)[0], point)
    for _ in range(_BISECTIONS):
        value, slope = at(point)
        lowest.note(value, point)
        high = torch.where(slope > 0, point, high)
        low = torch.where(slope > 0, low, point)
        point = 0.5 * (low + high)
    (below, falling), (above, rising) = at(low), at(high)
    lowest.note(below, low)
    lowest.note(above, high)
    # the bracket holds a minimum; where L = 0 it is the point itself
    converged = ((falling <= 0) & (rising >= 0)) | (root == 0)
    return Minimum(lowest.values, lowest.points[:, None], converged)


class _Lowest:
    """The lowest values (B,) seen so far, and where (B,)."""

    def __init__(self, values: Tensor, points: Tensor) -> None:
        self.values, self.points = values, points

    def note(self, values: Tensor, points: Tensor) -> None:
        # NaN is not lower
        lower = values < self.values
        self.values = torch.where(lower, values, self.values)
        self.points = torch.where(lower, points, self.points)
