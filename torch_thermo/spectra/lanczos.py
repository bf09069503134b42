"""Lanczos iteration on operators that are known by their products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from torch_thermo.spectra.arguments import require_whole
from torch_thermo.spectra.probes import rademacher

Basis = Literal["full", "none"]

# A coupling below this many units of rounding of the operator's norm is noise of the product.
_BREAKDOWN = 10.0
# Vectors of length n a probe holds beside the basis: current and last vector, the operator's
# argument, its product, and two temporaries of the norm.
_WORKING_VECTORS = 6


class SymmetricMap(Protocol):
    """What spectra need of a linear map; a symmetric `torch.Tensor` is one.

    An operator may also have `blocks: dict[str, slice]`, the disjoint slices of its coordinates by
    parameter, which trace estimates use.
    """

    @property
    def shape(self) -> Sequence[int]:
        """(n, n)."""

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64: the precision of the products."""

    @property
    def device(self) -> torch.device:
        """Where the products are made."""

    def __matmul__(self, other: Tensor, /) -> Tensor:
        """The product with (n,) or (n, k) vectors, of the same shape."""


@dataclass(frozen=True, eq=False)
class LanczosRun:
    """Tridiagonal matrices of k probes and what follows from them; float64 on the CPU.

    A probe that stopped before step m is padded with NaN, and with 0 in `weights`.

    Attributes:
        alphas: (k, m) diagonals of the tridiagonal matrices T.
        betas: (k, m-1) their off-diagonals.
        ritz: (k, m) eigenvalues of T, ascending.
        residuals: (k, m) residual bounds of the Ritz values, beta_m |s_mi|: an eigenvalue of the
            operator lies within this distance of the Ritz value, up to the rounding of the
            products.
        weights: (k, m) squared first components of T's eigenvectors, the Gauss quadrature of the
            operator's spectral measure seen from the start vector; they sum to 1 per probe.
        steps: (k,) int64, the steps each probe made.
        products: number of columns multiplied by the operator.
    """

    alphas: Tensor
    betas: Tensor
    ritz: Tensor
    residuals: Tensor
    weights: Tensor
    steps: Tensor
    products: int
    _extreme_vectors: Tensor | None = field(default=None, repr=False)

    @property
    def extreme_vectors(self) -> Tensor:
        """(n, 2) unit Ritz vectors of probe 0's smallest and largest Ritz value.

        In the operator's dtype and on its device; both columns are the same vector when the probe
        made one step. Their sum is a warm start for an operator that has changed a little.

        Raises:
            ValueError: the run kept no basis (`basis="none"`).
        """
        if self._extreme_vectors is None:
            raise ValueError('extreme_vectors needs a run with basis="full", got basis="none"')
        return self._extreme_vectors


def lanczos_memory(
    dimension: int,
    steps: int,
    probes: int = 1,
    basis: Basis = "full",
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of vectors that `lanczos` holds on the operator's device, without the operator's own.

    (m + 6) k n items with `basis="full"`, 6 k n without, m = min(steps, n).

    Args:
        dimension: n.
        steps: as for `lanczos`.
        probes: number k of probes.
        basis: as for `lanczos`.
        dtype: the operator's.

    Returns:
        The number of bytes.

    Raises:
        TypeError, ValueError: an argument `lanczos` would refuse.
    """
    _check_arguments(steps, probes, basis, None)
    kept = min(steps, dimension) if basis == "full" else 0
    item = torch.finfo(dtype).bits // 8
    return (kept + _WORKING_VECTORS) * probes * dimension * item


def lanczos(
    op: SymmetricMap,
    steps: int,
    probes: int = 1,
    basis: Basis = "full",
    start: Tensor | None = None,
    tol: float | None = None,
    seed: int = 0,
) -> LanczosRun:
    r"""Lanczos iteration from k start vectors in lockstep, one product with k columns a step.

    From a unit vector $q_1$, $\beta_j q_{j+1} = A q_j - \alpha_j q_j - \beta_{j-1} q_{j-1}$ with
    $\alpha_j = q_j' A q_j$ (C. Lanczos 1950; B. N. Parlett, *The Symmetric Eigenvalue Problem*,
    chapter 13). Products and vectors have the operator's dtype, the tridiagonal matrix is float64
    on the CPU.

    With `basis="full"` all vectors are kept, m k n numbers, and each new one is orthogonalised
    twice against all before it. With `basis="none"` only the last two are: O(n) memory, but as
    orthogonality is lost, copies of converged eigenvalues ("ghosts") appear. They leave extremes
    and smoothed densities right and make counts wrong.

    A probe ends before `steps` at a breakdown, where its Krylov space is invariant and its Ritz
    values are exact (always so for the zero operator), or where `tol` is met; the others go on.

    Args:
        op: symmetric operator (n, n) in float32 or float64; symmetry is not checked.
        steps: number m of steps; more than n are cut to n.
        probes: number k of start vectors.
        basis: "full" or "none".
        start: (n,) or (n, k) start vectors, normalised and used as they are (a warm start), in
            place of random ones. Random starts are independent signs +-1 / sqrt(n); Hadamard
            groups, which share their noise within blocks, would make a spread over probes too
            small.
        tol: end a probe when the residual bounds of both extreme Ritz values are at most
            tol * max |ritz|.
        seed: seed of the random starts' own generator.

    Returns:
        The run, with m = min(steps, n) columns.

    Raises:
        ValueError: steps or probes below 1, an unknown basis, a negative tol, an operator that is
            not square or not float32 or float64, a start of another shape, zero, or not finite.
        TypeError: steps or probes that are not whole numbers.
        FloatingPointError: a product is not finite.

    Examples:
        >>> run = lanczos(torch.diag(torch.tensor([-1.0, 0.0, 2.0])), steps=3)
        >>> [round(value, 5) + 0.0 for value in run.ritz[0].tolist()]
        [-1.0, 0.0, 2.0]
    """
    _check_arguments(steps, probes, basis, tol)
    dimension = operator_dimension(op)
    q = _start_vectors(op, dimension, probes, start, seed)
    table = _Tables(q.shape[0], min(steps, dimension))
    kept = q.new_empty((q.shape[0], table.columns, dimension)) if basis == "full" else None
    noise = _BREAKDOWN * torch.finfo(op.dtype).eps
    rows = list(range(q.shape[0]))  # the probes that still run; q and last hold these rows only
    last, coupling = torch.zeros_like(q), q.new_zeros(len(rows))
    scale = torch.zeros(len(rows), dtype=torch.float64)
    for step in range(table.columns):
        product = _multiply(op, q, step)
        scale = torch.maximum(scale, _normalised(product)[1])
        w = product - coupling[:, None] * last
        del product
        alpha = (q * w).sum(dim=1)
        w -= alpha[:, None] * q
        if kept is not None:
            for row, probe in enumerate(rows):
                kept[probe, step] = q[row]
                _orthogonalise(w[row], kept[probe, : step + 1])
        unit, beta = _normalised(w)
        del w
        table.record(rows, step, alpha, beta)
        running = [
            row
            for row, probe in enumerate(rows)
            if beta[row] > noise * scale[row] and not table.converged(probe, tol)
        ]
        if not running:
            break
        last, q, coupling = q, unit, beta.to(q.dtype).to(q.device)
        if len(running) < len(rows):
            rows = [rows[row] for row in running]
            last, q, coupling = last[running], q[running], coupling[running]
            scale = scale[running]
    return table.finish(kept)


class _Tables:
    """The tridiagonal matrices while they grow."""

    def __init__(self, probes: int, columns: int) -> None:
        self.columns = columns
        self.alphas = torch.full((probes, columns), torch.nan, dtype=torch.float64)
        self.betas = torch.full((probes, columns), torch.nan, dtype=torch.float64)
        self.steps = torch.zeros(probes, dtype=torch.int64)

    def record(self, rows: list[int], step: int, alpha: Tensor, beta: Tensor) -> None:
        self.alphas[rows, step] = alpha.cpu().double()
        self.betas[rows, step] = beta
        self.steps[rows] = step + 1

    def solve(self, probe: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values, eigenvectors of T in columns, and residual bounds."""
        size = int(self.steps[probe])
        off = self.betas[probe, : size - 1]
        tridiagonal = torch.diag(self.alphas[probe, :size])
        tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
        ritz, vectors = torch.linalg.eigh(tridiagonal)
        return ritz, vectors, self.betas[probe, size - 1] * vectors[-1].abs()

    def converged(self, probe: int, tol: float | None) -> bool:
        if tol is None:
            return False
        ritz, _, residuals = self.solve(probe)
        bound = tol * float(ritz.abs().max())
        return float(residuals[0]) <= bound and float(residuals[-1]) <= bound

    def finish(self, kept: Tensor | None) -> LanczosRun:
        shape = self.alphas.shape
        ritz = torch.full(shape, torch.nan, dtype=torch.float64)
        residuals, weights = ritz.clone(), torch.zeros(shape, dtype=torch.float64)
        betas = self.betas[:, :-1].clone()
        extremes = None
        for probe, size in enumerate(self.steps.tolist()):
            values, vectors, bounds = self.solve(probe)
            ritz[probe, :size], residuals[probe, :size] = values, bounds
            weights[probe, :size] = vectors[0].square()
            betas[probe, size - 1 :] = torch.nan
            if probe == 0 and kept is not None:
                ends = vectors[:, [0, -1]].to(kept.dtype).to(kept.device)
                extremes = kept[0, :size].T @ ends
        return LanczosRun(
            alphas=self.alphas,
            betas=betas,
            ritz=ritz,
            residuals=residuals,
            weights=weights,
            steps=self.steps,
            products=int(self.steps.sum()),
            _extreme_vectors=extremes,
        )


def operator_dimension(op: SymmetricMap) -> int:
    """The n of an (n, n) operator.

    Raises:
        ValueError: the operator is not square, is empty, or is not float32 or float64.
    """
    shape = tuple(op.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"op must be square with at least 1 row, got shape {shape}")
    if op.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"op must be float32 or float64, got {op.dtype}")
    return int(shape[0])


def check_finite(values: Tensor, step: int) -> None:
    """Refuse a product that is not finite, before an eigenvalue solver meets it.

    Raises:
        FloatingPointError: a value is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError(
            f"the operator's product in step {step} is not finite: "
            "the weights or the loss hold NaN or infinity"
        )


def _check_arguments(steps: int, probes: int, basis: str, tol: float | None) -> None:
    require_whole("steps", steps)
    require_whole("probes", probes)
    if basis not in ("full", "none"):
        raise ValueError(f'basis must be "full" or "none", got {basis!r}')
    if tol is not None and not tol >= 0.0:
        raise ValueError(f"tol must be at least 0, got {tol}")


def _start_vectors(
    op: SymmetricMap, dimension: int, probes: int, start: Tensor | None, seed: int
) -> Tensor:
    """Unit start vectors in the rows of a (k, n) tensor."""
    if start is None:
        start = rademacher(dimension, probes, seed)
    columns = start.detach().reshape(-1, 1) if start.ndim == 1 else start.detach()
    if columns.ndim != 2 or columns.shape[0] != dimension or columns.shape[1] < 1:
        raise ValueError(
            f"start must be ({dimension},) or ({dimension}, k), got {tuple(start.shape)}"
        )
    if probes not in (1, columns.shape[1]):
        raise ValueError(f"probes must be start's {columns.shape[1]} columns, got {probes}")
    rows = columns.to(device=op.device, dtype=op.dtype).T.contiguous()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("start must be finite, got NaN or infinity")
    unit, norms = _normalised(rows)
    if not bool((norms > 0.0).all()):
        raise ValueError("start must not be zero, got a column of zeros")
    return unit


def _multiply(op: SymmetricMap, rows: Tensor, step: int) -> Tensor:
    """The operator times the rows, as rows."""
    columns = rows.T.contiguous()
    product = (op @ columns).detach()
    if product.shape != columns.shape:
        raise ValueError(
            f"op @ v must have v's shape {tuple(columns.shape)}, got {tuple(product.shape)}"
        )
    product = product.to(rows.dtype).T.contiguous()
    check_finite(product.abs().amax(dim=1), step)
    return product


def _normalised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows on their device and their norms, (k,) float64 on the CPU; a zero row stays zero.

    Scaled by the largest entry first: squares of small float32 entries underflow.
    """
    peak = rows.abs().amax(dim=1)
    unit = rows / torch.where(peak > 0, peak, torch.ones_like(peak))[:, None]
    # Not vector_norm: torch's sum is pairwise, which float32 needs at 1e7 entries.
    length = unit.square().sum(dim=1).sqrt()
    unit /= torch.where(length > 0, length, torch.ones_like(length))[:, None]
    return unit, peak.cpu().double() * length.cpu().double()


def _orthogonalise(vector: Tensor, basis: Tensor) -> None:
    """Remove from (n,) `vector`, in place, its parts along the (j, n) orthonormal `basis`.

    Twice: one pass leaves parts of the size of the rounding of what it removed (Parlett, chapter
    6, "twice is enough").
    """
    for _ in range(2):
        vector.addmv_(basis.T, basis @ vector, alpha=-1.0)
