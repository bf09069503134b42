from __future__ import annotations

import warnings

import numpy as np
import pytest

from torch_thermo import figures
from torch_thermo.figures import style
from torch_thermo.figures.compare import compare, compare_groups, draw_quantity
from torch_thermo.figures.panels import NULL
from torch_thermo.store import Run, Store, load_run
from torch_thermo.store.quantities import QUANTITIES, quantity

STEPS = (0, 1, 10, 100)


def stored(path, size: float, observables=("all",)) -> Run:
    """A run with every quantity of the summary and what bounds it."""
    store = Store.open(path / "thermo")
    rows: dict[str, dict[str, float]] = {}
    for known in QUANTITIES:
        observable, _, name = known.name.partition("/")
        if observables == ("all",) or observable in observables:
            beside = (*known.spread, *([known.null] if known.null else []))
            values = rows.setdefault(observable, {})
            values[name] = size
            values |= dict(zip(beside, (0.1 * size, 1.1 * size), strict=False))
            if len(known.spread) == 2:
                values |= dict(zip(known.spread, (0.9 * size, 1.1 * size), strict=True))
    for observable, values in rows.items():
        for step in STEPS:
            scaled = {name: value / (1 + step) for name, value in values.items()}
            store.append(observable, step, None, scaled)
    return load_run(path)


@pytest.fixture
def runs(tmp_path):
    return [("slow", stored(tmp_path / "a", 1.0)), ("fast", stored(tmp_path / "b", 4.0))]


def lines(axes, labels) -> dict[str, np.ndarray]:
    """The curves of a panel by their runs, found by the looks of these."""
    looks = {style.series_style(k)["color"]: label for k, label in enumerate(labels)}
    thick = [line for line in axes.get_lines() if line.get_linewidth() == 1.5]
    return {looks[line.get_color()]: line.get_ydata() for line in thick}


def title(axes) -> str:
    legend = axes.get_legend()
    return axes.get_title(loc="left") if legend is None else legend.get_title().get_text()


def test_every_quantity_has_one_panel_with_a_curve_for_each_run(runs):
    made = dict(compare_groups(runs, "caption"))
    assert list(made) == [
        "order_parameter", "bulk_boundary", "hessian", "propagator", "circuits", "symmetry"
    ]  # fmt: skip
    titles = [title(axes) for figure in made.values() for axes in figure.axes]
    assert sorted(titles) == sorted(known.label for known in QUANTITIES)
    for figure in made.values():
        assert figure.get_supxlabel() == "caption"
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["slow", "fast"]
        for axes in figure.axes:
            drawn = lines(axes, ("slow", "fast"))
            np.testing.assert_allclose(drawn["slow"], 1 / (1 + np.array(STEPS)))
            np.testing.assert_allclose(drawn["fast"], 4 / (1 + np.array(STEPS)))
            assert axes.get_xlabel()
            assert axes.get_ylabel()


@pytest.mark.parametrize("count", [2, 9])
def test_legends_lie_off_the_data_and_inside_the_figure(runs, count):
    many = [(f"mnist_mlp_wide_lr_{k}", runs[k % 2][1]) for k in range(count)]
    names = ("bulk_boundary/bulk", "weight_symmetry/w_sym", "order_parameter/value")
    figure = compare(many, [quantity(name) for name in names], "caption")
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    panels = [axes.patch.get_window_extent(renderer) for axes in figure.axes]
    assert all(panel.height > 0.2 * figure.bbox.height for panel in panels)
    legends = [axes.get_legend() for axes in figure.axes] + figure.legends
    for legend in filter(None, legends):
        box = legend.get_window_extent(renderer)
        assert not any(box.overlaps(panel) for panel in panels)
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize(
    ("name", "band", "low", "high"),
    [
        ("bulk_boundary/bulk", "± standard error", 0.9, 1.1),
        ("hessian_extremes/lambda_max", "± residual bound", 0.9, 1.1),
        ("weight_symmetry/sign_balance", "95 % interval", 0.9, 1.1),
    ],
)
def test_bands(runs, name, band, low, high):
    _, (axes,) = style.new_figure()
    draw_quantity(axes, runs[:1], quantity(name))
    (drawn,) = axes.collections
    assert drawn.get_label() == band
    at_start = drawn.get_paths()[0].vertices
    at_start = at_start[at_start[:, 0] == 0.0][:, 1]
    assert at_start.min() == pytest.approx(low)
    assert at_start.max() == pytest.approx(high)


@pytest.mark.parametrize("count", [1, 2])
def test_the_null_of_each_run_is_a_dotted_line_of_its_colour(runs, count):
    """Filled areas of several runs would mix to colours that no legend names."""
    _, (axes,) = style.new_figure()
    drawn = draw_quantity(axes, runs[:count], quantity("weight_symmetry/w_sym"))
    assert not axes.collections
    dotted = [ln for ln in axes.get_lines() if ln.get_linestyle() == ":" and len(ln.get_xdata())]
    colours = [line.get_color() for line in drawn.values()]
    assert [line.get_color() for line in dotted] == colours
    for line, size in zip(dotted, (1.0, 4.0), strict=False):
        np.testing.assert_allclose(line.get_ydata(), 0.1 * size / (1 + np.array(STEPS)))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [NULL]


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("_private", "_private"),
        ("lr$0.1$", r"lr\$0.1\$"),
        ("名前-a", "\ufffd\ufffd-a"),
        ("line\nbreak", "line\ufffdbreak"),
    ],
)
def test_every_folder_name_is_in_the_legend_as_it_is(runs, label, shown, monkeypatch):
    monkeypatch.setattr(style, "_FALLBACK", ())
    style._fonts.cache_clear()
    style._characters.cache_clear()
    named = [(label, runs[0][1]), ("b", runs[1][1])]
    figure = compare(named, [quantity("bulk_boundary/bulk")], style.plain(label))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [shown, "b"]
    assert [text.get_window_extent().width > 0 for text in legend.get_texts()] == [True, True]
    with warnings.catch_warnings():
        # of other libraries' deprecations there may be some
        warnings.filterwarnings("error", message="Glyph")
        figures.render(figure)


def test_a_dollar_is_no_mathematics():
    _, (axes,) = style.new_figure()
    text = axes.text(0, 0, style.plain("a$b$"))
    assert text._preprocess_math(text.get_text()) == ("a$b$", False)


def test_powers_of_ten_stand_at_the_ticks_and_not_over_the_legend(tmp_path):
    run = stored(tmp_path / "a", 1e-9, ("circuit_symmetry",))
    figure = compare([("a", run)], [quantity("circuit_symmetry/mass_asymmetry")])
    figures.render(figure)
    (axes,) = figure.axes
    assert axes.yaxis.get_offset_text().get_text() == ""
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert "0" in {text.strip("0.") or "0" for text in ticks}
    assert any("\\cdot 10^{\u2212" in text for text in ticks)


def test_long_titles_are_cut_into_lines_inside_the_figure(tmp_path):
    store = Store.open(tmp_path / "thermo")
    long = "w_sym/model.encoder.layers.11.self_attention.output_projection.weight"
    store.append("weight_symmetry", 0, None, {long: 1.0, "layer/" + "x" * 90: 1.0})
    runs = [("run", load_run(tmp_path))]
    figure = compare(runs, [quantity(name) for name in runs[0][1].names])
    figures.render(figure)
    for axes in figure.axes:
        text = axes.get_title(loc="left")
        assert text.replace("\n", "") in runs[0][1].names
        box = next(t for t in (axes._left_title, axes.title) if t.get_text()).get_window_extent()
        panel = axes.get_window_extent()
        assert box.x1 <= panel.x1 + 1
        assert box.y1 <= figure.bbox.y1


def test_a_run_without_the_quantity_has_no_curve(runs, tmp_path):
    few = stored(tmp_path / "c", 2.0, ("order_parameter",))
    made = dict(compare_groups([*runs, ("few", few)]))
    labels = ("slow", "fast", "few")
    assert "few" in lines(made["order_parameter"].axes[0], labels)
    assert "few" not in lines(made["hessian"].axes[0], labels)
    assert list(dict(compare_groups([("few", few)]))) == ["order_parameter"]


def test_a_value_at_every_step_is_drawn_by_its_medians(tmp_path):
    values = np.exp(np.random.default_rng(0).normal(size=5000)) / np.arange(1, 5001)
    store = Store.open(tmp_path / "thermo")
    rows = [(step, None, {"value": v}) for step, v in enumerate(values.tolist(), start=1)]
    store.append_many("order_parameter_minibatch", [*rows, (5001, None, {"value": np.nan})])
    _, (axes,) = style.new_figure()
    runs = [("run", load_run(tmp_path))]
    drawn = draw_quantity(axes, runs, quantity("order_parameter_minibatch/value"))
    steps, medians = drawn["run"].get_data()
    assert 30 <= len(steps) <= 51
    # a lone value is shown as it is, and the medians follow the law of the noise
    assert (steps[0], medians[0]) == (1.0, values[0])
    late = steps > 300
    np.testing.assert_allclose(medians[late] * steps[late], 1.0, atol=0.35)
    assert axes.collections[0].get_label() == "quartiles"


def test_unknown_quantities_get_a_scale_from_their_values(tmp_path):
    store = Store.open(tmp_path / "thermo")
    for step, size in enumerate((1.0, 10.0, 1000.0)):
        store.append("mine", step, None, {"wide": size, "narrow": 1 + size / 1e3, "signed": -size})
    runs = [("run", load_run(tmp_path))]
    names = ("mine/wide", "mine/narrow", "mine/signed")
    figure = compare(runs, [quantity(name) for name in names])
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    assert len(figure.axes) == 3  # no empty fourth panel


def test_eight_runs_look_different(runs):
    looks = {tuple(map(str, style.series_style(index).values())) for index in range(21)}
    assert len(looks) == 21
    figure = compare([(f"run {k}", runs[0][1]) for k in range(8)], [quantity("bulk_boundary/bulk")])
    curves = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 1.5]
    assert len(curves) == 8
    assert figures.render(figure).std() > 0


def test_what_cannot_be_drawn_is_refused(runs):
    with pytest.raises(ValueError, match="runs and quantities to draw, got 0 and 1"):
        compare([], [QUANTITIES[0]])
    with pytest.raises(ValueError, match="runs and quantities to draw, got 2 and 0"):
        compare(runs, [])
    with pytest.raises(ValueError, match=r"labels of runs must differ, got \['a', 'a'\]"):
        compare([("a", runs[0][1]), ("a", runs[1][1])], [QUANTITIES[0]])
