"""Panels of spectral measures: densities over each other, and below each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from torch_thermo.figures import style
from torch_thermo.figures.panels import say_empty
from torch_thermo.figures.ridgelines import Row, draw_ridgeline
from torch_thermo.figures.scale import DECADES, Floats, Scale, set_scale
from torch_thermo.spectra.spectral_measure import SpectralMeasure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "density",
    "density_ridgeline",
    "density_rows",
    "draw_density",
    "draw_density_ridgeline",
    "spectral_axis",
    "stored_measure",
]

GRID = 2401
BAND = "± standard error"
# of eigenvalues themselves the axis is signed-log; these are logarithms already
_AXES: dict[str, dict[str, Any]] = {
    "propagator_spectrum": {"xlabel": r"$\log\lambda$ of the propagator", "xscale": "linear"}
}


def spectral_axis(observable: str) -> dict[str, Any]:
    """The axis that a stored spectrum is drawn on: arguments of the functions below."""
    return dict(_AXES.get(observable, {}))


def stored_measure(arrays: Mapping[str, ArrayLike]) -> SpectralMeasure:
    """The measure of stored arrays ``nodes``, ``weights``, ``dimension`` and, if there, ``exact``.

    Raises:
        KeyError: an array is missing.
        ValueError: they are not those of a spectral measure.
    """
    nodes, weights = (
        torch.from_numpy(np.asarray(arrays[key], np.float64)) for key in ("nodes", "weights")
    )
    exact = bool(np.asarray(arrays.get("exact", False)))
    return SpectralMeasure(nodes, weights, exact, int(np.asarray(arrays["dimension"])))


def draw_density(
    axes: Axes,
    measures: Sequence[tuple[str, SpectralMeasure]],
    *,
    sigma: float | None = None,
    xscale: Scale = "signed log",
    xlabel: str = r"eigenvalue $\lambda$",
    title: str | None = None,
    width: float = 5.2,
) -> None:
    r"""Draw smoothed spectral densities into a panel, on a logarithmic axis.

    ``rho(lambda) = sum_i w_i N(lambda - node_i; sigma^2)``, averaged over the probes; the band is
    the standard error over probes. The axis ends a little below the height of one eigenvalue,
    ``1 / (n sigma sqrt(2 pi))``, under which a density of n eigenvalues has no meaning.

    Args:
        axes: the panel.
        measures: pairs of a label and a measure.
        sigma: width of the Gaussians; by default 1 % of each measure's largest ``|node|``, on a
            linear axis at least the mean distance of a quadrature's nodes.
            The zero operator is a mark at 0 and says so in the legend.
        xscale: ``"signed log"`` or ``"linear"``.
        xlabel: quantity and unit.
        title: of the panel.
        width: of the panel in inches, for the legend's rows.

    Raises:
        ValueError: ``sigma`` is not above 0.
    """
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    axes.set_xlabel(xlabel, fontsize=style.TEXT)
    axes.set_ylabel(r"density $\rho$", fontsize=style.TEXT)
    if not measures:
        say_empty(axes, title)
        return
    reach, widths, grid, threshold = _common_grid([m for _, m in measures], sigma, xscale)
    floor, top = math.inf, 0.0
    zeros = []
    for index, ((label, measure), spread) in enumerate(zip(measures, widths, strict=True)):
        look = style.series_style(index)
        if reach[index] == 0:
            zeros.append((label, look))
            continue
        values, stderr = measure.density(torch.from_numpy(grid), spread)
        mean, error = values.numpy(), stderr.numpy()
        lowest = _lowest(measure, spread)
        floor, top = min(floor, lowest), max(top, float(mean.max()))
        if measure.nodes.shape[0] > 1:
            low = np.maximum(mean - error, lowest / 100)
            name = BAND if BAND not in axes.get_legend_handles_labels()[1] else None
            axes.fill_between(
                grid, low, mean + error, color=look["color"], alpha=0.2, linewidth=0, label=name
            )
        axes.plot(
            grid, mean, label=label, linewidth=1.5, markersize=4, markevery=GRID // 24, **look
        )
    if top == 0:
        floor, top = 0.1, 1.0
    for label, look in zeros:
        # All mass in one point: no width to draw, a mark at the top of the axis.
        look |= {"linestyle": "none"}
        axes.plot([0.0], [top], label=f"{label}: all eigenvalues 0", markersize=8, **look)
    axes.set_yscale("log")
    axes.set_ylim(floor, 3 * top)
    set_scale(axes, "x", xscale, grid, threshold)
    axes.axvline(0.0, color=style.INK, linewidth=0.8, zorder=1.5)
    style.legend(axes, title, width)


def density(
    measures: Sequence[tuple[str, SpectralMeasure]],
    *,
    sigma: float | None = None,
    xscale: Scale = "signed log",
    xlabel: str = r"eigenvalue $\lambda$",
    title: str | None = None,
    caption: str | None = None,
) -> Figure:
    """A figure of spectral densities; arguments as :func:`draw_density`, and a caption below."""
    figure, (axes,) = style.new_figure()
    draw_density(axes, measures, sigma=sigma, xscale=xscale, xlabel=xlabel, title=title)
    style.caption(figure, caption)
    return figure


def draw_density_ridgeline(
    axes: Axes,
    measures: Sequence[tuple[str, SpectralMeasure]],
    *,
    xscale: Scale = "signed log",
    xlabel: str = r"eigenvalue $\lambda$",
    title: str | None = None,
    width: float = 5.2,
) -> None:
    """Draw smoothed spectral densities below each other, as :func:`draw_density` smooths them.

    Heights are logarithmic, from a little below that of one eigenvalue. The zero operator is a
    peak at 0.

    Args:
        axes: the panel.
        measures: pairs of a label and a measure.
        xscale: ``"signed log"`` or ``"linear"``.
        xlabel: quantity and unit.
        title: of the panel.
        width: of the panel in inches, for the legend's rows.
    """
    if not measures:
        axes.set_xlabel(xlabel, fontsize=style.TEXT)
        say_empty(axes, title)
        return
    rows, options = density_rows(measures, xscale)
    draw_ridgeline(axes, rows, xlabel=xlabel, xscale=xscale, title=title, width=width, **options)


def density_rows(
    measures: Sequence[tuple[str, SpectralMeasure]], xscale: Scale = "signed log"
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of smoothed spectral densities on one grid, and how to draw them.

    Args:
        measures: pairs of a label and a measure, at least one.
        xscale: ``"signed log"`` or ``"linear"``.

    Returns:
        The rows, and the arguments threshold and floor of :func:`draw_ridgeline`.
    """
    _, widths, grid, threshold = _common_grid([m for _, m in measures], None, xscale)
    points = torch.from_numpy(grid)
    rows = [
        Row(label, grid, measure.density(points, spread)[0].numpy())
        for (label, measure), spread in zip(measures, widths, strict=True)
    ]
    lowest = min(
        _lowest(measure, spread) for (_, measure), spread in zip(measures, widths, strict=True)
    )
    return rows, {"threshold": threshold, "floor": lowest}


def density_ridgeline(
    measures: Sequence[tuple[str, SpectralMeasure]],
    *,
    xscale: Scale = "signed log",
    xlabel: str = r"eigenvalue $\lambda$",
    title: str | None = None,
    caption: str | None = None,
) -> Figure:
    """A figure of densities; arguments as :func:`draw_density_ridgeline`, and a caption below."""
    figure, (axes,) = style.new_figure(height=4.8)
    draw_density_ridgeline(axes, measures, xscale=xscale, xlabel=xlabel, title=title)
    style.caption(figure, caption)
    return figure


def _common_grid(
    measures: Sequence[SpectralMeasure], sigma: float | None, xscale: Scale
) -> tuple[list[float], list[float], Floats, float]:
    """Each measure's reach and width of the Gaussians, and the points all are drawn at."""
    reach = [_reach(measure) for measure in measures]
    narrowest = min((r for r in reach if r > 0), default=1.0)
    widths = [
        sigma or max(0.01 * (r or narrowest), _spacing(measure) if xscale == "linear" else 0.0)
        for r, measure in zip(reach, measures, strict=True)
    ]
    edge = max(r + 4 * w for r, w in zip(reach, widths, strict=True))
    threshold = max(min(widths), edge * 10.0**-DECADES)
    grid = _signed_grid(edge, threshold) if xscale != "linear" else np.linspace(-edge, edge, GRID)
    return reach, widths, grid, threshold


def _spacing(measure: SpectralMeasure) -> float:
    """The mean distance of a quadrature's nodes: narrower peaks would look like eigenvalues."""
    if measure.exact:
        return 0.0
    ends = measure.extremes
    return (ends.max.value - ends.min.value) / measure.nodes.shape[1]


def _lowest(measure: SpectralMeasure, spread: float) -> float:
    """A little below the height of one eigenvalue."""
    return 0.3 / (measure.dimension * spread * math.sqrt(2 * math.pi))


def _reach(measure: SpectralMeasure) -> float:
    """The largest ``|node|`` that has weight; 0 for the zero operator."""
    return float(measure.nodes[measure.weights > 0].abs().max())


def _signed_grid(edge: float, threshold: float) -> Floats:
    """Points from ``-edge`` to ``edge``, even below the threshold and geometric beyond it."""
    side = GRID // 2
    inner = np.linspace(0.0, threshold, side // 4, endpoint=False)
    outer = np.geomspace(threshold, edge, side - side // 4 + 1)
    half = np.concatenate([inner, outer])
    return np.concatenate([-half[:0:-1], half])
