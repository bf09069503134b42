from __future__ import annotations

import csv
import math
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from torch_thermo.papers import reproduction
from torch_thermo.papers.reproduction import (
    DATA,
    EXPERIMENTS,
    Experiment,
    Outcome,
    Session,
    check_data,
    chosen,
    reproduce,
    rows_table,
    write_csv,
    write_markdown,
)
from torch_thermo.papers.verdicts import Claim, Row

CLAIM = Claim("a | b", "eq. 1", "2.4", 2.4, 0.1, "digits")
ROWS = [CLAIM.judge(2.44444444, 0.02, "at the end"), CLAIM.judge(math.nan)]


def names(experiments) -> list[str]:
    return [one.name for one in experiments]


def test_every_experiment_has_a_maker():
    assert len({one.name for one in EXPERIMENTS}) == len(EXPERIMENTS)
    for one in EXPERIMENTS:
        module, _, function = one.maker.partition(":")
        assert callable(getattr(import_module(module), function))
    wanted = {f"vanchurin/{what}" for what in ("table", *(f"fig{k}" for k in range(1, 8)))}
    figures = ("3a", "3b", "4a", "4b", "6a", "6b", "6c", "7a", "7b", "7c", "8a", "8b")
    wanted |= {f"li/{what}" for what in ("functional", "table", *(f"fig{k}" for k in figures))}
    assert wanted <= set(names(EXPERIMENTS))


def test_names_are_chosen_in_order_and_once():
    assert names(chosen(["vanchurin/fig4", "vanchurin/fig1", "vanchurin/fig4"])) == [
        "vanchurin/fig4",
        "vanchurin/fig1",
    ]
    papers = names(chosen(["vanchurin/all"]))
    assert papers == [name for name in names(EXPERIMENTS) if name.startswith("vanchurin/")]
    assert names(chosen(["all"])) == names(EXPERIMENTS)


def test_unknown_names_are_refused_with_what_comes_close():
    with pytest.raises(ValueError, match=r"no experiment 'vanchurin/fgi4'; there is .*fig4"):
        chosen(["vanchurin/fig1", "vanchurin/fgi4"])
    with pytest.raises(ValueError, match=r"no experiment 'nobody/all' \(--list"):
        chosen(["nobody/all"])
    with pytest.raises(ValueError, match="name what to reproduce"):
        chosen([])


def stub(session: Session) -> Outcome:
    made = session.once("training", lambda: [0])
    made[0] += 1
    return Outcome((session.out / f"{made[0]}",), ())


def test_experiments_share_a_session(tmp_path):
    twice = [Experiment(name, "t", f"{__name__}:stub") for name in ("a/x", "a/y")]
    session = Session(tmp_path)
    for one in twice:  # the tests' module is not importable by its name everywhere
        object.__setattr__(one, "make", stub)
    found = list(reproduce(twice, session))
    assert [one.name for one, _ in found] == ["a/x", "a/y"]
    assert [outcome.files[0].name for _, outcome in found] == ["1", "2"]
    assert Session(tmp_path).once("training", lambda: "anew") == "anew"


def test_what_cannot_be_made_is_refused_before_it_starts(tmp_path):
    def refused(**options):
        with pytest.raises((ValueError, NotADirectoryError)) as caught:
            next(iter(reproduce([], Session(**options))), None)
        return str(caught.value)

    assert refused(out=tmp_path, budget="huge") == "budget must be quick or paper, got 'huge'"
    assert refused(out=tmp_path, epochs=0) == "epochs must be at least 1, got 0"
    (tmp_path / "file").write_text("")
    assert "out must be a folder" in refused(out=tmp_path / "file" / "below")


def test_each_paper_has_its_data():
    session = Session(Path("out"))
    assert {one.paper for one in EXPERIMENTS} == set(DATA)
    assert [session.images(paper) for paper in DATA] == ["mnist5k", "cifar10"]
    assert Session(Path("out"), data="FILE.npz").images("li") == "FILE.npz"
    check_data(EXPERIMENTS, None)
    check_data(EXPERIMENTS, "FILE.npz")
    check_data(chosen(["vanchurin/all"]), "mnist")
    check_data(chosen(["li/all"]), "cifar10")
    with pytest.raises(
        ValueError, match=r"must be cifar10 or a FILE\.npz, got 'mnist' for li/fig3a"
    ):
        check_data(chosen(["li/all"]), "mnist")
    with pytest.raises(ValueError, match=r"must be mnist5k, mnist or a FILE\.npz, got 'cifar10'"):
        next(reproduce(chosen(["all"]), Session(Path("out"), data="cifar10")))


def test_the_table_has_all_digits_in_the_file(tmp_path):
    path = write_csv(ROWS, tmp_path / "new" / "table.csv")
    with path.open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert [*first, "claim"] == list(Row.__dataclass_fields__)
    assert (float(first["ours"]), first["verdict"]) == (2.44444444, "reproduced")
    assert (second["ours"], second["verdict"]) == ("nan", "not measured")
    assert (first["quantity"], first["reason"], first["note"]) == ("a | b", "digits", "at the end")


def test_the_page(tmp_path):
    text = write_markdown(ROWS, tmp_path / "table.md", "Numbers", "Data.").read_text()
    assert text.startswith("# Numbers\n\nData.\n\n| ")
    assert "| 1 | a \\| b | eq. 1 | 2.4 | 2.444 | 0.02 | 0.1 | reproduced |" in text
    assert "| 2 | a \\| b | eq. 1 | 2.4 | - | - | 0.1 | not measured |" in text
    assert "1. a | b: digits. At the end.\n2. a | b: digits.\n" in text


def test_the_console_table():
    console = Console(width=reproduction.NARROWEST, record=True, file=Path("/dev/null").open("w"))
    console.print(rows_table(ROWS))
    text = console.export_text()
    assert "2.444" in text
    assert "not measured" in text
