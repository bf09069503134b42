from __future__ import annotations

import csv
import json
import math
import shutil

import numpy as np
import pytest

from tests.papers.vanchurin.stored_runs import EPOCHS, STEPS_PER_EPOCH, write_run
from torch_thermo.figures import style
from torch_thermo.papers.courses import course
from torch_thermo.papers.reproduction import EXPERIMENTS, Session, chosen, reproduce
from torch_thermo.papers.vanchurin import experiment, panels
from torch_thermo.papers.vanchurin.claims import FITS, GAPS
from torch_thermo.store import Store, load_run

FIGURES = [one.name for one in EXPERIMENTS if one.name.startswith("vanchurin/fig")]


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(style, "DOTS_PER_INCH", 20)


@pytest.fixture
def nets(tmp_path):
    return {
        net: [write_run(tmp_path / f"{net}{seed}", net, seed) for seed in range(2)]
        for net in ("deep", "shallow")
    }


@pytest.fixture
def prepared(nets, monkeypatch) -> list[str]:
    """The names of the nets that are asked for, instead of their trainings."""
    asked: list[str] = []

    def give(out, budget, data, wanted, epochs, progress):
        asked.extend(wanted)
        return {net: nets[net] for net in wanted}

    monkeypatch.setattr(experiment, "prepare", give)
    return asked


@pytest.fixture
def drawn_once(monkeypatch):
    """Each figure is drawn as PNG alone: the command line's test draws one as PDF too."""
    save = style.save

    def once(figure, path, colors=None):
        if path.suffix == ".png":
            return save(figure, path)
        path.write_bytes(b"%PDF")
        return path

    monkeypatch.setattr(style, "save", once)


@pytest.fixture
def captions(monkeypatch) -> list[str]:
    """The captions of the figures, none of which is drawn."""
    said: list[str] = []

    def save(figure, path, colors=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        said.append(figure.get_supxlabel())
        return path

    monkeypatch.setattr(style, "save", save)
    return said


def test_all_figures_and_the_table_from_one_training_a_net(prepared, drawn_once, tmp_path):
    session = Session(tmp_path / "out")
    wanted = chosen([*FIGURES, "vanchurin/table"])
    outcomes = dict((one.name, outcome) for one, outcome in reproduce(wanted, session))
    assert sorted(prepared) == ["deep", "shallow"]
    folder = tmp_path / "out" / "vanchurin" / "quick"
    for name in FIGURES:
        figure = name.partition("/")[2]
        png, pdf, data, numbers = outcomes[name].files
        assert png == folder / f"{figure}.png"
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")
        with data.open(newline="") as stream:
            assert {"panel", "kind", "series", "x", "y", "low", "high"} == set(
                csv.DictReader(stream).fieldnames
            )
        with numbers.open(newline="") as stream:
            assert len(list(csv.DictReader(stream))) == len(outcomes[name].rows) > 0
    table = outcomes["vanchurin/table"]
    each = [row.quantity for name in FIGURES for row in outcomes[name].rows]
    assert sorted(row.quantity for row in table.rows) == sorted(each)
    page = (folder / "table.md").read_text()
    for row in table.rows:
        assert row.verdict in page
    assert "digits, 50 samples" in page
    assert "2 seeds" in page


def test_one_seed_is_judged_with_the_spread_of_several(prepared, nets, tmp_path):
    several = dict(nets)
    (made,) = (one for _, one in reproduce(chosen(["vanchurin/table"]), Session(tmp_path / "two")))
    out = tmp_path / "out"
    for net, runs in several.items():
        nets[net] = runs[:1]
    for place in range(2):
        session = Session(out, "paper")
        ((_, alone),) = reproduce(chosen(["vanchurin/table"]), session)
        page = (out / "vanchurin" / "paper" / "table.md").read_text()
        assert ("2 seeds of the quick budget" in page) == (place == 1)
        spreads = [row.spread for row in alone.rows]
        if place == 0:
            assert np.isnan(spreads).all()
            for net, runs in several.items():
                for seed, run in enumerate(runs):
                    target = out / "vanchurin" / "quick" / net / f"seed{seed}" / "thermo"
                    shutil.copytree(run.path, target)
    np.testing.assert_array_equal(spreads, [row.spread for row in made.rows])
    assert np.isfinite(spreads).sum() > 10
    borrowed = "spread borrowed from the quick budget (batch 5, 100 epochs)"
    for row in alone.rows:
        assert (borrowed in row.note) == math.isfinite(row.spread)
    mean = [row.ours for row in made.rows]
    assert [row.ours for row in alone.rows] != mean  # the number is the one seed's


@pytest.mark.parametrize("other", [{"fingerprint": 7}, {"samples": 51}])
def test_no_spread_is_borrowed_from_other_data(prepared, nets, tmp_path, other):
    out = tmp_path / "out"
    for net, runs in list(nets.items()):
        for seed, run in enumerate(runs):
            target = out / "vanchurin" / "quick" / net / f"seed{seed}" / "thermo"
            shutil.copytree(run.path, target)
            header = json.loads((target / "run.json").read_text())
            header["meta"] |= other
            (target / "run.json").write_text(json.dumps(header))
        nets[net] = runs[:1]
    ((_, alone),) = reproduce(chosen(["vanchurin/table"]), Session(out, "paper"))
    assert np.isnan([row.spread for row in alone.rows]).all()
    assert "quick budget" not in (out / "vanchurin" / "paper" / "table.md").read_text()


def test_the_data_file_has_what_is_drawn(prepared, nets, tmp_path):
    (outcome,) = (
        made for _, made in reproduce(chosen(["vanchurin/fig2"]), Session(tmp_path / "out"))
    )
    with outcome.files[2].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    bulk = [row for row in rows if (row["panel"], row["series"]) == ("mean", "bulk")]
    found = course(nets["deep"], "bulk_boundary/bulk")
    assert [float(row["x"]) for row in bulk] == list(EPOCHS)
    np.testing.assert_allclose([float(row["y"]) for row in bulk], found.mean, rtol=1e-8)
    np.testing.assert_allclose([float(row["low"]) for row in bulk], found.values.min(0), rtol=1e-8)
    assert {row["low"] for row in rows if row["panel"] == "carried"} == {""}


def marks(path) -> list[tuple[str, ...]]:
    """Panel, series and numbers of what is no trace, of a figure's data file."""
    with path.open(newline="") as stream:
        return [
            (row["panel"], row["kind"], row["series"], *(row[k] for k in ("x", "y", "low", "high")))
            for row in csv.DictReader(stream)
            if row["kind"] in ("level", "arrow", "bracket")
        ]


def test_the_data_file_has_what_is_marked(prepared, nets, captions, tmp_path):
    wanted = chosen([f"vanchurin/fig{k}" for k in (1, 4, 5, 7)])
    found = {
        one.name[-4:]: marks(outcome.files[2])
        for one, outcome in reproduce(wanted, Session(tmp_path / "out"))
    }
    (maximum,) = (mark for mark in found["fig1"] if mark[1] == "arrow")
    assert maximum[2] == "maximum"
    assert all(maximum[3:5])
    assert found["fig4"] == [
        ("mu2", "level", "paper, deep", "", "2.44", "", ""),
        ("mu2", "level", "paper, shallow", "", "1.84", "", ""),
        ("mu3", "level", "paper, deep", "", "1.7", "", ""),
    ]
    drawn = by_name(panels.gap_panels(nets))
    for name, panel in drawn.items():
        rows = [mark for mark in found["fig5"] if mark[0] == name]
        levels = [float(mark[4]) for mark in rows if mark[1] == "level"]
        assert levels == (list(GAPS) if name.startswith("deep") else [])
        ends = [(float(m[5]), float(m[6])) for m in rows if m[1] == "bracket"]
        np.testing.assert_allclose(ends, [(b.low, b.high) for b in panel.brackets], rtol=1e-8)
    assert ("counts", "level", r"$\beta$ = 1.5", "1.5", "", "", "") in found["fig7"]


@pytest.mark.parametrize("last", [1, 2])
def test_a_short_training_has_all_figures(nets, prepared, captions, tmp_path, last):
    epochs = range(last + 1)
    for net in nets:
        nets[net] = [write_run(tmp_path / "short" / net, net, epochs=epochs)]
    wanted = chosen([name for name in FIGURES if name != "vanchurin/fig6"])
    assert len(list(reproduce(wanted, Session(tmp_path / "out")))) == 6
    names = list(by_name(panels.gap_panels(nets)))
    assert names == [f"deep_{epoch}" for epoch in epochs[1:]] + [f"shallow_{last}"]
    assert len(by_name(panels.spectrum_panels(nets))["density_deep"].traces) == last


def by_name(found):
    return {panel.name: panel for panel in found}


def series(panel, label):
    (trace,) = (trace for trace in panel.traces if trace.label == label)
    return np.asarray(trace.x), np.asarray(trace.y)


def test_losses(nets):
    found = by_name(panels.loss_panels(nets["deep"]))
    np.testing.assert_allclose(series(found["ratio"], "logit")[1], 0.3)
    boundary, bulk = (series(found["median"], name)[1] for name in ("boundary", "bulk"))
    np.testing.assert_allclose(bulk / boundary, 0.3 * 0.5 / 0.4)
    for trace in found["carried"].traces:
        shares = np.asarray(trace.y)
        assert (np.diff(shares) >= 0).all()
        assert shares[-1] == pytest.approx(1.0)
        assert (shares >= np.asarray(trace.x) - 1e-12).all()  # the worst carry more than their part


def test_the_exact_loss_stands_beside_the_logit_loss_of_the_same_samples(nets):
    run = nets["deep"][0]
    store = Store.open(run.path)
    for epoch in EPOCHS[1:]:  # not at the first
        losses = run.arrays("bulk_boundary", epoch * STEPS_PER_EPOCH)
        part = {name: 0.5 * values[:20] for name, values in losses.items()}
        store.save_arrays("bulk_exact", epoch * STEPS_PER_EPOCH, part)
    (run.path / "bulk_exact" / "0.npz").unlink()
    lines = (run.path / "bulk_exact.jsonl").read_text().splitlines(keepends=True)
    (run.path / "bulk_exact.jsonl").write_text("".join(x for x in lines if '"step":0,' not in x))
    found = by_name(panels.loss_panels([load_run(run.path)]))
    x, bulk = series(found["mean"], "bulk, logit, first 20")
    assert x.tolist() == list(EPOCHS[1:])
    stored = [run.arrays("bulk_boundary", e * STEPS_PER_EPOCH)["bulk"] for e in EPOCHS[1:]]
    np.testing.assert_allclose(bulk, [values[:20].mean() for values in stored])
    assert abs(bulk[0] / stored[0].mean() - 1) > 0.02
    np.testing.assert_allclose(series(found["ratio"], "logit, first 20")[1], 0.3)
    assert "bulk, exact, first 20" in {trace.label for trace in found["mean"].traces}


def test_losses_without_the_exact_method(tmp_path):
    run = write_run(tmp_path)
    for file in (run.path / "bulk_exact.jsonl",):
        file.unlink()
    labels = {trace.label for panel in panels.loss_panels([run]) for trace in panel.traces}
    assert not [label for label in labels if "exact" in label]
    assert "logit" in labels


def test_free_energy_with_its_plateaus_and_its_maximum():
    found = by_name(panels.free_energy_panels())
    x, y = series(found["gamma"], r"$\gamma$ = 1/3")
    assert y[np.argmin(np.abs(x))] == pytest.approx(0.75 / 2.5**2)
    assert (y[0], y[-1]) == pytest.approx((0.25, 0.5), abs=1e-3)
    x, y = series(found["gamma"], r"$\gamma$ = 1/5")
    (arrow,) = found["gamma"].arrows
    near = np.abs(x - arrow.x) < 1.0
    assert arrow.y == pytest.approx(y[near].max(), rel=1e-3)
    gaps, betas = series(found["gap"], r"$\gamma \to 0$ (9.4)")
    at = gaps.tolist().index(min(gaps, key=lambda g: abs(g + 2.5)))
    assert betas[at] == pytest.approx(1.6039, abs=1e-3)
    assert dict(zip(*series(found["gap"], "as the paper prints them"), strict=True)) == GAPS


def test_spectrum_panels(nets):
    found = by_name(panels.spectrum_panels(nets))
    assert list(found) == ["density_deep", "density_shallow", "mu2", "mu3"]
    for trace in found["density_deep"].traces:
        x, y = np.asarray(trace.x), np.asarray(trace.y)
        assert (y * (x[1] - x[0])).sum() == pytest.approx(1.0)
    assert {level.value for level in found["mu2"].levels} == {2.44, 1.84}
    assert {level.value for level in found["mu3"].levels} == {1.7}


def test_gap_panels_show_candidates_at_three_times(nets):
    found = panels.gap_panels(nets)
    assert [panel.name for panel in found] == ["deep_1", "deep_10", "deep_100", "shallow_100"]
    for panel in found:
        lowest = np.asarray(panel.traces[0].y)
        assert panel.brackets
        for bracket in panel.brackets:
            below = int(bracket.text)
            assert [bracket.low, bracket.high] == lowest[below - 1 : below + 1].tolist()
            assert bracket.x > below
    assert [level.value for level in found[0].levels] == list(GAPS)
    assert found[3].levels == ()


def test_complexity_panels_draw_both_labels(nets):
    for panel, count in zip(panels.complexity_panels(nets["deep"]), (20, 834), strict=True):
        logs, measured = series(panel, "measured")
        assert len(logs) == len(measured) == 2 * 5  # two seeds, the epochs from 1 on
        assert logs.max() == pytest.approx(math.log(2.0 / 2.0))
        (label,) = (t.label for t in panel.traces if t.label.startswith("the paper's"))
        x, y = series(panel, label)
        intercept, slope = FITS[count]
        np.testing.assert_allclose(y, intercept + slope * x)


def test_thermodynamic_panels(nets):
    found = by_name(panels.thermodynamic_panels(nets["deep"]))
    x, betas = series(found["beta"], r"from U, $U(\beta) = U$")
    assert x.tolist() == list(EPOCHS)
    assert (np.diff(betas) > 0).all()  # U falls
    changes = series(found["second_law"], r"$\beta$ from U")[1]
    assert changes[0] == 0.0
    assert (changes[1:] < 0).all()
    looks = {trace.label: trace.look for trace in found["first_law"].traces}
    assert (looks["$|dU|$"], looks[r"$|T\,dS|$"]) == ("line", "points")  # one on the other
    heat = series(found["first_law"], r"$|T\,dS|$")[1]
    assert len(heat) == len(EPOCHS) - 1
    _, soft = series(found["counts"], r"$N_{eff} = 2 \beta U$")
    hard = series(found["counts"], r"$N_>$: $\lambda > 1/\beta$")[1]
    assert (np.diff(soft) > 0).all()
    assert hard[0] < soft[0] < 60 < 800 < soft[-1] < hard[-1] == 854


def test_captions_say_what_was_used(prepared, captions, tmp_path):
    list(reproduce(chosen(["vanchurin/fig4"]), Session(tmp_path / "out")))
    text = captions[0]
    for part in ("digits, 50 samples", "784-40-20-10", "784-60-10", "batch 5", "rate 0.1",
                 "100 epochs", "2 seeds", "panels are our choice"):  # fmt: skip
        assert part in text.replace("\n", " ").replace("\u00a0", " ")


def test_a_caption_counts_the_nets(prepared, captions, tmp_path):
    list(reproduce(chosen(["vanchurin/fig4", "vanchurin/fig6"]), Session(tmp_path / "out")))
    assert ["tanh nets, deep" in text for text in captions[::2]] == [True, False]
    assert ["tanh net, deep" in text for text in captions[::2]] == [False, True]
