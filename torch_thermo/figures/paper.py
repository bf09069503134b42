"""A paper's figure: panels of curves, with what the paper states marked in them.

A panel is data: whoever writes the figure's numbers to a file writes what is drawn. Which
measurements a figure takes is decided in ``papers``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from torch_thermo.figures import style
from torch_thermo.figures.panels import Curve, draw_curves
from torch_thermo.figures.scale import Scale

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = [
    "Arrow",
    "Bracket",
    "Drawable",
    "Level",
    "Look",
    "Panel",
    "Point",
    "Trace",
    "paper_figure",
]

Look = Literal["curve", "line", "points", "faint", "steps"]
HEIGHT = 3.3  # of a panel in inches
WIDTH = 4.2
LEVELS = ((0, (2, 2)), (0, (6, 2)), (0, (6, 2, 1, 2)))  # by label


Point: TypeAlias = tuple[str, str, float, float, float, float]
"""Kind, series, x, y, low, high of what is drawn; NaN for none."""


class Drawable(Protocol):
    """A panel of a paper's figure: curves, ridges, a matrix."""

    @property
    def name(self) -> str:
        """A plain one, for the column of the data file."""

    def draw(self, axes: Axes, width: float) -> None:
        """Draw it into a panel of a figure, `width` inches wide."""

    def points(self) -> Iterator[Point]:
        """All that it shows."""


@dataclass(frozen=True)
class Trace(Curve):
    """A curve, and how it is drawn.

    Attributes:
        look: ``"curve"``: a line with markers; ``"line"``: without, as for a formula or a fit;
            ``"points"``: markers alone; ``"faint"``: small pale ones behind all else, of which
            there are many; ``"steps"``: the outline of a histogram, x the middles of
            its bins.

    Raises:
        ValueError: another look, and as :class:`torch_thermo.figures.panels.Curve`.
    """

    look: Look = "curve"

    def __post_init__(self) -> None:
        """Check the look too."""
        super().__post_init__()
        if self.look not in get_args(Look):
            raise ValueError(f"look must be of {get_args(Look)}, got {self.look!r}")


@dataclass(frozen=True)
class Level:
    """A value the paper states, as a line across the panel.

    Attributes:
        label: its name in the legend; of several with one label the first is named.
        value: where on the axis.
        axis: ``"y"`` for a horizontal line, ``"x"`` for an upright one.
    """

    label: str
    value: float
    axis: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class Arrow:
    """An arrow at a point, with a few letters.

    Attributes:
        x: where it points to.
        y: where it points to.
        text: at its other end.
        offset: of that end, in points (1/72 inch).
    """

    x: float
    y: float
    text: str
    offset: tuple[float, float] = (26.0, 0.0)


@dataclass(frozen=True)
class Bracket:
    """An interval of the y axis, with a few letters beside it.

    Attributes:
        x: where it stands.
        low: its lower end.
        high: its upper end.
        text: to its right.
    """

    x: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One panel of a figure.

    Attributes:
        name: a plain one, for the column of the data file.
        title: over it.
        xlabel: quantity and unit.
        ylabel: quantity and unit.
        traces: what is drawn; bands are named in the legend.
        xscale: of the axis; ``"signed log"`` shows 0 left of the decades.
        yscale: of the axis.
        levels: what the paper states.
        arrows: into the panel.
        brackets: beside the data.
        xlimits: of the axis; None: as wide as the data.
        ylimits: of the axis.
    """

    name: str
    title: str
    xlabel: str
    ylabel: str
    traces: tuple[Trace, ...]
    xscale: Scale = "linear"
    yscale: Scale = "linear"
    levels: tuple[Level, ...] = ()
    arrows: tuple[Arrow, ...] = ()
    brackets: tuple[Bracket, ...] = ()
    xlimits: tuple[float, float] | None = None
    ylimits: tuple[float, float] | None = None

    def draw(self, axes: Axes, width: float) -> None:
        """Draw it into a panel of a figure, `width` inches wide."""
        lines = draw_curves(
            axes,
            self.traces,
            xlabel=self.xlabel,
            ylabel=self.ylabel,
            xscale=self.xscale,
            yscale=self.yscale,
            title=self.title,
            width=width,
        )
        if not lines:
            return
        for index, trace in enumerate(self.traces):
            if trace.label in lines:
                _restyle(lines[trace.label], trace.look, index)
        seen: list[str] = []
        for level in self.levels:
            label = None if level.label in seen else level.label
            if level.label not in seen:
                seen.append(level.label)
            dashes = LEVELS[seen.index(level.label) % len(LEVELS)]
            look: dict[str, Any] = {"color": style.INK, "linewidth": 1.1, "linestyle": dashes}
            if level.axis == "y":
                axes.axhline(level.value, label=label, zorder=2.1, **look)
            else:
                axes.axvline(level.value, label=label, zorder=2.1, **look)
        for arrow in self.arrows:
            axes.annotate(
                arrow.text,
                (arrow.x, arrow.y),
                xytext=arrow.offset,
                textcoords="offset points",
                fontsize=style.SMALL,
                color=style.INK,
                va="center",
                arrowprops={"arrowstyle": "->", "color": style.INK, "linewidth": 1.0},
            )
        for bracket in self.brackets:
            ends = ([bracket.x] * 2, [bracket.low, bracket.high])
            axes.plot(*ends, color=style.INK, linewidth=1.0, marker="_", markersize=5.0)
            axes.annotate(
                bracket.text,
                (bracket.x, 0.5 * (bracket.low + bracket.high)),
                xytext=(8.0, 0.0),
                textcoords="offset points",
                fontsize=style.SMALL,
                color=style.INK,
                va="center",
            )
        if self.xlimits is not None:
            axes.set_xlim(*self.xlimits)
        if self.ylimits is not None:
            axes.set_ylim(*self.ylimits)
        style.legend(axes, self.title, width)

    def points(self) -> Iterator[Point]:
        """All points and marks: kind, series, x, y, low and high; NaN for none.

        The kind is a trace's look (low and high: its band), "level" (x or y, across the panel),
        "arrow" (where it points) or "bracket" (at x, from low to high).
        """
        for trace in self.traces:
            size = len(np.asarray(trace.x))
            columns = [
                np.full(size, math.nan) if values is None else np.asarray(values, np.float64)
                for values in (trace.x, trace.y, trace.low, trace.high)
            ]
            for x, y, low, high in zip(*columns, strict=True):
                yield trace.look, trace.label, x, y, low, high
        none = math.nan
        for level in self.levels:
            place = (level.value, none) if level.axis == "x" else (none, level.value)
            yield "level", level.label, *place, none, none
        for arrow in self.arrows:
            yield "arrow", arrow.text, arrow.x, arrow.y, none, none
        for bracket in self.brackets:
            yield "bracket", bracket.text, bracket.x, none, bracket.low, bracket.high


def paper_figure(panels: Sequence[Drawable], caption: str, columns: int = 2) -> Figure:
    """Draw a paper's figure.

    Args:
        panels: row by row.
        caption: data, net, samples, seeds; what is the paper's and what is ours.
        columns: panels side by side.

    Raises:
        ValueError: no panels, ``columns`` below 1, or two panels of one name.
    """
    if not panels or columns < 1:
        raise ValueError(f"a figure needs panels and columns, got {len(panels)} and {columns}")
    names = [panel.name for panel in panels]
    if len(set(names)) < len(names):
        raise ValueError(f"the names of panels must differ, got {names}")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width = 6.0 if columns == 1 else WIDTH * columns
    figure, places = style.new_figure(width, HEIGHT * rows + 0.6, rows, columns)
    for axes, panel in zip(places, panels, strict=False):
        panel.draw(axes, width / columns - 0.7)
    for axes in places[len(panels) :]:
        axes.remove()
    style.caption(figure, caption)
    return figure


def _restyle(artist: Artist, look: Look, index: int) -> None:
    line: Line2D = artist  # type: ignore[assignment]
    if look in ("points", "faint"):
        line.set_linestyle("none")
        line.set_marker(style.MARKERS[index % len(style.MARKERS)])
        line.set_markersize(3.0)
        if look == "faint":
            line.set(markersize=2.0, alpha=0.5, zorder=1.8)
    elif look in ("line", "steps"):
        line.set_marker("None")
        line.set_linestyle(style.series_style(index)["linestyle"])
        line.set_drawstyle("steps-mid" if look == "steps" else "default")
    elif len(np.asarray(line.get_xdata())) > 20:  # so many markers would be a wall
        line.set_markevery(max(1, len(np.asarray(line.get_xdata())) // 12))
