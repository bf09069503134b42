"""Which columns of a sample are correlated? Beside two nulls, with few false discoveries.

Of plain samples, knowing no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: quantiles of |r| that are kept of the null
LEVELS = (0.5, 0.95, 0.99, 0.999)
_OWN = 0x9E3779B9


@dataclass(frozen=True)
class CorrelationTest:
    """Correlations of the K columns of a sample of n rows, and which of them are significant.

    Attributes:
        matrix: (K, K) float64, r_ij; NaN where a column is constant.
        significant: (K, K) bool, the pairs that Benjamini and Hochberg's procedure keeps against
            the null of random signs; the diagonal is False.
        samples: n.
        pairs: number of pairs with a correlation.
        share: of these, the significant ones.
        mean_abs: mean |r| of the pairs.
        null_mean_abs: mean |r| of the permuted pairs.
        null_quantiles: (4,) float64, the quantiles `LEVELS` of the permuted pairs' |r|.
        sign_null_mean_abs: mean |r| of the pairs with random signs.
        sign_null_quantiles: (4,) float64, their quantiles.
        rate: the false-discovery rate that was asked for.
        reason: why there is no number; empty if there is.
    """

    matrix: Tensor = field(repr=False)
    significant: Tensor = field(repr=False)
    samples: int
    pairs: int
    share: float
    mean_abs: float
    null_mean_abs: float
    null_quantiles: Tensor
    sign_null_mean_abs: float
    sign_null_quantiles: Tensor
    rate: float
    reason: str = ""

    @property
    def partners(self) -> Tensor:
        """(K,) int64: with how many others each column is correlated significantly."""
        return self.significant.sum(1)


def correlation_test(
    values: Tensor, permutations: int = 100, rate: float = 0.05, seed: int = 0
) -> CorrelationTest:
    r"""Correlate the columns of a sample and compare with two nulls.

    $r_{ij} = \frac1n \sum_n z_{ni} z_{nj}$ with standardised columns z.

    - *Permutation*: each column is shuffled alone, which keeps every marginal and makes E r = 0,
      Var r = 1 / (n - 1) exactly. It also takes apart the magnitudes that a row's values share
      (the slope of the loss, the size of the input, whether the example is active), so that
      columns independent given such a scale exceed it: 38 % of the pairs of
      `randn(128, 40) * exp(randn(128, 1))` would be called at a rate of 5 %. It is reported and
      decides nothing.
    - *Random signs*: each value gets a sign of its own, its magnitude stays where it is, a zero
      stays a zero. What exceeds it is an agreement of signs, not of magnitudes: it decides which
      pairs are significant.

    The p-value of a pair is the rank of its |r| among all pairs with random signs, pooled:
    (1 + number not below) / (1 + number). Pooled p-values are uniform over the pairs together, not
    for each: where some columns have heavier tails than others, a pair of them is called too often
    and the others too seldom. They resolve 1 / (permutations x pairs), so that a single correlated
    pair can be found, which P values of each pair's own could not. The signs are those of the
    values, not of their deviations from the mean, of which zeros would have one; so columns with a
    mean of several standard deviations should be centred before.

    Args:
        values: (n, K), real and finite.
        permutations: how many samples of each null.
        rate: the share of false discoveries among the discoveries to be expected at most.
        seed: of the permutations and signs.

    Returns:
        NaN and the reason with fewer than 3 rows, or fewer than two columns that vary.

    Raises:
        ValueError: `values` of another shape or not finite, permutations below 1, a rate outside
            (0, 1).
    """
    if values.dim() != 2:
        raise ValueError(f"values must have shape (n, K), got {tuple(values.shape)}")
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie between 0 and 1, got {rate}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("values must be finite, got NaN or infinity")
    n, k = values.shape
    values = values.detach().cpu().double()
    standard = _standardised(values)
    varying = ~standard.isnan().any(0)
    matrix = standard.T @ standard / max(n, 1)
    significant = torch.zeros(k, k, dtype=torch.bool)
    if n < 3 or int(varying.sum()) < 2:
        reason = (
            f"correlations need 3 rows or more, got {n}"
            if n < 3
            else f"correlations need 2 columns that vary, got {int(varying.sum())} of {k}"
        )
        undefined = torch.full((len(LEVELS),), math.nan, dtype=torch.float64)
        return CorrelationTest(
            matrix=torch.full_like(matrix, math.nan),
            significant=significant,
            samples=n,
            pairs=0,
            share=math.nan,
            mean_abs=math.nan,
            null_mean_abs=math.nan,
            null_quantiles=undefined,
            sign_null_mean_abs=math.nan,
            sign_null_quantiles=undefined.clone(),
            rate=rate,
            reason=reason,
        )
    first, second = torch.triu_indices(k, k, 1)
    kept = varying[first] & varying[second]
    first, second = first[kept], second[kept]
    sizes = matrix[first, second].abs()
    null = _null(standard[:, varying], permutations, seed)
    signs = _sign_null(values[:, varying], permutations, seed)
    # rounding must not decide between equal sizes
    below = torch.searchsorted(signs, sizes * (1 - 1e-12))
    found = benjamini_hochberg((1 + len(signs) - below) / (1 + len(signs)), rate)
    significant[first, second] = found
    significant |= significant.T.clone()
    positions = torch.tensor(LEVELS, dtype=torch.float64).mul(len(null)).long()
    return CorrelationTest(
        matrix=matrix,
        significant=significant,
        samples=n,
        pairs=len(sizes),
        share=float(found.double().mean()),
        mean_abs=float(sizes.mean()),
        null_mean_abs=float(null.mean()),
        null_quantiles=null[positions],
        sign_null_mean_abs=float(signs.mean()),
        sign_null_quantiles=signs[positions],
        rate=rate,
    )


def benjamini_hochberg(p_values: Tensor, rate: float = 0.05) -> Tensor:
    """Return which hypotheses are rejected at a false-discovery rate.

    With the m p-values in ascending order, the first k are rejected, k the largest with
    p_(k) <= rate k / m: of the rejected at most a share `rate` is false in the mean, for p-values
    that are independent or positively dependent (Y. Benjamini, Y. Hochberg, J. R. Stat. Soc. B 57,
    1995).

    Args:
        p_values: (m,), in [0, 1].
        rate: in (0, 1).

    Returns:
        (m,) bool.

    Raises:
        ValueError: p-values outside [0, 1], or of another shape.

    Examples:
        >>> benjamini_hochberg(torch.tensor([0.04, 0.01, 0.9, 0.03]), 0.1).tolist()
        [True, True, False, True]
    """
    if p_values.dim() != 1:
        raise ValueError(f"p_values must have shape (m,), got {tuple(p_values.shape)}")
    if not bool(((p_values >= 0) & (p_values <= 1)).all()):
        raise ValueError("p_values must lie in [0, 1]")
    m = len(p_values)
    ordered, order = p_values.double().sort()
    passed = (ordered <= rate * torch.arange(1, m + 1, dtype=torch.float64) / m).nonzero()
    rejected = torch.zeros(m, dtype=torch.bool)
    if len(passed):
        rejected[order[: int(passed[-1]) + 1]] = True
    return rejected


def _standardised(values: Tensor) -> Tensor:
    """Return columns of mean 0 and mean square 1; a constant one is NaN."""
    centred = values - values.mean(0)
    scale = centred.square().mean(0).sqrt()
    # of equal numbers the mean is off by a rounding
    constant = (values == values[:1]).all(0)
    return torch.where(constant, math.nan, centred / scale)


def _null(standard: Tensor, permutations: int, seed: int) -> Tensor:
    """Return the sorted |r| of all pairs of the shuffled columns."""
    # a seed of its own: a sample drawn by torch from the same one would be sorted, not shuffled
    generator = torch.Generator().manual_seed(_OWN + seed)
    n, k = standard.shape
    first, second = torch.triu_indices(k, k, 1)
    pooled = []
    for _ in range(permutations):
        order = torch.rand(n, k, generator=generator, dtype=torch.float64).argsort(0)
        shuffled = standard.gather(0, order)
        pooled.append((shuffled.T @ shuffled / n)[first, second].abs())
    return torch.cat(pooled).sort().values


def _sign_null(values: Tensor, permutations: int, seed: int) -> Tensor:
    """Return the sorted |r| of all pairs of the columns with a random sign on each value."""
    generator = torch.Generator().manual_seed(_OWN + seed)
    n, k = values.shape
    first, second = torch.triu_indices(k, k, 1)
    pooled = []
    for _ in range(permutations):
        signs = 2 * torch.randint(2, (n, k), generator=generator) - 1
        # a column that the signs made constant is correlated with none
        standard = _standardised(values * signs).nan_to_num(0.0)
        pooled.append((standard.T @ standard / n)[first, second].abs())
    return torch.cat(pooled).sort().values
