"""Free energy of a spectrum of two levels, and the temperature that a gap stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TwoLevelFreeEnergy", "beta_from_gap", "unstable_log_eigenvalue"]

_BISECTIONS = 200


@dataclass(frozen=True)
class TwoLevelFreeEnergy:
    r"""Minus the free energy's Laplacian where a fraction gamma of the eigenvalues is lambda.

    The others are $\lambda^r$, $r = \gamma / (\gamma - 1)$, so that det G = 1 (Vanchurin, eq. 9.3,
    Fig. 1):

        $-\Delta F(\lambda) = \frac{N\beta}{2} \left( \frac{\gamma}{(1 + \beta\lambda)^2}
        + \frac{1 - \gamma}{(1 + \beta\lambda^r)^2} \right)$.

    Attributes:
        beta: inverse temperature, above 0.
        gamma: the fraction, in [0, 1).
        neurons: N.

    Raises:
        ValueError: an argument outside its range.
    """

    beta: float
    gamma: float
    neurons: int = 1

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        _exponent(self.gamma)
        if self.neurons < 1:
            raise ValueError(f"neurons must be at least 1, got {self.neurons}")

    def __call__(self, log_eigenvalue: float | Tensor) -> Tensor:
        r"""$-\Delta F$ at $\log\lambda$, a float or a tensor of any shape; float64 of that shape.

        By logarithms, so that neither level overflows.
        """
        x = torch.as_tensor(log_eigenvalue, dtype=torch.float64)
        levels = (self.gamma, x), (1.0 - self.gamma, _exponent(self.gamma) * x)
        # 1 / (1 + beta lambda) = sigmoid(-log(beta lambda))
        parts = [share * (-math.log(self.beta) - y).sigmoid().square() for share, y in levels]
        return 0.5 * self.neurons * self.beta * (parts[0] + parts[1])

    @property
    def low(self) -> float:
        r"""The plateau for lambda -> 0, $N\beta\gamma/2$; for gamma = 0 it is `one`."""
        if self.gamma == 0.0:
            return self.one
        return 0.5 * self.neurons * self.beta * self.gamma

    @property
    def one(self) -> float:
        r"""The value at lambda = 1, always stationary: $N\beta / (2 (1 + \beta)^2)$."""
        return 0.5 * self.neurons * self.beta / (1.0 + self.beta) ** 2

    @property
    def high(self) -> float:
        r"""The plateau for lambda -> inf, $N\beta(1 - \gamma)/2$; for gamma = 0 it is `one`."""
        if self.gamma == 0.0:
            return self.one
        return 0.5 * self.neurons * self.beta * (1.0 - self.gamma)


def beta_from_gap(log_eigenvalue: float, gamma: float = 0.0) -> float:
    r"""The beta at which eq. 9.3 is stationary at a gap: $1/\beta = p^{2+r} + p^{1+2r}$.

    $p = \lambda^{1/3}$ and $r = \gamma/(\gamma - 1)$. (Setting the derivative of eq. 9.3 to 0 gives
    $1 + \beta p^{3r} = p^{r-1} (1 + \beta p^3)$; p = 1 solves it for all beta, dividing it out
    leaves this.) gamma -> 0 is eq. 9.4: $\beta = 1/(p^2 + p)$, the inverse of
    $\log\lambda = 3 \log(-\frac12 + \sqrt{\frac14 + \frac1\beta})$. At $\log\lambda$ = -2.3, -2.5,
    -3.0 it gives 1.4698, 1.6039, 1.9872, where the paper prints 1.37, 1.40, 1.47.

    Args:
        log_eigenvalue: $\log\lambda$ of the gap.
        gamma: fraction of eigenvalues there, in [0, 1).

    Raises:
        ValueError: an argument outside its range, or not finite.
    """
    if not math.isfinite(log_eigenvalue):
        raise ValueError(f"log_eigenvalue must be finite, got {log_eigenvalue}")
    return math.exp(_log_beta(log_eigenvalue, _exponent(gamma)))


def unstable_log_eigenvalue(beta: float, gamma: float = 0.0) -> float:
    r"""The inverse of `beta_from_gap`: $\log\lambda$ of the stationary point other than 1.

    For gamma = 0 $3 \log(-\frac12 + \sqrt{\frac14 + \frac1\beta})$ (eq. 9.4), for gamma = 1/3
    $2 \log(1/\beta - 1)$, which needs beta < 1. In between by bisection: both powers of p rise.

    Args:
        beta: inverse temperature, above 0.
        gamma: fraction of eigenvalues, in [0, 1/3]; above there may be none or two.

    Raises:
        ValueError: an argument outside its range; gamma = 1/3 and beta of at least 1.
    """
    _check_beta(beta)
    if not 0.0 <= gamma <= 1.0 / 3.0:
        raise ValueError(f"gamma must be in [0, 1/3], got {gamma}")
    if gamma == 1.0 / 3.0 and beta >= 1.0:
        raise ValueError(f"beta must be below 1 for gamma = 1/3, got {beta}: there is no extremum")
    low = high = 0.0
    r, sought = _exponent(gamma), math.log(beta)
    while _log_beta(low, r) < sought:
        low = 2.0 * low - 1.0
    while _log_beta(high, r) > sought:
        high = 2.0 * high + 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (low, middle) if _log_beta(middle, r) < sought else (middle, high)
    return 0.5 * (low + high)


def _check_beta(beta: float) -> None:
    if not (math.isfinite(beta) and beta > 0.0):
        raise ValueError(f"beta must be above 0 and finite, got {beta}")


def _log_beta(log_eigenvalue: float, r: float) -> float:
    powers = [(2.0 + r) * log_eigenvalue / 3.0, (1.0 + 2.0 * r) * log_eigenvalue / 3.0]
    return -max(powers) - math.log1p(math.exp(min(powers) - max(powers)))


def _exponent(gamma: float) -> float:
    """Return r, the power that keeps the determinant at 1."""
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma must be in [0, 1), got {gamma}")
    return gamma / (gamma - 1.0)
