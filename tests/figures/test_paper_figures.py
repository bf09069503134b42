from __future__ import annotations

import numpy as np
import pytest

from torch_thermo.figures import style
from torch_thermo.figures.paper import Arrow, Bracket, Level, Panel, Trace, paper_figure

X = np.arange(1.0, 6.0)


def panel(name="one", traces=None, **options) -> Panel:
    given = (Trace("a", X, X), Trace("b", X, 2 * X, look="points")) if traces is None else traces
    return Panel(name, f"title {name}", "x of it", "y of it", tuple(given), **options)


def names(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_figure_has_the_panels_and_the_caption():
    figure = paper_figure([panel("one"), panel("two"), panel("three")], "the caption")
    assert figure.get_supxlabel() == "the caption"
    titles = [axes.get_legend().get_title().get_text() for axes in figure.axes]
    assert titles == ["title one", "title two", "title three"]
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes} == {
        ("x of it", "y of it")
    }
    assert figure.get_figwidth() == pytest.approx(8.4)
    assert paper_figure([panel()], "c").get_figwidth() == 6.0


@pytest.mark.parametrize(
    ("look", "marked", "joined", "steps"),
    [
        ("curve", True, True, False),
        ("line", False, True, False),
        ("points", True, False, False),
        ("faint", True, False, False),
        ("steps", False, True, True),
    ],
)
def test_looks(look, marked, joined, steps):
    (axes,) = paper_figure([panel(traces=[Trace("a", X, X**2, look=look)])], "c").axes
    (line,) = (line for line in axes.get_lines() if len(line.get_xdata()) == 5)
    np.testing.assert_array_equal(line.get_ydata(), X**2)
    assert (line.get_marker() != "None") == marked
    assert (line.get_linestyle() != "None") == joined
    assert (line.get_drawstyle() == "steps-mid") == steps
    (handle,) = axes.get_legend().get_lines()  # the legend shows what is drawn
    assert handle.get_marker() == line.get_marker()
    assert (handle.get_linestyle() != "None") == joined


def test_long_curves_have_few_markers_and_points_have_all():
    many = np.arange(1.0, 200.0)
    traces = [Trace("a", many[:100], many[:100]), Trace("b", many, many, look="points")]
    (axes,) = paper_figure([panel(traces=traces)], "c").axes
    curve, points = axes.get_lines()
    assert 10 <= 100 // curve.get_markevery() <= 20
    assert points.get_markevery() is None
    assert points.get_marker() == style.MARKERS[1]


def test_what_the_paper_states_is_named_once_and_told_apart():
    levels = (Level("theirs", 2.0), Level("theirs", 3.0), Level("other", 4.0, "x"))
    (axes,) = paper_figure([panel(levels=levels)], "c").axes
    assert sorted(names(axes)) == ["a", "b", "other", "theirs"]
    drawn = [line for line in axes.get_lines() if line.get_color() == style.INK]
    assert [next(iter(line.get_ydata())) for line in drawn[:2]] == [2.0, 3.0]
    assert list(drawn[2].get_xdata()) == [4.0, 4.0]
    assert drawn[0].get_linestyle() == "--"
    assert drawn[0]._dash_pattern == drawn[1]._dash_pattern != drawn[2]._dash_pattern


def test_bands_are_named():
    trace = Trace("a", X, X, X - 0.5, X + 0.5, "range of 5 seeds")
    (axes,) = paper_figure([panel(traces=[trace])], "c").axes
    assert names(axes) == ["a", "range of 5 seeds"]


def test_arrows_point_to_their_place():
    (axes,) = paper_figure([panel(arrows=(Arrow(3.0, 4.0, "20"),))], "c").axes
    (arrow,) = axes.texts
    assert (arrow.xy, arrow.get_text()) == ((3.0, 4.0), "20")


def test_brackets_span_their_interval():
    (axes,) = paper_figure([panel(brackets=(Bracket(3.0, 1.5, 4.5, "20"),))], "c").axes
    (bracket,) = (line for line in axes.get_lines() if line.get_color() == style.INK)
    assert (list(bracket.get_xdata()), list(bracket.get_ydata())) == ([3.0, 3.0], [1.5, 4.5])
    (text,) = axes.texts
    assert (text.xy, text.get_text()) == ((3.0, 3.0), "20")
    assert names(axes) == ["a", "b"]


def test_faint_points_lie_behind_the_levels():
    traces = [Trace("a", X, X, look="points"), Trace("b", X, X, look="faint")]
    (axes,) = paper_figure([panel(traces=traces, levels=(Level("l", 2.0),))], "c").axes
    points, faint, level = axes.get_lines()
    assert faint.get_markersize() < points.get_markersize()
    assert faint.get_alpha() < 1
    assert faint.zorder < level.zorder


def test_limits_and_scales():
    options = {"xscale": "log", "yscale": "log", "xlimits": (1.0, 9.0), "ylimits": (0.5, 20.0)}
    (axes,) = paper_figure([panel(**options)], "c").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlim(), axes.get_ylim()) == ((1.0, 9.0), (0.5, 20.0))


def test_legends_lie_off_the_data_and_inside_the_figure():
    traces = [Trace(f"a series of a long name {k}", X, k * X) for k in range(1, 5)]
    figure = paper_figure([panel(str(k), traces) for k in range(4)], "caption " * 40)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        box, plot = axes.get_legend().get_window_extent(renderer), axes.get_window_extent(renderer)
        assert box.y0 >= plot.y1
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert plot.height > 0.2 * figure.bbox.height


def test_an_empty_panel_says_so():
    (axes,) = paper_figure([panel(traces=[Trace("a", X, X * np.nan)])], "c").axes
    assert "no finite measurement" in [text.get_text() for text in axes.texts]


def test_what_is_no_figure_is_refused():
    with pytest.raises(ValueError, match="needs panels and columns, got 0 and 2"):
        paper_figure([], "c")
    with pytest.raises(ValueError, match="got 1 and 0"):
        paper_figure([panel()], "c", columns=0)
    with pytest.raises(ValueError, match="names of panels must differ"):
        paper_figure([panel(), panel()], "c")
    with pytest.raises(ValueError, match="look must be of"):
        Trace("a", X, X, look="dots")
    with pytest.raises(ValueError, match="must be"):
        Trace("a", X, X[:2])


def test_a_palette_makes_the_file_smaller_and_leaves_the_picture(tmp_path):
    figure = paper_figure([panel()], "the caption")
    full = style.save(figure, tmp_path / "full.png")
    small = style.save(figure, tmp_path / "small.png", colors=64)
    assert small.stat().st_size < 0.6 * full.stat().st_size
    from PIL import Image

    with Image.open(full) as one, Image.open(small) as other:
        assert len(other.convert("RGB").getcolors(1000)) <= 64
        off = np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int))
    assert off.max() <= 32
    assert off.mean() < 0.5
    assert style.save(figure, tmp_path / "a.pdf", colors=64).read_bytes().startswith(b"%PDF")
