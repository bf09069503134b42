"""The panels of the paper's figures, from stored runs.

S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking* (arXiv:2201.07934). Which panels a
figure has is our choice: a distribution is that of the first seed, a curve the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torch_thermo.callbacks.circuit_symmetry import sample_name
from torch_thermo.figures.matrices import Ridges
from torch_thermo.figures.paper import Drawable, Level, Panel, Trace
from torch_thermo.figures.ridgelines import chosen_steps, histogram_row, histogram_rows
from torch_thermo.papers.courses import Course, course, epochs_of
from torch_thermo.papers.li.claims import CURVATURE, ORDERS, TENTH, layers, same_epochs
from torch_thermo.papers.li.recipe import EPOCHS
from torch_thermo.store import Run

__all__ = [
    "EPOCH",
    "circuit_panels",
    "epoch_label",
    "gradient_panels",
    "order_panels",
    "risk_panels",
    "weight_panels",
]

EPOCH = "epoch"
W_SYM = r"$W_{sym}$"


def epoch_label(run: Run, step: int) -> str:
    """The epoch of a step, in a few letters."""
    return f"{epochs_of(run, [step])[0]:g}"


def weight_panels(runs: Sequence[Run]) -> list[Drawable]:
    """Distribution of the weights by epoch; its asymmetry, in all and by layer (Fig. 3a)."""
    return _symmetry_panels(runs, "weight_symmetry", "weights", "weight")


def gradient_panels(runs: Sequence[Run]) -> list[Drawable]:
    """Distribution of the gradient's entries by epoch; its asymmetry (Fig. 4a)."""
    return _symmetry_panels(runs, "gradient_symmetry", "gradient entries", "gradient entry")


def _symmetry_panels(runs: Sequence[Run], observable: str, what: str, entry: str) -> list[Drawable]:
    w_sym, floor, odd, balance = (
        course(runs, f"{observable}/{name}")
        for name in ("w_sym", "w_sym_null", "odd_moment", "sign_balance")
    )
    return [
        _ridges(runs[0], observable, f"{what}, seed {runs[0].meta['seed']}", entry),
        Panel(
            "w_sym",
            f"asymmetry, all {what}",
            EPOCH,
            W_SYM,
            (w_sym.trace("all", null=floor),),
            yscale="log",
        ),
        Panel(
            "signs",
            "signs and third powers",
            EPOCH,
            "balance from -1 to 1",
            (balance.trace("sign balance"), odd.trace("signed odd moment")),
            levels=(Level("symmetric", 0.0),),
        ),
        _by_layer(runs, observable),
    ]


def _ridges(run: Run, observable: str, title: str, entry: str) -> Ridges:
    steps = [
        step for step in run.array_steps(observable) if "counts" in run.arrays(observable, step)
    ]
    steps = [step for step in steps if run.arrays(observable, step)["stats"][-1] > 0]
    papers = [step for step in steps if epochs_of(run, [step])[0] in EPOCHS]
    # a training that is shorter than the paper's second one has no more than two of them
    chosen = papers if len(papers) > 2 else chosen_steps(steps)
    history = [(step, run.arrays(observable, step)) for step in chosen]
    labelled = [(round(float(epochs_of(run, [step])[0])), arrays) for step, arrays in history]
    rows, options = histogram_rows(labelled)
    label = f"{entry} over its root mean square" if options else entry
    axis = "epoch: root mean square" if options else EPOCH
    return Ridges(
        "distribution",
        title,
        label,
        axis,
        tuple(rows),
        options.get("xscale", "linear"),
        options.get("threshold"),
        options.get("floor"),
    )


def _by_layer(runs: Sequence[Run], observable: str) -> Panel:
    """W_sym of each layer at the first and at the last epoch at which it is defined."""
    names = layers(runs[0], observable)
    numbers = np.arange(1.0, len(names) + 1.0)
    found = [course(runs, f"{observable}/w_sym/{name}") for name in names]
    floors = [course(runs, f"{observable}/w_sym_null/{name}") for name in names]
    known = np.flatnonzero(np.isfinite([one.values for one in found]).all((0, 1)))
    traces = []
    for place in dict.fromkeys((known[0], known[-1])) if len(known) else ():
        at = Course(numbers, np.stack([one.values[:, place] for one in found], 1))
        null = Course(numbers, np.stack([one.values[:, place] for one in floors], 1))
        traces.append(at.trace(f"epoch {found[0].epochs[place]:g}", null=null))
    return Panel(
        "layers", "by layer", "weight layer, from the input", W_SYM, tuple(traces), yscale="log"
    )


def circuit_panels(runs: Sequence[Run]) -> list[Drawable]:
    """Sampled circuits of three orders, their asymmetry, and the exact sums (Fig. 3b)."""
    run = runs[0]
    steps = run.array_steps(sample_name(0))
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    over_time = [_circuits(run, 0, step, f"epoch {epoch_label(run, step)}") for step in chosen]
    orders = [order for order in ORDERS if sample_name(order) in run.observables]
    by_order = [_circuits(run, order, steps[-1], f"order {order}") for order in orders]
    floor = float(run.arrays(sample_name(0), steps[-1])["floor"])
    balance, mass, positive = (
        course(runs, f"circuit_symmetry/{name}")
        for name in ("sign_balance", "mass_asymmetry", "positive")
    )
    sampled = course(runs, f"{sample_name(0)}/sign_balance")
    axis = f"sign times decades of |circuit| above 1e{floor:.0f}"
    return [
        Panel("order0", "circuits, order 0", axis, "share a decade", tuple(over_time)),
        Panel(
            "orders",
            f"orders, epoch {epoch_label(run, steps[-1])}",
            axis if len(orders) == 1 else "sign times decades above each one's least",
            "share a decade",
            tuple(by_order),
        ),
        Panel(
            "asymmetry",
            "asymmetry of the samples",
            EPOCH,
            W_SYM,
            tuple(
                course(runs, f"{sample_name(order)}/w_sym").trace(
                    f"order {order}", null=course(runs, f"{sample_name(order)}/w_sym_null")
                )
                for order in orders
            ),
            yscale="log",
        ),
        Panel(
            "balance",
            "sign balance",
            EPOCH,
            "positive minus negative share",
            (sampled.trace("of the sample"), balance.trace("exact, S")),
            levels=(Level("symmetric", 0.0),),
        ),
        Panel(
            "positive",
            "sums over all circuits: their sign",
            EPOCH,
            "share of examples with y T > 0",
            (positive.trace("y T/A > 0"),),
            levels=(Level("chance", 0.5),),
        ),
        Panel(
            "mass",
            "sums over all circuits: their size",
            EPOCH,
            "mean of y T/A",
            (mass.trace("y T/A"),),
            yscale="signed log",
        ),
    ]


def _circuits(run: Run, order: int, step: int, label: str) -> Trace:
    arrays = run.arrays(sample_name(order), step)
    outline = histogram_row(label, arrays["counts"], arrays["edges"])  # bins of several widths
    return Trace(label, outline.x, outline.density, look="line")


def order_panels(runs: Sequence[Run]) -> list[Drawable]:
    """The order parameter beside the risk, their ratio, and the control given active (Fig. 4b)."""
    order, risk, scaled = (
        course(runs, f"order_parameter/{name}") for name in ("value", "risk", "scaled")
    )
    share = course(runs, "hessian_entries/active_share")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (
            Course(scaled.epochs, scaled.values / risk.values).trace(r"$\eta$ OP / R"),
            Course(order.epochs, order.values / risk.values).trace("OP / R"),
        )
        # of the same examples as p
        given = _given_active(course(runs, "phase/order_parameter"), share, 2)
        given_risk = _given_active(course(runs, CURVATURE), share, 1)
    op = r"$|\!|\nabla R|\!|^2$"
    return [
        Panel(
            "order",
            "order parameter and risk",
            EPOCH,
            f"R, OP = {op}",
            (risk.trace("R"), order.trace("OP"), scaled.trace(r"$\eta$ OP")),
            yscale="log",
        ),
        Panel(
            "ratio",
            "how far below the risk",
            EPOCH,
            "ratio",
            ratios,
            yscale="log",
            levels=(Level("an order of magnitude below", TENTH),),
        ),
        Panel(
            "active",
            "control: given active, share p",
            EPOCH,
            "of the active examples alone",
            (given_risk.trace("R / p"), given.trace(r"OP / $p^2$"), share.trace("p")),
            yscale="log",
        ),
        Panel(
            "together",
            "order parameter against risk",
            "R",
            "OP",
            tuple(
                Trace(f"seed {run.meta['seed']}", one[one > 0], other[one > 0], look="points")
                for run, one, other in zip(runs, risk.values, order.values, strict=True)
            ),
            xscale="log",
            yscale="log",
        ),
    ]


def _given_active(found: Course, share: Course, power: int) -> Course:
    """A quantity over a power of the active share, where both were measured."""
    found, share = same_epochs(found, share)
    p = np.where(share.values > 0, share.values, np.nan)
    return Course(found.epochs, found.values / p**power)


def risk_panels(runs: Sequence[Run]) -> list[Drawable]:
    """Risk and accuracy over the epochs (Fig. 8b)."""
    named = {
        what: tuple(
            course(runs, f"training/{part}_{what}").trace(label)
            for part, label in (("train", "training"), ("test", "held out"))
        )
        for what in ("risk", "accuracy")
    }
    return [
        Panel("risk", "risk", EPOCH, "R, mean loss an example", named["risk"], yscale="log"),
        Panel("accuracy", "accuracy", EPOCH, "share with y T > 0", named["accuracy"]),
    ]
