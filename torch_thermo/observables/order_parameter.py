"""The plasticity order parameter: the squared norm of the gradient of the empirical risk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_thermo.risk import GroupGradients, Risk

_NAN = float("nan")


@dataclass(frozen=True)
class OrderParameter:
    """The plasticity order parameter of a risk.

    Attributes:
        value: `||grad R||^2`, exact for the risk that was measured (float64 sum of squares).
        unbiased: what the examples say about the set they were drawn from; may be negative.
        stderr: standard error of `unbiased`, by the jackknife over groups of batches; too large by
            1 / sqrt(1 - f) where the examples are a share f of a finite population.
        risk_value: R.
        per_layer: {parameter name: its share of `value`}; the shares add up to it.
        groups: how many groups of batches `unbiased` and `stderr` rest on.
        reason: why a value is NaN; empty when none is.
        incoherent: what `value` would be if the groups' gradients were orthogonal to each other,
            `sum W_m^2 |g_m|^2 / W^2`. Far above it the examples pull one way; far below it their
            pulls cancel, as at a stationary point.
    """

    value: float
    unbiased: float
    stderr: float
    risk_value: float
    per_layer: Mapping[str, float] = field(repr=False)
    groups: int
    reason: str = ""
    incoherent: float = _NAN

    def scaled(self, rates: Mapping[str, float]) -> float:
        """Return `sum_l eta_l ||grad_l R||^2`, the first-order loss drop of one plain step.

        Args:
            rates: {parameter name: effective learning rate}; with momentum b, eta / (1 - b).

        Raises:
            KeyError: a parameter without a rate.
        """
        return math.fsum(rates[name] * share for name, share in self.per_layer.items())


def plasticity_order_parameter(
    risk: Risk, population: int | None = None, groups: int = 8
) -> OrderParameter:
    r"""Measure `OP = ||grad R||^2` (Li, eq. 15, Fig. 4b) with its unbiased form.

    `value` squares the gradient of the whole set, never averages squared norms. As an estimate for
    the larger set the examples came from it is biased upward by `tr(Sigma) / n`. Beside it, over M
    groups g_m of batches with weights W_m,

        unbiased = (|sum W_m g_m|^2 - sum W_m^2 |g_m|^2) / (W^2 - sum W_m^2) + c,

    the mean product of different groups. Drawn with replacement (or from a distribution), c = 0.
    Drawn without replacement from `population` = N examples, two groups are not independent,
    `E[g_i . g_j] = OP - tr(Sigma)/(N - 1)`, and
    `c = (sum W_m |g_m|^2 - |sum W_m g_m|^2 / W) / (N (M - 1))` estimates what is missing
    (`E c = tr(Sigma)/(N - 1)` for any group sizes). When the groups are the whole population and
    of equal size, `unbiased` equals `value`.

    Args:
        risk: R; with a process group its batches of all ranks count.
        population: N, the size of the set drawn from without replacement; None: infinite.
        groups: at most this many groups of batches a rank; each needs one vector of memory.

    Returns:
        NaN for `unbiased` with fewer than 2 groups and `stderr` with fewer than 3, with a reason.

    Raises:
        ValueError: `population` is smaller than the number of examples measured, or that number
            can't be told (batches without a tensor).
        TypeError: `risk` is not a Risk.
    """
    if not isinstance(risk, Risk):
        raise TypeError(f"risk must be a Risk, got {type(risk).__name__}")
    with risk.frozen(groups):
        # the gradient first: its reduction carries a failing rank's status to the others
        gradient = risk.gradient()
        local = risk.group_gradients(groups)
        risk_value = risk.value()
        squares, crossed, masses, samples = _over_ranks(risk, local, gradient)
    if population is not None and math.isnan(samples):
        raise ValueError(
            f"population must be None for batches without a tensor, got {population}: "
            "the number of examples measured can't be told"
        )
    if population is not None and population < samples:
        raise ValueError(
            f"population must be at least the {samples:.0f} examples measured, got {population}"
        )
    per_layer = {
        name: float(gradient[block].double().square().sum()) for name, block in risk.blocks.items()
    }
    value = math.fsum(per_layer.values())
    if not (math.isfinite(value) and math.isfinite(risk_value)):
        reason = f"the gradient is not finite (the risk is {risk_value})"
        return OrderParameter(value, _NAN, _NAN, risk_value, per_layer, len(masses), reason)
    # the examples' share of the population, in the unit of the weights
    size = None if population is None else population * float(masses.sum()) / samples
    unbiased, stderr, reason = _unbiased(value, squares, crossed, masses, size)
    incoherent = float(masses.square() @ squares / masses.sum().square())
    return OrderParameter(
        value, unbiased, stderr, risk_value, per_layer, len(masses), reason, incoherent
    )


def _over_ranks(
    risk: Risk, local: GroupGradients, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return |g_m|^2, g_m . g and W_m of the groups of all ranks, and the examples measured."""
    rows = local.gradients.double()
    table = torch.stack(
        [
            rows.square().sum(1).cpu(),
            (rows @ gradient.double()).cpu(),
            local.weights,
            torch.full_like(local.weights, _samples(risk) / len(local.weights)),
        ]
    )
    if risk.process_group is not None:
        import torch.distributed as dist

        tables: list[Tensor | None] = [None] * dist.get_world_size(risk.process_group)
        dist.all_gather_object(tables, table, group=risk.process_group)
        table = torch.cat([t for t in tables if t is not None], dim=1)
    samples = float(table[3].sum())
    samples = samples if math.isnan(samples) else round(samples)
    squares, crossed, masses = table[:3, table[2] > 0]
    return squares, crossed, masses, samples


def _samples(risk: Risk) -> float:
    try:
        return risk.samples
    except ValueError:  # a closure's batches need no tensor; a rank must not stop alone
        return _NAN


def _unbiased(
    value: float, squares: Tensor, crossed: Tensor, masses: Tensor, size: float | None
) -> tuple[float, float, str]:
    count = len(masses)
    if count < 2:
        return _NAN, _NAN, f"the unbiased form needs 2 batches or more, got {count}"
    total = masses.sum()
    weighted = masses.square() * squares
    # |sum W g|^2 with each group left out in turn, and of all groups (last entry)
    whole = total.square() * value
    rest = whole - 2 * total * masses * crossed + weighted
    sums = torch.cat([rest, whole[None]])
    masses_left = torch.cat([total - masses, total[None]])
    squares_left = torch.cat([weighted.sum() - weighted, weighted.sum()[None]])
    pairs_left = masses_left.square() - torch.cat(
        [masses.square().sum() - masses.square(), masses.square().sum()[None]]
    )
    estimates = (sums - squares_left) / pairs_left
    if size is not None:
        spread = masses * squares
        spread_left = torch.cat([spread.sum() - spread, spread.sum()[None]])
        counts = torch.full_like(sums, count - 1)
        counts[-1] = count
        estimates = estimates + (spread_left - sums / masses_left) / (size * (counts - 1))
    unbiased = float(estimates[-1])
    if count < 3:
        return unbiased, _NAN, f"a standard error needs 3 batches or more, got {count}"
    left_out = estimates[:-1]
    variance = (count - 1) / count * (left_out - left_out.mean()).square().sum()
    return unbiased, float(variance.sqrt()), ""
