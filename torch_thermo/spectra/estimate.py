"""A number with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error.

    Attributes:
        value: the estimate; NaN where the quantity is not defined.
        stderr: one standard error; 0 for an exact number, NaN where a single draw says nothing
            about it.
    """

    value: float
    stderr: float


def mean_estimate(samples: Tensor) -> Estimate:
    """Mean of independent draws with its standard error, `std / sqrt(k)`.

    Args:
        samples: (k,) independent draws.

    Returns:
        The mean; its standard error is NaN when k = 1.
    """
    count = samples.numel()
    stderr = float(samples.std()) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(samples.mean()), stderr)


def jackknife_ratio(numerators: Tensor, denominators: Tensor) -> Estimate:
    r"""Ratio of two means over paired draws, with its jackknife standard error.

    $\theta = \bar a / \bar b$ and $se^2 = \frac{k-1}{k} \sum_i (\theta_{(i)} - \theta_{(.)})^2$,
    with $\theta_{(i)}$ the ratio without draw i (B. Efron, *The Jackknife, the Bootstrap and Other
    Resampling Plans*, 1982). A mean of ratios would be biased wherever the denominators vary.

    Args:
        numerators: (k,) draws of a.
        denominators: (k,) draws of b, paired with them.

    Returns:
        The ratio, NaN when the denominators sum to 0; its standard error is NaN when k = 1.
    """
    count = numerators.numel()
    total_a, total_b = numerators.sum(), denominators.sum()
    value = float(total_a / total_b) if float(total_b) != 0.0 else math.nan
    if count == 1:
        return Estimate(value, math.nan)
    left_out = (total_a - numerators) / (total_b - denominators)
    spread = (left_out - left_out.mean()).square().sum() * (count - 1) / count
    return Estimate(value, math.sqrt(float(spread)))
