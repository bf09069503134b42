"""What the paper states, and what we measure beside it: weights, gradient, circuits, order, curves.

S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking* (arXiv:2201.07934). Its statements are
words more often than numbers; each bound here has its reason. What an untrained net or arithmetic
alone gives as well is said in the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torch_thermo.callbacks.circuit_symmetry import sample_name
from torch_thermo.papers import verdicts
from torch_thermo.papers.courses import Course, Floats, course, judged, median
from torch_thermo.papers.verdicts import Claim, Row
from torch_thermo.store import Run

__all__ = [
    "CURVATURE",
    "ORDERS",
    "SYMMETRIC",
    "TENTH",
    "circuit_rows",
    "excess",
    "gradient_rows",
    "layers",
    "order_rows",
    "rank_correlation",
    "risk_rows",
    "weight_rows",
    "while_active",
]

SYMMETRIC = 0.1
"""W_sym above its floor, up to which a sample counts as symmetric: a tenth of the largest, 1."""

TENTH = 0.1
GRADIENT = "order_parameter/risk"  # on the examples that the gradient is measured on
CURVATURE = "phase/risk"  # and the Hessian, which are fewer
ORDERS = (0, 1, 2)
SKEWED = 2.0


def while_active(runs: Sequence[Run], found: Course, risk: str = GRADIENT) -> Floats:
    """(S,): the median of each seed over the epochs at which its risk is not 0.

    Where it is 0 all examples are inactive: gradient and Hessian are 0, and no ratio is defined.

    Args:
        runs: one a seed.
        found: what to take the median of.
        risk: on the examples that it was measured on.
    """
    return np.array([median(values) for values in _with_loss(runs, found, risk)])


def _with_loss(runs: Sequence[Run], found: Course, risk: str) -> list[Floats]:
    """Of each seed the values at the epochs at which its risk is not 0."""
    measured = course(runs, risk)
    kept = np.isin(found.epochs, measured.epochs)
    above = measured.values[:, np.isin(measured.epochs, found.epochs)] > 0
    return [row[some] for row, some in zip(found.values[:, kept], above, strict=True)]


def excess(runs: Sequence[Run], observable: str, layer: str = "") -> Course:
    """W_sym minus its floor, that of random signs: of all entries, or of a layer."""
    after = f"/{layer}" if layer else ""
    found, floor = (course(runs, f"{observable}/{name}{after}") for name in ("w_sym", "w_sym_null"))
    return Course(found.epochs, found.values - floor.values)


def layers(run: Run, observable: str) -> list[str]:
    """The parameters that have a test of their own, in the order of the net."""
    step = run.array_steps(observable)[0]
    return [str(name) for name in run.arrays(observable, step)["layer_names"]]


def weight_rows(runs: Sequence[Run]) -> list[Row]:
    """The distribution of the weights skews, and slightly."""
    found, floor, odd, balance = (
        course(runs, f"weight_symmetry/{name}")
        for name in ("w_sym", "w_sym_null", "odd_moment", "sign_balance")
    )
    ratio = found.values / floor.values
    claim = Claim(
        "W_sym of all weights over its floor, at the end",
        "Fig. 3a",
        "weights skew",
        SKEWED,
        0.0,
        "twice what random signs give, which weights drawn symmetrically do not reach",
        verdicts.at_least,
    )
    note = (
        f"the control, before training: {ratio[:, 0].mean():.2f}; entries of trained weights are "
        "not independent, so that the floor describes and does not test"
    )
    first = judged(claim, ratio[:, -1], note)
    claim = Claim(
        "W_sym of all weights, at the end",
        "Fig. 3a",
        "slightly",
        SYMMETRIC,
        0.0,
        "a tenth of the largest, 1, of a sample of one sign",
        verdicts.at_most,
    )
    names = layers(runs[0], "weight_symmetry")
    worst = max(names, key=lambda name: excess(runs, "weight_symmetry", name).mean[-1])
    note = (
        f"signed odd moment {odd.mean[0]:.3f} before training, {odd.mean[-1]:.3f} at the end; sign "
        f"balance {balance.mean[0]:.4f}, {balance.mean[-1]:.4f}; most above its floor is "
        f"{_short(worst)} with {excess(runs, 'weight_symmetry', worst).mean[-1]:.3f}"
    )
    return [first, judged(claim, found.values[:, -1], note)]


def gradient_rows(runs: Sequence[Run]) -> list[Row]:
    """The gradient's entries are symmetric about 0: all together, and layer by layer."""
    name = "gradient_symmetry"
    *inner, last = layers(runs[0], name)
    pooled = while_active(runs, excess(runs, name))
    by_layer = {layer: while_active(runs, excess(runs, name, layer)) for layer in (*inner, last)}
    worst = np.max([by_layer[layer] for layer in inner], axis=0)
    place = max(inner, key=lambda layer: float(by_layer[layer].mean()))
    control = f"the last layer, one-sided by construction, has {by_layer[last].mean():.2f}"
    rows = []
    for what, values, note in (
        ("all entries", pooled, f"the statistic sees an asymmetry: {control}"),
        ("the worst layer but the last", worst, f"most often {_short(place)}; {control}"),
    ):
        claim = Claim(
            f"W_sym of the gradient above its floor, {what}, median",
            "Fig. 4a",
            "symmetric",
            SYMMETRIC,
            0.0,
            "a tenth of the largest, 1, of a sample of one sign",
            verdicts.at_most,
        )
        rows.append(judged(claim, values, f"{note}; over the epochs with R > 0"))
    return rows


def circuit_rows(runs: Sequence[Run]) -> list[Row]:
    """Sampled circuits are symmetric, trained or not; the exact sums see what training breaks."""
    rows = []
    for order in ORDERS:
        if any(sample_name(order) not in run.observables for run in runs):
            continue
        found = excess(runs, sample_name(order))
        before = float(np.abs(found.values[:, 0]).mean())
        claim = Claim(
            f"W_sym of sampled circuits above its floor, order {order}, at the end",
            "Fig. 3b",
            "symmetric",
            SYMMETRIC,
            0.0,
            "a tenth of the largest, 1, of a sample of one sign",
            verdicts.content(before, verdicts.at_most),
        )
        number = course(runs, f"{sample_name(order)}/n").mean[-1]
        note = (
            f"{number:,.0f} circuits; the control, the untrained net: {before:.3f}; a product of "
            "many signed factors looks symmetric whatever was learned, so that this says nothing "
            "of training"
        )
        rows.append(judged(claim, found.values[:, -1], note))
    positive, mass, balance = (
        course(runs, f"circuit_symmetry/{name}")
        for name in ("positive", "mass_asymmetry", "sign_balance")
    )
    claim = Claim(
        "share of examples with y T/A > 0, at the end",
        "eqs. 16, 19",
        "the symmetry of circuits breaks",
        0.95,
        0.0,
        "nineteen of twenty examples",
        verdicts.at_least,
    )
    note = (
        f"the control, the untrained net: {positive.mean[0]:.2f}, .5 by chance; it is the share of "
        f"the probe that is classified rightly; mean y T/A {mass.mean[0]:.2g} before, "
        f"{mass.mean[-1]:.2g} at the end: of the mass of all circuits no more is left over; exact "
        f"sign balance S {balance.mean[0]:.1g} and {balance.mean[-1]:.1g}"
    )
    return [*rows, judged(claim, positive.values[:, -1], note)]


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's, ties by their mean rank; NaN where one of the two does not vary."""
    one, other = _ranks(first), _ranks(second)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middles: Floats = ends - 0.5 * (counts - 1)
    return middles[places]


def order_rows(runs: Sequence[Run]) -> list[Row]:
    """The order parameter falls with the loss, and lies below it."""
    order, risk, scaled = (
        course(runs, f"order_parameter/{name}") for name in ("value", "risk", "scaled")
    )
    count = len(order.epochs)
    together = np.array(
        [rank_correlation(*pair) for pair in zip(order.values, risk.values, strict=True)]
    )
    claim = Claim(
        "rank correlation of OP and R over the epochs",
        "Fig. 4b",
        "falls with the loss",
        0.8,
        0.0,
        "of .8 two thirds of the variance of the ranks are common",
        verdicts.at_least,
    )
    note = (
        f"{count} epochs a seed; the control: at random order 95 % lie below "
        f"{1.645 / np.sqrt(max(count - 1, 1)):.2f}"
    )
    rows = [judged(claim, together, note)]
    claim = Claim(
        "OP at the end over OP at the start",
        "Fig. 4b",
        "falls",
        TENTH,
        0.0,
        "an order of magnitude",
        verdicts.at_most,
    )
    rows.append(
        judged(claim, order.values[:, -1] / order.values[:, 0], _of_fewer(runs, order, risk))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {
            "eta OP / R": Course(scaled.epochs, scaled.values / risk.values),
            "OP / R": Course(order.epochs, order.values / risk.values),
        }
    eta = course(runs, "training/eta").mean[0]
    for name, ratio in ratios.items():
        claim = Claim(
            f"{name}, median",
            "Fig. 4b",
            "an order of magnitude below the loss",
            TENTH,
            0.0,
            "an order of magnitude",
            verdicts.at_most,
        )
        finite = ratio.values[np.isfinite(ratio.values)]
        note = f"over the epochs with R > 0, from {finite.min():.2g} to {finite.max():.2g}"
        if name.startswith("eta"):
            note += (
                f"; eta is {eta:g}: the number scales with it, and at {TENTH * eta:g} the same "
                "weights would have a tenth of it"
            )
        else:
            note += "; without the step: R and its squared gradient have no common unit"
        rows.append(judged(claim, while_active(runs, ratio), note))
    return rows


def _of_fewer(runs: Sequence[Run], order: Course, risk: Course) -> str:
    """Of the fall of OP, what fewer active examples alone make of it."""
    share = course(runs, "hessian_entries/active_share")
    common = np.isin(share.epochs, order.epochs)
    epochs, p = share.epochs[common], share.mean[common]
    value = order.mean[np.isin(order.epochs, epochs)]
    kept = np.flatnonzero(p > 0)
    last = kept[-1]
    given = value[last] / p[last] ** 2 / (value[0] / p[0] ** 2)
    return (
        f"R falls to {risk.mean[-1] / risk.mean[0]:.2g} of its start; the control: from epoch 0 to "
        f"{epochs[last]:g} the active share p falls from {p[0]:.2g} to {p[last]:.2g}, and the "
        f"squared mean gradient of the active examples alone, OP / p^2, goes to {given:.2g} times "
        "its start"
    )


def risk_rows(runs: Sequence[Run]) -> list[Row]:
    """Zero risk is reached, through saddles alone."""
    risk = course(runs, "training/train_risk")
    accuracy = course(runs, "training/train_accuracy")
    test = course(runs, "training/test_accuracy")
    least = risk.values.min(1)
    claim = Claim(
        "smallest risk of the training set",
        "Fig. 8b",
        "0",
        0.01,
        0.0,
        "a hundredth of the untrained net's risk, 1",
        verdicts.at_most,
    )
    zeros = int((least == 0).sum())
    note = (
        f"exactly 0 in {zeros} of {len(least)} seeds; training accuracy at the end "
        f"{accuracy.mean[-1]:.4f}, held-out {test.mean[-1]:.3f}; the control, held-out risk at the "
        f"end {course(runs, 'training/test_risk').mean[-1]:.2f}"
    )
    rows = [judged(claim, least, note)]
    return [*rows, *_saddle_rows(runs)]


def _saddle_rows(runs: Sequence[Run]) -> list[Row]:
    low, bound = (
        course(runs, f"hessian_extremes/{name}") for name in ("lambda_min", "residual_min")
    )
    below = Course(low.epochs, (low.values + bound.values < 0).astype(np.float64))
    claim = Claim(
        "share of measurements with R > 0 and lambda_min < 0",
        "secs. on minima, Fig. 8",
        "no minima before R = 0",
        1.0,
        0.0,
        "each of them",
        verdicts.at_least,
    )
    note = (
        "below 0 by more than the residual bound; without biases and with a hinge loss tr H = 0 at "
        "any weights, so that H = 0 or lambda_min < 0: the control, the untrained net, has it too, "
        "and training need not bring it about"
    )
    rows = [judged(claim, _share(runs, below), note)]
    code = course(runs, "phase/code")
    plastic = Course(code.epochs, (code.values == 1.0).astype(np.float64))
    claim = Claim(
        "share of measurements with R > 0 in the plastic phase",
        "sec. on the plasticity phase",
        "plastic until R = 0",
        1.0,
        0.0,
        "each of them",
        verdicts.at_least,
    )
    undecided = int(np.isnan(code.values).sum())
    note = (
        f"plastic: OP beyond 3 standard errors, lambda_min < 0, |odd_3| < .25; {undecided} of "
        f"{code.values.size} measurements are undecided, {int((code.values == 2.0).sum())} "
        f"frustrated, {int((code.values == 0.0).sum())} solved"
    )
    rows.append(judged(claim, _share(runs, plastic), note))
    return rows


def _share(runs: Sequence[Run], found: Course) -> Floats:
    """(S,): the mean of each seed over the epochs at which its risk is not 0."""
    rows = _with_loss(runs, found, CURVATURE)
    return np.array([float(row.mean()) if len(row) else np.nan for row in rows])


def _short(name: str) -> str:
    return name.removeprefix("network.").removesuffix(".weight")
