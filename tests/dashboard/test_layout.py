from __future__ import annotations

import itertools
import re

import pytest
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from tests.dashboard.support import OBSERVABLES, events
from torch_thermo import dashboard


def charts(observables) -> dict[str, tuple[str, list[str]]]:
    layout = dashboard.custom_scalar_layout(observables)
    return {name: tuple(chart) for group in layout.values() for name, chart in group.items()}


def matched(tags: list[str], names: list[str]) -> list[str]:
    """As TensorBoard does it: re.match of each expression on each tag."""
    return [name for name in names if any(re.match(tag, name) for tag in tags)]


def test_the_page_reads_from_the_loss_to_the_symmetry():
    layout = dashboard.custom_scalar_layout(OBSERVABLES)
    words = ("Bulk and boundary", "Order parameter", "Hessian", "Propagator", "Symmetry", "Phase")
    assert [word in title for word, title in zip(words, layout, strict=True)] == [True] * 6
    assert [title[0] for title in layout] == ["1", "2", "3", "4", "5", "6"]
    titles = [title for group in layout.values() for title in group]
    assert len(set(titles)) == len(titles)
    # two lines of one of TensorBoard's charts
    assert all(len(title) <= 95 for title in titles)


def test_each_observable_has_a_chart():
    for observable in OBSERVABLES:
        assert charts([observable]), observable


def test_a_multiline_chart_matches_its_tags_and_no_others():
    ((kind, tags),) = (
        chart for name, chart in charts(OBSERVABLES).items() if "of each minibatch" in name
    )
    assert kind == "Multiline"
    names = [
        dashboard.tag("order_parameter", "value"),
        dashboard.tag("order_parameter", "risk"),
        dashboard.tag("order_parameter_minibatch", "value"),
        dashboard.tag("order_parameter", "value_of_something_else"),
        dashboard.tag("order_parameter", "layer", "risk"),
    ]
    assert matched(tags, names) == names[:3]


def test_a_statistic_is_charted_with_its_floor_and_not_with_its_layers():
    for observable in ("weight_symmetry", "gradient_symmetry", "circuit_sample"):
        names = [
            dashboard.tag(observable, "w_sym"),
            dashboard.tag(observable, "w_sym_null"),
            dashboard.tag(observable, "w_sym", "net.0.weight"),
        ]
        found = [matched(tags, names) for kind, tags in charts([observable]).values()]
        assert names[:2] in found, observable
        assert not any(names[2] in tags for tags in found)


def test_one_expression_shows_all_layers():
    (tags,) = (
        tags for name, (_, tags) in charts(["order_parameter"]).items() if "each par" in name
    )
    layer, value = dashboard.tag("order_parameter", "layer", "net.0.weight"), "thermo/x/value"
    assert matched(tags, [layer, value, dashboard.tag("order_parameter", "value")]) == [layer]


def test_margin_charts_have_value_lower_and_upper_as_plain_tags():
    margins = [tags for kind, tags in charts(OBSERVABLES).values() if kind == "Margin"]
    ends = [tuple(tag.rpartition("/")[2] for tag in tags) for tags in margins]
    balance = ("sign_balance", "low", "high")
    assert sorted(ends) == sorted(
        [("centre", "lambda_min", "lambda_max"), ("positive", "positive_low", "positive_high")]
        + 3 * [balance]
    )
    for tags in margins:
        assert len({tag.split("/")[1] for tag in tags}) == 1
        assert all(re.fullmatch(r"[\w/]+", tag) for tag in tags)


def test_margin_charts_come_last_and_backwards():
    """As TensorBoard draws them from the last to the first."""
    layout = dashboard.custom_scalar_layout(OBSERVABLES)
    (symmetry,) = (charts for title, charts in layout.items() if "Symmetry" in title)
    kinds = [kind for kind, _ in symmetry.values()]
    assert kinds == sorted(kinds, reverse=True)
    margins = [title for title, (kind, _) in symmetry.items() if kind == "Margin"]
    assert ["weights" in margins[-1], "gradient" in margins[-2]] == [True, True]


def test_only_what_is_measured_is_laid_out():
    assert dashboard.custom_scalar_layout([]) == {}
    (category,) = dashboard.custom_scalar_layout(["hessian_extremes"])
    assert "Hessian" in category
    tags = [tag for _, chart in charts(["order_parameter"]).values() for tag in chart]
    assert tags
    assert not any("minibatch" in tag for tag in tags)


def test_tensorboard_reads_the_layout_back(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_layout(writer, OBSERVABLES)
    (tensor,) = events(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout()
    layout.ParseFromString(tensor.tensor_proto.string_val[0])
    read = [chart for category in layout.category for chart in category.chart]
    assert [chart.title for chart in read] == list(charts(OBSERVABLES))
    assert not any(category.closed for category in layout.category)  # one page, nothing folded
    series = [s for chart in read for s in chart.margin.series]
    assert ("thermo/hessian_extremes/lambda_min", "thermo/hessian_extremes/lambda_max") in [
        (s.lower, s.upper) for s in series
    ]


def test_no_observables_write_no_layout(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_layout(writer, [])
    assert events(tmp_path).Tags()["tensors"] == []


def test_tags():
    assert dashboard.tag("order_parameter", "value") == "thermo/order_parameter/value"
    assert dashboard.tag("a", "layer", "net.0.weight") == "thermo/a/layer/net.0.weight"
    with pytest.raises(ValueError, match="must not be empty"):
        dashboard.tag("a", "")


def test_the_layer_of_a_scalar():
    assert dashboard.layer_of("w_sym/net.0.weight") == ("w_sym", "net.0.weight")
    assert dashboard.layer_of("w_sym") == ("w_sym", "")


@pytest.mark.parametrize("layers", [0, 1, 63, 64])
def test_few_layers_are_all_shown(layers):
    names = [f"layer{i}" for i in range(layers)]
    assert dashboard.shown_layers(names) == names


@pytest.mark.parametrize("layers", [65, 100, 127, 1000])
def test_of_many_layers_some_of_every_depth_are_shown(layers):
    shown = [int(name) for name in dashboard.shown_layers(str(i) for i in range(layers))]
    assert len(set(shown)) == len(shown) == 64
    assert (shown[0], shown[-1]) == (0, layers - 1)
    gaps = [after - before for before, after in itertools.pairwise(shown)]
    assert max(gaps) - min(gaps) <= 1
