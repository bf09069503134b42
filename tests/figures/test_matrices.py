from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from torch_thermo.figures import style
from torch_thermo.figures.matrices import MAP, WITHIN, Matrix, Ridges
from torch_thermo.figures.paper import Panel, Trace, paper_figure
from torch_thermo.figures.ridgelines import Row

VALUES = np.array([[1.0, 0.1, -0.5], [0.1, 1.0, math.nan], [-0.5, math.nan, 1.0]])
X = np.arange(3.0)


def matrix(**options) -> Matrix:
    return Matrix(**({"name": "m", "title": "t", "label": "entry", "values": VALUES, "unit": "r"}
                     | options))  # fmt: skip


def colours(figure, axes) -> np.ndarray:
    """The colour of the middle of each cell, (K, K, 3)."""
    pixels = style.render(figure)
    places = np.array([[(x, y) for x in range(3)] for y in range(3)], float)
    at = axes.transData.transform(places.reshape(-1, 2)).round().astype(int)
    return pixels[len(pixels) - at[:, 1], at[:, 0]].reshape(3, 3, 3) / 255


def test_cells_have_their_colour():
    from matplotlib import colormaps

    figure = paper_figure([matrix(null=0.2)], "caption")
    (axes,) = figure.axes
    (bar,) = axes.child_axes
    found = colours(figure, axes)
    expected = colormaps[MAP]((-0.5 + 1.0) / 2.0)[:3]
    for cell in ((0, 2), (2, 0)):
        np.testing.assert_allclose(found[cell], expected, atol=0.01)
    for cell in ((0, 1), (1, 0)):  # within the null
        np.testing.assert_allclose(found[cell], to_rgb(WITHIN), atol=0.01)
    for cell in ((0, 0), (1, 1), (1, 2)):  # the diagonal, and what is not known
        np.testing.assert_allclose(found[cell], 1.0)
    assert bar.get_ylabel() == "r"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("entry", "entry")


def test_the_null_is_named_with_its_share():
    (axes,) = paper_figure([matrix(null=0.2)], "c").axes
    (text,) = axes.get_legend().get_texts()
    assert text.get_text() == "50 % within the null, ±0.2"
    assert axes.get_legend().get_title().get_text() == "t"
    (axes,) = paper_figure([matrix()], "c").axes
    assert axes.get_legend() is None
    assert axes.get_title(loc="left") == "t"


def test_the_bar_says_where_colours_end():
    ends = {}
    for limit in (1.0, 0.3):
        (axes,) = paper_figure([matrix(limit=limit)], "c").axes
        (ends[limit],) = axes.child_axes
    assert [len(bar.collections[0].cmap.colors) for bar in ends.values()]
    heights = {limit: tuple(bar.get_ylim()) for limit, bar in ends.items()}
    assert heights == {1.0: (-1.0, 1.0), 0.3: (-0.3, 0.3)}
    assert [bar._colorbar.extend for bar in ends.values()] == ["neither", "both"]


def test_a_matrix_of_nothing_says_so():
    axes, *_ = paper_figure([matrix(values=np.full((2, 2), math.nan))], "c").axes
    assert "no finite measurement" in [text.get_text() for text in axes.texts]


def test_the_data_of_a_matrix_are_its_entries():
    points = list(matrix().points())
    assert len(points) == 9
    assert points[2][:4] == ("entry", "row 0", 2.0, -0.5)
    assert math.isnan(points[5][3])


def test_ridges_are_drawn_and_written():
    rows = (Row("0", X, X), Row("8", X, 2 * X))
    ridges = Ridges("r", "weights", "w", "epoch", rows)
    (axes,) = paper_figure([ridges], "c").axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "8"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("w", "epoch")
    points = [(kind, series, x, y) for kind, series, x, y, _, _ in ridges.points()]
    assert points == [
        *(("ridge", "0", float(x), float(x)) for x in X),
        *(("ridge", "8", float(x), 2.0 * float(x)) for x in X),
    ]


def test_kinds_of_panels_share_a_figure():
    curve = Panel("c", "curve", "x", "y", (Trace("a", X, X),))
    ridges = Ridges("r", "ridges", "x", "y", (Row("0", X, X),))
    figure = paper_figure([curve, matrix(), ridges], "c")
    assert len(figure.axes) == 3
    with pytest.raises(ValueError, match="names of panels must differ"):
        paper_figure([ridges, ridges], "c")


def test_the_bar_takes_no_room_from_the_panels_below():
    below = [Panel(name, "curve", "x", "y", (Trace("a", X, X),)) for name in "cde"]
    figure = paper_figure([matrix(), *below], "c")
    figure.draw_without_rendering()
    square, _, left, right = (axes.get_window_extent() for axes in figure.axes)
    assert left.width == pytest.approx(right.width, rel=0.02)
    (bar,) = figure.axes[0].child_axes
    gap = bar.get_window_extent().x0 - square.x1
    assert 0 < gap < 0.1 * square.width  # no empty column between the two
    assert bar.get_tightbbox().x1 <= left.x1 * 1.02  # nor into the next panel


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"values of 'm' must be \(K, K\), got \(3, 2\)"):
        matrix(values=VALUES[:, :2])
    with pytest.raises(ValueError, match="limit must be above 0, got 0"):
        matrix(limit=0.0)
    with pytest.raises(ValueError, match="null must be at least 0, got -1"):
        matrix(null=-1.0)
    with pytest.raises(ValueError, match="null must be at least 0, got nan"):
        matrix(null=math.nan)
