from __future__ import annotations

import csv
import math
import shutil

import numpy as np
import pytest

from tests.papers.vanchurin.stored_runs import EPOCHS, write_run
from torch_thermo.figures import style
from torch_thermo.papers.reproduction import EXPERIMENTS, Session, chosen, reproduce
from torch_thermo.papers.vanchurin import experiment, panels
from torch_thermo.papers.vanchurin.claims import FITS, GAPS
from torch_thermo.papers.vanchurin.stored import course

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
            assert {"panel", "series", "x", "y", "low", "high"} == set(
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
    mean = [row.ours for row in made.rows]
    assert [row.ours for row in alone.rows] != mean  # the number is the one seed's


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


def test_losses_without_the_exact_method(tmp_path):
    run = write_run(tmp_path)
    for file in (run.path / "bulk_exact.jsonl",):
        file.unlink()
    labels = {trace.label for panel in panels.loss_panels([run]) for trace in panel.traces}
    assert "exact" not in labels
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
        for arrow in panel.arrows:
            below = int(arrow.text)
            assert (lowest < arrow.y).sum() == below
            assert arrow.x == below + 0.5
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
