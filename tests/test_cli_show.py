from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from torch_thermo import cli
from torch_thermo.figures import style
from torch_thermo.papers import show
from torch_thermo.store import Store, load_run


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(style, "DOTS_PER_INCH", 20)


def stored(path: Path, size: float = 1.0, end: bool = True) -> Path:
    """A short run as the callbacks leave it."""
    store = Store.open(path)
    for step in (0, 1, 20):
        store.append("order_parameter", step, 0, {"value": size / (1 + step), "risk": size})
        values = {"w_sym": 0.2 * size, "w_sym_null": 0.1, "layer/a": 1.0, "low": math.nan}
        store.append("weight_symmetry", step, None, values)
    if end:
        seconds = {"training": 12.0, "measuring": {"order_parameter": 3.0}}
        store.write_meta({"steps": 20, "measurements": {"order_parameter": 3}, "seconds": seconds})
    return path


@pytest.fixture
def sweep(tmp_path) -> Path:
    for name, size in (("lr0.01", 1.0), ("lr0.1", 2.0)):
        stored(tmp_path / "sweep" / name / "version_0" / "thermo", size)
    return tmp_path / "sweep"


def shown(capsys, *arguments) -> str:
    assert cli.main(["show", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys, *arguments, status=2) -> str:
    assert cli.main(["show", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def row(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if f"│ {label} " in line]
    return [cell.strip() for cell in line.strip("│").split("│")]


def pictures(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("below", ["version_0", "version_0/thermo", ""])
def test_one_run_by_any_of_its_folders(tmp_path, capsys, below):
    stored(tmp_path / "logs" / "version_0" / "thermo")
    text = shown(capsys, tmp_path / "logs" / below, "--out", tmp_path / "out")
    assert "logs/version_0: 20 steps, 12 s training, 3 s measuring" in text
    cells = ["||grad R||^2, probe", "1", "0.0476", "1", "0", "3"]
    assert row(text, "||grad R||^2, probe") == cells
    assert row(text, "weights: W_sym, null")[1] == "0.1"
    assert "measurements: order_parameter 3 in 3.0 s" in text
    assert "last values" not in text
    assert f"figures: {tmp_path / 'out'}" in text.replace("\n", "")
    assert "order_parameter.png" in pictures(tmp_path / "out")
    assert not any(name.startswith("compare") for name in pictures(tmp_path / "out"))


@pytest.mark.parametrize("below", ["version_0", "version_0/thermo"])
def test_figures_go_beside_the_store_by_default(tmp_path, capsys, below):
    stored(tmp_path / "version_0" / "thermo")
    shown(capsys, tmp_path / below)
    files = list((tmp_path / "version_0" / "figures").iterdir())
    assert files
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    assert load_run(tmp_path / "version_0").names  # the store is as it was


def test_several_runs_side_by_side_and_over_each_other(sweep, capsys):
    text = shown(capsys, sweep, "--pdf")
    assert "lr0.01: 20 steps" in text
    assert "lr0.1: 20 steps" in text
    side = text[text.index("last values") :]
    assert row(side, "risk R, probe") == ["risk R, probe", "1", "2"]
    assert [name in side for name in ("lr0.01", "lr0.1", "version_0")] == [True, True, False]
    files = pictures(sweep / "figures")
    assert {"compare_order_parameter.png", "compare_symmetry.pdf"} <= files
    assert "lr0.01/order_parameter.png" in files
    assert {path.rpartition(".")[2] for path in files} == {"png", "pdf"}


def test_runs_named_one_by_one_are_drawn_here(sweep, capsys, monkeypatch):
    monkeypatch.chdir(sweep)
    shown(capsys, "lr0.01", "lr0.1/version_0")
    assert "compare_order_parameter.png" in pictures(sweep / "figures")


def test_more_runs_than_fit_are_cut_into_tables(tmp_path):
    runs = [(f"a rather long label {k}", load_run(stored(tmp_path / str(k)))) for k in range(5)]
    tables = list(show.last_values(runs, width=80))
    assert [len(table.columns) - 1 for table in tables] == [2, 2, 1]
    heads = [str(column.header) for table in tables for column in table.columns[1:]]
    assert heads == [label for label, _ in runs]


def test_chosen_quantities_alone(sweep, tmp_path, capsys):
    out = tmp_path / "out"
    text = shown(capsys, sweep, "--quantities", "weight_symmetry/l*,order_parameter/risk",
                 "--out", out)  # fmt: skip
    assert pictures(out) == {"quantities.png"}
    assert "grad R" not in text
    assert row(text[text.index("last values") :], "weight_symmetry/layer/a")[1:] == ["1", "1"]
    assert row(text[text.index("last values") :], "weight_symmetry/low")[1:] == ["undefined"] * 2


def test_patterns(tmp_path):
    runs = [("run", load_run(stored(tmp_path / "a")))]

    def names(*patterns):
        return [one.name.partition("/")[2] for one in show.chosen(runs, patterns)]

    assert names("order_parameter") == ["risk", "value"]
    assert names("weight_symmetry") == ["low", "w_sym", "w_sym_null"]
    assert names("weight_symmetry/layer") == ["layer/a"]
    assert names("weight_symmetry/w_sym") == ["w_sym"]
    assert names("*/w_sym*", "order_parameter/value") == ["w_sym", "w_sym_null", "value"]


def test_many_quantities_are_cut_into_figures(tmp_path):
    store = Store.open(tmp_path / "thermo")
    store.append("mine", 0, None, {f"q{k:02}": 1.0 + k for k in range(13)})
    runs = [("run", load_run(tmp_path))]
    files = show.save_figures(runs, tmp_path / "out", show.chosen(runs, ["mine"]))
    assert [file.name for file in files] == ["quantities_1.png", "quantities_2.png"]


def test_the_long_table(sweep, tmp_path, capsys):
    file = tmp_path / "new" / "all.csv"
    text = shown(capsys, sweep, "--list", "--csv", file)
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert f"all.csv, {len(rows)} rows" in text
    assert len(rows) == 2 * 3 * 6
    values = {(r["run"], r["quantity"], int(r["step"])): (r["epoch"], r["value"]) for r in rows}
    assert values["lr0.1", "order_parameter/value", 20] == ("0", repr(2 / 21))
    assert values["lr0.01", "weight_symmetry/low", 1] == ("", "nan")
    text = shown(capsys, sweep, "--list", "--csv", file, "--quantities", "order_parameter/risk")
    assert "all.csv, 6 rows" in text


def test_the_list_of_all_that_is_stored(sweep, capsys):
    text = shown(capsys, sweep / "lr0.1", "--list")
    assert row(text, "weight_symmetry/layer/a") == [
        "weight_symmetry/layer/a", "3", "0", "20", "1"
    ]  # fmt: skip
    assert not (sweep / "lr0.1" / "figures").exists()
    assert "figures" not in text


def test_a_run_in_progress(tmp_path, capsys):
    store = stored(tmp_path / "thermo", end=False)
    with (store / "order_parameter.jsonl").open("ab") as file:
        file.write(b'{"step":21,"epoch":0,"val')
    text = shown(capsys, tmp_path)
    assert "measured up to step 20, no end is stored" in " ".join(text.split())
    assert row(text, "risk R, probe")[-1] == "3"


def test_empty_runs_are_told_among_others_and_refused_alone(sweep, capsys):
    Store.open(sweep / "empty" / "thermo")
    text = shown(capsys, sweep, "--list")
    assert f"no measurements yet in {sweep / 'empty' / 'thermo'}" in text
    assert "no measurements yet in" in refused(capsys, sweep / "empty")


def test_what_is_no_run_is_refused(sweep, tmp_path, capsys):
    assert "nothing does not exist" in refused(capsys, tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    assert "folder holds no stored measurements" in refused(capsys, tmp_path / "folder")
    run = sweep / "lr0.1"
    assert "matches 'foo'; there are those of order_parameter, weight_symmetry" in refused(
        capsys, run, "--quantities", "foo"
    )
    assert "runs" in refused(capsys)
    assert "--colour" in refused(capsys, run, "--colour", "red")
    header = run / "version_0" / "thermo" / "run.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "version": 99}))
    assert "upgrade torch-thermo" in refused(capsys, run)


def test_labels_leave_out_what_all_have_in_common(tmp_path):
    def labels(*paths):
        return show._labels([tmp_path / path for path in paths])

    assert labels("a/version_0/thermo", "a/version_1/thermo") == ["version_0", "version_1"]
    assert labels("a/tanh/v/thermo", "a/vgg/v/thermo") == ["tanh", "vgg"]
    assert labels("a/x/v0/thermo", "a/x/v1/thermo", "a/y/v0/thermo") == ["x/v0", "x/v1", "y/v0"]
    assert labels("a/thermo", "a/b/thermo") == ["a", "a/b"]
    assert labels("a/v/thermo", "a/b/v/thermo") == ["v", "b/v"]
    assert labels("a/thermo", "a/thermo-2") == ["a", "a/thermo-2"]
    assert labels("20250101-ab", "20250102-cd") == ["20250101-ab", "20250102-cd"]
    assert labels("logs/version_0/thermo") == ["logs/version_0"]


def test_long_labels_are_cut_and_stay_distinct():
    one = "a" * 40
    assert show._short(["short", one]) == ["short", "a" * 13 + "…" + "a" * 13]
    both = show._short([one, "a" * 20 + "b" + "a" * 20])
    assert len(set(both)) == 2


def test_markup_in_names_is_text(tmp_path, capsys):
    stored(tmp_path / "[red]a[/b]" / "thermo")
    stored(tmp_path / "b" / "thermo")
    assert "[red]a[/b]: 20 steps" in shown(capsys, tmp_path, "--quantities", "*/risk")


def test_a_run_that_several_paths_lead_to_is_shown_once(sweep, tmp_path, capsys):
    run = sweep / "lr0.1"
    text = shown(capsys, run, run, run / "version_0" / "thermo", "--list")
    assert text.count("weight_symmetry/layer/a") == 1
    text = shown(capsys, run / "version_0", sweep, "--list")
    assert text.count("weight_symmetry/layer/a") == 2


def test_quantities_may_stand_before_the_run(sweep, tmp_path, capsys):
    arguments = ["--quantities", "order_parameter/risk,weight_symmetry/low", "--list"]
    text = shown(capsys, *arguments, sweep / "lr0.1")
    assert row(text, "order_parameter/risk")
    assert row(text, "weight_symmetry/low")
    assert "layer/a" not in text  # the list is of these alone
    message = "quantities must be NAME or NAME,NAME, got 'a,'"
    assert message in refused(capsys, sweep, "--quantities", "a,")


def test_where_nothing_can_be_written_is_told_first(sweep, tmp_path, capsys):
    assert f"csv must be a file, got the folder {tmp_path}" in refused(
        capsys, sweep, "--csv", tmp_path
    )
    assert "csv must be a file, got standard output" in refused(capsys, sweep, "--csv", "-")
    (tmp_path / "mine").write_text("mine")
    for option, path in (("--csv", "mine/all.csv"), ("--out", "mine"), ("--out", "mine/deep")):
        message = f"must be a folder, got the file {tmp_path / 'mine'}"
        assert message in refused(capsys, sweep, option, tmp_path / path)


def test_a_broken_store_is_told_among_others_and_refused_alone(sweep, capsys):
    broken = sweep / "lr0.01" / "version_0" / "thermo" / "run.json"
    broken.write_text('{"format": "torch-th')
    text = shown(capsys, sweep, "--list")
    assert f"{broken} cannot be read: " in text
    assert "lr0.1" in text
    assert "cannot be read" in refused(capsys, sweep / "lr0.01")
    (sweep / "foreign").mkdir()
    (sweep / "foreign" / "run.json").write_text("[]")  # another tool's
    assert "foreign" not in shown(capsys, sweep, "--list")
    newer = sweep / "lr0.1" / "version_0" / "thermo" / "run.json"
    stored(sweep / "lr1" / "version_0" / "thermo")
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "version": 99}))
    assert "upgrade torch-thermo" in shown(capsys, sweep, "--list")


@pytest.mark.parametrize("columns", ["20", "40"])
def test_a_narrow_console_keeps_the_names(sweep, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = shown(capsys, sweep, "--quantities", "order_parameter/risk")
    assert row(text[text.index("last values") :], "risk R, probe")[1:] == ["1", "2"]
    assert row(text[: text.index("lr0.1:")], "risk R, probe")[1:] == ["1", "1", "1", "0", "3"]


def test_names_of_folders_are_no_mathematics(tmp_path, capsys, monkeypatch):
    titles = []
    monkeypatch.setattr(style, "caption", lambda figure, text: titles.append(text))
    stored(tmp_path / "a" / "lr$0.1$" / "thermo")
    shown(capsys, tmp_path, "--quantities", "order_parameter")
    shown(capsys, tmp_path)
    assert all(r"lr\$0.1\$: 20 steps" in title for title in titles)
    assert len(titles) > 2


def test_help_names_the_options(capsys):
    text = shown(capsys, "--help")
    for option in ("--out", "--pdf", "--quantities", "--list", "--csv", "RUN"):
        assert option in text
    assert not [word for word in ("class", "type:", "null", "False") if word in text]
    assert cli.main(["demo", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "folder of the results (default: runs/demo)" in text
    assert "of each training --seed" in text
    assert "of data, weights and probe (default: 0)" in text
