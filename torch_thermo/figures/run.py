"""The figures of one stored run: order parameter, edges and density of the Hessian, symmetry.

A run is what :func:`torch_thermo.load_run` returns. An observable that was not measured leaves an
empty panel that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from torch_thermo.figures import style
from torch_thermo.figures.panels import Curve, draw_curves, draw_density
from torch_thermo.figures.scale import Floats
from torch_thermo.spectra.spectral_measure import SpectralMeasure
from torch_thermo.store import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_densities",
    "draw_edges",
    "draw_order_parameter",
    "draw_sign_balance",
    "overview",
    "run_figures",
]

WIDE = 5.2  # inches of a panel that fills a figure


def draw_order_parameter(
    axes: Axes, run: Run, title: str | None = None, width: float = WIDE
) -> None:
    """The order parameter on the probe and of each minibatch, and the risk, over steps.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = [
        _curve(run, r"$\|\nabla R\|^2$, probe", "order_parameter/value"),
        _curve(run, "risk $R$, probe", "order_parameter/risk"),
        _curve(run, r"$\|\nabla R_B\|^2$, each minibatch", "order_parameter_minibatch/value"),
    ]
    faint = curves[2]
    curves[2] = Curve(faint.label, faint.x, faint.y, faint=True)
    draw_curves(axes, curves, ylabel=r"$\|\nabla R\|^2$ and $R$", title=title, width=width)


def draw_edges(axes: Axes, run: Run, title: str | None = None, width: float = WIDE) -> None:
    """Smallest and largest eigenvalue of the Hessian over steps, with their residual bounds.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = [
        _curve(run, rf"$\lambda_{{\{end}}}$", f"hessian_extremes/lambda_{end}", f"residual_{end}")
        for end in ("max", "min")
    ]
    draw_curves(
        axes,
        curves,
        ylabel=r"eigenvalue $\lambda$ of the Hessian",
        yscale="signed log",
        title=title,
        zero_line=True,
        width=width,
    )


def draw_sign_balance(axes: Axes, run: Run, title: str | None = None, width: float = WIDE) -> None:
    """Sign balance of weights and gradient entries over steps, with their intervals.

    ``(n_+ - n_-) / n`` over all parameters: 0 for a symmetric sample.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = []
    for label, observable in (("weights", "weight_symmetry"), ("gradient", "gradient_symmetry")):
        steps, values = _series(run, f"{observable}/sign_balance")
        low, high = (_series(run, f"{observable}/{edge}") for edge in ("low", "high"))
        band = np.array_equal(steps, low[0]) and np.array_equal(steps, high[0]) and len(steps) > 0
        if band:
            curves.append(Curve(label, steps, values, low[1], high[1], "95 % interval"))
        else:
            curves.append(Curve(label, steps, values))
    draw_curves(
        axes,
        curves,
        ylabel=r"sign balance $(n_+ - n_-)\,/\,n$",
        yscale="linear",
        title=title,
        zero_line=True,
        width=width,
    )


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
        observable: ``hessian_density`` or ``functional_density``.
        steps: which measurements; those that were not made are left out.
        title: of the panel.
        width: of the panel in inches.
    """
    stored = run.array_steps(observable) if observable in run.observables else []
    if steps is None:
        steps = sorted({stored[0], stored[len(stored) // 2], stored[-1]}) if stored else []
    measures = []
    for step in steps:
        if step in stored:
            arrays = run.arrays(observable, step)
            nodes, weights = (torch.from_numpy(arrays[key]) for key in ("nodes", "weights"))
            dimension = int(arrays["dimension"])
            measure = SpectralMeasure(nodes, weights, exact=False, dimension=dimension)
            measures.append((f"step {step}", measure))
    draw_density(axes, measures, title=title, width=width)


def run_figures(
    run: Run, caption: str | None = None, notes: Mapping[str, str] | None = None
) -> dict[str, Figure]:
    """The figures of a run, each of one panel.

    Args:
        run: the stored run.
        caption: data and net; written below each.
        notes: added to the caption of the figure of that name: probe, m, k.

    Returns:
        ``order_parameter``, ``hessian_edges``, ``hessian_density``, ``sign_balance``.
    """
    figures = {}
    for name, title in (
        ("order_parameter", "Order parameter and risk"),
        ("hessian_edges", "Edges of the Hessian's spectrum"),
        ("hessian_density", "Spectral density of the Hessian"),
        ("sign_balance", "Sign balance of weights and gradient"),
    ):
        figure, (axes,) = style.new_figure()
        if name == "order_parameter":
            draw_order_parameter(axes, run, title)
        elif name == "hessian_edges":
            draw_edges(axes, run, title)
        elif name == "hessian_density":
            draw_densities(axes, run, title=title)
        else:
            draw_sign_balance(axes, run, title)
        parts = [caption, (notes or {}).get(name)]
        style.caption(figure, " ".join(part for part in parts if part))
        figures[name] = figure
    return figures


def overview(runs: Sequence[tuple[str, Run]], caption: str | None = None) -> Figure:
    """Several runs side by side: order parameter and risk, edges, density, one column a run.

    Args:
        runs: label and stored run of each.
        caption: written below.

    Returns:
        The figure, four inches a run.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    columns = len(runs)
    figure, panels = style.new_figure(4.2 * columns, 9.4, rows=3, columns=columns)
    for column, (label, run) in enumerate(runs):
        width = 3.5
        draw_order_parameter(panels[column], run, f"{label}: order parameter", width)
        draw_edges(panels[columns + column], run, f"{label}: edges of the Hessian", width)
        draw_densities(
            panels[2 * columns + column],
            run,
            title=f"{label}: density of the Hessian",
            width=width,
        )
    style.caption(figure, caption)
    return figure


def _series(run: Run, name: str) -> tuple[Floats, Floats]:
    if name not in run.names:
        return np.zeros(0), np.zeros(0)
    series = run.series(name)
    return series.steps.astype(np.float64), series.values


def _curve(run: Run, label: str, name: str, error: str | None = None) -> Curve:
    """A stored series; ``error`` names the quantity of the same observable that is its band."""
    steps, values = _series(run, name)
    if error is None:
        return Curve(label, steps, values)
    at, size = _series(run, f"{name.partition('/')[0]}/{error}")
    if len(steps) == 0 or not np.array_equal(steps, at):
        return Curve(label, steps, values)
    return Curve(label, steps, values, values - size, values + size, "± residual bound")
