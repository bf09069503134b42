from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from torch_thermo import figures
from torch_thermo.figures import Curve, panels, style
from torch_thermo.figures.scale import signed_ticks
from torch_thermo.spectra.spectral_measure import SpectralMeasure

STEPS = np.array([0, 1, 3, 10, 30, 100])


def measure(scale: float = 1.0, probes: int = 2) -> SpectralMeasure:
    generator = torch.Generator().manual_seed(0)
    nodes = scale * torch.randn(probes, 12, generator=generator, dtype=torch.float64)
    return SpectralMeasure(nodes, torch.ones(probes, 12), exact=False, dimension=500)


def drawn(axes, label: str):
    return next(line for line in axes.get_lines() if line.get_label() == label)


def legend_texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def overlaps(figure, first, second) -> bool:
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    return first.get_window_extent(renderer).overlaps(second.get_window_extent(renderer))


# -- curves


def test_a_curve_shows_its_finite_points_in_order():
    curve = Curve("a", [3, 1, 2, 4], [30.0, 10.0, math.nan, math.inf])
    figure = figures.curves([curve], ylabel="quantity")
    (axes,) = figure.axes
    line = drawn(axes, "a")
    assert line.get_xdata().tolist() == [1, 3]
    assert line.get_ydata().tolist() == [10, 30]
    assert axes.get_ylabel() == "quantity"
    assert "step" in axes.get_xlabel()


def test_positive_values_get_a_log_axis_and_zeros_a_signed_one():
    positive = figures.curves([Curve("a", STEPS, 10.0 ** -STEPS.astype(float) * 1e100)])
    assert positive.axes[0].get_yscale() == "log"
    zeros = figures.curves([Curve("a", STEPS, np.array([10.0, 5, 1, 0.5, 0, 0]))])
    (axes,) = zeros.axes
    assert axes.get_yscale() == "symlog"
    low, high = axes.get_ylim()
    assert low < 0 < 10 < high
    assert axes.transData.transform((1, 0))[1] > axes.transAxes.transform((0, 0))[1]


def test_the_initial_weights_have_a_place_on_the_step_axis():
    (axes,) = figures.curves([Curve("a", STEPS, STEPS + 1.0)]).axes
    positions = axes.transData.transform(np.column_stack([STEPS, STEPS + 1.0]))[:, 0]
    assert (np.diff(positions) > 0).all()
    assert positions[0] > axes.transAxes.transform((0, 0))[0]


def test_series_differ_in_more_than_colour():
    looks = [style.series_style(i) for i in range(7)]
    for key in ("color", "marker", "linestyle"):
        assert len({str(look[key]) for look in looks}) == 7
    (axes,) = figures.curves([Curve(str(i), STEPS, STEPS + i + 1.0) for i in range(4)]).axes
    lines = [drawn(axes, str(i)) for i in range(4)]
    assert len({line.get_linestyle() for line in lines}) == 4
    assert len({line.get_marker() for line in lines}) == 4


def test_a_band_is_drawn_and_named_once():
    y = STEPS + 1.0
    curves = [Curve(n, STEPS, y, y / 2, y * 2, "standard error") for n in ("a", "b")]
    (axes,) = figures.curves(curves).axes
    assert legend_texts(axes).count("standard error") == 1
    assert len(axes.collections) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": STEPS}, "a band needs low, high and band"),
        ({"low": STEPS, "high": STEPS}, "a band needs low, high and band"),
        ({"low": STEPS[:2], "high": STEPS, "band": "x"}, r"must be \(n,\)"),
    ],
)
def test_half_a_band_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"curve 'a': .*{message}"):
        Curve("a", STEPS, STEPS, **arguments)
    with pytest.raises(ValueError, match="curve 'a'"):
        Curve("a", STEPS, STEPS[:-1])


def test_the_legend_lies_above_the_data():
    figure = figures.curves(
        [Curve(f"a rather long name {i}", STEPS, STEPS + i + 1.0) for i in range(5)],
        title="A title",
    )
    (axes,) = figure.axes
    assert not overlaps(figure, axes.get_legend(), axes.patch)
    legend = axes.get_legend().get_window_extent(figure.canvas.get_renderer())
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure.bbox.y1
    assert axes.get_legend().get_title().get_text() == "A title"


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_nothing_to_show_is_said(values):
    figure = figures.curves([Curve("a", np.arange(len(values)), values)], title="Empty")
    assert [text.get_text() for text in figure.axes[0].texts] == ["no finite measurement"]


def test_labelled_ticks_of_a_signed_axis():
    positions = [value for value, _ in signed_ticks(-50.0, 2000.0, 1.0)]
    assert positions == [-10, 0, 10, 100, 1000]
    # the shorter side has powers of ten like the longer, if only one
    two_sided = signed_ticks(-4000.0, 7.0, 1.0)
    assert [value for value, _ in two_sided] == [-1000, -100, -10, 0, 1]
    assert two_sided[-1] == (1.0, "$10^{0}$")
    steps = signed_ticks(-0.25, 6000.0, 1.0)
    assert steps == [
        (0.0, "0"),
        (1.0, "$10^{0}$"),
        (10.0, "$10^{1}$"),
        (100.0, "$10^{2}$"),
        (1000.0, "$10^{3}$"),
    ]
    assert len(signed_ticks(-1e8, 1e8, 1e-8)) <= 11
    for low, high, threshold in ((-50.0, 2000.0, 1.0), (-3.0, 4.0, 1.0), (0.0, 7.0, 1.0)):
        ticks = signed_ticks(low, high, threshold)
        assert len(ticks) >= 3
        assert all(low <= value <= high for value, _ in ticks)
    assert (-2.0, r"$-2\cdot 10^{0}$") in signed_ticks(-3.0, 4.0, 1.0)


# -- densities


@pytest.mark.parametrize(("exact", "peaks"), [(True, 9), (False, 1)])
def test_on_a_linear_axis_the_nodes_of_a_quadrature_are_no_peaks(exact, peaks):
    """Its gaps are those of the quadrature; an exact spectrum has its own."""
    nodes = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64)[None]
    found = SpectralMeasure(nodes, torch.ones(1, 9), exact, 9 if exact else 5000)
    for figure in (
        figures.density([("a", found)], xscale="linear"),
        figures.density_ridgeline([("a", found)], xscale="linear"),
    ):
        (axes,) = figure.axes
        heights = max(axes.get_lines(), key=lambda line: len(line.get_ydata())).get_ydata()
        rises = np.diff(heights[heights > 1e-3 * heights.max()]) > 1e-12
        assert np.sum(rises[:-1] & ~rises[1:]) == peaks


def test_the_density_is_that_of_the_measure():
    one = measure()
    (axes,) = figures.density([("step 0", one)], sigma=0.3).axes
    line = drawn(axes, "step 0")
    grid = torch.from_numpy(np.asarray(line.get_xdata()))
    values, _ = one.density(grid, 0.3)
    np.testing.assert_allclose(line.get_ydata(), values.numpy())
    assert torch.trapezoid(values, grid).item() == pytest.approx(1.0, abs=1e-3)
    assert axes.get_yscale() == "log"
    assert "± standard error" in legend_texts(axes)


def test_one_probe_has_no_band():
    (axes,) = figures.density([("step 0", measure(probes=1))]).axes
    assert legend_texts(axes) == ["step 0"]


def test_the_axis_holds_all_nodes_and_ends_below_one_eigenvalue():
    wide, narrow = measure(100.0), measure(0.01)
    (axes,) = figures.density([("wide", wide), ("narrow", narrow)]).axes
    low, high = axes.get_xlim()
    assert low <= wide.nodes.min() < wide.nodes.max() <= high
    sigma = 0.01 * wide.nodes.abs().max().item()
    one_eigenvalue = 1 / (500 * sigma * math.sqrt(2 * math.pi))
    assert axes.get_ylim()[0] < one_eigenvalue
    assert axes.get_ylim()[1] > drawn(axes, "narrow").get_ydata().max()


def test_the_zero_operator_is_named():
    zero = SpectralMeasure(torch.zeros(1, 1), torch.ones(1, 1), exact=False, dimension=9)
    for measures in ([("end", zero)], [("start", measure()), ("end", zero)]):
        (axes,) = figures.density(measures).axes
        assert "end: all eigenvalues 0" in legend_texts(axes)
        assert "start: all eigenvalues 0" not in legend_texts(axes)


def test_densities_without_measures_and_with_a_bad_width():
    assert figures.density([]).axes[0].texts[0].get_text() == "no finite measurement"
    with pytest.raises(ValueError, match="sigma must be above 0, got 0"):
        figures.density([("a", measure())], sigma=0)


# -- histograms


def test_histograms_have_area_one_and_common_bins():
    rng = np.random.default_rng(0)
    samples = [("a", rng.normal(size=(10, 10))), ("b", np.r_[rng.normal(size=50), math.nan])]
    (axes,) = figures.histogram(samples, bins=20, xlabel="weight").axes
    steps = [patch.get_data() for patch in axes.patches]
    assert len(steps) == 2
    np.testing.assert_array_equal(steps[0].edges, steps[1].edges)
    for step in steps:
        assert np.sum(step.values * np.diff(step.edges)) == pytest.approx(1.0)
    assert axes.get_xlabel() == "weight"


def test_histograms_of_nothing_and_of_no_bins():
    figure = figures.histogram([("a", []), ("b", [math.nan])])
    assert figure.axes[0].texts[0].get_text() == "no finite measurement"
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        figures.histogram([("a", [1.0])], bins=0)


# -- files and the state of matplotlib


def test_a_figure_renders_at_600_pixels_and_saves_at_twice_that(tmp_path):
    figure = figures.curves([Curve("a", STEPS, STEPS + 1.0)], caption="data, net " * 20)
    pixels = figures.render(figure)
    assert pixels.shape == (400, 600, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 0
    path = figures.save(figure, tmp_path / "new" / "figure.png")
    from matplotlib.image import imread

    assert imread(path).shape[:2] == (800, 1200)
    assert figures.save(figure, tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_a_long_caption_is_wrapped_inside_the_figure():
    figure = figures.curves([Curve("a", STEPS, STEPS + 1.0)], caption="data, net, probe " * 20)
    figure.canvas.draw()
    caption = figure.get_supxlabel()
    assert "\n" in caption
    extent = figure._supxlabel.get_window_extent(figure.canvas.get_renderer())
    assert extent.x1 <= figure.bbox.x1
    assert not extent.overlaps(figure.axes[0].get_tightbbox())


def test_neither_pyplot_nor_matplotlib_settings_are_touched():
    code = """
import sys
import torch_thermo.figures as figures
assert "matplotlib" not in sys.modules
import matplotlib
before = dict(matplotlib.rcParams)
figures.render(figures.curves([figures.Curve("a", [0, 1], [1.0, 2.0])]))
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_legend_columns_follow_the_width_of_what_is_seen():
    assert style._letters(r"$\|\nabla R\|^2$, probe") == len("xxRx2, probe")
    assert style.legend_columns(["ab", "cd", "ef"], 5.2) == 3
    assert style.legend_columns(["a" * 60, "b" * 60], 5.2) == 1


def test_every_panel_name_is_offered():
    assert set(panels.__all__) <= set(figures.__all__)
