"""The canonical ensemble of a network's states, from the eigenvalues of its propagator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from torch_thermo.observables.spectral_gaps import Gap, spectral_gaps
from torch_thermo.spectra import Estimate, SpectralMeasure
from torch_thermo.spectra.estimate import mean_estimate

__all__ = ["CanonicalEnsemble", "Gap", "Printed", "Quantity", "spectral_gaps"]

Quantity = Literal["log_z", "energy", "entropy", "free_energy", "laplacian", "n_effective"]

_LOG_2_PI = math.log(2.0 * math.pi)
# where beta is looked for; float64 ends at 1e308
_LOG_BETA = (math.log(1e-300), math.log(1e300))
_BISECTIONS = 200


@dataclass(frozen=True)
class Printed:
    r"""What the paper's formulas give as they are printed, at one beta.

    Attributes:
        beta: the inverse temperature.
        count: the hard count $N_>$ of eigenvalues $\lambda > 1/\beta$; an estimate of it where the
            spectrum is one.
        energy: $N_> / (2\beta)$ (eq. 10.1). The exact one has `n_effective` in place of $N_>$.
        entropy: $S_0 = -\frac{N_>}{2} \log\beta$ (eq. 10.3). Where all of $N_>$ are far above
            $1/\beta$ and the others far below, the exact entropy is
            $S_0 + C_{N_>} + N_> / 2$.
        entropy_7_1: $\beta U + Z$, as eq. 7.1 prints it, with Z for $\log Z$; infinite where
            Z exceeds float64, as $(2\pi)^{N/2}$ does from N = 773 on.
    """

    beta: float
    count: float
    energy: float
    entropy: float
    entropy_7_1: float


class CanonicalEnsemble:
    r"""States x with the weight $\exp(-\beta x^T (G - m) x / 2) \exp(-x^2/2)$, a Gaussian.

    With $d_i = 1 - \beta m + \beta \lambda_i$ for the eigenvalues $\lambda_i$ of the propagator
    $G = (1 - f'w)^T (1 - f'w)$,

        $Z = \int d^N x\, e^{-\frac12 \sum_i d_i x_i^2}$,
        $\log Z = -\frac12 \sum_i \log d_i + \frac N2 \log 2\pi$,

    and all else follows from it: $U = -\partial_\beta \log Z$, $F = -\log Z / \beta$,
    $S = \beta U + \log Z = -\partial F / \partial T$ with $T = 1/\beta$. (V. Vanchurin, *Towards a
    theory of machine learning*, secs. 5-10, eq. 3.4 for m. Eq. 7.1 prints $S = \beta U + Z$; see
    `printed`.) Energies are in the units of the bulk loss, $\lambda$ and $\beta$ have none.

    Quantities are functions of beta, a float or a tensor of any shape, above 0 and finite and with
    all $d_i > 0$; they return a float64 tensor of that shape, differentiable in beta and in the
    eigenvalues. Of a measure with several rows (probes, samples) they are means over the rows;
    `estimate` gives the standard error.

    Args:
        g_eigenvalues_or_measure: the eigenvalues of G, (N,), above 0; or a `SpectralMeasure` of
            log G, as `propagator_spectrum` returns it, exact or not.
        m: of the local objective, eq. 3.4, at least 0.

    Attributes:
        measure: of log G.
        m: as given.
        neurons: N.
        beta_limit: the beta below which all d_i are above 0: $1/(m - \lambda_{\min})$, infinite
            for $m \le \lambda_{\min}$.

    Raises:
        ValueError: no eigenvalues, one that is not finite and above 0, m below 0 or not finite.
    """

    def __init__(self, g_eigenvalues_or_measure: Tensor | SpectralMeasure, m: float = 0.0) -> None:
        if not (math.isfinite(m) and m >= 0.0):
            raise ValueError(f"m must be at least 0 and finite, got {m}")
        self.m = float(m)
        if isinstance(g_eigenvalues_or_measure, SpectralMeasure):
            self.measure = g_eigenvalues_or_measure
            self._logs = self.measure.nodes.nan_to_num(0.0)
            self._lambdas = self._logs.exp()
        else:
            self._lambdas = _checked(g_eigenvalues_or_measure)[None]
            self._logs = self._lambdas.log()
            self.measure = SpectralMeasure.from_eigenvalues(self._logs[0])
        self.neurons = self.measure.dimension
        # from_eigenvalues sorts, and its weights are equal: they fit any order
        self._counts = self.neurons * self.measure.weights
        present = self._counts > 0.0
        self._lowest = float(self._lambdas.detach()[present].min())
        self.beta_limit = 1.0 / (self.m - self._lowest) if self.m > self._lowest else math.inf

    def log_z(self, beta: float | Tensor) -> Tensor:
        r"""$\log Z = -\frac12 \sum_i \log d_i + \frac N2 \log 2\pi$.

        Raises:
            ValueError: as for the class.
        """
        return self._sum(beta, lambda z, _: -0.5 * z.log1p()) + 0.5 * self.neurons * _LOG_2_PI

    def energy(self, beta: float | Tensor) -> Tensor:
        r"""$U = -\partial_\beta \log Z = \frac12 \sum_i (\lambda_i - m) / d_i$.

        Raises:
            ValueError: as for the class.
        """
        excess = self._lambdas - self.m
        return self._sum(beta, lambda z, _: 0.5 * excess / (1.0 + z))

    def entropy(self, beta: float | Tensor) -> Tensor:
        r"""$S = \beta U + \log Z$, the mean of $-\log(p / e^{-x^2/2})$ over the states.

        Raises:
            ValueError: as for the class.
        """
        return 0.5 * self.n_effective(beta) + self.log_z(beta)

    def free_energy(self, beta: float | Tensor) -> Tensor:
        r"""$F = -\log Z / \beta = U - S / \beta$.

        Raises:
            ValueError: as for the class.
        """
        return -self.log_z(beta) / _tensor(beta)

    def laplacian(self, beta: float | Tensor) -> Tensor:
        r"""$\sum_i \partial^2 F / \partial \lambda_i^2 = -\frac\beta2 \sum_i d_i^{-2}$ (eq. 8.10).

        Raises:
            ValueError: as for the class.
        """
        return self._sum(beta, lambda z, b: -0.5 * b / (1.0 + z).square())

    def n_effective(self, beta: float | Tensor) -> Tensor:
        r"""$N_{eff} = \sum_i \beta (\lambda_i - m) / d_i$: exactly, $U = N_{eff} / (2\beta)$.

        For m = 0 it lies between 0 and N, and counts the eigenvalues above $1/\beta$ softly.

        Raises:
            ValueError: as for the class.
        """
        return self._sum(beta, lambda z, _: z / (1.0 + z))

    def complexity(self, n: int) -> float:
        r"""$C_n = -\frac12 \sum_{i \le n} \log \lambda_i + \frac N2 \log 2\pi$ (eq. 10.5).

        The eigenvalues in descending order, so that n = N gives $\frac N2 \log 2\pi$ for a
        propagator, whose determinant is 1. Of several exact spectra (one a sample) the mean.

        Args:
            n: number of eigenvalues, 0 to N.

        Raises:
            TypeError: n is not a whole number.
            ValueError: n outside 0 to N; a spectrum that is known by quadrature only.
        """
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"n must be a whole number, got {n!r}")
        if not 0 <= n <= self.neurons:
            raise ValueError(f"n must be 0 to {self.neurons}, the number of neurons, got {n}")
        ordered = self._exact("complexity")
        return float(-0.5 * ordered[:, :n].detach().sum(1).mean()) + 0.5 * self.neurons * _LOG_2_PI

    def estimate(self, quantity: Quantity, beta: float) -> Estimate:
        """A quantity with its standard error over the rows of the measure.

        Args:
            quantity: its name.
            beta: a number.

        Returns:
            Its value; the error is 0 for an exact spectrum, NaN for one row that is not.

        Raises:
            ValueError: another name, and as for the class.
        """
        if quantity not in get_args(Quantity):
            raise ValueError(f"quantity must be of {sorted(get_args(Quantity))}, got {quantity!r}")
        if self.measure.exact:
            return Estimate(float(getattr(self, quantity)(beta)), 0.0)
        rows = []
        for nodes, weights in zip(self.measure.nodes, self.measure.weights, strict=True):
            row = SpectralMeasure(nodes[None], weights[None], False, self.neurons)
            rows.append(getattr(CanonicalEnsemble(row, self.m), quantity)(float(beta)))
        return mean_estimate(torch.stack(rows))

    def beta_from_energy(self, u: float) -> float:
        r"""The beta whose energy is u, by bisection in $\log\beta$.

        U falls with beta, from $U(0) = (tr\,G - mN)/2$ towards 0, or without bound at
        `beta_limit` where that is finite; betas are looked for from 1e-300 to 1e300.

        Args:
            u: a measured energy: the mean bulk loss of a sample.

        Raises:
            ValueError: u is outside the range; it says the range.
        """
        top = float((self._counts * (self._lambdas.detach() - self.m)).sum(1).mean()) / 2.0
        # what float64 reaches of the end of the range
        bottom = float(self.energy(self._highest_beta(-math.inf)).detach())
        if not bottom < u < top:
            raise ValueError(
                f"u must lie between {bottom:g} and U(0) = (tr G - m N)/2 = {top:g}, the energies "
                f"of this ensemble, got {u}"
            )
        return self._highest_beta(u)

    def _highest_beta(self, u: float) -> float:
        """The highest beta whose energy is above u, as finely as float64 has its logarithm."""
        low, high = _LOG_BETA
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            beta = math.exp(middle)
            # beyond the limit the energy counts as below all others
            above = self._allows(beta) and float(self.energy(beta).detach()) > u
            low, high = (middle, high) if above else (low, middle)
        return math.exp(low)

    @property
    def log_eigenvalues(self) -> Tensor:
        """(N,) log lambda of an exact spectrum, in descending order.

        Raises:
            ValueError: several rows, or a quadrature.
        """
        logs = self._exact("log_eigenvalues")
        if len(logs) > 1:
            raise ValueError(f"log_eigenvalues are those of one spectrum, got {len(logs)}")
        return logs[0]

    def gaps(self, share: float = 0.5) -> list[Gap]:
        """The widest gaps of an exact spectrum of log G; see `spectral_gaps`.

        Raises:
            ValueError: share outside (0, 1], and as for `log_eigenvalues`.
        """
        return spectral_gaps(self.log_eigenvalues, share)

    def printed(self, beta: float) -> Printed:
        r"""Eqs. 7.1, 10.1 and 10.3 as printed, to be read beside the exact forms.

        With the hard count $N_>$ eq. 10.1 fails near $\beta = 1$, where the many eigenvalues of
        log G at 0 are neither far above nor far below $1/\beta$.

        Raises:
            ValueError: as for the class.
        """
        value = float(self._beta(beta))
        above = (self._counts * (self._logs.detach() > -math.log(value))).sum(1)
        count = float(above.mean())
        log_z = float(self.log_z(value))
        z = math.exp(log_z) if log_z < math.log(torch.finfo(torch.float64).max) else math.inf
        return Printed(
            beta=value,
            count=count,
            energy=count / (2.0 * value),
            entropy=-0.5 * count * math.log(value),
            entropy_7_1=value * float(self.energy(value)) + z,
        )

    def _sum(self, beta: float | Tensor, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the sum over eigenvalues of a function of z = d - 1 and beta, mean over rows."""
        b = self._beta(beta)[..., None, None]
        # d = 1 + z
        z = b * (self._lambdas - self.m)
        # a row that is shorter is padded: its nodes have no weight
        return (self._counts * term(z, b)).sum(-1).mean(-1)

    def _beta(self, beta: float | Tensor) -> Tensor:
        values = _tensor(beta)
        flat = values.detach()
        if not bool((torch.isfinite(flat) & (flat > 0.0)).all()):
            wrong = flat[~(torch.isfinite(flat) & (flat > 0.0))].reshape(-1)[0]
            raise ValueError(f"beta must be above 0 and finite, got {float(wrong):g}")
        if flat.numel() and not self._allows(float(flat.max())):
            raise ValueError(
                f"beta must be below 1/(m - lambda_min) = {self.beta_limit:.6g} for m = {self.m:g} "
                f"and the smallest eigenvalue {self._lowest:.6g}: 1 - beta m + beta lambda must be "
                f"above 0, got beta = {float(flat.max()):g}"
            )
        return values

    def _allows(self, beta: float) -> bool:
        return 1.0 + beta * (self._lowest - self.m) > 0.0

    def _exact(self, what: str) -> Tensor:
        """Return the logarithms of all eigenvalues in descending order, a row a spectrum.

        Raises:
            ValueError: they are not known.
        """
        weights = self.measure.weights
        if self._logs.shape[1] != self.neurons or not bool((weights == weights[0, 0]).all()):
            raise ValueError(
                f"{what} needs all {self.neurons} eigenvalues, got a quadrature of "
                f"{self._logs.shape[1]} nodes a row"
            )
        return self._logs.sort(dim=1, descending=True).values


def _checked(eigenvalues: Tensor) -> Tensor:
    """Return the eigenvalues of G in float64 on the CPU, still differentiable."""
    if eigenvalues.ndim != 1 or eigenvalues.numel() == 0:
        raise ValueError(f"eigenvalues must be (N,) with N >= 1, got {tuple(eigenvalues.shape)}")
    values = eigenvalues.cpu().double()
    wrong = ~(torch.isfinite(values) & (values > 0.0))
    if bool(wrong.any()):
        raise ValueError(
            f"the eigenvalues of G must be finite and above 0, got {float(values[wrong][0]):g}: "
            "where they underflow give a SpectralMeasure of log G"
        )
    return values


def _tensor(beta: float | Tensor) -> Tensor:
    if isinstance(beta, Tensor):
        return beta.cpu().double()
    return torch.tensor(float(beta), dtype=torch.float64)
