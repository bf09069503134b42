"""Panels of one stored run: distributions at some of its steps.

A run is what :func:`torch_thermo.load_run` returns. A panel of what was not measured says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from torch_thermo.figures import style
from torch_thermo.figures.panels import draw_counts
from torch_thermo.figures.ridgelines import chosen_steps, draw_ridgeline, histogram_rows
from torch_thermo.figures.spectral import (
    draw_density,
    draw_density_ridgeline,
    spectral_axis,
    stored_measure,
)
from torch_thermo.spectra.spectral_measure import SpectralMeasure
from torch_thermo.store import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "draw_circuit_sample",
    "draw_densities",
    "draw_histogram_ridgeline",
    "draw_spectral_ridgeline",
]

WIDE = 5.2  # inches of a panel that fills a figure


def draw_densities(
    axes: Axes,
    run: Run,
    observable: str = "hessian_density",
    steps: Sequence[int] | None = None,
    title: str | None = None,
    width: float = WIDE,
) -> None:
    """Spectral densities at some steps: by default the first, the middle and the last stored.

    Args:
        axes: the panel.
        run: the stored run.
        observable: ``hessian_density``, ``functional_density`` or ``propagator_spectrum``.
        steps: which measurements; those that were not made are left out.
        title: of the panel.
        width: of the panel in inches.
    """
    stored = _array_steps(run, observable)
    if steps is None:
        steps = _first_middle_last(stored)
    measures = [
        (f"step {step}", _measure(run, observable, step)) for step in steps if step in stored
    ]
    draw_density(axes, measures, title=title, width=width, **spectral_axis(observable))


def draw_spectral_ridgeline(
    axes: Axes,
    run: Run,
    observable: str = "hessian_density",
    title: str | None = None,
    width: float = WIDE,
) -> None:
    """Spectral densities at up to ten steps below each other.

    Args:
        axes: the panel.
        run: the stored run.
        observable: ``hessian_density``, ``functional_density`` or ``propagator_spectrum``.
        title: of the panel.
        width: of the panel in inches.
    """
    axes.set_ylabel("step (completed updates)", fontsize=style.TEXT)
    steps = chosen_steps(_array_steps(run, observable))
    measures = [(f"{step:,}", _measure(run, observable, step)) for step in steps]
    draw_density_ridgeline(axes, measures, title=title, width=width, **spectral_axis(observable))


def draw_histogram_ridgeline(
    axes: Axes,
    run: Run,
    observable: str = "weight_symmetry",
    title: str | None = None,
    width: float = WIDE,
) -> None:
    """The distribution of all weights, or of the gradient's entries, at up to ten steps.

    S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking*, Fig. 3a.

    Args:
        axes: the panel.
        run: the stored run.
        observable: ``weight_symmetry`` or ``gradient_symmetry``.
        title: of the panel.
        width: of the panel in inches.
    """
    rows, options = histogram_rows(
        [(step, run.arrays(observable, step)) for step in chosen_steps(_counted(run, observable))]
    )
    draw_ridgeline(axes, rows, title=title, width=width, **options)


def draw_circuit_sample(
    axes: Axes, run: Run, title: str | None = None, width: float = WIDE
) -> None:
    """The histogram of sampled circuits on a signed logarithmic axis, at up to three steps.

    S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking*, Fig. 3b.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    observable = "circuit_sample"
    steps = _first_middle_last(_counted(run, observable))
    stored = [(step, run.arrays(observable, step)) for step in steps]
    draw_counts(
        axes,
        [(f"step {step:,}", arrays["counts"], arrays["edges"]) for step, arrays in stored],
        xlabel=r"circuit $x\,\psi$",
        yscale="linear",
        title=title,
        width=width,
    )
    if not stored:
        return
    axes.set_ylabel("share of circuits a decade", fontsize=style.TEXT)
    axes.axvline(0.0, color=style.INK, linewidth=0.8)
    reach = max(float(np.abs(arrays["edges"]).max()) for _, arrays in stored)
    _label_decades(axes, reach, float(stored[-1][1]["floor"]))


def _label_decades(axes: Axes, reach: float, floor: float) -> None:
    """Write at the decades above and below the floor what they are."""
    stride = max(1, math.ceil(reach / 4))
    away = range(stride, math.floor(reach) + 1, stride)
    ticks = [(0.0, rf"$\pm 10^{{{floor:.0f}}}$")]
    for sign, minus in ((1.0, ""), (-1.0, "-")):
        ticks += [(sign * decades, f"${minus}10^{{{decades + floor:.0f}}}$") for decades in away]
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])


def _array_steps(run: Run, observable: str) -> list[int]:
    return run.array_steps(observable) if observable in run.observables else []


def _counted(run: Run, observable: str) -> list[int]:
    """The steps with a histogram: nothing finite leaves none, and older stores have none."""
    steps = _array_steps(run, observable)
    return [step for step in steps if "counts" in run.arrays(observable, step)]


def _first_middle_last(steps: Sequence[int]) -> list[int]:
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []


def _measure(run: Run, observable: str, step: int) -> SpectralMeasure:
    return stored_measure(run.arrays(observable, step))
