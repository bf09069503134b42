"""Several runs over each other: a panel for each quantity, a curve for each run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torch_thermo.figures import style
from torch_thermo.figures.panels import MARKED, Curve, draw_curves
from torch_thermo.figures.scale import Floats, Scale
from torch_thermo.store import Run
from torch_thermo.store.quantities import QUANTITIES, Quantity

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compare", "compare_groups", "draw_quantity"]

COLUMNS, WIDTH, HEIGHT = 2, 4.2, 3.3
BINS = 50


def draw_quantity(
    axes: Axes, runs: Sequence[tuple[str, Run]], quantity: Quantity, width: float = 3.5
) -> dict[str, Artist]:
    """One quantity of several runs over steps, with its spread as a band or beside its null.

    A series of very many points, such as one with a value at every step, is drawn as the medians
    of even stretches of the logarithm of the step, with a band from the lower to the upper
    quartile.

    Args:
        axes: the panel.
        runs: label and stored run of each; one that has not measured the quantity has no curve.
        quantity: what to draw.
        width: of the panel in inches.

    Returns:
        The curve of each run that has one, by its label, for a legend: the panel's own names only
        what the bands are.
    """
    curves = [_curve(label, run, quantity) for label, run in runs]
    return draw_curves(
        axes,
        curves,
        ylabel=quantity.symbol or "value",
        yscale=_scale(quantity, curves),
        title=style.wrapped(style.plain(quantity.label), width),
        zero_line=any(np.any(np.asarray(curve.y) < 0) for curve in curves),
        width=width,
        named=False,
    )


def compare(
    runs: Sequence[tuple[str, Run]],
    quantities: Sequence[Quantity],
    caption: str | None = None,
) -> Figure:
    """Runs over each other, one panel a quantity.

    Args:
        runs: a short label of its own and the stored run of each.
        quantities: what to draw.
        caption: written below.

    Returns:
        The figure, two panels in a row.

    Raises:
        ValueError: no runs or quantities, or two runs of one label.
    """
    labels = [label for label, _ in runs]
    if not runs or not quantities:
        raise ValueError(
            f"there must be runs and quantities to draw, got {len(runs)} and {len(quantities)}"
        )
    if len(set(labels)) < len(labels):
        raise ValueError(f"the labels of runs must differ, got {labels}")
    columns = min(COLUMNS, len(quantities))
    rows = -(-len(quantities) // columns)
    width = 6.0 if columns == 1 else WIDTH * columns
    names = style.legend_columns(labels, 0.8 * width)  # names of folders are of wide letters
    height = HEIGHT * rows + 0.4 + 0.2 * -(-len(labels) // names)
    figure, panels = style.new_figure(width, height, rows, columns)
    handles: dict[str, Artist] = {}
    for axes, quantity in zip(panels, quantities, strict=False):
        handles = draw_quantity(axes, runs, quantity, width / columns - 0.7) | handles
    for axes in panels[len(quantities) :]:
        axes.remove()
    # one legend of the runs for all panels: of many runs it is as large as a panel
    found = [label for label in labels if label in handles]
    texts = [style.plain(label) for label in found]
    style.figure_legend(figure, [handles[label] for label in found], texts, names)
    style.caption(figure, caption)
    return figure


def compare_groups(
    runs: Sequence[tuple[str, Run]], caption: str | None = None
) -> Iterator[tuple[str, Figure]]:
    """The figures of :func:`compare` for the summary's quantities that a run has measured.

    Args:
        runs: a short label of its own and the stored run of each.
        caption: written below each.

    Yields:
        The name of each group of quantities and its figure: ``order_parameter``,
        ``bulk_boundary``, ``hessian``, ``propagator``, ``circuits``, ``symmetry``.
    """
    names = {name for _, run in runs for name in run.names}
    found = [quantity for quantity in QUANTITIES if quantity.name in names]
    for group in dict.fromkeys(quantity.group for quantity in found):
        yield group, compare(runs, [q for q in found if q.group == group], caption)


def _curve(label: str, run: Run, quantity: Quantity) -> Curve:
    if quantity.name not in run.names:
        return Curve(label, np.zeros(0), np.zeros(0))
    series = run.series(quantity.name)
    steps, values = series.steps.astype(np.float64), series.values
    null = _beside(run, quantity, (quantity.null,), steps) if quantity.null else None
    if null is not None:
        return Curve(label, steps, values, null=null[0])
    edges = _edges(run, quantity, steps, values)
    if edges is not None:
        return Curve(label, steps, values, *edges)
    if len(steps) > 2 * MARKED:
        return _binned(label, steps, values)
    return Curve(label, steps, values)


def _edges(
    run: Run, quantity: Quantity, steps: Floats, values: Floats
) -> tuple[Floats, Floats, str] | None:
    """Lower and upper edge of the band and what it is, if they were stored at the same steps."""
    sides = _beside(run, quantity, quantity.spread, steps)
    if sides is None:
        return None
    first, last = sides[0], sides[-1]
    if len(sides) == 1:
        return values - first, values + first, quantity.spread_name
    return first, last, quantity.spread_name


def _beside(
    run: Run, quantity: Quantity, others: Sequence[str], steps: Floats
) -> list[Floats] | None:
    """Other quantities of the same observable, if all were stored at the same steps."""
    names = [quantity.beside(other) for other in others]
    if not names or any(name not in run.names for name in names):
        return None
    series = [run.series(name) for name in names]
    if any(not np.array_equal(side.steps, steps) for side in series):
        return None
    return [side.values for side in series]


def _binned(label: str, steps: Floats, values: Floats) -> Curve:
    """Medians of a long series, over stretches that are even in the logarithm of the step."""
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    if len(steps) == 0:
        return Curve(label, steps, values)
    edges = np.geomspace(1.0, 2.0 + steps[-1] - steps[0], BINS + 1)
    place = np.searchsorted(edges, 1.0 + steps - steps[0], side="right")
    parts = [place == stretch for stretch in np.unique(place)]
    low, middle, high = np.array([np.percentile(values[part], (25, 50, 75)) for part in parts]).T
    middles = np.array([np.median(steps[part]) for part in parts])
    return Curve(label, middles, middle, low, high, "quartiles")


def _scale(quantity: Quantity, curves: Sequence[Curve]) -> Scale:
    if quantity.scale != "auto":
        return quantity.scale
    values = np.concatenate([np.asarray(curve.y, np.float64) for curve in curves])
    values = values[np.isfinite(values)]
    wide = values.size and values.min() > 0 and values.max() > 10 * values.min()
    return "log" if wide else "linear"
