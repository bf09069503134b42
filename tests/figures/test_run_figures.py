from __future__ import annotations

import numpy as np
import pytest

from torch_thermo import figures
from torch_thermo.figures import run as run_figures
from torch_thermo.figures import style
from torch_thermo.store import Run, Store, load_run


@pytest.fixture
def stored(tmp_path) -> Run:
    """A run as the callbacks store it, with numbers that can be told apart."""
    store = Store.open(tmp_path / "thermo")
    for step in (0, 1, 10, 100):
        size = 1.0 / (1 + step)
        store.append("order_parameter", step, None, {"value": size, "risk": 2 * size})
        store.append(
            "hessian_extremes",
            step,
            None,
            {
                "lambda_min": -3 * size,
                "lambda_max": 4 * size,
                "residual_min": 0.1 * size,
                "residual_max": 0.2 * size,
            },
        )
        for name in ("weight_symmetry", "gradient_symmetry"):
            values = {"sign_balance": size - 0.5, "low": size - 0.6, "high": size - 0.4}
            store.append(name, step, None, values)
        nodes = size * np.linspace(-3, 4, 8)[None].repeat(2, 0)
        store.append("hessian_density", step, None, {"trace": size})
        store.save_arrays(
            "hessian_density",
            step,
            {"nodes": nodes, "weights": np.full((2, 8), 1 / 8), "dimension": np.asarray(70)},
        )
    rows = [(step, None, {"value": 1.5 / step}) for step in range(1, 101)]
    store.append_many("order_parameter_minibatch", rows)
    return load_run(tmp_path / "thermo")


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def test_each_figure_shows_the_stored_numbers(stored):
    made = figures.run_figures(stored, "caption", {"hessian_edges": "m: 20"})
    assert list(made) == ["order_parameter", "hessian_edges", "hessian_density", "sign_balance"]
    order = lines(made["order_parameter"].axes[0])
    np.testing.assert_allclose(order[r"$\|\nabla R\|^2$, probe"], 1 / np.array([1, 2, 11, 101]))
    np.testing.assert_allclose(order["risk $R$, probe"], 2 / np.array([1, 2, 11, 101]))
    assert any(len(values) == 100 for values in order.values())
    edges = lines(made["hessian_edges"].axes[0])
    np.testing.assert_allclose(edges[r"$\lambda_{\max}$"], 4 / np.array([1, 2, 11, 101]))
    np.testing.assert_allclose(edges[r"$\lambda_{\min}$"], -3 / np.array([1, 2, 11, 101]))
    assert {"step 0", "step 10", "step 100"} <= set(lines(made["hessian_density"].axes[0]))
    balance = lines(made["sign_balance"].axes[0])
    np.testing.assert_allclose(balance["weights"], 1 / np.array([1, 2, 11, 101]) - 0.5)
    assert made["hessian_edges"].get_supxlabel() == "caption m: 20"
    assert made["sign_balance"].get_supxlabel() == "caption"


def test_axes_have_names_and_legends_lie_off_the_data(stored):
    for figure in figures.run_figures(stored).values():
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        (axes,) = figure.axes
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        legend = axes.get_legend().get_window_extent(renderer)
        assert not legend.overlaps(axes.patch.get_window_extent(renderer))


def test_chosen_steps_of_a_density(stored):
    figure, (axes,) = style.new_figure()
    run_figures.draw_densities(axes, stored, steps=[1, 5])
    assert "step 1" in lines(axes)
    assert not any("step 5" in label for label in lines(axes))
    assert figure.axes == [axes]


def test_what_was_not_measured_is_an_empty_panel_that_says_so(tmp_path):
    Store.open(tmp_path / "thermo").append("order_parameter", 0, None, {"value": 1.0, "risk": 1.0})
    made = figures.run_figures(load_run(tmp_path / "thermo"))
    for name in ("hessian_edges", "hessian_density", "sign_balance"):
        assert made[name].axes[0].texts[0].get_text() == "no finite measurement"
    assert not made["order_parameter"].axes[0].texts


def test_the_overview_has_a_column_for_each_run(stored):
    figure = figures.overview([("one", stored), ("two", stored)], "caption")
    assert len(figure.axes) == 6
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    legends = [axes.get_legend().get_window_extent(renderer) for axes in figure.axes]
    panels = [axes.patch.get_window_extent(renderer) for axes in figure.axes]
    assert not any(legend.overlaps(panel) for legend in legends for panel in panels)
    assert all(legend.x1 <= figure.bbox.x1 for legend in legends)
    with pytest.raises(ValueError, match="at least one run"):
        figures.overview([])
