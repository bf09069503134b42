"""The spectral measure of a symmetric operator, exact or by Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_thermo.spectra.estimate import Estimate, jackknife_ratio, mean_estimate
from torch_thermo.spectra.lanczos import LanczosRun, SymmetricMap, lanczos, operator_dimension

_ROUNDINGS = 16.0  # nodes within so many roundings of the largest one count as zero
_TABLE = 2**22  # entries of the table of Gaussians held at a time


@dataclass(frozen=True)
class Extremes:
    """The ends of a spectrum.

    Attributes:
        min: the smallest eigenvalue.
        max: the largest eigenvalue.
    """

    min: Estimate
    max: Estimate


@dataclass(frozen=True, eq=False)
class SpectralMeasure:
    r"""Nodes and weights of $\mu = \frac1n \sum_i \delta_{\lambda_i}$, or of estimates of it.

    Each row is one estimate, the quadrature $\sum_i w_i \delta_{x_i}$ of an independent random
    start (S. Ubaru, J. Chen, Y. Saad, *Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature*, SIAM J. Matrix Anal. Appl. 38, 2017). A quantity is the mean over rows, its
    standard error comes from their spread: NaN with one row, 0 for an exact spectrum.

    Attributes:
        nodes: (k, m) float64 on the CPU, NaN where a row is shorter.
        weights: (k, m) float64 on the CPU, 0 where a row is shorter; normalised to sum 1 per row.
        exact: True when the nodes are all n eigenvalues: one row, equal weights.
        dimension: n.
        resolution: nodes within `resolution * max |x|` of 0 count as zero in `negative_mass`. The
            rounding of the products puts the zero eigenvalues of a semidefinite operator on either
            side of 0; the default is that of float32 products.

    Raises:
        ValueError: shapes that differ, a negative weight, a row without weight, a node that has
            weight and is not finite, an exact measure with several rows or unequal weights.
    """

    nodes: Tensor
    weights: Tensor
    exact: bool
    dimension: int
    resolution: float = _ROUNDINGS * torch.finfo(torch.float32).eps

    def __post_init__(self) -> None:
        nodes, weights = (t.detach().cpu().double() for t in (self.nodes, self.weights))
        if nodes.ndim != 2 or nodes.shape != weights.shape or nodes.numel() == 0:
            raise ValueError(
                "nodes and weights must both be (k, m), "
                f"got {tuple(nodes.shape)} and {tuple(weights.shape)}"
            )
        if self.dimension < 1:
            raise ValueError(f"dimension must be at least 1, got {self.dimension}")
        totals = weights.sum(dim=1, keepdim=True)
        if not bool((weights >= 0.0).all()) or not bool((totals > 0.0).all()):
            raise ValueError("weights must be at least 0 and not all 0 in a row")
        if not bool(torch.isfinite(nodes[weights > 0.0]).all()):
            raise ValueError("nodes that have weight must be finite, got NaN or infinity")
        if self.exact and (len(nodes) > 1 or float(weights.max() - weights.min()) > 0.0):
            raise ValueError("an exact measure must be one row of equal weights")
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "weights", weights / totals)

    @classmethod
    def from_eigenvalues(cls, eigenvalues: Tensor) -> SpectralMeasure:
        """The measure of a known spectrum.

        Args:
            eigenvalues: (n,) in any order.

        Returns:
            A measure with one row of n equal weights.

        Raises:
            ValueError: no eigenvalues, or one that is not finite.
        """
        values = eigenvalues.detach().cpu()
        if values.ndim != 1 or values.numel() == 0:
            raise ValueError(f"eigenvalues must be (n,) with n >= 1, got {tuple(values.shape)}")
        kind = values.dtype if values.is_floating_point() else torch.float64
        nodes = values.double().sort().values[None]
        return cls(
            nodes=nodes,
            weights=torch.ones_like(nodes),
            exact=True,
            dimension=values.numel(),
            resolution=_ROUNDINGS * torch.finfo(kind).eps,
        )

    @classmethod
    def from_run(cls, op: SymmetricMap, run: LanczosRun) -> SpectralMeasure:
        """The quadrature of a Lanczos run: Ritz values and squared first components.

        Args:
            op: the operator (n, n) the run was made with.
            run: from random starts; from others it is the measure of those vectors.
        """
        return cls(
            nodes=run.ritz,
            weights=run.weights,
            exact=False,
            dimension=operator_dimension(op),
            resolution=_ROUNDINGS * torch.finfo(op.dtype).eps,
        )

    @property
    def extremes(self) -> Extremes:
        """The smallest and the largest node over all rows.

        They lie inside the spectrum, so the outermost row is the best one, and the standard error
        is the standard deviation between rows. Residual bounds are the Lanczos run's.
        """
        present = torch.isfinite(self.nodes)
        low = self.nodes.masked_fill(~present, math.inf).amin(dim=1)
        high = self.nodes.masked_fill(~present, -math.inf).amax(dim=1)
        return Extremes(
            min=Estimate(float(low.min()), self._spread(low)),
            max=Estimate(float(high.max()), self._spread(high)),
        )

    def moment(self, p: int) -> Estimate:
        r"""The moment $\frac1n tr A^p = \int x^p d\mu$, unbiased once the steps m exceed p / 2.

        Args:
            p: the order, at least 0.

        Raises:
            ValueError: `p` is negative.
        """
        if p < 0:
            raise ValueError(f"p must be at least 0, got {p}")
        return self._mean(lambda x: x**p)

    def odd_moment(self, p: int) -> Estimate:
        r"""The asymmetry $\sum_i \lambda_i^p / \sum_i |\lambda_i|^p$ for an odd p, in [-1, 1].

        0 for a symmetric spectrum, 1 for a positive semidefinite one; NaN for the zero operator.
        A ratio of means over rows, its standard error by the jackknife over rows. It needs few
        steps, unlike the Wasserstein asymmetry, which a quadrature overestimates.

        Args:
            p: the order, odd and positive.

        Raises:
            ValueError: `p` is not a positive odd number.
        """
        if p < 1 or p % 2 == 0:
            raise ValueError(f"p must be odd and at least 1, got {p}")
        scale = self._largest() or 1.0  # x^5 would overflow or vanish
        signed = self._rows(lambda x: (x / scale) ** p)
        absolute = self._rows(lambda x: (x / scale).abs() ** p)
        ratio = jackknife_ratio(signed, absolute)
        return Estimate(ratio.value, 0.0) if self.exact else ratio

    @property
    def negative_mass(self) -> Estimate:
        """The share of eigenvalues below zero, beyond `resolution`."""
        band = self.resolution * self._largest()
        return self._mean(lambda x: (x < -band).double())

    def density(self, grid: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        r"""The density smoothed by a Gaussian, $\int N(t - x; \sigma) d\mu(x)$.

        Args:
            grid: (g,) points t.
            sigma: width of the Gaussian, above 0.

        Returns:
            The values and their standard errors, (g,) each, float64 on the CPU.

        Raises:
            ValueError: `grid` is not (g,), or `sigma` is not above 0 and finite.
        """
        if not (math.isfinite(sigma) and sigma > 0.0):
            raise ValueError(f"sigma must be above 0 and finite, got {sigma}")
        if grid.ndim != 1:
            raise ValueError(f"grid must be (g,), got {tuple(grid.shape)}")
        points = grid.detach().cpu().double()
        parts = []
        for part in torch.split(points, max(1, _TABLE // self.nodes.numel())):
            z = (part[:, None, None] - self.nodes.nan_to_num(0.0)) / sigma
            parts.append((self.weights * (-0.5 * z.square()).exp()).sum(dim=2))
        rows = torch.cat(parts) / (sigma * math.sqrt(2.0 * math.pi))
        count = rows.shape[1]
        if self.exact:
            stderr = torch.zeros_like(points)
        elif count == 1:
            stderr = torch.full_like(points, math.nan)
        else:
            stderr = rows.std(dim=1) / math.sqrt(count)
        return rows.mean(dim=1), stderr

    @property
    def w_sym(self) -> float:
        r"""The asymmetry $W_1(\lambda, -\lambda) / (2 E|\lambda|)$ in [0, 1], exact spectra only.

        0 for a symmetric spectrum, 1 for a semidefinite one, NaN for the zero operator.

        Raises:
            ValueError: the measure is a quadrature, of which this is biased upward; use
                `odd_moment`.
        """
        if not self.exact:
            raise ValueError(
                "w_sym needs an exact spectrum, of a quadrature it is biased: use odd_moment"
            )
        values = self.nodes[0] / (self._largest() or 1.0)
        mass = float(values.abs().sum())
        # Sorted, -lambda is lambda reversed with the other sign: W1 pairs the two.
        return float((values + values.flip(0)).abs().sum()) / (2.0 * mass) if mass else math.nan

    def _rows(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The integral of a function in each row, (k,)."""
        return (self.weights * function(self.nodes.nan_to_num(0.0))).sum(dim=1)

    def _mean(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        mean = mean_estimate(self._rows(function))
        return Estimate(mean.value, 0.0) if self.exact else mean

    def _spread(self, rows: Tensor) -> float:
        if self.exact:
            return 0.0
        return float(rows.std()) if len(rows) > 1 else math.nan

    def _largest(self) -> float:
        return float(self.nodes.nan_to_num(0.0).abs().max())


def spectral_measure(
    op: SymmetricMap, steps: int = 30, probes: int = 2, seed: int = 0
) -> SpectralMeasure:
    """The spectral measure of an operator by stochastic Lanczos quadrature.

    `lanczos` from independent random signs with full reorthogonalisation: steps * probes products.

    Args:
        op: symmetric operator (n, n) in float32 or float64.
        steps: Lanczos steps m; 30 in a run, 80 for a figure.
        probes: number k of random starts; 2 in a run, 8 for a figure.
        seed: seed of the starts' own generator.

    Returns:
        A quadrature of k rows.

    Raises:
        TypeError, ValueError: an argument `lanczos` refuses.
        FloatingPointError: a product is not finite.
    """
    return SpectralMeasure.from_run(op, lanczos(op, steps, probes=probes, seed=seed))
