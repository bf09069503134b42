from __future__ import annotations

import math
import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from torch_thermo import dashboard

OBSERVABLES = [
    "order_parameter",
    "order_parameter_minibatch",
    "hessian_extremes",
    "hessian_density",
    "functional_density",
    "weight_symmetry",
    "gradient_symmetry",
]


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0}).Reload()


def charts(observables) -> dict[str, tuple[str, list[str]]]:
    layout = dashboard.custom_scalar_layout(observables)
    return {name: tuple(chart) for group in layout.values() for name, chart in group.items()}


def test_tags():
    assert dashboard.tag("order_parameter", "value") == "thermo/order_parameter/value"
    assert dashboard.tag("a", "layer", "net.0.weight") == "thermo/a/layer/net.0.weight"
    with pytest.raises(ValueError, match="must not be empty"):
        dashboard.tag("a", "")


def test_a_multiline_chart_matches_its_tags_and_no_others():
    kind, tags = charts(OBSERVABLES)[
        "order parameter on the probe and of each minibatch, and the risk R"
    ]
    assert kind == "Multiline"
    names = [
        dashboard.tag("order_parameter", "value"),
        dashboard.tag("order_parameter", "risk"),
        dashboard.tag("order_parameter_minibatch", "value"),
        dashboard.tag("order_parameter", "value_of_something_else"),
        dashboard.tag("order_parameter", "layer", "risk"),
    ]
    # As TensorBoard does it: re.match of each expression on each tag.
    matched = [name for name in names if any(re.match(tag, name) for tag in tags)]
    assert matched == names[:3]


def test_one_expression_shows_all_layers():
    _, (tag,) = charts(["order_parameter"])["per parameter"]
    assert re.match(tag, dashboard.tag("order_parameter", "layer", "net.0.weight"))
    assert not re.match(tag, dashboard.tag("order_parameter", "value"))


def test_margin_charts_have_value_lower_and_upper_as_plain_tags():
    margins = [tags for kind, tags in charts(OBSERVABLES).values() if kind == "Margin"]
    assert len(margins) == 2
    for tags in margins:
        assert [tag.rpartition("/")[2] for tag in tags] == ["sign_balance", "low", "high"]


def test_only_what_is_measured_is_laid_out():
    assert dashboard.custom_scalar_layout([]) == {}
    only = dashboard.custom_scalar_layout(["hessian_extremes"])
    assert list(only) == ["Hessian"]
    assert len(only["Hessian"]) == 1
    tags = [tag for _, chart in charts(["order_parameter"]).values() for tag in chart]
    assert tags
    assert not any("minibatch" in tag for tag in tags)


def test_tensorboard_reads_the_layout_back(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_layout(writer, OBSERVABLES)
    (tensor,) = events(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout()
    layout.ParseFromString(tensor.tensor_proto.string_val[0])
    titles = [chart.title for category in layout.category for chart in category.chart]
    assert titles == list(charts(OBSERVABLES))
    margins = [chart.margin.series for category in layout.category for chart in category.chart]
    assert [s[0].lower for s in margins if s] == [
        "thermo/weight_symmetry/low",
        "thermo/gradient_symmetry/low",
    ]


def test_no_observables_write_no_layout(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_layout(writer, [])
    assert events(tmp_path).Tags()["tensors"] == []


def arrays() -> dict[str, np.ndarray]:
    nodes = np.array([[-1.0, 0.5, 2.0], [-1.5, 1.0, np.nan]])
    weights = np.array([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0]])
    return {"nodes": nodes, "weights": weights, "dimension": np.asarray(100)}


def test_a_density_becomes_an_image_at_its_step(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_figure(writer, "density", "hessian_density", arrays(), 7)
        dashboard.write_figure(writer, "density", "hessian_density", arrays(), 70)
    images = events(tmp_path).Images("thermo/hessian_density/density")
    assert [image.step for image in images] == [7, 70]
    assert (images[0].width, images[0].height) == (600, 400)


def test_what_can_not_be_drawn_is_an_error(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="kind must be 'density', got 'pie'"):
            dashboard.write_figure(writer, "pie", "hessian_density", arrays(), 0)
        with pytest.raises(KeyError, match="weights"):
            dashboard.write_figure(writer, "density", "x", {"nodes": arrays()["nodes"]}, 0)
        with pytest.raises(ValueError, match="nodes and weights"):
            dashboard.write_density(writer, "x", np.zeros(3), np.zeros(3), 5, 0)


def test_a_histogram_keeps_every_finite_value(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 30))
    values[0, :3] = math.nan, math.inf, -math.inf
    with SummaryWriter(tmp_path) as writer:
        assert dashboard.write_histogram(writer, "weights", values, 5)
    (event,) = events(tmp_path).Histograms("weights")
    finite = values[np.isfinite(values)]
    read = event.histogram_value
    assert event.step == 5
    assert read.num == 597
    assert sum(read.bucket) == 597
    assert (read.min, read.max) == (finite.min(), finite.max())
    assert read.sum == pytest.approx(finite.sum())
    assert read.sum_squares == pytest.approx(np.square(finite).sum())
    below_zero = sum(n for n, edge in zip(read.bucket, read.bucket_limit, strict=True) if edge <= 0)
    assert abs(below_zero - (finite < 0).sum()) <= max(read.bucket)


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]])
def test_a_histogram_of_nothing_is_not_written(tmp_path, values):
    with SummaryWriter(tmp_path) as writer:
        assert not dashboard.write_histogram(writer, "weights", values, 0)
    assert events(tmp_path).Tags()["histograms"] == []


def test_a_constant_has_a_histogram(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        assert dashboard.write_histogram(writer, "weights", np.full(9, 2.0), 0)
    (event,) = events(tmp_path).Histograms("weights")
    assert sum(event.histogram_value.bucket) == 9
