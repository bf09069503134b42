from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.papers.li.stored_runs import EPOCHS, SAMPLES, risk_at, write_run
from torch_thermo.figures.matrices import Matrix, Ridges
from torch_thermo.papers.li import curvature_panels, panels
from torch_thermo.papers.li.entries import EARLY, LATE, THRESHOLD

ACTIVE = [epoch for epoch in EPOCHS if risk_at(epoch) > 0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / f"seed{seed}", seed=seed) for seed in range(2)]


def by_name(found):
    assert len({panel.name for panel in found}) == len(found)
    return {panel.name: panel for panel in found}


def series(panel, label):
    (trace,) = (trace for trace in panel.traces if trace.label == label)
    return np.asarray(trace.x), np.asarray(trace.y)


def area(y, x):
    return float(torch.trapezoid(torch.as_tensor(y), torch.as_tensor(x)))


def test_distributions_are_below_each_other_by_epoch(runs):
    weights = by_name(panels.weight_panels(runs))["distribution"]
    # the paper's epochs
    assert [row.label for row in weights.rows] == ["0", "10", "20", "40"]
    assert (weights.ylabel, weights.xlabel, weights.floor) == ("epoch", "weight", None)
    gradient = by_name(panels.gradient_panels(runs))["distribution"]
    # its size falls through decades: over its root mean square, which the labels give; where all
    # entries are 0 there is no distribution
    assert [row.label.partition(":")[0] for row in gradient.rows] == ["0", "10", "20"]
    assert gradient.ylabel == "epoch: root mean square"
    assert gradient.floor > 0
    for row in gradient.rows:
        assert area(row.density, row.x) == pytest.approx(1.0, abs=1e-6)


def test_distributions_of_a_short_training_are_all_there(tmp_path):
    run = write_run(tmp_path / "seed0", epochs=(0, 1, 3, 10))
    weights = by_name(panels.weight_panels([run]))["distribution"]
    assert [row.label for row in weights.rows] == ["0", "1", "3", "10"]


def test_asymmetry_is_drawn_with_its_floor(runs):
    found = by_name(panels.weight_panels(runs))
    (trace,) = found["w_sym"].traces
    np.testing.assert_allclose(trace.y, 0.01 + 0.001 * np.array(EPOCHS))
    np.testing.assert_allclose(trace.null, 0.01)
    first, last = found["layers"].traces
    assert (first.label, last.label) == ("epoch 0", "epoch 40")
    np.testing.assert_allclose(last.y, [0.05, 0.09, 0.13])
    np.testing.assert_allclose(last.null, 0.01)


def test_circuits_of_three_orders(runs):
    found = by_name(panels.circuit_panels(runs))
    assert [t.label for t in found["order0"].traces] == ["epoch 0", "epoch 10", "epoch 40"]
    assert [t.label for t in found["orders"].traces] == ["order 0", "order 1", "order 2"]
    for trace in (*found["order0"].traces, *found["orders"].traces):
        assert area(trace.y, trace.x) == pytest.approx(1.0)
    assert "1e-24" in found["order0"].xlabel
    np.testing.assert_allclose(series(found["balance"], "exact, S")[1], 1e-6)
    assert [level.value for level in found["positive"].levels] == [0.5]


def test_circuits_of_the_first_order_alone(tmp_path):
    without = ("circuit_sample_order1", "circuit_sample_order2")
    found = by_name(panels.circuit_panels([write_run(tmp_path, without=without)]))
    assert [trace.label for trace in found["orders"].traces] == ["order 0"]


def test_the_order_parameter_beside_its_control(runs):
    found = by_name(panels.order_panels(runs))
    risks = np.array([risk_at(epoch) for epoch in EPOCHS])
    np.testing.assert_allclose(series(found["order"], "OP")[1], 0.5 * risks**1.5)
    np.testing.assert_allclose(series(found["ratio"], "OP / R")[1][:-1], 0.5 * risks[:-1] ** 0.5)
    assert math.isnan(series(found["ratio"], "OP / R")[1][-1])  # R = 0
    shares = np.round(SAMPLES * risks[:-1]) / SAMPLES
    given = series(found["active"], "OP / $p^2$")[1]
    np.testing.assert_allclose(given[:-1], 0.5 * risks[:-1] ** 1.5 / shares**2)
    assert math.isnan(given[-1])  # p = 0
    x, y = series(found["together"], "seed 1")
    assert len(x) == len(EPOCHS) - 1  # on logarithmic axes there is no 0
    np.testing.assert_allclose(y, 0.5 * x**1.5)


def test_the_control_is_of_the_examples_that_the_share_is_of(tmp_path):
    run = write_run(tmp_path, changes={"phase/order_parameter": 0.3, "phase/risk": 0.2})
    active = by_name(panels.order_panels([run]))["active"]
    p = round(SAMPLES * risk_at(10)) / SAMPLES
    at = EPOCHS.index(10)
    assert series(active, "OP / $p^2$")[1][at] == pytest.approx(0.3 / p**2)
    assert series(active, "R / p")[1][at] == pytest.approx(0.2 / p)
    assert not np.isinf(series(active, "OP / $p^2$")[1]).any()  # at p = 0


def test_risk_and_accuracy(runs):
    found = by_name(panels.risk_panels(runs))
    np.testing.assert_allclose(
        series(found["risk"], "held out")[1] - series(found["risk"], "training")[1], 0.3
    )
    assert series(found["accuracy"], "training")[1][-1] == 1.0


def test_normalised_means_at_three_epochs(runs):
    found = by_name(curvature_panels.mean_panels(runs))
    for name in ("means", "given"):
        panel = found[name]
        assert [trace.label for trace in panel.traces] == ["epoch 0", "epoch 10", "epoch 20"]
        assert [level.value for level in panel.levels] == [-THRESHOLD, THRESHOLD]
        for trace in panel.traces:  # none is lost beyond the ends
            x, y = np.asarray(trace.x), np.asarray(trace.y)
            assert (y * (x[1] - x[0])).sum() == pytest.approx(1.0)


def test_the_share_below_depends_on_the_minibatch(runs):
    found = by_name(curvature_panels.share_panels(runs))
    share = found["share"]
    stored = [run.arrays("hessian_entries", 100)["z_1"] for run in runs]
    expected = np.mean([(np.sqrt(32) * np.abs(z) < THRESHOLD).mean() for z in stored])
    x, y = series(share, "B = 32")
    assert y[x.tolist().index(10)] == pytest.approx(expected)
    assert [level.value for level in share.levels] == [EARLY, LATE]
    p = np.round(SAMPLES * np.array([risk_at(epoch) for epoch in EPOCHS[1:]])) / SAMPLES
    np.testing.assert_allclose(series(found["bound"], "bound")[1][1:], np.sqrt(p / (1 - p)))
    (level,) = found["bound"].levels
    assert level.value == THRESHOLD


def test_the_control_is_drawn_with_what_chance_gives(runs):
    found = by_name(curvature_panels.given_active_panels(runs))
    x, y = series(found["given"], "chance alone")
    at = x.tolist().index(20)
    n = round(SAMPLES * risk_at(20))
    assert y[at] == pytest.approx(math.erf(THRESHOLD * math.sqrt(n / 2)))
    assert math.isnan(y[-1])
    assert series(found["active"], f"active of {SAMPLES}")[1][at] == n


@pytest.mark.parametrize(("place", "epoch"), [(0, 0), (1, 10), (2, 20)])
def test_correlations_at_three_epochs(runs, place, epoch):
    found = by_name(curvature_panels.correlation_panels(runs, place))
    matrix = found["matrix"]
    assert isinstance(matrix, Matrix)
    stored = runs[0].arrays("hessian_entries", 10 * epoch)
    np.testing.assert_array_equal(matrix.values, stored["correlation_active"])
    assert matrix.null == 0.28
    assert f"epoch {epoch}," in matrix.title
    (trace,) = found["pairs"].traces
    x, y = np.asarray(trace.x), np.asarray(trace.y)
    assert (y * (x[1] - x[0])).sum() == pytest.approx(1.0)
    assert [level.value for level in found["pairs"].levels] == [0.28, 0.45]


def test_without_correlations_the_figure_says_so(tmp_path):
    run = write_run(tmp_path, changes={"hessian_entries/correlation_active": math.nan})
    (panel,) = curvature_panels.correlation_panels([run], 0)
    assert panel.traces == ()


def test_the_spectrum(runs):
    found = by_name(curvature_panels.spectrum_panels(runs))
    (ridges,) = (panel for panel in found.values() if isinstance(panel, Ridges))
    assert [row.label for row in ridges.rows] == [str(epoch) for epoch in ACTIVE]  # then H = 0
    np.testing.assert_allclose(series(found["edges"], "ratio")[1][:-1], 0.9)
    assert math.isnan(series(found["edges"], "ratio")[1][-1])
    np.testing.assert_allclose(
        series(found["size"], r"$-\lambda_{min}$")[1],
        0.9 * series(found["size"], r"$\lambda_{max}$")[1],
    )


def test_spectra_of_other_losses_and_nets(runs, tmp_path):
    nets = {"vgg": runs, "vgg-ce": [write_run(tmp_path, "vgg-ce")]}
    found = by_name(curvature_panels.functional_panels(nets))
    assert [trace.label for trace in found["odd_functional"].traces] == ["vgg", "vgg-ce"]
    np.testing.assert_allclose(series(found["odd_hessian"], "vgg-ce")[1], 0.8)
    # of hinge both are the same
    drawn = {name: one.title for name, one in found.items() if isinstance(one, Ridges)}
    assert drawn == {
        "density_functional_vgg_ce": "F, vgg-ce, seed 0",
        "density_hessian_vgg_ce": "H, vgg-ce, seed 0",
        "density_hessian_vgg": "H = F, vgg, seed 0",
    }
