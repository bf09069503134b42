"""Ridgelines: how a distribution changes over the steps, a row for each of some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from torch_thermo.figures import style
from torch_thermo.figures.panels import say_empty
from torch_thermo.figures.scale import Floats, Scale, set_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MOST_ROWS",
    "Row",
    "chosen_steps",
    "draw_ridgeline",
    "histogram_row",
    "histogram_rows",
    "ridgeline",
]

MOST_ROWS = 10
RELATIVE = 3.0  # sizes that differ by more share no axis
HEIGHT = 0.9  # of a full row, in distances between rows
UNSEEN = 0.005  # of a row's peak: less can't be told from its base line


@dataclass(frozen=True)
class Row:
    """One distribution.

    Attributes:
        label: written beside it, a step as a rule.
        x: ``(n,)``, ascending.
        density: ``(n,)``; what is not finite is drawn as 0.

    Raises:
        ValueError: the arrays are empty or differ in length.
    """

    label: str
    x: Floats
    density: Floats

    def __post_init__(self) -> None:
        """Check the lengths."""
        shapes = (np.shape(self.x), np.shape(self.density))
        if shapes[0] != shapes[1] or len(shapes[0]) != 1 or shapes[0][0] == 0:
            raise ValueError(f"row {self.label!r}: x and density must be (n,), got {shapes}")


def histogram_row(label: str, counts: ArrayLike, edges: ArrayLike) -> Row:
    """The outline of a counted histogram, of total area 1.

    Args:
        label: of the row.
        counts: ``(n,)``.
        edges: ``(n + 1,)``, ascending.

    Raises:
        ValueError: the shapes do not belong together, or nothing was counted.
    """
    counts, edges = np.asarray(counts, np.float64), np.asarray(edges, np.float64)
    if counts.ndim != 1 or edges.shape != (len(counts) + 1,):
        raise ValueError(f"counts must be (n,), edges (n + 1,): {counts.shape}, {edges.shape}")
    if not counts.sum() > 0:
        raise ValueError(f"row {label!r}: counts must hold at least one count")
    heights = counts / counts.sum() / np.diff(edges)
    outline = np.concatenate([[0.0], np.repeat(heights, 2), [0.0]])
    return Row(label, np.repeat(edges, 2), outline)


def histogram_rows(
    history: Sequence[tuple[int, Mapping[str, ArrayLike]]],
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of counted histograms at some steps, and how to draw them.

    Values whose size changes a lot, as that of gradients, are shown over their root mean square,
    which the labels give: on one axis of values the later rows would be one line. Their tails are
    heavy: axis and heights are then logarithmic.

    Args:
        history: step, and the ``counts``, ``edges`` and ``stats`` stored at it.

    Returns:
        The rows, and the arguments of :func:`draw_ridgeline` that go with them.

    Raises:
        KeyError: an array is missing.
    """
    sizes = [_root_mean_square(arrays["stats"]) for _, arrays in history]
    relative = min(sizes, default=0.0) > 0 and max(sizes) > RELATIVE * min(sizes)
    rows = []
    for (step, arrays), size in zip(history, sizes, strict=True):
        label, edges = f"{step:,}", np.asarray(arrays["edges"], np.float64)
        if relative:
            label, edges = f"{label}: {size:.1e}", edges / size
        rows.append(histogram_row(label, arrays["counts"], edges))
    if not relative:
        return rows, {}
    densities = np.concatenate([row.density for row in rows])
    return rows, {
        "xlabel": "value / root mean square",
        "ylabel": "step (completed updates): root mean square",
        "xscale": "signed log",
        "threshold": 0.1,
        "floor": max(float(densities[densities > 0].min()), 1e-6 * float(densities.max())),
    }


def chosen_steps(steps: Sequence[int], most: int = MOST_ROWS) -> list[int]:
    """Some of the steps, about evenly over the decades, the first and the last among them.

    Args:
        steps: ascending.
        most: how many at most, at least 2.

    Raises:
        ValueError: ``most`` is below 2.

    Example:
        >>> chosen_steps([0, 1, 2, 3, 4, 6, 10, 18, 32, 56, 100], most=4)
        [0, 4, 18, 100]
    """
    if most < 2:
        raise ValueError(f"most must be at least 2, got {most}")
    if len(steps) <= most:
        return list(steps)
    places = np.log1p(np.asarray(steps, np.float64) - steps[0])
    wanted = np.linspace(0.0, places[-1], most)
    return sorted({steps[int(np.argmin(np.abs(places - place)))] for place in wanted})


def draw_ridgeline(
    axes: Axes,
    rows: Sequence[Row],
    *,
    xlabel: str = "value",
    ylabel: str = "step (completed updates)",
    xscale: Scale = "linear",
    threshold: float | None = None,
    floor: float | None = None,
    title: str | None = None,
    width: float = 5.2,
) -> None:
    """Draw distributions below each other, the first at the top, on one axis.

    Args:
        axes: the panel.
        rows: the distributions, ten at most to be readable.
        xlabel: quantity and unit.
        ylabel: what the rows' labels are.
        xscale: ``"linear"``: the axis ends where linear heights are too low to be seen; or
            ``"signed log"``.
        threshold: end of a signed-log axis' linear part.
        floor: heights are linear, each row scaled to its own peak, where this is None; else
            logarithmic, the same for all rows, from this density up.
        title: of the panel.
        width: of the panel in inches, for the legend's rows.

    Raises:
        ValueError: ``floor`` is not above 0.
    """
    if floor is not None and not floor > 0:
        raise ValueError(f"floor must be above 0, got {floor}")
    if not rows:
        say_empty(axes, title)
        return
    heights = [np.nan_to_num(row.density, nan=0.0, posinf=0.0, neginf=0.0) for row in rows]
    heights, meaning = _scaled(heights, floor)
    color = style.OKABE_ITO[0]
    for place, (row, height) in enumerate(zip(rows, heights, strict=True)):
        base = float(-place)
        label = meaning if place == 0 else None
        axes.fill_between(
            row.x,
            base,
            base + HEIGHT * height,
            color=color,
            alpha=0.3,
            linewidth=0,
            label=label,
        )
        axes.plot(row.x, base + HEIGHT * height, color=color, linewidth=1.1)
    axes.set_yticks([-float(place) for place in range(len(rows))], [row.label for row in rows])
    axes.set_ylim(-len(rows) + 0.75, 1.1)
    seen = [row.x[height > UNSEEN] for row, height in zip(rows, heights, strict=True)]
    shown = np.concatenate([row.x for row in rows] if floor is not None else seen)
    set_scale(axes, "x", xscale, shown, threshold)
    if xscale == "linear" and shown.size:
        margin = 0.05 * float(np.ptp(shown))
        axes.set_xlim(float(shown.min()) - margin, float(shown.max()) + margin)
    axes.axvline(0.0, color=style.INK, linewidth=0.8, zorder=1.5)
    axes.set_xlabel(xlabel, fontsize=style.TEXT)
    axes.set_ylabel(ylabel, fontsize=style.TEXT)
    style.legend(axes, title, width)


def ridgeline(
    rows: Sequence[Row],
    *,
    xlabel: str = "value",
    ylabel: str = "step (completed updates)",
    xscale: Scale = "linear",
    threshold: float | None = None,
    floor: float | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> Figure:
    """A figure of a ridgeline; arguments as :func:`draw_ridgeline`, and a caption below."""
    figure, (axes,) = style.new_figure(height=4.8)
    draw_ridgeline(
        axes,
        rows,
        xlabel=xlabel,
        ylabel=ylabel,
        xscale=xscale,
        threshold=threshold,
        floor=floor,
        title=title,
    )
    style.caption(figure, caption)
    return figure


def _root_mean_square(stats: ArrayLike) -> float:
    *_, number, _, squares = np.asarray(stats, np.float64).tolist()
    return math.sqrt(squares / number)


def _scaled(heights: list[Floats], floor: float | None) -> tuple[list[Floats], str]:
    """Heights from 0 to 1, and what they mean."""
    if floor is None:
        peaks = [float(height.max()) or 1.0 for height in heights]
        scaled = [height / peak for height, peak in zip(heights, peaks, strict=True)]
        return scaled, "density over its peak, tails below 0.5 % left out"
    top = max(floor * 10.0, *(float(height.max()) for height in heights))
    decades = math.log10(top / floor)
    scaled = [np.log10(np.maximum(height, floor) / floor) / decades for height in heights]
    return scaled, f"log of the density, from {floor:.1g} to {top:.1g}"
