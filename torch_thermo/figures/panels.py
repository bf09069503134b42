"""Panels: curves over steps, the density of a spectral measure, histograms.

Each comes twice: ``draw_...`` fills a panel of a figure, the plain name makes a figure of one
panel. Both take stored numbers. What is not finite is left out, and a panel without anything to
show says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from torch_thermo.figures import style
from torch_thermo.figures.scale import DECADES, Floats, Scale, set_scale
from torch_thermo.spectra.spectral_measure import SpectralMeasure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Curve",
    "curves",
    "density",
    "draw_curves",
    "draw_density",
    "draw_histogram",
    "histogram",
]

MARKED = 120  # curves of more points than this are drawn without markers
GRID = 2401
BAND = "± standard error"


@dataclass(frozen=True)
class Curve:
    """One series of a panel.

    Attributes:
        label: its name in the legend.
        x: ``(n,)``, steps as a rule.
        y: ``(n,)``; what is not finite is left out.
        low: ``(n,)``, lower edge of a band around it.
        high: ``(n,)``, upper edge.
        band: what the band is, for the legend: "95 % interval", "standard error"; named once.
        faint: drawn as a cloud of small points, as background to the other curves.

    Raises:
        ValueError: the arrays differ in length, or a band lacks an edge or its name.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    band: str | None = None
    faint: bool = False

    def __post_init__(self) -> None:
        """Check the lengths and the band."""
        given = [self.low is not None, self.high is not None, self.band is not None]
        if any(given) != all(given):
            raise ValueError(f"curve {self.label!r}: a band needs low, high and band, all three")
        arrays = [a for a in (self.x, self.y, self.low, self.high) if a is not None]
        sizes = [np.shape(a) for a in arrays]
        if any(len(size) != 1 or size != sizes[0] for size in sizes):
            raise ValueError(f"curve {self.label!r}: x, y and band must be (n,), got {sizes}")

    def finite(self) -> tuple[Floats, Floats, Floats | None, Floats | None]:
        """``x, y, low, high`` where x and y are finite, ordered by x."""
        x, y = np.asarray(self.x, np.float64), np.asarray(self.y, np.float64)
        kept = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        kept = kept[np.argsort(x[kept], kind="stable")]
        if self.low is None or self.high is None:
            return x[kept], y[kept], None, None
        low, high = (np.asarray(edge, np.float64)[kept] for edge in (self.low, self.high))
        return x[kept], y[kept], low, high


def draw_curves(
    axes: Axes,
    series: Sequence[Curve],
    *,
    xlabel: str = "step (completed updates)",
    ylabel: str = "",
    xscale: Scale = "signed log",
    yscale: Scale = "log",
    title: str | None = None,
    zero_line: bool = False,
    width: float = 5.2,
) -> None:
    """Draw curves into a panel.

    Args:
        axes: the panel.
        series: the curves.
        xlabel: quantity and unit.
        ylabel: quantity and unit.
        xscale: ``"signed log"`` shows step 0 left of the decades.
        yscale: ``"log"`` becomes signed-log, with 0 on the axis, when a value is 0 or below.
        title: of the panel.
        zero_line: whether to mark 0.
        width: of the panel in inches, for the legend's rows.
    """
    finite = [curve.finite() for curve in series]
    bands: set[str | None] = set()
    for index, (curve, (x, y, low, high)) in enumerate(zip(series, finite, strict=True)):
        if len(x) == 0:
            continue
        look = style.series_style(index)
        if low is not None and high is not None:
            name = None if curve.band in bands else curve.band
            axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0, label=name)
            bands.add(curve.band)
        if curve.faint:
            _draw_points(axes, x, y, curve.label, look["color"])
            continue
        if len(x) > MARKED:
            look |= {"marker": None, "linestyle": "-"}
        axes.plot(x, y, label=curve.label, linewidth=1.5, markersize=4, zorder=2.5, **look)
    axes.set_xlabel(xlabel, fontsize=style.TEXT)
    axes.set_ylabel(ylabel, fontsize=style.TEXT)
    if not any(len(x) for x, _, _, _ in finite):
        _say_empty(axes, title)
        return
    if zero_line:
        axes.axhline(0.0, color=style.INK, linewidth=0.8, zorder=1.5)
    set_scale(axes, "x", xscale, np.concatenate([x for x, _, _, _ in finite]), threshold=1.0)
    set_scale(axes, "y", yscale, np.concatenate([y for _, y, _, _ in finite]))
    style.legend(axes, title, width)


def curves(
    series: Sequence[Curve],
    *,
    xlabel: str = "step (completed updates)",
    ylabel: str = "",
    xscale: Scale = "signed log",
    yscale: Scale = "log",
    title: str | None = None,
    caption: str | None = None,
    zero_line: bool = False,
) -> Figure:
    """A figure of curves; arguments as :func:`draw_curves`, and a caption below."""
    figure, (axes,) = style.new_figure()
    draw_curves(
        axes,
        series,
        xlabel=xlabel,
        ylabel=ylabel,
        xscale=xscale,
        yscale=yscale,
        title=title,
        zero_line=zero_line,
    )
    style.caption(figure, caption)
    return figure


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
        sigma: width of the Gaussians; by default 1 % of each measure's largest ``|node|``.
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
    axes.set_ylabel(r"density $\rho(\lambda)$", fontsize=style.TEXT)
    reach = [_reach(measure) for _, measure in measures]
    if not reach:
        _say_empty(axes, title)
        return
    narrowest = min((r for r in reach if r > 0), default=1.0)
    widths = [sigma or 0.01 * (r or narrowest) for r in reach]
    edge = max(r + 4 * w for r, w in zip(reach, widths, strict=True))
    threshold = max(min(widths), edge * 10.0**-DECADES)
    grid = _signed_grid(edge, threshold) if xscale != "linear" else np.linspace(-edge, edge, GRID)
    floor, top = math.inf, 0.0
    zeros = []
    for index, ((label, measure), spread) in enumerate(zip(measures, widths, strict=True)):
        look = style.series_style(index)
        if reach[index] == 0:
            zeros.append((label, look))
            continue
        values, stderr = measure.density(torch.from_numpy(grid), spread)
        mean, error = values.numpy(), stderr.numpy()
        lowest = 0.3 / (measure.dimension * spread * math.sqrt(2 * math.pi))
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


def draw_histogram(
    axes: Axes,
    samples: Sequence[tuple[str, ArrayLike]],
    *,
    bins: int = 60,
    xlabel: str = "value",
    yscale: Scale = "log",
    title: str | None = None,
) -> None:
    """Draw histograms into a panel, as outlines over common bins, each of total area 1.

    Args:
        axes: the panel.
        samples: pairs of a label and values of any shape; what is not finite is left out.
        bins: how many, at least 1.
        xlabel: quantity and unit.
        yscale: ``"log"`` or ``"linear"``.
        title: of the panel.

    Raises:
        ValueError: ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    axes.set_xlabel(xlabel, fontsize=style.TEXT)
    axes.set_ylabel("probability density", fontsize=style.TEXT)
    arrays = [(label, np.ravel(np.asarray(values, np.float64))) for label, values in samples]
    kept = [(label, values[np.isfinite(values)]) for label, values in arrays]
    kept = [(label, values) for label, values in kept if values.size]
    if not kept:
        _say_empty(axes, title)
        return
    edges = np.histogram_bin_edges(np.concatenate([values for _, values in kept]), bins)
    for index, (label, values) in enumerate(kept):
        look = style.series_style(index)
        heights, _ = np.histogram(values, edges, density=True)
        axes.stairs(
            heights, edges, label=label, color=look["color"], linestyle=look["linestyle"], lw=1.5
        )
    axes.set_yscale("log" if yscale != "linear" else "linear")
    style.legend(axes, title)


def histogram(
    samples: Sequence[tuple[str, ArrayLike]],
    *,
    bins: int = 60,
    xlabel: str = "value",
    yscale: Scale = "log",
    title: str | None = None,
    caption: str | None = None,
) -> Figure:
    """A figure of histograms; arguments as :func:`draw_histogram`, and a caption below."""
    figure, (axes,) = style.new_figure()
    draw_histogram(axes, samples, bins=bins, xlabel=xlabel, yscale=yscale, title=title)
    style.caption(figure, caption)
    return figure


def _draw_points(axes: Axes, x: Floats, y: Floats, label: str, color: str) -> None:
    """A cloud of points as background, with a handle in the legend that can be seen."""
    axes.plot(x, y, linestyle="none", marker=".", markersize=2, color=color, alpha=0.4, zorder=1.8)
    axes.plot([], [], linestyle="none", marker=".", markersize=6, color=color, label=label)


def _say_empty(axes: Axes, title: str | None) -> None:
    axes.text(
        0.5,
        0.5,
        "no finite measurement",
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=style.TEXT,
        color=style.INK,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    style.panel_title(axes, title)


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
