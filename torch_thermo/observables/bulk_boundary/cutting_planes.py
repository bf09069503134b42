"""Minima of `1/2 |z|^2 + phi(z)` for convex phi with kinks, certified by a lower bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GAP = 1e-9
"""Of the scale: how far the value may lie above its lower bound where it counts as a minimum."""

_ROUNDS = 200
_INTERIOR_STEPS = 25
# more are not kept: memory, and time that grows with the cube
_PLANES = 96

Slopes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def cutting_planes(slopes: Slopes, start: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Minimise `1/2 |z|^2 + phi(z)` by planes below phi, for many small problems at once.

    A (sub)gradient a_j of phi at z_j gives a plane `c_j + a_j . z` below a convex phi. With phi
    replaced by the highest plane the minimum is `z = -sum_j w_j a_j` with the weights that maximise
    `sum_j w_j c_j - 1/2 |sum_j w_j a_j|^2` on the simplex, and that maximum is a lower bound of
    the true one; a new plane is taken there, until value and bound agree. For a phi of finitely
    many pieces (hinge losses, absolute values) the number of rounds is finite.

    Args:
        slopes: `slopes(z, rows)` -> phi (n,) and a subgradient (n, M) of the problems `rows` (n,)
            at z (n, M).
        start: (B, M), the first point.
        scale: (B,), what `GAP` is relative to.

    Returns:
        The smallest value found (B,), where that is (B, M), and whether it lies within
        `GAP * scale` of a lower bound that no point visited contradicts (a phi that is not convex
        does).
    """
    count, size = start.shape
    rows = torch.arange(count, device=start.device)
    # of each problem: the lowest value, where it was found, and what the planes allow
    best, best_point, best_phi = torch.full_like(scale, torch.inf), start.clone(), scale.clone()
    lower = -best
    sure = torch.zeros_like(best, dtype=torch.bool)
    normals, offsets = start.new_empty(count, 0, size), start.new_empty(count, 0)
    weights = offsets
    z = start
    for turn in range(_ROUNDS):
        phi, normal = slopes(z, rows)
        offset = phi - (normal * z).sum(1)
        value = phi + 0.5 * z.square().sum(1)
        tolerance = GAP * scale[rows]
        contradicted = phi + 0.1 * tolerance < _highest(normals, offsets, z)
        if turn:
            here = offset + (normal * best_point[rows]).sum(1)
            contradicted |= best_phi[rows] + 0.1 * tolerance < here
        lowest = value < best[rows]
        better = rows[lowest]
        best[better], best_phi[better] = value[lowest], phi[lowest]
        best_point[better] = z[lowest]
        closed = best[rows] - lower[rows] <= tolerance
        sure[rows] = closed & ~contradicted
        going = ~closed & ~contradicted & value.isfinite() & normal.isfinite().all(1)
        if not going.any():
            break
        rows = rows[going]
        normals, offsets = _with_room(normals[going], offsets[going], weights[going])
        normals = torch.cat([normals, normal[going, None]], 1)
        offsets = torch.cat([offsets, offset[going, None]], 1)
        weights = _simplex(normals, offsets)
        z = -(weights[:, None] @ normals)[:, 0]
        bound = (weights * offsets).sum(1) - 0.5 * z.square().sum(1)
        lower[rows] = torch.maximum(lower[rows], bound)
    return best, best_point, sure


def _highest(normals: Tensor, offsets: Tensor, z: Tensor) -> Tensor:
    if normals.shape[1] == 0:
        return torch.full_like(z[:, 0], -torch.inf)
    return (offsets + (normals @ z[..., None])[..., 0]).amax(1)


def _with_room(normals: Tensor, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the planes that weigh least; at a minimum at most M + 1 weigh anything."""
    most = min(2 * normals.shape[2] + 8, _PLANES)
    if offsets.shape[1] < most:
        return normals, offsets
    kept = weights.topk(most - 1, dim=1).indices
    picked = kept[..., None].expand(-1, -1, normals.shape[2])
    return normals.gather(1, picked), offsets.gather(1, kept)


def _simplex(normals: Tensor, offsets: Tensor) -> Tensor:
    """Maximise `w . c - 1/2 |w . a|^2` over w >= 0, sum w = 1: a primal-dual interior point.

    Any w on the simplex gives a lower bound: what is missing in accuracy only costs rounds.
    """
    gram = normals @ normals.mT
    offsets = offsets - offsets.amax(1, keepdim=True)
    unit = gram.diagonal(dim1=1, dim2=2).amax(1) + offsets.abs().amax(1)
    unit = unit.clamp(min=torch.finfo(unit.dtype).tiny)[:, None]
    gram, cost = gram / unit[..., None], -offsets / unit
    planes = offsets.shape[1]
    w = torch.full_like(offsets, 1 / planes)
    dual, level = torch.ones_like(w), torch.zeros_like(unit)
    ones = torch.ones_like(w)
    for _ in range(_INTERIOR_STEPS):
        centre = 0.1 * (w * dual).mean(1, keepdim=True)
        gradient = (gram @ w[..., None])[..., 0] + cost - level
        matrix = gram + torch.diag_embed(dual / w)
        triangle, failed = torch.linalg.cholesky_ex(matrix)
        sides = torch.stack([centre / w - gradient, ones], -1)
        solved = torch.cholesky_solve(sides, triangle)
        shift = (1 - w.sum(1) - solved[..., 0].sum(1)) / solved[..., 1].sum(1)
        dw = solved[..., 0] + shift[:, None] * solved[..., 1]
        ddual = centre / w - dual - dual / w * dw
        length = torch.minimum(_longest(w, dw), _longest(dual, ddual))
        # a matrix at the end of its precision: stay
        usable = (failed == 0)[:, None] & dw.isfinite().all(1, keepdim=True)
        length = torch.where(usable, length, 0.0)
        w = w + length * dw.nan_to_num(0.0)
        dual = dual + length * ddual.nan_to_num(0.0)
        level = level + length * shift[:, None].nan_to_num(0.0)
    w = w.clamp(min=0)
    return w / w.sum(1, keepdim=True)


def _longest(values: Tensor, steps: Tensor) -> Tensor:
    """Return the longest step, at most 1, that leaves the values positive."""
    room = torch.where(steps < 0, -values / steps, torch.inf)
    return (0.995 * room.amin(1, keepdim=True)).clamp(max=1.0)
