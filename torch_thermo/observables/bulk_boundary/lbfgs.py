"""L-BFGS for many independent problems at once, in a box or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-8
"""Of the gradient's length at a minimum, in units of 1 + the point's length."""

_MEMORY = 12
_SHORTEST = 1e-14
_EPS = torch.finfo(torch.float64).eps
# of the value: a step that promises less is judged by the gradient, the value is rounded
_DROWNED = 1e-9

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(v (n, D), rows (n,))` -> values (n,), gradients (n, D)."""


class Found(NamedTuple):
    """Where the descents ended: points (B, D), values (B,), converged (B,)."""

    points: Tensor
    values: Tensor
    converged: Tensor


def lbfgs(function: Function, start: Tensor, iterations: int, box: float = torch.inf) -> Found:
    r"""Minimise B functions of D variables in `|v_i| <= box`; those that are done leave.

    Quasi-Newton steps of 12 pairs (Nocedal and Wright, *Numerical Optimization*, algorithm 7.4) in
    the variables that are not held by a wall, projected into the box and shortened until the value
    falls enough (D. Bertsekas, *Projected Newton methods*, SIAM J. Control Optim. 20, 1982). Held
    are those on a wall with a gradient that leads out.

    Converged is where the step down the gradient, projected, is at most 1e-8 (1 + |v|) long.

    Args:
        function: of the problems `rows`.
        start: (B, D), float64; taken into the box.
        iterations: at most so many steps.
        box: of all variables.

    Returns:
        The points, with values at most those of the start.
    """
    v = start.clamp(-box, box)
    rows = torch.arange(len(v), device=v.device)
    ended = Found(
        v.clone(), torch.full_like(v[:, 0] if v.shape[1] else v.sum(1), torch.inf), rows < 0
    )
    if not len(v):
        return ended
    pairs = _Pairs(v)
    value, gradient = function(v, rows)
    length = torch.ones_like(value)
    for turn in range(iterations + 1):
        inward = _inward(v, gradient, box)
        rest = inward.norm(dim=1) <= TOLERANCE * (1 + v.norm(dim=1))
        for all_, mine in zip(ended, (v, value, rest), strict=True):
            all_[rows] = mine
        going = ~rest & (length > _SHORTEST) & value.isfinite() & gradient.isfinite().all(1)
        if turn == iterations or not going.any():
            break
        if not going.all():
            rows, v, value, gradient, inward, length = (
                a[going] for a in (rows, v, value, gradient, inward, length)
            )
            pairs.take(going)
        free = ~((v.abs() >= box) & (v * gradient < 0))
        step = _downhill(pairs, gradient * free, free)
        trial = (v + length[:, None] * step).clamp(-box, box)
        promised = -(gradient * (trial - v)).sum(1)
        reached, there = function(trial, rows)
        close = promised <= _DROWNED * value.abs()
        shrunk = _inward(trial, there, box).norm(dim=1) < inward.norm(dim=1)
        no_higher = reached <= value + 64 * _EPS * value.abs()
        lower = (reached <= value - 1e-4 * promised) & (promised > 0)
        taken = torch.where(close, shrunk & no_higher, lower) & reached.isfinite()
        pairs.add(trial - v, there - gradient, taken)
        v = torch.where(taken[:, None], trial, v)
        value = torch.where(taken, reached, value)
        gradient = torch.where(taken[:, None], there, gradient)
        length = torch.where(taken, 1.0, 0.3 * length)
    return ended


def _inward(v: Tensor, gradient: Tensor, box: float) -> Tensor:
    """Return by how much one step down the gradient changes v in the box."""
    return v - (v - gradient).clamp(-box, box)


def _downhill(pairs: _Pairs, gradient: Tensor, free: Tensor) -> Tensor:
    """Return the quasi-Newton step, or that down the gradient where it does not lead downhill."""
    step = -pairs.inverse(gradient, free)
    uphill = ~((step * gradient).sum(1) < 0)
    return torch.where(uphill[:, None], -gradient, step)


class _Pairs:
    """The last steps s and changes of the gradient y, newest first, of each problem."""

    def __init__(self, like: Tensor) -> None:
        self.steps = like.new_zeros(_MEMORY, *like.shape)
        self.changes = torch.zeros_like(self.steps)

    def take(self, which: Tensor) -> None:
        self.steps, self.changes = self.steps[:, which], self.changes[:, which]

    def add(self, step: Tensor, change: Tensor, taken: Tensor) -> None:
        good = taken & ((step * change).sum(1) > 1e-10 * step.norm(dim=1) * change.norm(dim=1))
        mask = good[None, :, None]
        self.steps = torch.where(mask, torch.cat([step[None], self.steps[:-1]]), self.steps)
        self.changes = torch.where(mask, torch.cat([change[None], self.changes[:-1]]), self.changes)

    def inverse(self, gradient: Tensor, free: Tensor) -> Tensor:
        """Return the inverse Hessian's product with the gradient, both of the free variables.

        Pairs of negative curvature among these are left out.
        """
        steps, changes = self.steps * free, self.changes * free
        products = (steps * changes).sum(2)
        good = products > 1e-10 * steps.norm(dim=2) * changes.norm(dim=2)
        weights = torch.where(good, 1 / torch.where(good, products, 1.0), 0.0)
        shares = []
        for s, y, w in zip(steps, changes, weights, strict=True):
            share = w * (s * gradient).sum(1)
            gradient = gradient - share[:, None] * y
            shares.append(share)
        stiffness = weights[0] * changes[0].square().sum(1)
        # without a pair a step of length 1 at most
        unknown = gradient.norm(dim=1).clamp(min=1)
        gradient = gradient / torch.where(stiffness > 0, stiffness, unknown)[:, None]
        oldest_first = zip(
            steps.flip(0), changes.flip(0), weights.flip(0), shares[::-1], strict=True
        )
        for s, y, w, share in oldest_first:
            back = w * (y * gradient).sum(1)
            gradient = gradient + (share - back)[:, None] * s
        return gradient
