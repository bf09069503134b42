from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from torch_thermo import figures
from torch_thermo.figures import Row, ridgeline, style
from torch_thermo.spectra.spectral_measure import SpectralMeasure


def bell(centre: float = 0.0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-4.0, 4.0, 81)
    return x, np.exp(-((x - centre) ** 2) / (2 * spread**2))


def curves(axes) -> list[np.ndarray]:
    """The outline of each row, without the line at 0."""
    return [line.get_ydata() for line in axes.get_lines() if len(line.get_xdata()) > 2]


def labels(axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_yticklabels()]


def test_rows_stand_below_each_other_and_do_not_touch():
    bells = [bell(spread=0.5 + step) for step in range(10)]
    rows = [Row(str(step), x, y / (1 + step)) for step, (x, y) in enumerate(bells)]
    (axes,) = ridgeline(rows).axes
    drawn = curves(axes)
    assert len(drawn) == 10
    assert labels(axes) == [str(step) for step in range(10)]
    for above, below in itertools.pairwise(drawn):
        assert below.max() < above.min()
    # each to its own peak, on one base line each
    assert [y.max() + row for row, y in enumerate(drawn)] == pytest.approx([0.9] * 10)
    assert axes.get_yticks().tolist() == [-float(step) for step in range(10)]
    assert axes.get_ylim()[0] < drawn[-1].min()
    assert axes.get_ylim()[1] > drawn[0].max()


def test_logarithmic_heights_are_those_of_the_densities():
    x, y = bell()
    rows = [Row("0", x, y), Row("1", x, 1e-2 * y)]
    (axes,) = ridgeline(rows, floor=1e-4).axes
    first, second = curves(axes)
    assert first.max() == pytest.approx(0.9)
    assert second.max() == pytest.approx(-1 + 0.9 * 0.5)  # two of four decades
    assert first.min() == pytest.approx(0.9 * math.log10(y.min() / 1e-4) / 4, abs=1e-9)
    assert "from 0.0001 to 1" in axes.get_legend().get_texts()[0].get_text()


def test_broken_densities_are_drawn_as_nothing():
    x, y = bell()
    y[10:20] = math.nan
    y[50] = math.inf
    (axes,) = ridgeline([Row("0", x, y), Row("1", x, np.zeros(81))]).axes
    drawn = curves(axes)
    assert all(np.isfinite(line).all() for line in drawn)
    assert drawn[0][[12, 50]].tolist() == [0.0, 0.0]
    assert drawn[0][40] == pytest.approx(0.9)
    assert np.ptp(drawn[1]) == 0
    assert figures.render(axes.figure).std() > 0


def test_the_axis_ends_where_nothing_can_be_seen():
    counts, edges = np.array([1, 0, 0, 5000, 6000, 5000, 0, 0, 0, 1]), np.linspace(-10, 10, 11)
    (axes,) = ridgeline([figures.histogram_row("0", counts, edges)]).axes
    low, high = axes.get_xlim()
    assert -6 < low < -4
    assert 2 < high < 4


def test_no_rows_say_so():
    (axes,) = ridgeline([]).axes
    assert axes.texts[0].get_text() == "no finite measurement"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Row("a", np.zeros(3), np.zeros(2)), "row 'a': x and density must be"),
        (lambda: Row("a", np.zeros(0), np.zeros(0)), "row 'a': x and density must be"),
        (lambda: figures.histogram_row("a", np.ones(3), np.ones(3)), "edges"),
        (lambda: figures.histogram_row("a", np.zeros(2), np.arange(3)), "at least one count"),
        (lambda: ridgeline([], floor=0.0), "floor must be above 0"),
        (lambda: figures.chosen_steps([1, 2], most=1), "most must be at least 2"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_histogram_row_has_area_one():
    row = figures.histogram_row("0", [3, 1], [-1.0, 0.0, 2.0])
    area = np.diff(row.x) * (row.density[1:] + row.density[:-1]) / 2
    assert area.sum() == pytest.approx(1.0)
    assert row.density.max() == pytest.approx(0.75)


def stored(scale: float) -> dict[str, np.ndarray]:
    values = scale * np.linspace(-1.0, 1.0, 101)
    counts, edges = np.histogram(values, 5)
    stats = np.array([values.min(), values.max(), 101, values.sum(), values @ values])
    return {"counts": counts, "edges": edges, "stats": stats}


def test_sizes_that_change_little_share_an_axis():
    rows, options = figures.histogram_rows([(0, stored(1.0)), (1500, stored(2.0))])
    assert options == {}
    assert [row.label for row in rows] == ["0", "1,500"]
    assert [row.x.max() for row in rows] == [1.0, 2.0]


def test_sizes_that_change_a_lot_are_shown_over_their_root_mean_square():
    rows, options = figures.histogram_rows([(0, stored(1.0)), (10, stored(1e-3))])
    (axes,) = ridgeline(rows, **options).axes
    assert "root mean square" in axes.get_xlabel()
    assert "root mean square" in axes.get_ylabel()
    assert axes.get_xscale() == "symlog"
    rms = math.sqrt(stored(1.0)["stats"][4] / 101)
    assert [row.label for row in rows] == [f"0: {rms:.1e}", f"10: {rms * 1e-3:.1e}"]
    np.testing.assert_allclose(rows[0].x, rows[1].x)
    assert rows[0].x.max() == pytest.approx(1 / rms)


@pytest.mark.parametrize(
    ("steps", "chosen"),
    [
        ([], []),
        ([5], [5]),
        (list(range(10)), list(range(10))),
        # evenly over the decades of step + 1, the nearest that there is
        ([0, 1, 2, 3, 4, 6, 10, 18, 32, 56, 100, 178], [0, 1, 2, 4, 10, 18, 32, 56, 100, 178]),
    ],
)
def test_chosen_steps(steps, chosen):
    assert figures.chosen_steps(steps) == chosen


@pytest.mark.parametrize("last", [11, 100, 123_456])
def test_of_many_steps_ten_at_most_are_chosen_over_the_decades(last):
    chosen = figures.chosen_steps(list(range(last)))
    assert len(chosen) <= 10
    assert (chosen[0], chosen[-1]) == (0, last - 1)
    assert sum(step < last / 2 for step in chosen) >= len(chosen) // 2


def measure(scale: float) -> SpectralMeasure:
    nodes = torch.linspace(-3.0, 4.0, 8, dtype=torch.float64)[None].repeat(2, 1) * scale
    return SpectralMeasure(nodes, torch.full((2, 8), 1 / 8), exact=False, dimension=70)


def test_densities_below_each_other_share_axis_and_heights():
    (axes,) = figures.density_ridgeline([("0", measure(1.0)), ("9", measure(0.1))]).axes
    first, second = (line.get_xydata() for line in axes.get_lines() if len(line.get_xdata()) > 2)
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    # ten times as narrow is ten times as high: the lower row is the taller one
    assert np.ptp(second[:, 1]) > np.ptp(first[:, 1])
    assert np.ptp(second[:, 1]) == pytest.approx(0.9)
    # eight eigenvalues, of which the outermost are at the ends of the spectrum
    seen = first[first[:, 1] > 0.01, 0]
    assert -3.3 < seen.min() < -2.9
    assert 3.9 < seen.max() < 4.4
    assert axes.get_xscale() == "symlog"


def test_the_zero_operator_is_a_peak_at_zero():
    zero = SpectralMeasure(torch.zeros(1, 1), torch.ones(1, 1), exact=False, dimension=9)
    (axes,) = figures.density_ridgeline([("0", measure(1.0)), ("9", zero)]).axes
    _, flat = (line.get_xydata() for line in axes.get_lines() if len(line.get_xdata()) > 2)
    assert abs(flat[np.argmax(flat[:, 1]), 0]) < 0.01
    assert figures.density_ridgeline([]).axes[0].texts


def test_readable_at_600_pixels_and_nothing_cut_off():
    rows = [Row(f"{10**step:,}", *bell(spread=0.5 + step / 5)) for step in range(8)]
    figure = ridgeline(rows, title="Weights over the training", caption="step 0 at the top")
    pixels = figures.render(figure)
    assert pixels.shape[1] == 600
    renderer = figure.canvas.get_renderer()
    (axes,) = figure.axes
    for tick in axes.get_yticklabels():
        box = tick.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.height >= 8  # pixels
    legend = axes.get_legend().get_window_extent(renderer)
    assert not legend.overlaps(axes.patch.get_window_extent(renderer))


def test_it_is_told_apart_in_grey():
    """A row is lighter than its outline and darker than the paper, without its colour."""
    figure, (axes,) = style.new_figure()
    figures.draw_ridgeline(axes, [Row("0", *bell())])
    grey = figures.render(figure).mean(axis=2)
    area = axes.patch.get_window_extent()
    height = grey.shape[0]
    inside = grey[height - int(area.y1) : height - int(area.y0), int(area.x0) : int(area.x1)]
    outline, filled, paper = (
        ((inside > low) & (inside < high)).mean()
        for low, high in ((-1, 130), (150, 225), (250, 256))
    )
    assert outline > 0.003
    assert filled > 0.1
    assert paper > 0.3
