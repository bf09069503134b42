from __future__ import annotations

import numpy as np
import pytest

from torch_thermo import figures
from torch_thermo.figures import distributions, quantities, style
from torch_thermo.figures.panels import NULL
from torch_thermo.store import Run, Store, load_run

STEPS = (0, 1, 10, 100)
SIZES = 1.0 / (1 + np.array(STEPS))
ALL = [
    "bulk_boundary",
    "propagator",
    "propagator_density",
    "propagator_ridgeline",
    "order_parameter",
    "order_against_risk",
    "hessian_edges",
    "hessian_density",
    "hessian_ridgeline",
    "sign_balance",
    "w_sym",
    "weight_ridgeline",
    "gradient_ridgeline",
    "circuits",
    "positive_share",
    "circuit_sample",
]


def rows(size: float) -> dict[str, dict[str, float]]:
    """Numbers that can be told apart."""
    balance = {
        "sign_balance": size - 0.5,
        "low": size - 0.6,
        "high": size - 0.4,
        "w_sym": 0.5 * size,
        "w_sym_null": 0.1 * size,
    }
    return {
        "order_parameter": {"value": size, "risk": 2 * size},
        "hessian_extremes": {
            "lambda_min": -3 * size,
            "lambda_max": 4 * size,
            "residual_min": 0.1 * size,
            "residual_max": 0.2 * size,
        },
        "hessian_density": {"trace": size},
        "weight_symmetry": balance,
        "gradient_symmetry": balance,
        "circuit_sample": balance,
        "bulk_boundary": {
            "bulk": 2 * size,
            "boundary": 5 * size,
            "bulk_stderr": 0.2 * size,
            "boundary_stderr": 0.5 * size,
            "bulk_median": 1.5 * size,
            "boundary_median": 4 * size,
        },
        "propagator_spectrum": {"mu2": 7 * size, "mu2_stderr": size, "mu3": -3 * size},
        "circuit_symmetry": {
            "sign_balance": -0.3 * size,
            "sign_balance_stderr": 0.01 * size,
            "mass_asymmetry": 0.2 * size,
            "mass_asymmetry_stderr": 0.02 * size,
            "positive": 1 - size / 2,
            "positive_low": 1 - size / 2 - 0.1,
            "positive_high": 1 - size / 2 + 0.1,
        },
    }


def arrays(size: float) -> dict[str, dict[str, np.ndarray]]:
    edges = np.linspace(-8.0, 8.0, 9)
    histogram = {
        "counts": np.array([1, 20, 5, 0, 0, 4, 21, 2]),
        "edges": edges,
        "stats": np.array([-8.0, 8.0, 53, 1.0, 53.0]),
    }
    return {
        "hessian_density": {
            "nodes": size * np.linspace(-3, 4, 8)[None].repeat(2, 0),
            "weights": np.full((2, 8), 1 / 8),
            "dimension": np.asarray(70),
        },
        "propagator_spectrum": {
            "nodes": size * np.linspace(-2, 2, 40)[None],
            "weights": np.full((1, 40), 1 / 40),
            "dimension": np.asarray(40),
            "exact": np.asarray(True),
        },
        "weight_symmetry": histogram,
        "gradient_symmetry": {
            **histogram,
            "edges": size * edges,
            "stats": histogram["stats"] * size ** np.array([1, 1, 0, 1, 2]),
        },
        "circuit_sample": {**histogram, "floor": np.asarray(-12.0)},
    }


def store_of(folder, names=None, skipped=None) -> Run:
    """A run as the callbacks store it."""
    store = Store.open(folder / "thermo")
    store.write_meta({"skipped": skipped or {}})
    for step, size in zip(STEPS, SIZES, strict=True):
        for name, row in rows(size).items():
            if names is None or name in names:
                store.append(name, step, None, row)
                if name in arrays(size):
                    store.save_arrays(name, step, arrays(size)[name])
    if names is None:
        each = [(step, None, {"value": 1.5 / step}) for step in range(1, 101)]
        store.append_many("order_parameter_minibatch", each)
    return load_run(folder / "thermo")


@pytest.fixture
def stored(tmp_path) -> Run:
    return store_of(tmp_path)


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def test_each_figure_shows_the_stored_numbers(stored):
    made = figures.run_figures(stored, "caption", {"hessian_edges": "m: 20"})
    assert list(made) == ALL
    order = lines(made["order_parameter"].axes[0])
    np.testing.assert_allclose(order[r"$\|\nabla R\|^2$, probe"], SIZES)
    np.testing.assert_allclose(order["risk $R$, probe"], 2 * SIZES)
    assert any(len(values) == 100 for values in order.values())
    edges = lines(made["hessian_edges"].axes[0])
    np.testing.assert_allclose(edges[r"$\lambda_{\max}$"], 4 * SIZES)
    np.testing.assert_allclose(edges[r"$\lambda_{\min}$"], -3 * SIZES)
    assert {"step 0", "step 10", "step 100"} <= set(lines(made["hessian_density"].axes[0]))
    balance = lines(made["sign_balance"].axes[0])
    np.testing.assert_allclose(balance["weights"], SIZES - 0.5)
    loss = lines(made["bulk_boundary"].axes[0])
    for label, factor in (("bulk, mean", 2), ("boundary, mean", 5), ("boundary, median", 4)):
        np.testing.assert_allclose(loss[label], factor * SIZES)
    traces = lines(made["propagator"].axes[0])
    np.testing.assert_allclose(traces[r"$\mu_2 = \mathrm{Tr}\,\log^2 G$"], 7 * SIZES)
    np.testing.assert_allclose(traces[r"$\mu_3 = \mathrm{Tr}\,\log^3 G$"], -3 * SIZES)
    density = made["propagator_density"].axes[0]
    assert {"step 0", "step 10", "step 100"} <= set(lines(density))
    for name in ("propagator_density", "propagator_ridgeline"):
        axes = made[name].axes[0]
        assert axes.get_xscale() == "linear"
        assert axes.get_xlabel() == r"$\log\lambda$ of the propagator"
    circuits = lines(made["circuits"].axes[0])
    np.testing.assert_allclose(circuits["mass asymmetry $y\\,T/A$"], 0.2 * SIZES)
    np.testing.assert_allclose(circuits["sign balance $S$"], -0.3 * SIZES)
    share = lines(made["positive_share"].axes[0])
    np.testing.assert_allclose(share["examples with $y\\,T/A > 0$"], 1 - SIZES / 2)
    assert made["hessian_edges"].get_supxlabel() == "caption m: 20"
    assert made["sign_balance"].get_supxlabel() == "caption"


def test_bands_are_the_stored_errors_and_named(stored):
    made = figures.run_figures(stored)
    for name, band, (low, high) in (
        ("bulk_boundary", "± standard error", (4.5, 5.5)),
        ("positive_share", "95 % interval", (None, None)),
    ):
        (axes,) = made[name].axes
        assert band in axes.get_legend_handles_labels()[1]
        edges = axes.collections[0].get_paths()[0].vertices[:, 1]
        if low is not None:
            assert edges.max() == pytest.approx(high)
            assert np.isclose(edges, low).any()
        else:
            assert edges.max() == pytest.approx((1 - SIZES / 2).max() + 0.1)


def test_an_asymmetry_stands_beside_its_floor_in_the_same_colour(stored):
    (axes,) = figures.run_figures(stored)["w_sym"].axes
    drawn = [line for line in axes.get_lines() if len(line.get_xdata())]
    for label in ("weights", "gradient", "sampled circuits"):
        (curve,) = (line for line in drawn if line.get_label() == label)
        (null,) = (
            line for line in drawn if line.get_color() == curve.get_color() and line is not curve
        )
        np.testing.assert_allclose(curve.get_ydata(), 0.5 * SIZES)
        np.testing.assert_allclose(null.get_ydata(), 0.1 * SIZES)
        assert null.get_linestyle() != curve.get_linestyle()  # told apart in grey
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names.count(NULL) == 1
    assert axes.get_ylim()[0] < 0.1 * SIZES[-1]


def test_the_order_parameter_over_the_risk_says_its_steps(stored):
    (axes,) = figures.run_figures(stored)["order_against_risk"].axes
    (path,) = (line for line in axes.get_lines() if len(line.get_xdata()) == 4)
    np.testing.assert_allclose(path.get_xdata(), 2 * SIZES)
    np.testing.assert_allclose(path.get_ydata(), SIZES)
    assert [text.get_text() for text in axes.texts] == ["0", "1", "10", "100"]
    assert [text.xy for text in axes.texts] == list(zip(2 * SIZES, SIZES, strict=True))


def test_ridgelines_have_a_row_for_each_step(stored):
    made = figures.run_figures(stored)
    for name, labels in (
        ("hessian_ridgeline", ["0", "1", "10", "100"]),
        ("weight_ridgeline", ["0", "1", "10", "100"]),
        ("gradient_ridgeline", ["0: 1.0e+00", "1: 5.0e-01", "10: 9.1e-02", "100: 9.9e-03"]),
    ):
        (axes,) = made[name].axes
        assert [tick.get_text() for tick in axes.get_yticklabels()] == labels


def test_sampled_circuits_are_labelled_with_their_sizes(stored):
    (axes,) = figures.run_figures(stored)["circuit_sample"].axes
    ticks = dict(
        zip(axes.get_xticks(), [t.get_text() for t in axes.get_xticklabels()], strict=True)
    )
    assert ticks[0.0] == r"$\pm 10^{-12}$"
    assert ticks[4.0] == "$10^{-8}$"  # four decades above the floor
    assert ticks[-4.0] == "$-10^{-8}$"
    assert {patch.get_label() for patch in axes.patches} == {"step 0", "step 10", "step 100"}
    heights = axes.patches[0].get_data().values
    assert heights.sum() * 2.0 == pytest.approx(1.0)


def test_axes_have_names_and_legends_lie_off_the_data(stored):
    for name, figure in figures.run_figures(stored, "a caption").items():
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        (axes,) = figure.axes
        assert axes.get_xlabel(), name
        assert axes.get_ylabel(), name
        legend = axes.get_legend().get_window_extent(renderer)
        assert not legend.overlaps(axes.patch.get_window_extent(renderer)), name
        assert legend.x1 <= figure.bbox.x1, name
        drawn, paper = axes.get_tightbbox(renderer), figure.bbox
        assert min(drawn.x0, drawn.y0) >= 0, name
        assert drawn.x1 <= paper.x1, name
        assert drawn.y1 <= paper.y1, name


def test_chosen_steps_of_a_density(stored):
    figure, (axes,) = style.new_figure()
    distributions.draw_densities(axes, stored, steps=[1, 5])
    assert "step 1" in lines(axes)
    assert not any("step 5" in label for label in lines(axes))
    assert figure.axes == [axes]


def test_what_was_not_measured_has_no_figure(tmp_path):
    made = figures.run_figures(store_of(tmp_path, ["order_parameter"]))
    assert list(made) == ["order_parameter", "order_against_risk"]
    assert not made["order_parameter"].axes[0].texts


@pytest.mark.parametrize("draw", [quantities.draw_bulk_boundary, quantities.draw_circuits])
@pytest.mark.parametrize("name", ["bulk_boundary", "circuit_symmetry"])
def test_numbers_that_are_not_finite_leave_a_panel_that_says_so(tmp_path, draw, name):
    store = Store.open(tmp_path / "thermo")
    for step in (0, 1):
        store.append(name, step, None, dict.fromkeys(rows(1.0)[name], float("nan")))
    _, (axes,) = style.new_figure()
    draw(axes, load_run(tmp_path / "thermo"))
    assert [text.get_text() for text in axes.texts] == ["no finite measurement"]


def test_a_store_without_histograms_has_empty_ridgelines(tmp_path):
    """As older versions wrote them, or where nothing was finite."""
    store = Store.open(tmp_path / "thermo")
    store.append("weight_symmetry", 0, None, rows(1.0)["weight_symmetry"])
    store.append("circuit_sample", 0, None, rows(1.0)["circuit_sample"])
    store.save_arrays("circuit_sample", 0, {"something": np.zeros(3)})
    made = figures.run_figures(load_run(tmp_path / "thermo"))
    for name in ("weight_ridgeline", "circuit_sample"):
        assert made[name].axes[0].texts[0].get_text() == "no finite measurement"


def test_the_overview_has_a_column_for_each_run(stored):
    figure = figures.overview([("one", stored), ("two", stored)], "caption")
    assert len(figure.axes) == 12
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    legends = [axes.get_legend().get_window_extent(renderer) for axes in figure.axes]
    panels = [axes.patch.get_window_extent(renderer) for axes in figure.axes]
    assert not any(legend.overlaps(panel) for legend in legends for panel in panels)
    assert all(legend.x1 <= figure.bbox.x1 for legend in legends)
    titles = [axes.get_legend().get_title().get_text() for axes in figure.axes]
    shown = ("bulk and boundary", "propagator", "order parameter", "Hessian", "asymm", "circuits")
    for what in shown:
        assert sum(what in title for title in titles) == 2, what
    with pytest.raises(ValueError, match="at least one run"):
        figures.overview([])


def test_the_overview_leaves_out_what_no_run_has_and_names_what_one_has_not(tmp_path):
    order = store_of(tmp_path / "a", ["order_parameter"])
    both = store_of(tmp_path / "b", ["order_parameter", "bulk_boundary"])
    figure = figures.overview([("a", order), ("b", both)])
    assert len(figure.axes) == 4
    said = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert said == [["not measured"], [], [], []]
    reason = "network.1 (Tanh) cannot be read: its output is no gate times its input"
    tanh = store_of(tmp_path / "d", ["order_parameter"], {"circuit_symmetry": reason})
    full = store_of(tmp_path / "e", ["order_parameter", "circuit_symmetry"])
    figure = figures.overview([("d", tanh), ("e", full)])
    (text,) = (text for axes in figure.axes for text in axes.texts)
    assert " ".join(text.get_text().split()) == f"not measured: {reason}"
    figures.render(figure)
    box, panel = text.get_window_extent(), text.axes.patch.get_window_extent()
    assert panel.x0 <= box.x0
    assert box.x1 <= panel.x1
    with pytest.raises(ValueError, match="nothing that the overview shows"):
        figures.overview([("c", store_of(tmp_path / "c", ["hessian_extremes"]))])
