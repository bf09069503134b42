"""What the paper states, and what we measure beside it: weights, gradient, circuits, order, curves.

S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking* (arXiv:2201.07934). Its statements are
words more often than numbers; each bound here has its reason. What an untrained net or arithmetic
alone gives as well is said in the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
    "same_epochs",
    "shifted_correlations",
    "weight_rows",
    "while_active",
]

SYMMETRIC = 0.1
"""W_sym above its floor, up to which a sample counts as symmetric: a tenth of the largest, 1."""

TENTH = 0.1
GRADIENT = "order_parameter/risk"  # on the examples that the gradient is measured on
CURVATURE = "phase/risk"  # and the Hessian, which are fewer
ORDERS = (0, 1, 2)
SKEWED = 3.0  # of 300 untrained nets 10 reach twice their floor, and none three times
TOGETHER = 5  # epochs; of fewer a rank correlation of .8 is too often chance
TRAINED = 3  # measurements of a seed; of fewer the untrained net is half of it


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


def same_epochs(*found: Course) -> list[Course]:
    """The courses at the epochs that all of them have."""
    epochs = found[0].epochs
    for one in found[1:]:
        epochs = epochs[np.isin(epochs, one.epochs)]
    return [Course(epochs, one.values[:, np.isin(one.epochs, epochs)]) for one in found]


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
        "three times what random signs give: of 300 untrained nets none reached it, 3 % twice",
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


def shifted_correlations(first: Floats, second: Floats) -> Floats:
    """(n - 1,): rank correlations with the second of two courses moved on by 1 .. n - 1 places.

    What is moved past the end goes on at the start: each course keeps how slowly it varies, which
    a random order of its values does not, and is set against the wrong part of the other.
    """
    moved = range(1, len(second))
    return np.array([rank_correlation(first, np.roll(second, by)) for by in moved])


def order_rows(runs: Sequence[Run]) -> list[Row]:
    """The order parameter falls with the loss, and lies below it.

    Only epochs with R > 0 and OP > 0 count. At R = 0 both are 0 by identity; and a net with R > 0
    and OP = 0 is frustrated: its order parameter does not follow the loss.
    """
    order, risk, scaled = (
        course(runs, f"order_parameter/{name}") for name in ("value", "risk", "scaled")
    )
    plastic = (risk.values > 0) & (order.values > 0)
    frozen = int(((risk.values > 0) & (order.values == 0)).sum())
    left = f"; left out: {frozen} measurements with R > 0 and OP = 0, frustrated" if frozen else ""
    rows = [_together(order, risk, plastic, left), _fall(runs)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {
            "eta OP / R": np.where(plastic, scaled.values / risk.values, np.nan),
            "OP / R": np.where(plastic, order.values / risk.values, np.nan),
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
        finite = ratio[np.isfinite(ratio)]
        note = "over the epochs with R > 0 and OP > 0"
        note += f", from {finite.min():.2g} to {finite.max():.2g}" if len(finite) else ": none"
        if name.startswith("eta"):
            note += (
                f"; eta is {eta:g}: the number scales with it, and at {TENTH * eta:g} the same "
                "weights would have a tenth of it"
            )
        else:
            note += "; without the step: R and its squared gradient have no common unit"
        values = [median(row) if np.isfinite(row).sum() >= TRAINED else np.nan for row in ratio]
        rows.append(judged(claim, np.array(values), note + left))
    return rows


def _together(order: Course, risk: Course, plastic: npt.NDArray[np.bool_], left: str) -> Row:
    pairs = [
        (op[some], loss[some])
        for op, loss, some in zip(order.values, risk.values, plastic, strict=True)
    ]
    counts = [len(op) for op, _ in pairs]
    found = np.full(len(pairs), np.nan)
    null, reaching = float("nan"), float("nan")
    if min(counts) >= TOGETHER:
        found = np.array([rank_correlation(*pair) for pair in pairs])
        moved = [shifted_correlations(*pair) for pair in pairs]
        null = float(np.mean([np.quantile(one, 0.95, method="higher") for one in moved]))
        reaching = float(
            np.mean([np.mean(one >= own) for one, own in zip(moved, found, strict=True)])
        )
    claim = Claim(
        "rank correlation of OP and R over the epochs with R > 0",
        "Fig. 4b",
        "falls with the loss",
        0.8,
        0.0,
        "of .8 two thirds of the variance of the ranks are common",
        verdicts.content(null, verdicts.at_least),
    )
    if np.isnan(null):
        note = f"fewer than {TOGETHER} epochs of a seed with R > 0 and OP > 0"
    else:
        some = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        note = (
            f"{some} epochs a seed; the control, one of the two moved on by any number of epochs: "
            f"{reaching:.1%} of the shifts reach it, 95 % lie at or below {null:.2f}"
        )
    return judged(claim, found, note + left)


def _fall(runs: Sequence[Run]) -> Row:
    """The fall of OP, beside what fewer active examples alone make of it.

    With the gradients of the active examples as they were at the start, OP would go as the square
    of their share p: all three numbers are of the same examples, those of the Hessian.
    """
    order, risk, share = same_epochs(
        course(runs, "phase/order_parameter"),
        course(runs, CURVATURE),
        course(runs, "hessian_entries/active_share"),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        fall = order.values[:, -1] / order.values[:, 0]
        null = float(np.mean((share.values[:, -1] / share.values[:, 0]) ** 2))
    frustrated = (order.values[:, -1] == 0) & (risk.values[:, -1] > 0)
    claim = Claim(
        "OP at the end over OP at the start",
        "Fig. 4b",
        "falls",
        TENTH,
        0.0,
        "an order of magnitude",
        verdicts.content(null, verdicts.at_most),
    )
    if risk.mean[0] > 0:
        note = f"R falls to {risk.mean[-1] / risk.mean[0]:.2g} of its start; "
    else:
        note = "R = 0 from the start; "
    kept = np.flatnonzero((share.values > 0).all(0))
    if len(kept):
        first, last = kept[0], kept[-1]
        p, value = share.mean, order.mean
        given = value[last] / p[last] ** 2 / (value[first] / p[first] ** 2) if value[first] else 0.0
        note += (
            f"the control: fewer active examples alone would bring OP to {null:.2g}; from epoch "
            f"{share.epochs[first]:g} to {share.epochs[last]:g} their share p goes from "
            f"{p[first]:.2g} to {p[last]:.2g}, and the squared mean gradient of the active "
            f"examples alone, OP / p^2, goes to {given:.2g} times its start"
        )
    else:
        note += "no example is active in all seeds at any epoch"
    if frustrated.any():
        note += f"; frustrated at the end, with OP = 0 and R > 0: {int(frustrated.sum())} seeds"
    return judged(claim, np.where(frustrated, np.nan, fall), note)


def risk_rows(runs: Sequence[Run]) -> list[Row]:
    """Zero risk is reached, through saddles alone."""
    risk = course(runs, "training/train_risk")
    accuracy = course(runs, "training/train_accuracy")
    test = course(runs, "training/test_accuracy")
    claim = Claim(
        "risk of the training set at the end",
        "Fig. 8b",
        "0",
        0.0,
        0.0,
        "a hinge loss reaches exactly 0, and a minimum on the way is not the end",
        verdicts.law,
    )
    end = risk.values[:, -1]
    solved = [
        f"seed {run.meta['seed']} from epoch {risk.epochs[_last_above(row) + 1]:g} on"
        for run, row in zip(runs, risk.values, strict=True)
        if row[-1] == 0
    ]
    note = (
        f"exactly 0 in {len(solved)} of {len(end)} seeds"
        f"{': ' + ', '.join(solved) if solved else ''}; largest {end.max():.2g}, least of any "
        f"epoch {risk.values.min():.2g}; training accuracy at the end "
        f"{accuracy.mean[-1]:.4f}, held-out {test.mean[-1]:.3f}; the control, held-out risk at the "
        f"end {course(runs, 'training/test_risk').mean[-1]:.2f}"
    )
    return [judged(claim, end, note), *_saddle_rows(runs)]


def _last_above(values: Floats) -> int:
    """The place of the last value that is not 0; -1 where all are."""
    places = np.flatnonzero(values)
    return int(places[-1]) if len(places) else -1


def _saddle_rows(runs: Sequence[Run]) -> list[Row]:
    """What trained nets with R > 0 have, beside the untrained ones."""
    low, bound = (
        course(runs, f"hessian_extremes/{name}") for name in ("lambda_min", "residual_min")
    )
    below = Course(low.epochs, (low.values + bound.values < 0).astype(np.float64))
    code = course(runs, "phase/code")
    plastic = Course(code.epochs, (code.values == 1.0).astype(np.float64))
    undecided = int(np.isnan(code.values).sum())
    return [
        _kept_row(
            runs,
            below,
            "share of trained measurements with R > 0 and lambda_min < 0",
            "secs. on minima, Fig. 8",
            "no minima before R = 0",
            "below 0 by more than the residual bound; without biases and with a hinge loss "
            "tr H = 0 wherever the risk has second derivatives, so that H = 0 or lambda_min < 0",
        ),
        _kept_row(
            runs,
            plastic,
            "share of trained measurements with R > 0 in the plastic phase",
            "sec. on the plasticity phase",
            "plastic until R = 0",
            f"plastic: OP beyond 3 standard errors, lambda_min < 0, |odd_3| < .25; {undecided} of "
            f"{code.values.size} measurements are undecided, {int((code.values == 2.0).sum())} "
            f"frustrated, {int((code.values == 0.0).sum())} solved",
        ),
    ]


def _kept_row(
    runs: Sequence[Run], found: Course, quantity: str, where: str, printed: str, note: str
) -> Row:
    """A row of what holds at each trained measurement with R > 0; the null is the untrained net."""
    after = _with_loss(runs, found.since(np.nextafter(0.0, 1.0)), CURVATURE)
    counts = [len(row) for row in after]
    null = found.since(0.0, 0.0).values.max(initial=0.0)
    claim = Claim(
        quantity,
        where,
        printed,
        1.0,
        0.0,
        "each of them",
        verdicts.content(float(null), verdicts.at_least),
    )
    values = [float(row.mean()) if len(row) >= TRAINED else np.nan for row in after]
    note += (
        f"; {min(counts)} to {max(counts)} trained measurements a seed, at least {TRAINED} needed; "
        f"the control: {found.values[:, 0].mean():.2g} of the untrained nets have it as well"
    )
    return judged(claim, np.array(values), note)


def _short(name: str) -> str:
    return name.removeprefix("network.").removesuffix(".weight")
