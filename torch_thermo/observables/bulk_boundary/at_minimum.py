"""The least value of an energy over states, as a differentiable function of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# H_xx of so many free neurons is factorised: it takes as many products as one solve by iteration
_DENSE = 128
# of the right side, what an iterative solve may leave
_SOLVED = 1e-10
# steps of conjugate gradients for each unknown: rounding takes more than one
_STEPS = 4


class Energy:
    """H with its graph.

    Args:
        values: H, (B,).
        states: x, of the free stages.
        wrt: theta, in which it is differentiated.
        walled: states may be held at the walls of a box.
    """

    def __init__(
        self, values: Tensor, states: Sequence[Tensor], wrt: Sequence[Tensor], walled: bool = False
    ) -> None:
        self.values = values
        self.states = tuple(states)
        self.wrt = tuple(wrt)
        self.walled = walled
        self._force: tuple[Tensor, ...] | None = None
        self._factors: tuple[Tensor, Tensor] | None = None

    def slopes(self, weights: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Return ``sum_n weights_n dH_n/dtheta``, the states fixed."""
        return torch.autograd.grad(
            self.values,
            self.wrt,
            weights,
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )

    @property
    def force(self) -> tuple[Tensor, ...]:
        """H_x, with its graph."""
        if self._force is None:
            with torch.enable_grad():
                self._force = torch.autograd.grad(
                    self.values.sum(), self.states, create_graph=True, materialize_grads=True
                )
        return self._force

    def mixed(self, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return ``H_tx u``."""
        return _products(self.force, self.wrt, vectors)

    def response(self, forces: Sequence[Tensor]) -> list[Tensor]:
        """Return ``H_xx^-1 v`` of each example.

        Raises:
            NotImplementedError: states may be held at walls.
            RuntimeError: H_xx is not positive definite there, which is no minimum.
        """
        if self.walled:
            raise NotImplementedError(
                "the bulk loss with m > 0 or an interaction has no second derivative where states "
                "are held at the walls of [-1, 1]"
            )
        right = _flat(forces)
        small = right.shape[1] <= _DENSE
        found, solved = self._factorised(right) if small else self._iterated(right)
        missed = int((~solved).sum())
        if missed:
            raise RuntimeError(
                f"the bulk loss has no second derivative at the states found for {missed} of "
                f"{len(solved)} examples, which are no minimum: give it more starts"
            )
        return self._parts(found)

    def _factorised(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solve by Cholesky factors, made at the first call."""
        if self._factors is None:
            columns = []
            for k in range(right.shape[1]):
                unit = torch.zeros_like(right)
                unit[:, k] = 1
                columns.append(self._product(unit))
            self._factors = torch.linalg.cholesky_ex(torch.stack(columns, 2))
        factors, failed = self._factors
        return torch.cholesky_solve(right[..., None], factors)[..., 0], failed == 0

    def _iterated(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solve by conjugate gradients."""
        found, rest, direction = torch.zeros_like(right), right, right
        square = rest.square().sum(1)
        goal = _SOLVED**2 * square
        for _ in range(_STEPS * right.shape[1]):
            going = square > goal
            if not going.any():
                break
            product = self._product(direction)
            bend = (direction * product).sum(1)
            length = torch.where(going & (bend != 0), square / bend, 0.0)[:, None]
            found, rest = found + length * direction, rest - length * product
            before, square = square, rest.square().sum(1)
            direction = rest + torch.where(going, square / before, 0.0)[:, None] * direction
        return found, ~(square > goal)

    def _product(self, flat: Tensor) -> Tensor:
        return _flat(_products(self.force, self.states, self._parts(flat)))

    def _parts(self, flat: Tensor) -> list[Tensor]:
        sizes = [state[0].numel() for state in self.states]
        split = zip(flat.split(sizes, 1), self.states, strict=True)
        return [part.reshape(state.shape) for part, state in split]


class AtMinimum(torch.autograd.Function):
    """H at its minima over the states, as a function of theta."""

    @staticmethod
    def forward(ctx: Any, energy: Energy, *wrt: Tensor) -> Tensor:
        """Return H (B,)."""
        ctx.energy = energy
        return energy.values.detach()

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        """Return ``sum_n weights_n dH_n/dtheta``."""
        energy = ctx.energy
        if torch.is_grad_enabled():
            return None, *_Slopes.apply(energy, weights[0], *energy.wrt)
        return None, *energy.slopes(weights[0])


class _Slopes(torch.autograd.Function):
    """Its derivative in theta; the derivative of that moves the states with theta."""

    @staticmethod
    def forward(ctx: Any, energy: Energy, weights: Tensor, *wrt: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            ctx.weights = weights.detach().requires_grad_()
            ctx.slopes = energy.slopes(ctx.weights, create_graph=True)
        ctx.energy = energy
        return tuple(slope.detach() for slope in ctx.slopes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> tuple[Tensor | None, ...]:
        energy: Energy = ctx.energy
        of = (ctx.weights, *energy.wrt, *energy.states)
        weights, *rest = _products(ctx.slopes, of, directions)
        count = len(energy.wrt)
        direct, forces = rest[:count], rest[count:]
        if forces:
            moved = energy.mixed(energy.response(forces))
            direct = [d - m for d, m in zip(direct, moved, strict=True)]
        return None, weights, *direct


def _products(
    gradients: Sequence[Tensor], of: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the derivative of <gradients, directions>; those that are constant have no graph."""
    pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(tensor) for tensor in of)
    graded, vectors = zip(*pairs, strict=True)
    return torch.autograd.grad(graded, of, vectors, retain_graph=True, materialize_grads=True)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1)
