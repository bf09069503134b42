"""The asymmetry of a spectrum, with the eigenvalues that Lanczos has found counted once each."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo.spectra import Estimate, LanczosRun
from torch_thermo.spectra.estimate import jackknife_ratio

# a Ritz value whose residual bound is below this share of it counts as an eigenvalue: with 1e-3 the
# error is up to four times as large, with .2 it is understated twentyfold
_FOUND = 0.05
# Ritz values of several probes that differ by less than this share are the same eigenvalue's
_SAME = 0.01
# a simple eigenvalue's weights are larger than what counts as simple in one case of a thousand
_SIMPLE = 0.999
# of the largest |eigenvalue|: a smaller one carries less than an eighth of what the largest does
_CARRIES = 0.5


def odd_moment(run: LanczosRun, dimension: int, p: int = 3) -> Estimate:
    r"""Return `sum lambda^p / sum |lambda|^p` of a Lanczos run from random signs.

    The quadrature's own estimate gives the eigenvalue lambda_i the weight `(z . u_i)^2 / n` of a
    random start z, whose mean is 1/n and whose standard deviation is as large as that. Where a few
    eigenvalues carry the sum of cubes, as on most nets, its error is of order 1 / sqrt(k) and the
    spread of k = 2 to 8 probes says too little of it: a net of 148 weights with an exact .01 read
    -.31 +- .09 from 8 probes. Yet these few are the ones that Lanczos finds. So a Ritz value that
    has converged counts as one eigenvalue, 1/n, and only the rest by its quadrature weights: what
    is left of z beside the vectors found is again a random start of what is left.

    An eigenvalue that occurs q times is found once a probe, with n times its weight a chi-square of
    q degrees of freedom (or lighter tails). Where its weights of all k probes sum to more than the
    99.9 % quantile of a simple one's, the weights themselves are taken, so that mean and error see
    the multiplicity and its noise; and so for all that are found, where the large ones together
    have more than as many simple ones would. An eigenvalue that occurs 12 times is seen so by 2
    probes (in 19 cases of 20), 8 times by 4, 5 times by 8. One that occurs less often may count
    once, and the standard error does not say so: no spread of so few probes can.

    Args:
        run: from independent random signs, with its residual bounds.
        dimension: n.
        p: odd.

    Returns:
        In [-1, 1], with its jackknife standard error over the probes (NaN with one); NaN for the
        zero operator.
    """
    ritz, residuals = run.ritz.nan_to_num(0.0), run.residuals.nan_to_num(torch.inf)
    scale = float(ritz.abs().max()) or 1.0  # or powers could overflow or vanish
    found = (residuals <= _FOUND * ritz.abs()) & (ritz != 0)
    simple = _simple(ritz[found] / scale, run.weights[found] * dimension)
    weights = run.weights.clone()
    weights[found] = torch.where(simple, 1.0 / dimension, weights[found])
    powers = (ritz / scale) ** p
    return jackknife_ratio((weights * powers).sum(1), (weights * powers.abs()).sum(1))


def _simple(values: Tensor, masses: Tensor) -> Tensor:
    """Return which of the values found by all probes count as simple eigenvalues."""
    if not len(values):
        return torch.ones(0, dtype=torch.bool)
    order = values.argsort()
    ranked = values[order]
    sizes = torch.maximum(ranked[1:].abs(), ranked[:-1].abs())
    group = torch.zeros_like(order)
    group[order[1:]] = (ranked.diff() > _SAME * sizes).long().cumsum(0)
    counts = group.bincount()
    sums = torch.zeros(len(counts), dtype=masses.dtype).index_add_(0, group, masses)
    simple = (_quantile(sums, counts) <= _SIMPLE)[group]
    together = simple & (values.abs() >= _CARRIES)
    if together.any() and _quantile(masses[together].sum(), together.sum()) > _SIMPLE:
        simple = torch.zeros_like(simple)
    return simple


def _quantile(sums: Tensor, counts: Tensor) -> Tensor:
    """Return the share of chi-square draws with `counts` degrees of freedom that is below."""
    shares: Tensor = torch.special.gammainc(counts.to(sums.dtype) / 2, sums / 2)
    return shares
