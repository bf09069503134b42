"""Panels: curves over steps, histograms.

Each comes twice: ``draw_...`` fills a panel of a figure, the plain name makes a figure of one
panel. Both take stored numbers. What is not finite is left out, and a panel without anything to
show says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from torch_thermo.figures import style
from torch_thermo.figures.scale import Floats, Scale, set_scale

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Curve",
    "curves",
    "draw_counts",
    "draw_curves",
    "draw_histogram",
    "histogram",
]

NULL = "floor: random signs"
_OPEN: dict[str, Any] = {"markersize": 3, "markerfacecolor": "white", "linewidth": 1.0}
MARKED = 120  # curves of more points than this are drawn without markers


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
        null: ``(n,)``, what chance alone gives: a thin dotted line of the same colour.

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
    null: ArrayLike | None = None

    def __post_init__(self) -> None:
        """Check the lengths and the band."""
        given = [self.low is not None, self.high is not None, self.band is not None]
        if any(given) != all(given):
            raise ValueError(f"curve {self.label!r}: a band needs low, high and band, all three")
        arrays = (self.x, self.y, self.low, self.high, self.null)
        sizes = [np.shape(a) for a in arrays if a is not None]
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
    named: bool = True,
) -> dict[str, Artist]:
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
        named: whether the panel's legend names the curves; bands and the floor are in it anyway.

    Returns:
        The line of each curve that has a finite point, by its label: for another legend.
    """
    lines: dict[str, Artist] = {}
    finite = [curve.finite() for curve in series]
    nulls = [
        Curve(NULL, curve.x, curve.null).finite()[:2] if curve.null is not None else ((), ())
        for curve in series
    ]
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
            lines[curve.label] = _draw_points(axes, x, y, curve.label, look["color"])
            continue
        if len(x) > MARKED:
            look |= {"marker": None, "linestyle": "-"}
        label = curve.label if named else None
        (line,) = axes.plot(x, y, label=label, linewidth=1.5, markersize=4, zorder=2.5, **look)
        lines[curve.label] = line
        if len(nulls[index][0]):
            thin = {**look, "linestyle": ":", **_OPEN}
            axes.plot(*nulls[index], zorder=2.2, **thin)
    axes.set_xlabel(xlabel, fontsize=style.TEXT)
    axes.set_ylabel(ylabel, fontsize=style.TEXT)
    if not any(len(x) for x, _, _, _ in finite):
        say_empty(axes, title)
        return lines
    if zero_line:
        axes.axhline(0.0, color=style.INK, linewidth=0.8, zorder=1.5)
    set_scale(axes, "x", xscale, np.concatenate([x for x, _, _, _ in finite]), threshold=1.0)
    heights = [*(y for _, y, _, _ in finite), *(y for _, y in nulls)]
    set_scale(axes, "y", yscale, np.concatenate(heights))
    if any(len(x) for x, _ in nulls):
        axes.plot([], [], ":", color=style.INK, marker="o", **_OPEN, label=NULL)
    style.legend(axes, title, width)
    return lines


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
    arrays = [(label, np.ravel(np.asarray(values, np.float64))) for label, values in samples]
    kept = [(label, values[np.isfinite(values)]) for label, values in arrays]
    kept = [(label, values) for label, values in kept if values.size]
    together = [values for _, values in kept] or [np.zeros(0)]
    edges = np.histogram_bin_edges(np.concatenate(together), bins)
    counted = [(label, np.histogram(values, edges)[0], edges) for label, values in kept]
    draw_counts(axes, counted, xlabel=xlabel, yscale=yscale, title=title)


def draw_counts(
    axes: Axes,
    counted: Sequence[tuple[str, ArrayLike, ArrayLike]],
    *,
    xlabel: str = "value",
    yscale: Scale = "log",
    title: str | None = None,
    width: float = 5.2,
) -> None:
    """Draw counted histograms into a panel, as outlines, each of total area 1.

    Args:
        axes: the panel.
        counted: a label, counts ``(n,)`` and edges ``(n + 1,)`` of each.
        xlabel: quantity and unit.
        yscale: ``"log"`` or ``"linear"``.
        title: of the panel.
        width: of the panel in inches, for the legend's rows.
    """
    axes.set_xlabel(xlabel, fontsize=style.TEXT)
    axes.set_ylabel("probability density", fontsize=style.TEXT)
    if not counted:
        say_empty(axes, title)
        return
    for index, (label, counts, edges) in enumerate(counted):
        look = style.series_style(index)
        counts, edges = np.asarray(counts, np.float64), np.asarray(edges, np.float64)
        heights = counts / counts.sum() / np.diff(edges)
        axes.stairs(
            heights, edges, label=label, color=look["color"], linestyle=look["linestyle"], lw=1.5
        )
    axes.set_yscale("log" if yscale != "linear" else "linear")
    style.legend(axes, title, width)


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


def _draw_points(axes: Axes, x: Floats, y: Floats, label: str, color: str) -> Artist:
    """A cloud of points as background, with a handle in the legend that can be seen."""
    axes.plot(x, y, linestyle="none", marker=".", markersize=2, color=color, alpha=0.4, zorder=1.8)
    look: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 6, "color": color}
    (handle,) = axes.plot([], [], label=label, **look)
    return handle


def say_empty(axes: Axes, title: str | None, reason: str = "no finite measurement") -> None:
    """Make a panel that has nothing to show say why."""
    axes.text(
        0.5,
        0.5,
        reason,
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=style.TEXT,
        color=style.INK,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    style.panel_title(axes, title)
