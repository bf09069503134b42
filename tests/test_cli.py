from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from torch_thermo import __version__, cli
from torch_thermo.papers import demo


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command"),
        (["dance"], "invalid choice: 'dance'"),
        (["demo", "--colour", "red"], "--colour"),
        (["demo", "--epochs", "0"], "epochs must be a whole number of at least 1, got '0'"),
        (["demo", "--epochs", "many"], "epochs must be a whole number of at least 1, got 'many'"),
        (["demo", "--seed", "-1"], "seed must be a whole number of at least 0, got '-1'"),
        (["demo", "--seed"], "--seed"),
        (["demo", "--data", "mnits"], "mnist5k, mnist, cifar10 or a FILE.npz, got 'mnits'"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(arguments, message, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_failure_ends_with_1_and_one_line(tmp_path, capsys):
    arguments = ["demo", "--out", str(tmp_path / "out"), "--data", str(tmp_path / "no.npz")]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no such data file: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_results_cannot_go_to_a_file(tmp_path, capsys, below):
    (tmp_path / "out").write_text("mine")
    # told before the data are looked for
    out, data = tmp_path / "out" / below, tmp_path / "no.npz"
    assert cli.main(["demo", "--out", str(out), "--data", str(data)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    message = f"error: out must be a folder, got the file {tmp_path / 'out'} "
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert (tmp_path / "out").read_text() == "mine"


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data file"):
        cli.main(["demo", "--debug", "--data", str(tmp_path / "no.npz")])


def test_a_bad_file_is_named(tmp_path, capsys):
    np.savez(tmp_path / "half.npz", train_images=np.zeros((2, 4, 4), np.uint8))
    assert cli.main(["demo", "--data", str(tmp_path / "half.npz")]) == 1
    error = capsys.readouterr().err
    assert "missing train_labels, test_images, test_labels" in error
    assert "half.npz" in error


def test_a_missing_extra_ends_with_the_pip_line(tmp_path, capsys, monkeypatch):
    from torch_thermo.data import loading

    def absent(module: str):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(loading, "import_module", absent)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert 'pip install "torch-thermo[papers]"' in capsys.readouterr().err


def test_an_interrupt_ends_with_1(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "error: interrupted\n"


def test_arguments_reach_the_demo(monkeypatch, tmp_path, capsys):
    seen = {}

    def remember(out, source, **options):
        seen.update(out=out, source=source, **options)
        return []

    monkeypatch.setattr(demo, "run_demo", remember)
    out = tmp_path / "my runs"
    arguments = ["demo", "--out", str(out), "--data", "faces.npz", "--epochs", "3", "--seed", "5"]
    assert cli.main(arguments) == 0
    seen.pop("started")
    assert seen == {
        "out": out,
        "source": "faces.npz",
        "epochs": 3,
        "seed": 5,
        "accelerator": "cpu",
    }
    assert f"tensorboard --logdir '{out}'" in capsys.readouterr().out


def test_help_and_version(capsys):
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert cli.main(["demo", "--help"]) == 0
    assert "--data" in capsys.readouterr().out


def test_the_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "torch_thermo.cli", "demo", "--epochs", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
