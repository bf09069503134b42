"""Is a sample symmetric about zero? Tests and measures of plain samples, knowing no model.

Exact zeros carry no sign and agree with any symmetry: they are left out everywhere, and `n` counts
the others. (The Wasserstein asymmetry does not change with them.) p-values and intervals hold for
independent entries; entries of one weight matrix or gradient are not, so there they describe and
do not test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

_Z95 = NormalDist().inv_cdf(0.975)
_NANS = (math.nan, math.nan)


@dataclass(frozen=True)
class SignBalance:
    """Positive minus negative entries, as a share.

    Attributes:
        n: number of nonzero entries.
        value: (n+ - n-) / n in [-1, 1]; NaN when n = 0.
        interval: its 95 % Wilson interval.
    """

    n: int
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class SymmetryTest:
    """What a sample says about its symmetry about zero.

    Attributes:
        n: number of nonzero values.
        sign_balance: (n+ - n-) / n.
        interval: 95 % Wilson interval of the sign balance.
        butler: Butler's statistic D in [0, 1].
        butler_p: its p-value from the asymptotic law; too large for small n.
        odd_moment: sum v^3 / sum |v|^3 in [-1, 1].
        w_sym: W1(v, -v) / (2 E|v|) in [0, 1]; 0 symmetric, 1 one-sided.
        w_sym_null: the mean of `w_sym` when the same |v| get random signs: the floor to compare
            it with.
        reason: why all of them are NaN, or None.
    """

    n: int
    sign_balance: float
    interval: tuple[float, float]
    butler: float
    butler_p: float
    odd_moment: float
    w_sym: float
    w_sym_null: float
    reason: str | None = None


def sign_balance(values: Tensor) -> SignBalance:
    r"""Sign balance with its Wilson interval; two passes over the values, wherever they are.

    With s = (n+ - n-) / n, the interval of E. B. Wilson (J. Am. Stat. Assoc. 22, 1927) for the
    share (1 + s) / 2 of positive values, moved to [-1, 1], is
    $\frac{s \pm z \sqrt{(1 - s^2) / n + z^2 / n^2}}{1 + z^2 / n}$ with z = 1.96.

    Args:
        values: real tensor of any shape.

    Returns:
        The balance of the nonzero values; NaN when there are none.

    Raises:
        ValueError: a value is NaN or infinite, or complex.
        TypeError: `values` is not a tensor.
    """
    flat = _checked(values)
    positive, negative = int((flat > 0).sum()), int((flat < 0).sum())
    n = positive + negative
    if n == 0:
        return SignBalance(0, math.nan, _NANS)
    return SignBalance(n, (positive - negative) / n, _wilson(positive - negative, n))


def symmetry_test(values: Tensor, seed: int = 0, flips: int = 32) -> SymmetryTest:
    r"""Test and measure the symmetry of a sample about zero.

    - Butler's test (C. C. Butler, Ann. Math. Stat. 40, 1969): with the values ordered by
      descending |v|, $D = \max_k |\sum_{j \le k} sign(v_j)| / n$. The partial sums are read only
      where |v| changes: values of equal size enter together, so their order can't matter and
      neither sign is favoured. Under symmetry $\sqrt n D$ follows the supremum of |Brownian
      motion| on [0, 1]; critical values 1.960, 2.241, 2.807 at 10, 5, 1 %.
    - odd moment: $\sum v^3 / \sum |v|^3$.
    - Wasserstein asymmetry: with $C_k$ the same partial sums and $a_k$ the ordered |v|,
      $W_1(v, -v) / (2 E|v|) = \sum_k |C_k| (a_k - a_{k+1}) / \sum_k a_k$. It is positive on finite
      symmetric samples, more so for heavy tails: read it beside its null.

    S. W. M. Li's claim of symmetry (Figs. 3, 4) is about such samples. Sample skewness is left
    out: on products of many factors it is unsound.

    Args:
        values: real tensor of any shape.
        seed: seed of the null's own generator.
        flips: number of sign flips behind `w_sym_null`, at least 1.

    Returns:
        The test; all NaN, with the reason, when no value is nonzero.

    Raises:
        ValueError: a value is NaN or infinite or complex, or `flips` is below 1.
        TypeError: `values` is not a tensor.

    Examples:
        >>> test = symmetry_test(torch.tensor([3.0, -3.0, 1.0, -1.0]))
        >>> test.sign_balance, test.butler, test.odd_moment, test.w_sym
        (0.0, 0.0, 0.0, 0.0)
    """
    if flips < 1:
        raise ValueError(f"flips must be at least 1, got {flips}")
    flat = _checked(values).cpu().double()
    total = flat.numel()
    flat = flat[flat != 0]
    n = flat.numel()
    if n == 0:
        reason = f"no nonzero value among {total}"
        return SymmetryTest(0, math.nan, _NANS, *(math.nan,) * 5, reason=reason)
    # The largest is made 1, or cubes and sums could overflow; the smallest may reach 0, no matter.
    size, order = flat.abs().sort(descending=True)
    size = size / size[0]
    signs = flat[order].sign()
    gaps = size - torch.cat([size[1:], size.new_zeros(1)])
    walk = signs.cumsum(0)
    butler = float(walk[gaps > 0].abs().max()) / n
    cubes = size**3
    mass = size.sum()
    generator = torch.Generator().manual_seed(seed)
    null = 0.0
    for _ in range(flips):
        flipped = torch.randint(0, 2, (n,), generator=generator).mul_(2).sub_(1)
        null += float((flipped.cumsum(0).abs() * gaps).sum() / mass) / flips
    surplus = round(float(walk[-1]))
    return SymmetryTest(
        n=n,
        sign_balance=surplus / n,
        interval=_wilson(surplus, n),
        butler=butler,
        butler_p=_brownian_tail(math.sqrt(n) * butler),
        odd_moment=float((signs * cubes).sum() / cubes.sum()),
        w_sym=float((walk.abs() * gaps).sum() / mass),
        w_sym_null=null,
    )


def _checked(values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a tensor, got {type(values).__name__}")
    flat = values.detach().reshape(-1)
    if flat.is_complex():
        raise ValueError(f"values must be real, got {flat.dtype}")
    if not bool(torch.isfinite(flat).all()):
        bad = int((~torch.isfinite(flat)).sum())
        raise ValueError(f"values must be finite, got {bad} NaN or infinite of {flat.numel()}")
    return flat


def _wilson(surplus: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of the balance `surplus / n`."""
    balance, z2 = surplus / n, _Z95**2
    half = math.sqrt(z2 * ((1.0 - balance**2) / n + z2 / n**2))
    low, high = ((balance + sign * half) / (1.0 + z2 / n) for sign in (-1.0, 1.0))
    return max(low, -1.0), min(high, 1.0)


def _brownian_tail(x: float) -> float:
    r"""P(sup |W| > x) of Brownian motion on [0, 1].

    For small x, $1 - \frac4\pi \sum_k \frac{(-1)^k}{2k+1} e^{-\pi^2 (2k+1)^2 / (8 x^2)}$; from 1 on
    the reflected sum $2 \sum_k (-1)^k erfc((2k+1) x / \sqrt 2)$, which keeps its relative accuracy
    where the probability is small (W. Feller, *An Introduction to Probability Theory* II, X.5).
    """
    if x <= 0.0:
        return 1.0
    terms = [(2 - k % 4, k) for k in range(1, 21, 2)]  # signs +, -, +, ... of 1, 3, 5, ...
    if x < 1.0:
        decay = math.pi**2 / (8.0 * x * x)
        return 1.0 - 4.0 / math.pi * sum(sign / k * math.exp(-decay * k * k) for sign, k in terms)
    return 2.0 * sum(sign * math.erfc(k * x / math.sqrt(2.0)) for sign, k in terms)
