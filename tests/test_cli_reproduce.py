from __future__ import annotations

import csv

import pytest

from torch_thermo import cli
from torch_thermo.figures import style
from torch_thermo.papers.reproduction import EXPERIMENTS
from torch_thermo.papers.vanchurin import experiment


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(style, "DOTS_PER_INCH", 20)


def refused(capsys, *arguments, status=2) -> str:
    assert cli.main(["reproduce", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_list(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    for one in EXPERIMENTS:
        assert one.name in text
        assert one.title in text


def test_a_figure_of_formulas_alone(tmp_path, capsys):
    out = tmp_path / "my runs"
    assert cli.main(["reproduce", "vanchurin/fig1", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("arithmetic slip") == 3
    folder = out / "vanchurin" / "quick"
    assert {path.name for path in folder.iterdir()} == {
        "fig1.png", "fig1.pdf", "fig1.csv", "fig1_numbers.csv"
    }  # fmt: skip
    for name in ("fig1.png", "fig1_numbers.csv"):
        assert str(folder / name) in captured.out.splitlines()
    with (folder / "fig1_numbers.csv").open(newline="") as stream:
        assert [row["paper"] for row in csv.DictReader(stream)] == ["1.37", "1.40", "1.47"]


def test_arguments_reach_the_training(tmp_path, capsys, monkeypatch):
    seen = []

    def remember(out, budget, data, nets, epochs, progress):
        progress("training", 1, 3)
        seen.append((out, budget, data, nets, epochs))
        raise ValueError("no more\nof this")

    monkeypatch.setattr(experiment, "prepare", remember)
    options = ("--budget", "paper", "--data", "faces.npz", "--epochs", "3", "--out", tmp_path)
    message = refused(capsys, "vanchurin/fig3", *options, status=1)
    assert message == "error: no more of this (--debug shows where)\n"
    assert seen == [(tmp_path / "vanchurin", "paper", "faces.npz", ("shallow",), 3)]
    with pytest.raises(ValueError, match="no more"):
        cli.main(["reproduce", "vanchurin/fig3", "--debug", *map(str, options)])


def test_bad_arguments_are_one_line(tmp_path, capsys):
    assert "there is vanchurin/fig" in refused(capsys, "vanchurin/fig8")
    assert "name what to reproduce" in refused(capsys)
    assert "budget must be quick or paper, got 'huge'" in refused(
        capsys, "vanchurin/fig1", "--budget", "huge"
    )
    assert "data must be mnist5k, mnist or a FILE.npz, got 'cifar10'" in refused(
        capsys, "vanchurin/fig1", "--data", "cifar10"
    )
    assert "epochs must be a whole number of at least 1, got '0'" in refused(
        capsys, "vanchurin/fig1", "--epochs", "0"
    )
    (tmp_path / "file").write_text("")
    assert "must be a folder, got the file" in refused(
        capsys, "vanchurin/fig1", "--out", tmp_path / "file"
    )


def test_missing_data_are_told(tmp_path, capsys):
    message = refused(
        capsys, "vanchurin/fig2", "--data", tmp_path / "none.npz", "--out", tmp_path, status=1
    )
    assert "none.npz" in message


def test_help_names_the_options(capsys):
    assert cli.main(["reproduce", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--list", "--budget", "--out", "--data", "--epochs", "NAME"):
        assert option in text
    assert "(default: quick)" in text
    assert "(default: runs/reproduce)" in text
    assert "(default: [])" not in text
