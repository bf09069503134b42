"""The panels of Figs. 6, 7 and 8a, and of other losses and nets: Hessian entries and spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from torch_thermo.figures.matrices import Matrix, Ridges
from torch_thermo.figures.paper import Drawable, Level, Panel, Trace
from torch_thermo.figures.ridgelines import chosen_steps
from torch_thermo.figures.spectral import density_rows, stored_measure
from torch_thermo.papers.courses import Course, Floats, course
from torch_thermo.papers.li.curvature import ODD, edge_ratio
from torch_thermo.papers.li.entries import (
    EARLY,
    LATE,
    SIGN_NULL,
    THRESHOLD,
    chance_below,
    three_steps,
)
from torch_thermo.papers.li.panels import EPOCH, epoch_label
from torch_thermo.papers.li.recipe import NETS
from torch_thermo.store import Run

__all__ = [
    "correlation_panels",
    "functional_panels",
    "given_active_panels",
    "mean_panels",
    "share_panels",
    "spectrum_panels",
]

ENTRIES = "hessian_entries"
BINS = 61
# one row of the legend
STATED = tuple(Level("paper: .95 to .98", value) for value in (EARLY, LATE))
LAMBDA = r"eigenvalue $\lambda$"


def mean_panels(runs: Sequence[Run]) -> list[Drawable]:
    """Distribution of the normalised means at three epochs, B = 1 and given active (Fig. 6a)."""
    run = runs[0]
    steps = three_steps(run)
    return [
        _distribution(run, steps, "z_1", "means", "over all examples", r"$z_1$"),
        _distribution(run, steps, "z_active", "given", "given active", r"$z_a$"),
    ]


def _distribution(
    run: Run, steps: Sequence[int], array: str, name: str, title: str, symbol: str
) -> Panel:
    samples = {step: run.arrays(ENTRIES, step)[array].ravel() for step in steps}
    samples = {step: values[np.isfinite(values)] for step, values in samples.items()}
    reach = max((float(np.quantile(np.abs(v), 0.999)) for v in samples.values() if len(v)),
                default=1.0)  # fmt: skip
    edges = np.linspace(-1.0, 1.0, BINS + 1) * max(reach, 1.5 * THRESHOLD)
    traces = []
    for step, values in samples.items():
        if len(values):
            # a few beyond the ends count in the last bins: the area stays 1
            heights = np.histogram(values.clip(edges[0], edges[-1]), edges, density=True)[0]
            label = f"epoch {epoch_label(run, step)}"
            traces.append(Trace(label, 0.5 * (edges[1:] + edges[:-1]), heights, look="steps"))
    return Panel(
        name,
        f"normalised means {title}, seed {run.meta['seed']}",
        f"{symbol}, mean over standard deviation",
        "probability density",
        tuple(traces),
        levels=tuple(Level(f"±{THRESHOLD}", sign * THRESHOLD, "x") for sign in (-1.0, 1.0)),
    )


def share_panels(runs: Sequence[Run]) -> list[Drawable]:
    """The share below .15 over the epochs, beside what the active share forces (Fig. 6b)."""
    moving, every, bound, share = (
        course(runs, f"{ENTRIES}/{name}")
        for name in ("share_below_moving", "share_below", "bound", "active_share")
    )
    batch = int(runs[0].meta["batch"])
    return [
        Panel(
            "share",
            rf"entries with $|z| < {THRESHOLD}$",
            EPOCH,
            "share of those not 0 everywhere",
            (
                moving.trace("B = 1"),
                every.trace("B = 1, of all"),
                _at_batch(runs, batch).trace(f"B = {batch}"),
            ),
            levels=STATED,
            ylimits=(-0.03, 1.03),
        ),
        Panel(
            "bound",
            r"what arithmetic allows: $|z_1| \leq \sqrt{p / (1 - p)}$",
            EPOCH,
            "share p, bound",
            (bound.trace("bound"), share.trace("active share p")),
            yscale="log",
            levels=(Level(f"bound < {THRESHOLD}: all are below", THRESHOLD),),
        ),
    ]


def _at_batch(runs: Sequence[Run], batch: int) -> Course:
    """The share of |z_B| < .15 with z_B = sqrt(B) z_1, of the stored entries."""
    found = course(runs, f"{ENTRIES}/share_below_moving")
    limit = THRESHOLD / np.sqrt(batch)
    values = [[_share(_stored(run, epoch, "z_1"), limit) for epoch in found.epochs] for run in runs]
    return Course(found.epochs, np.array(values))


def _stored(run: Run, epoch: float, array: str) -> Floats:
    step = round(epoch * int(run.meta["steps_per_epoch"]))
    if step not in run.array_steps(ENTRIES):
        return np.zeros(0)
    values = np.asarray(run.arrays(ENTRIES, step)[array], np.float64).ravel()
    return values[np.isfinite(values)]


def _share(values: Floats, limit: float) -> float:
    return float((np.abs(values) < limit).mean()) if len(values) else float("nan")


def given_active_panels(runs: Sequence[Run]) -> list[Drawable]:
    """The control of Fig. 6: the share below .15 of the active examples alone (Fig. 6c)."""
    given, share, samples = (
        course(runs, f"{ENTRIES}/{name}")
        for name in ("share_below_active", "active_share", "samples")
    )
    count = Course(share.epochs, share.values * samples.values)
    chance = Course(count.epochs, np.stack([chance_below(row) for row in count.values]))
    known = np.where(np.isfinite(given.values), chance.values, np.nan)
    return [
        Panel(
            "given",
            rf"entries with $|z_a| < {THRESHOLD}$",
            EPOCH,
            "share, given active",
            (given.trace("measured"), Course(count.epochs, known).trace("chance alone")),
            levels=STATED,
            ylimits=(-0.03, 1.03),
        ),
        Panel(
            "active",
            "examples with a loss",
            EPOCH,
            "number",
            (count.trace(f"active of {samples.mean[0]:g}"),),
            yscale="log",
        ),
    ]


def correlation_panels(runs: Sequence[Run], place: int) -> list[Drawable]:
    """The correlations of one measurement beside what chance gives (Fig. 7).

    Args:
        runs: the seeds; the first one's matrix is shown.
        place: 0 the first, 1 a middle one, 2 the last with correlations.
    """
    run = runs[0]
    steps = three_steps(run)
    if not steps:
        return [Panel("pairs", "correlations of entries", "|r|", "density", ())]
    step = steps[min(place, len(steps) - 1)]
    arrays = run.arrays(ENTRIES, step)
    matrix = np.asarray(arrays["correlation_active"], np.float64)
    # random signs keep the magnitudes that entries share; runs from before they were stored lack it
    signs = arrays.get("sign_null_quantiles_active", arrays["null_quantiles_active"])
    levels = np.asarray(signs, np.float64)
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    pairs = np.abs(pairs[np.isfinite(pairs)])
    edges = np.linspace(0.0, 1.0, 41)
    heights = np.histogram(pairs, edges, density=True)[0]
    given = course(runs, f"{ENTRIES}/correlated_share_active")
    every = course(runs, f"{ENTRIES}/correlated_share")
    size, null = (
        course(runs, f"{ENTRIES}/{name}")
        for name in ("correlation_active", "correlation_active_null")
    )
    name = f"{ENTRIES}/{SIGN_NULL}"
    stored = all(name in run.names for run in runs)
    signed = (course(runs, name).trace("random signs"),) if stored else ()
    epoch = epoch_label(run, step)
    return [
        Matrix(
            "matrix",
            f"entries given active, epoch {epoch}, seed {run.meta['seed']}",
            "entry",
            matrix,
            "correlation over examples",
            null=float(levels[1]),
        ),
        Panel(
            "pairs",
            f"its pairs, epoch {epoch}",
            "|r|",
            "probability density",
            (Trace("pairs of entries", 0.5 * (edges[1:] + edges[:-1]), heights, look="steps"),),
            levels=(
                Level("null, 95 %", float(levels[1]), "x"),
                Level("null, 99.9 %", float(levels[3]), "x"),
            ),
        ),
        Panel(
            "size",
            "mean |r| and its nulls",
            EPOCH,
            "mean |r| given active",
            (size.trace("measured"), null.trace("examples permuted"), *signed),
        ),
        Panel(
            "share",
            "share of correlated pairs",
            EPOCH,
            "share, false-discovery rate .05",
            (given.trace("given active"), every.trace("all examples")),
        ),
    ]


def spectrum_panels(runs: Sequence[Run]) -> list[Drawable]:
    """The spectrum of the Hessian over training, its symmetry, its size (Fig. 8a)."""
    low, high = (course(runs, f"hessian_extremes/{name}") for name in ("lambda_min", "lambda_max"))
    return [
        density_ridges(runs[0], "hessian_density", "spectrum of H"),
        Panel(
            "size",
            "its ends",
            EPOCH,
            r"$|\lambda|$",
            (
                high.trace(r"$\lambda_{max}$"),
                Course(low.epochs, -low.values).trace(r"$-\lambda_{min}$"),
            ),
            yscale="log",
        ),
        Panel(
            "edges",
            "symmetry of the ends",
            EPOCH,
            r"$|\lambda_{min}| / \lambda_{max}$",
            (edge_ratio(runs).trace("ratio"),),
            levels=(Level("symmetric", 1.0),),
        ),
        _odd({"": runs}, "hessian_density", "symmetry of the spectrum"),
    ]


def density_ridges(run: Run, observable: str, title: str) -> Ridges:
    """Spectral densities at up to ten epochs below each other; those of H = 0 are left out."""
    found = []
    for step in run.array_steps(observable):
        measure = stored_measure(run.arrays(observable, step))
        if bool(measure.nodes.abs().max() > 0):
            found.append((step, measure))
    chosen = chosen_steps([step for step, _ in found])
    measures = [(epoch_label(run, step), one) for step, one in found if step in chosen]
    rows, options = density_rows(measures) if measures else ([], {})
    return Ridges(
        f"density_{observable.partition('_')[0]}_{run.meta['net'].replace('-', '_')}",
        f"{title}, seed {run.meta['seed']}",
        LAMBDA,
        EPOCH,
        tuple(rows),
        "signed log",
        options.get("threshold"),
        options.get("floor"),
    )


def _odd(nets: Mapping[str, Sequence[Run]], observable: str, title: str) -> Panel:
    label = r"$odd_3$"
    return Panel(
        f"odd_{observable.partition('_')[0]}",
        title,
        EPOCH,
        r"$odd_3 = \Sigma\lambda^3 / \Sigma|\lambda|^3$",
        tuple(course(runs, f"{observable}/odd3").trace(net or label) for net, runs in nets.items()),
        levels=(Level(f"±{ODD}", ODD), Level(f"±{ODD}", -ODD)),
        ylimits=(-1.05, 1.05),
    )


def functional_panels(nets: Mapping[str, Sequence[Run]]) -> list[Drawable]:
    """Spectra of the functional part and of the whole Hessian, of hinge the same, by net."""
    panels: list[Drawable] = [
        _odd(nets, "functional_density", "functional part F"),
        _odd(nets, "hessian_density", "whole Hessian H"),
    ]
    same: list[Drawable] = []
    for net, runs in nets.items():
        whole = density_ridges(runs[0], "hessian_density", f"H, {net}")
        if NETS[net].loss == "hinge":
            # its second derivative in the output is 0: the same picture twice
            same.append(replace(whole, title=f"H = F, {net}, seed {runs[0].meta['seed']}"))
        else:
            panels += [density_ridges(runs[0], "functional_density", f"F, {net}"), whole]
    return [*panels, *same]
