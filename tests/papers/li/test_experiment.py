from __future__ import annotations

import csv

import numpy as np
import pytest

from tests.papers.li.stored_runs import EPOCHS, write_run
from tests.papers.li.support import LittleRecipe
from torch_thermo.figures import style
from torch_thermo.papers.li import experiment, preparing
from torch_thermo.papers.reproduction import EXPERIMENTS, Session, chosen, reproduce
from torch_thermo.papers.verdicts import NOT_MEASURED

FIGURES = [one.name for one in EXPERIMENTS if one.name.startswith("li/fig")]
NETS = ("vgg", "vgg-ce", "resnet")


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {net: [write_run(folder / f"{net}{k}", net, k) for k in range(2)] for net in NETS}


@pytest.fixture
def prepared(nets, monkeypatch) -> list[tuple[object, ...]]:
    """What is asked for, instead of the trainings."""
    asked: list[tuple[object, ...]] = []

    def give(out, budget, data, wanted, seeds=None, epochs=None, progress=None):
        asked.append((out, budget, data, *wanted, epochs))
        return {net: nets[net] for net in wanted}

    monkeypatch.setattr(experiment, "prepare", give)
    return asked


@pytest.fixture
def captions(monkeypatch) -> list[str]:
    """The captions of the figures, none of which is drawn."""
    said: list[str] = []

    def save(figure, path, colors=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            text = figure.get_supxlabel().replace("\n", " ").replace("\u00a0", " ")
            said.append(text)
        return path

    monkeypatch.setattr(style, "save", save)
    return said


def test_all_experiments_share_one_training_a_net(prepared, captions, tmp_path):
    out = tmp_path / "out"
    wanted = chosen(["li/all"])
    outcomes = {one.name: made for one, made in reproduce(wanted, Session(out, epochs=3))}
    assert prepared == [(out, "quick", "cifar10", net, 3) for net in NETS]
    assert set(FIGURES) == {
        f"li/fig{k}"
        for k in ("3a", "3b", "4a", "4b", "6a", "6b", "6c", "7a", "7b", "7c", "8a", "8b")
    }
    for name in (*FIGURES, "li/functional"):
        files = [file.relative_to(out).as_posix() for file in outcomes[name].files]
        stem = f"li/quick/{name[3:]}"
        assert files == [f"{stem}.png", f"{stem}.pdf", f"{stem}.csv", f"{stem}_numbers.csv"]
    table = outcomes["li/table"]
    assert [file.name for file in table.files] == ["table.csv", "table.md"]
    quantities = [row.quantity for row in table.rows]
    assert len(set(quantities)) == len(quantities)
    judged = {row.quantity for name in outcomes for row in outcomes[name].rows}
    assert judged == set(quantities)  # the table has what the figures have
    assert all(row.reason and row.note for row in table.rows)


def test_captions_say_what_was_measured(prepared, captions, tmp_path):
    list(reproduce(chosen(FIGURES), Session(tmp_path / "out")))
    assert len(captions) == len(FIGURES)
    for text in captions:
        for part in ("pictures, images recompressed as JPEG: airplane against automobile",
                     "320 training images", "10 weight layers, 160,856 parameters, hinge",
                     "batch 32, rate 0.02, 40 epochs, 2 seeds", "panels are our"):  # fmt: skip
            assert part in text
    said = dict(zip(FIGURES, captions, strict=True))
    assert "20,000 circuits are drawn uniformly from those that are alive, of 8" in said["li/fig3b"]
    assert "each of 128 examples" in said["li/fig3b"]
    assert "Gradient of the risk of 320 training images" in said["li/fig4a"]
    assert "OP = |grad R|^2 of 320 training images" in said["li/fig4b"]
    assert "of the first 1,000 of them" in said["li/fig4b"]
    assert "risk of 1,000 training images" in said["li/fig8a"]
    assert "eigenvalues that Lanczos found count once" in said["li/fig8a"]
    assert "all 90 held-out ones" in said["li/fig8b"]
    captions.clear()
    list(reproduce(chosen(["li/functional"]), Session(tmp_path / "out")))
    assert "resnet: bias-free VGG" in captions[0].replace("bias- free", "bias-free")
    assert "cross entropy" in captions[0]


def test_a_figure_is_drawn_with_its_data(prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(style, "DOTS_PER_INCH", 20)
    wanted = chosen(["li/fig3a", "li/fig7a"])
    found = dict(reproduce(wanted, Session(tmp_path / "out")))
    for one in wanted:
        png, pdf, data, _ = found[one].files
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")
        with data.open(newline="") as stream:
            kinds = {row["kind"] for row in csv.DictReader(stream)}
        assert kinds >= ({"entry"} if one.name == "li/fig7a" else {"ridge", "curve"})


def test_the_page_says_data_and_command(prepared, nets, captions, tmp_path):
    session = Session(tmp_path / "out", data="pictures.npz")
    ((_, made),) = reproduce(chosen(["li/table"]), session)
    text = made.files[1].read_text()
    assert "recompressed as JPEG" in text
    assert "`torch-thermo reproduce li/table --budget quick --data pictures.npz`" in text
    spreads = [row.spread for row in made.rows]
    assert np.isfinite(spreads).all()


@pytest.mark.parametrize("last", [1, 3])
def test_a_short_training_has_all_figures(nets, monkeypatch, captions, tmp_path, last):
    epochs = [epoch for epoch in EPOCHS if epoch <= last]
    short = {net: [write_run(tmp_path / net, net, epochs=epochs)] for net in NETS}
    monkeypatch.setattr(
        experiment, "prepare", lambda *given, **_: {net: short[net] for net in given[3]}
    )
    made = list(reproduce(chosen(["li/all"]), Session(tmp_path / "out")))
    assert len(made) == len(FIGURES) + 2


def test_all_figures_from_trainings(measured, captions, monkeypatch):
    def little(budget, net, found):
        return LittleRecipe(net, measured.budget, len(found), 3)

    monkeypatch.setattr(preparing, "BUDGETS", {"quick": measured.budget})
    monkeypatch.setattr(preparing, "recipe", little)
    session = Session(measured.out, data=str(measured.data))
    made = list(reproduce(chosen(FIGURES), session))
    rows = {row.quantity: row for _, outcome in made for row in outcome.rows}
    # "phase" and "order_parameter" measure all 12 pictures: the same number twice
    stored = measured.run.series("order_parameter/value").values
    assert rows["OP at the end over OP at the start"].ours == pytest.approx(stored[-1] / stored[0])
    risk = measured.run.series("training/train_risk").values
    assert rows["risk of the training set at the end"].ours == risk[-1] > 0
    few = rows["share of trained measurements with R > 0 and lambda_min < 0"]
    assert few.verdict == NOT_MEASURED
    assert "1 to 1 trained measurements a seed" in few.note
    said = dict(zip(FIGURES, captions, strict=True))
    assert "20,000 circuits" in said["li/fig3b"]
    assert "of 8 examples" in said["li/fig3b"]
    assert "each of 12 examples" in said["li/fig3b"]
    assert "of 12 training images" in said["li/fig4a"]
    assert "all 10 held-out" in said["li/fig8b"]
    assert "Net: bias-free VGG" in captions[0]


def test_of_the_other_nets_one_seed_is_trained(nets, monkeypatch, captions, tmp_path):
    asked = {}

    def give(out, budget, data, wanted, seeds=None, **_):
        asked[wanted[0]] = seeds
        return {net: nets[net][: None if seeds is None else len(seeds)] for net in wanted}

    monkeypatch.setattr(experiment, "prepare", give)
    list(reproduce(chosen(["li/functional"]), Session(tmp_path / "out")))
    assert asked == {"vgg": None, "vgg-ce": (0,), "resnet": (0,)}
    for part in ("40 epochs, 2 seeds, spectra of 1,000 images; vgg-ce",
                 "40 epochs, one seed, spectra of 1,000 images; resnet"):  # fmt: skip
        assert part in captions[0]
