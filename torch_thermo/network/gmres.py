"""Linear systems by products with the matrix alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gmres"]

_CHECK_EVERY = 5


def gmres(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    tol: float,
    restart: int = 100,
    products: int = 2000,
) -> tuple[Tensor, Tensor]:
    """Solve ``A x = r`` for several r at once by restarted GMRES.

    Y. Saad and M. H. Schultz (1986): x minimises ``|r - A x|`` over the Krylov space of r; each r
    has a space of its own, orthogonalised twice. Starts from 0.

    Args:
        product: from ``(K, n)`` to A times each row.
        right: r, ``(K, n)``.
        tol: largest ``|r - A x| / |r|`` that is aimed at.
        restart: largest dimension of a Krylov space; ``restart + 1`` times `right` is stored.
        products: at most so many, each with all K rows.

    Returns:
        x, ``(K, n)``, and the residuals ``|r - A x| / |r|`` that were reached, ``(K,)``: 0 for
        r = 0; NaN where a product was not finite.
    """
    solution, remainder = torch.zeros_like(right), right
    scale = right.norm(dim=1)
    safe = torch.where(scale > 0, scale, 1)
    error = scale / safe
    left = products
    while left > 0:
        step, used = _cycle(product, remainder, tol * scale, min(restart, left, right.shape[1]))
        solution = solution + step
        # one more product, for the residual as it is
        left -= used + 1
        remainder = right - product(solution)
        before, error = error, remainder.norm(dim=1) / safe
        # what one space does not improve the next one, made of the same vector, does not either
        if not bool(((error > tol) & (error < 0.99 * before)).any()):
            break
    return solution, error


def _cycle(
    product: Callable[[Tensor], Tensor], remainder: Tensor, aim: Tensor, dimension: int
) -> tuple[Tensor, int]:
    """Return the change of x from one Krylov space, and the number of products."""
    start = remainder.norm(dim=1)
    basis = [_normalised(remainder, start)]
    columns: list[Tensor] = []
    for number in range(1, dimension + 1):
        v = product(basis[-1])
        if not bool(v.isfinite().all()):
            return torch.full_like(remainder, torch.nan), number
        size = v.norm(dim=1)
        space = torch.stack(basis)
        column = v.new_zeros(len(v), number)
        for _ in range(2):
            overlap = torch.einsum("jkn,kn->kj", space, v)
            v = v - torch.einsum("jkn,kj->kn", space, overlap)
            column = column + overlap
        rest = v.norm(dim=1)
        # what is left of a vector within the space is rounding
        rest = torch.where(rest > 10 * torch.finfo(v.dtype).eps * size, rest, 0)
        columns.append(torch.cat([column, rest[:, None]], 1))
        basis.append(_normalised(v, rest))
        last = number == dimension or not bool(rest.any())
        if last or number % _CHECK_EVERY == 0:
            weights, error = _least_squares(columns, start)
            if last or bool((error <= aim / 2).all()):
                break
    return torch.einsum("jkn,kj->kn", torch.stack(basis[:number]), weights), number


def _least_squares(columns: list[Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the y that minimise ``|start e_1 - H y|`` and those norms; H is given by columns."""
    m = len(columns)
    h = torch.stack([torch.nn.functional.pad(c, (0, m + 1 - c.shape[1])) for c in columns], 2)
    r = torch.zeros(len(h), m + 1, 1, dtype=h.dtype, device=h.device)
    r[:, 0, 0] = start
    # of a space that ended early H has columns of zeros
    y = torch.linalg.pinv(h) @ r
    return y[:, :, 0], (r - h @ y)[:, :, 0].norm(dim=1)


def _normalised(v: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1), 0)[:, None] * v
