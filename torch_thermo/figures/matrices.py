"""Panels of a paper's figure that are no curves: ridgelines and matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from torch_thermo.figures import style
from torch_thermo.figures.panels import say_empty
from torch_thermo.figures.paper import Point
from torch_thermo.figures.ridgelines import Row, draw_ridgeline
from torch_thermo.figures.scale import Floats, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Matrix", "Ridges", "draw_matrix"]

MAP = "viridis"  # its lightness rises evenly: signs are told apart in grey too
WITHIN = "#f2f2f2"


@dataclass(frozen=True)
class Ridges:
    """Distributions below each other, see :func:`torch_thermo.figures.draw_ridgeline`.

    Attributes:
        name: a plain one, for the column of the data file.
        title: over it.
        xlabel: quantity and unit.
        ylabel: what the rows' labels are.
        rows: the distributions, the first at the top.
        xscale: of the axis.
        threshold: end of a signed-log axis' linear part.
        floor: None: linear heights, each row over its own peak; else logarithmic from here up.
    """

    name: str
    title: str
    xlabel: str
    ylabel: str
    rows: tuple[Row, ...]
    xscale: Scale = "linear"
    threshold: float | None = None
    floor: float | None = None

    def draw(self, axes: Axes, width: float) -> None:
        """Draw them into a panel of a figure, `width` inches wide."""
        draw_ridgeline(
            axes,
            self.rows,
            xlabel=self.xlabel,
            ylabel=self.ylabel,
            xscale=self.xscale,
            threshold=self.threshold,
            floor=self.floor,
            title=self.title,
            width=width,
        )

    def points(self) -> Iterator[Point]:
        """The outline of each row: kind "ridge", its label, x and density."""
        for row in self.rows:
            for x, density in zip(row.x, row.density, strict=True):
                yield "ridge", row.label, float(x), float(density), math.nan, math.nan


@dataclass(frozen=True)
class Matrix:
    """A matrix of numbers of either sign, such as correlations.

    Attributes:
        name: a plain one, for the column of the data file.
        title: over it.
        label: what its rows and columns are.
        values: ``(K, K)``; what is not finite, and the diagonal, stay white.
        unit: what its entries are, for the colour bar.
        limit: the colours end at plus and minus this; above 0.
        null: entries no larger in size are what chance gives, and stay grey; 0 for none.

    Raises:
        ValueError: the values are no square matrix, the limit is not above 0, or the null is
            below it.
    """

    name: str
    title: str
    label: str
    values: ArrayLike
    unit: str
    limit: float = 1.0
    null: float = 0.0

    def __post_init__(self) -> None:
        """Check shape, limit and null."""
        shape = np.shape(self.values)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"values of {self.name!r} must be (K, K), got {shape}")
        if not self.limit > 0:
            raise ValueError(f"limit must be above 0, got {self.limit}")
        if not self.null >= 0:
            raise ValueError(f"null must be at least 0, got {self.null}")

    def draw(self, axes: Axes, width: float) -> None:
        """Draw it into a panel of a figure, `width` inches wide."""
        draw_matrix(axes, self, width)

    def points(self) -> Iterator[Point]:
        """Its entries: kind "entry", series the row's number, x that of the column, y."""
        for number, row in enumerate(np.asarray(self.values, np.float64)):
            for column, value in enumerate(row):
                yield "entry", f"row {number}", float(column), float(value), math.nan, math.nan


def draw_matrix(axes: Axes, matrix: Matrix, width: float = 5.2) -> None:
    """Draw a matrix as coloured cells, with a colour bar; those within the null are grey.

    The diagonal stays white: of correlations it is 1 and would set the eye's scale.

    Args:
        axes: the panel.
        matrix: what to draw.
        width: of the panel in inches, for the legend's rows.
    """
    from matplotlib.colors import ListedColormap

    values: Floats = np.array(matrix.values, np.float64)
    np.fill_diagonal(values, math.nan)
    if not np.isfinite(values).any():
        say_empty(axes, matrix.title)
        return
    within = np.isfinite(values) & (np.abs(values) <= matrix.null)
    seen = np.ma.masked_where(~np.isfinite(values) | within, values)
    axes.grid(False)
    look: dict[str, Any] = {"origin": "upper", "interpolation": "none", "aspect": "equal"}
    grey = np.ma.masked_where(~within, np.zeros_like(values))
    axes.imshow(grey, cmap=ListedColormap([WITHIN]), **look)
    image = axes.imshow(seen, cmap=MAP, vmin=-matrix.limit, vmax=matrix.limit, **look)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    axes.set_xlabel(matrix.label, fontsize=style.TEXT)
    axes.set_ylabel(matrix.label, fontsize=style.TEXT)
    largest = np.abs(values[np.isfinite(values)]).max() > matrix.limit
    # within the panel's own room: a bar beside it would narrow the panels above and below too
    axes.set_anchor("W")
    place = axes.inset_axes((1.04, 0.1, 0.05, 0.8))
    bar = axes.figure.colorbar(image, cax=place, extend="both" if largest else "neither")
    bar.set_label(matrix.unit, fontsize=style.SMALL, color=style.INK)
    bar.ax.tick_params(labelsize=style.SMALL, colors=style.INK)
    if matrix.null > 0:
        share = float(within.sum() / np.isfinite(values).sum())
        label = f"{100 * share:.0f} % within the null, ±{matrix.null:.2g}"
        axes.fill_between([], [], label=label, facecolor=WITHIN, edgecolor="#999999", linewidth=0.6)
    style.legend(axes, matrix.title, width)
