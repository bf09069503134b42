"""Lanczos iteration with an operator and its inverse in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_thermo.spectra.arguments import require_whole
from torch_thermo.spectra.lanczos import (
    SymmetricMap,
    _multiply,
    _normalised,
    _orthogonalise,
    _start_vectors,
    operator_dimension,
)

__all__ = ["BREAKDOWN", "ExtendedRun", "extended_lanczos", "extended_memory"]

# A coupling below this share of the product ends a probe: what lies behind it enters a quadrature
# with the square.
BREAKDOWN = 1e-7
# Rounding up to which the recursions are trusted for a projection, and for values at 1.
_TRUSTED = 1e-9
_TRUSTED_VALUES = 1e-3
# Vectors of length n a probe holds beside the basis, as in `lanczos_memory`.
_WORKING_VECTORS = 8


@dataclass(frozen=True, eq=False)
class ExtendedRun:
    """Projections of an operator on the extended Krylov spaces of k probes; float64 on the CPU.

    Attributes:
        projections: (k, m, m) the operator in the orthonormal bases, pentadiagonal; NaN beyond a
            probe's size.
        sizes: (k,) int64, the dimension of each probe's space.
        unit_masses: (k, m) the largest share that an eigenvalue 1 can have in the measure seen from
            a start vector, by the first j basis vectors, `1 / sum_{i<=j} phi_i(1)^2` with the
            functions phi_i(A) q that the basis vectors are (the Christoffel function; T. J.
            Stieltjes, A. Markov); not ascending in j, constant beyond a probe's size.
        products: number of columns multiplied by the operator or by its inverse.
    """

    projections: Tensor
    sizes: Tensor
    unit_masses: Tensor
    products: int

    def quadrature(self, fewer: int = 0) -> tuple[Tensor, Tensor]:
        """Nodes and weights of the operator's spectral measure seen from the start vectors.

        Exact for `x^p`, -m <= p < m, with m basis vectors.

        Args:
            fewer: leave out so many of the last basis vectors (but keep one), to see how far the
                quadrature has converged.

        Returns:
            (k, m) nodes, ascending, NaN where a probe has less, and (k, m) weights, 0 there; the
            weights of a probe sum to 1.
        """
        nodes = torch.full(self.projections.shape[:2], torch.nan, dtype=torch.float64)
        weights = torch.zeros_like(nodes)
        for probe, size in enumerate(self.sizes.tolist()):
            # of a space that is invariant nothing may be left out: it is exact
            whole = size < self.projections.shape[1]
            kept = size if whole else max(1, size - fewer)
            values, vectors = torch.linalg.eigh(self.projections[probe, :kept, :kept])
            nodes[probe, :kept], weights[probe, :kept] = values, vectors[0].square()
        return nodes, weights


def extended_memory(dimension: int, steps: int, probes: int = 1) -> int:
    """Bytes of float64 vectors that `extended_lanczos` holds, without the operators' own."""
    return 8 * (min(_even(steps), dimension) + _WORKING_VECTORS) * probes * dimension


def extended_lanczos(
    op: SymmetricMap,
    inverse: SymmetricMap,
    steps: int,
    probes: int = 1,
    start: Tensor | None = None,
    seed: int = 0,
) -> ExtendedRun:
    r"""Project a positive definite A on span{q, A^-1 q, A q, A^-2 q, A^2 q, ...}.

    For functions such as the logarithm, with structure at both ends of a wide spectrum, this
    needs far fewer products than Lanczos with A (V. Druskin, L. Knizhnerman, SIAM J. Matrix Anal.
    Appl. 19, 1998; recursions of C. Jagels, L. Reichel, Linear Algebra Appl. 431, 2009): 7
    products with each of A and A^-1 did for log^2 and log^3 what 30 with each did in two separate
    runs, whose quadratures have to be cut at 1, where log^n is not smooth. And it is one
    quadrature.

    The basis is orthogonalised in full, twice. Of the projection ``T = V' A V`` the columns of
    `A^k q` are known from the products with A; those of ``v_j = (A^-1 v_i - sum_l c_l v_l) / b``
    have, by orthogonality, only the diagonal entry more, ``T_jj = -c_h T_hj / b`` with h the last
    vector multiplied by A. Where small couplings b have made that rounding, which happens in small
    and nearly exhausted spaces, the columns are formed by a product more.

    Args:
        op: A, symmetric positive definite (n, n), float64 (float32 loses small eigenvalues).
        inverse: its inverse.
        steps: products a probe, half with each; an odd number counts as the next even one.
        probes: number k of random starts, signs +-1 / sqrt(n).
        start: (n,) or (n, k) start vectors in their place.
        seed: of the starts' own generator.

    Raises:
        ValueError: steps or probes below 1, operators that are not square or of other dtypes, a
            start of another shape, zero, or not finite.
        TypeError: steps or probes that are not whole numbers.
        FloatingPointError: a product is not finite.

    Examples:
        >>> a = torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
        >>> nodes, weights = extended_lanczos(a, a.inverse(), steps=4).quadrature()
        >>> [round(x, 6) for x in nodes[0, :3].tolist()]
        [0.5, 1.0, 2.0]
    """
    require_whole("steps", steps)
    require_whole("probes", probes)
    q = _start_vectors(op, operator_dimension(op), probes, start, seed)
    # one more than n, so that a space that is everything ends as an invariant one
    columns = min(_even(steps), _even(q.shape[1] + 1))
    basis = q.new_zeros(len(q), columns, q.shape[1])
    basis[:, 0] = q
    table = torch.full((len(q), columns, columns), torch.nan, dtype=torch.float64)
    sizes = torch.zeros(len(q), dtype=torch.int64)
    # the basis vectors are functions of A applied to q: their values at the eigenvalue 1
    values = torch.zeros(len(q), columns + 1, dtype=torch.float64)
    values[:, 0] = 1.0
    # relative rounding of A v_j and A^-1 v_j as the recursions have them, which grows at couplings
    noise = torch.zeros(2, len(q), dtype=torch.float64)
    rounding = torch.finfo(q.dtype).eps
    rows = list(range(len(q)))  # the probes that still run
    products = 0
    for low in range(1, columns, 2):
        # basis[low] comes from the inverse of basis[low - 2], basis[low + 1] from A basis[low - 1]
        high = low - 1
        places = ((inverse, max(0, low - 2), low), (op, high, low + 1))
        found = []
        for side, (map_, source, place) in enumerate(places):
            coupling, scale, known = _next(map_, basis, rows, source, place)
            found.append((coupling, known))
            noise[side, rows] = (noise[side, rows] + rounding) * scale / coupling
            before = values[rows]
            new = (before[:, source] - (known * before[:, :place]).sum(1)) / coupling
            values[rows, place] = torch.where(noise[side, rows] < _TRUSTED_VALUES, new, 0.0)
        (down, inner), (up, outer) = found
        products += 2 * len(rows)
        for row, probe in enumerate(rows):
            size = low + 1 if down[row] > 0 else low
            t = table[probe]
            t[:size, :size] = t[:size, :size].nan_to_num(0.0)
            t[high, :size] = t[:size, high] = outer[row, :size]
            sizes[probe] = size
            if down[row] > 0 and noise[0, probe] < _TRUSTED:
                t[low, low] = -inner[row, high] * t[high, low] / down[row]
            elif down[row] > 0:
                product = _multiply(op, basis[[probe], low], low)[0]
                t[low, :size] = t[:size, low] = (basis[probe, :size] @ product).cpu().double()
                products += 1
        rows = [p for p, a, b in zip(rows, down.tolist(), up.tolist(), strict=True) if a * b > 0]
        if not rows:
            break
    masses = 1 / values[:, :columns].square().cumsum(1)
    return ExtendedRun(table, sizes, masses, products)


def _next(
    op: SymmetricMap, basis: Tensor, rows: list[int], source: int, place: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply a basis vector of each probe, and put what is new of it into the basis.

    Returns:
        The couplings to the new vectors, 0 where there is none, the norms of the products, and
        their coefficients in the basis before, one row a probe; float64 on the CPU.
    """
    product = _multiply(op, basis[rows, source], source)
    scale = _normalised(product)[1]
    coefficients = torch.empty(len(rows), place, dtype=torch.float64)
    for row, probe in enumerate(rows):
        before = basis[probe, :place]
        coefficients[row] = before @ product[row]
        _orthogonalise(product[row], before)
    unit, coupling = _normalised(product)
    coupling[coupling <= BREAKDOWN * scale] = 0.0
    if place < basis.shape[1]:
        basis[rows, place] = unit
    return coupling, scale, coefficients


def _even(steps: int) -> int:
    return steps + steps % 2
