"""The trace of a symmetric operator from random signs."""

from __future__ import annotations

import math

import torch

from torch_thermo.spectra.arguments import require_whole
from torch_thermo.spectra.estimate import Estimate, mean_estimate
from torch_thermo.spectra.lanczos import SymmetricMap, check_finite, operator_dimension
from torch_thermo.spectra.probes import hadamard_order, probe_blocks

_CHUNK = 8  # columns a product: bounds the memory at 3 * 8 vectors


def trace(op: SymmetricMap, probes: int = 32, seed: int = 0) -> Estimate:
    r"""Unbiased trace estimate, tr A = E z'Az over random signs z (Hutchinson 1990).

    One draw has variance $2 \lVert A - diag A \rVert_F^2$. When the operator has L >= 2 `blocks`
    and `probes` reaches K, the smallest power of two >= L, the probes come in complete Hadamard
    groups of K (see `probes.probe_blocks`), in which all that lies between different blocks
    cancels exactly: for an operator whose own blocks are zero (the functional Hessian of a
    bias-free ReLU net: S. W. M. Li, supplement of Fig. 6) the trace is 0 to rounding. What the
    own blocks add is the same for all K probes of a group, so a group is one independent draw, and
    an operator with strong own blocks gains from the groups only. The `probes mod K` that are left
    would bring the noise between the blocks back: they are not spent. Otherwise the probes are
    plain independent signs, each a group of one.

    The standard error is `std / sqrt(G)` over the G groups when there are at least two (uncertain
    itself when they are few). A single group has no spread: there it is $\sqrt 2 \lVert t \rVert$
    with $t = \frac1K \sum_r z_r \circ A z_r$, whose square has mean
    $2 \sum_l \lVert A_{ll} \rVert_F^2$: never below the variance, above it by what the diagonal
    itself contributes. (The spread *within* a group would be wrong on both sides: it shows the
    noise that cancels and misses the noise that stays.)

    Args:
        op: symmetric operator (n, n) in float32 or float64, with `blocks` or without.
        probes: number of probes, at least 1; an upper bound on the products.
        seed: seed of the probes' own generator.

    Returns:
        The trace and its standard error.

    Raises:
        ValueError: `probes` is below 1, or the operator is not square.
        TypeError: `probes` is not a whole number.
        FloatingPointError: a product is not finite.

    Examples:
        >>> trace(torch.diag(torch.tensor([1.0, 2.0, 3.0])), probes=4)
        Estimate(value=6.0, stderr=0.0)
    """
    dimension = operator_dimension(op)
    require_whole("probes", probes)
    blocks = getattr(op, "blocks", None)
    order = hadamard_order(dimension, probes, blocks)
    groups = probes // order
    # Sums in float64 where the device has it: the cancellation should stop at the product's error.
    wide = torch.float32 if op.device.type == "mps" else torch.float64
    diagonal = torch.zeros(dimension, dtype=wide, device=op.device) if groups == 1 else None
    values = []
    columns = probe_blocks(
        dimension, groups * order, order=order, blocks=blocks, seed=seed, chunk=_CHUNK
    )
    for signs in columns:
        z = signs.to(device=op.device, dtype=op.dtype)
        terms = z * (op @ z).detach()
        values.append(terms.sum(dim=0, dtype=wide).cpu())
        check_finite(values[-1], len(values) - 1)
        if diagonal is not None:
            diagonal += terms.sum(dim=1, dtype=wide)
    draws = torch.cat(values).double().reshape(groups, order).mean(dim=1)
    if diagonal is None:
        return mean_estimate(draws)
    return Estimate(float(draws), math.sqrt(2.0) * float((diagonal / order).norm()))
