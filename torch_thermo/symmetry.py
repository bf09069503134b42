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
_PIECE = 2**18


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
        butler_p: its p-value from the asymptotic law. Small samples are rejected too seldom, but
            for a few n (4, 21, 26), where it is a twentieth to a fourth too often at 10 %.
        odd_moment: sum v^3 / sum |v|^3 in [-1, 1].
        w_sym: W1(v, -v) / (2 E|v|) in [0, 1]; 0 symmetric, 1 one-sided.
        w_sym_null: the mean of `w_sym` when the same |v| get random signs: the floor to compare
            it with.
        reason: why all of them are NaN, or None.
        ranked: number of values behind `butler`, `butler_p`, `w_sym` and `w_sym_null`.
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
    ranked: int = 0


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
        ValueError: a value is NaN or infinite, or the values are complex, sparse, or of a dtype
            that torch cannot compare.
        TypeError: `values` is not a tensor.
    """
    flat = _checked(values)
    positive, negative = _signs(flat)
    n = positive + negative
    if n == 0:
        return SignBalance(0, math.nan, _NANS)
    return SignBalance(n, (positive - negative) / n, _wilson(positive - negative, n))


def symmetry_test(values: Tensor, seed: int = 0, most: int | None = None) -> SymmetryTest:
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
    - that null: random signs make $C_k$ a simple random walk, so the mean of the asymmetry over
      all sign flips is $\sum_k E|C_k| (a_k - a_{k+1}) / \sum_k a_k$ with the walk's
      $E|C_{2m-1}| = E|C_{2m}| = 2m \binom{2m}{m} 4^{-m}$, exactly and without drawing any.

    S. W. M. Li's claim of symmetry (Figs. 3, 4) is about such samples. Sample skewness is left
    out: on products of many factors it is unsound.

    Args:
        values: real tensor of any shape.
        seed: of the choice that `most` makes.
        most: order at most so many of the nonzero values by size, drawn without replacement and
            evenly over the sample: sorting is what costs. Sign balance, interval and odd moment
            are those of all values; Butler's test, `w_sym` and its null those of the `ranked`.
            None: order all.

    Returns:
        The test; all NaN, with the reason, when no value is nonzero.

    Raises:
        ValueError: `most` is below 1, a value is NaN or infinite, or the values are complex,
            sparse, or of a dtype that torch cannot compare.
        TypeError: `values` is not a tensor, `most` or `seed` no whole number.

    Examples:
        >>> test = symmetry_test(torch.tensor([3.0, -3.0, 1.0, -1.0]))
        >>> test.sign_balance, test.butler, test.odd_moment, test.w_sym
        (0.0, 0.0, 0.0, 0.0)
    """
    for name, number in (("seed", seed), ("most", 1 if most is None else most)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be a whole number, got {number!r}")
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    flat = _checked(values)
    positive, negative = _signs(flat)
    n = positive + negative
    if n == 0:
        reason = f"no nonzero value among {flat.numel()}"
        return SymmetryTest(0, math.nan, _NANS, *(math.nan,) * 5, reason=reason)
    chosen = flat if n == flat.numel() else flat[flat != 0]
    if most is not None and most < n:
        chosen = chosen[_spread(n, most, seed).to(chosen.device)]
    butler, w_sym, null = _ranks(chosen.cpu().double())
    return SymmetryTest(
        n=n,
        sign_balance=(positive - negative) / n,
        interval=_wilson(positive - negative, n),
        butler=butler,
        butler_p=_brownian_tail(math.sqrt(chosen.numel()) * butler),
        odd_moment=_odd_moment(flat),
        w_sym=w_sym,
        w_sym_null=null,
        ranked=chosen.numel(),
    )


def _signs(flat: Tensor) -> tuple[int, int]:
    """How many values are positive, how many negative."""
    return int((flat > 0).count_nonzero()), int((flat < 0).count_nonzero())


def _spread(n: int, most: int, seed: int) -> Tensor:
    """Indices of `most` of n values: one at random from each of as many even stretches.

    A fixed stride would meet the same tap of every convolution kernel.
    """
    edges = torch.arange(most + 1) * n // most
    draws = torch.rand(most, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return edges[:-1] + (draws * edges.diff()).long()


def _ranks(values: Tensor) -> tuple[float, float, float]:
    """Butler's D, the Wasserstein asymmetry and its null, of nonzero values."""
    size, order = values.abs().sort(descending=True)
    changes = torch.cat([size[1:] != size[:-1], size.new_ones(1, dtype=torch.bool)])
    # or sums could overflow; small ones may reach 0 here: ties are those of the sizes as they were
    size = size / size[0]
    gaps = size - torch.cat([size[1:], size.new_zeros(1)])
    walk = values[order].sign().cumsum(0).abs()
    mass = size.sum()
    return (
        float(walk[changes].max()) / values.numel(),
        float(walk @ gaps / mass),
        float(_mean_walk(values.numel()) @ gaps / mass),
    )


def _mean_walk(n: int) -> Tensor:
    r"""E|S_k| of a simple random walk after k = 1, ..., n steps.

    |S| grows by one on leaving 0 and by zero in the mean elsewhere: E|S_{k+1}| = E|S_k| + P(S_k =
    0), where 0 is met at even k alone. So $E|S_{2m-1}| = E|S_{2m}| = 2m \binom{2m}{m} 4^{-m}$, here
    as the product of the ratios 1 + 1 / (2j) of neighbours, which loses no digits.
    """
    ratios = 1.0 + 0.5 / torch.arange((n + 1) // 2, dtype=torch.float64)
    ratios[0] = 1.0
    return ratios.cumprod(0).repeat_interleave(2)[:n]


def _odd_moment(flat: Tensor) -> float:
    """The odd moment, in pieces: no float64 copy of a large sample, and each stays in the cache."""
    top = max(abs(float(end)) for end in flat.aminmax())
    odd = even = 0.0
    for piece in flat.split(_PIECE):
        scaled = piece.cpu().double() / top  # or cubes could overflow
        cubes = scaled * scaled * scaled  # a power of 3 takes ten times as long
        odd += float(cubes.sum())
        even += float(cubes.abs().sum())
    return odd / even


def _checked(values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a tensor, got {type(values).__name__}")
    if values.layout != torch.strided:
        raise ValueError(f"values must be dense, got {values.layout}")
    if values.is_complex():
        raise ValueError(f"values must be real, got {values.dtype}")
    try:
        values.new_ones(1).aminmax()
    except NotImplementedError as error:  # uint16, float8
        raise ValueError(
            f"values must be of a dtype that torch can compare, got {values.dtype}"
        ) from error
    flat = values.detach().reshape(-1)
    if flat.numel() and not all(math.isfinite(end) for end in flat.aminmax()):
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
