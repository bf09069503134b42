"""The one call that the figures make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from torch_thermo.papers.vanchurin import online, prepare, preparing, recipe


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A data file, and a quick budget that is quicker."""
    rng = np.random.default_rng(1)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, (20, 4, 4), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(20) % 3
    np.savez(tmp_path / "faces.npz", **arrays)
    monkeypatch.setattr(preparing, "PIXELS", 16)
    quicker = replace(recipe.BUDGETS["quick"], epochs=3, seeds=(0, 1))
    monkeypatch.setitem(recipe.BUDGETS, "quick", quicker)
    return tmp_path / "faces.npz"


def test_both_nets_are_trained_and_measured_once(tmp_path, faces):
    seen = []
    runs = prepare(tmp_path / "out", "quick", faces, progress=lambda *done: seen.append(done))
    assert [(net, [run.meta["seed"] for run in found]) for net, found in runs.items()] == [
        ("deep", [0, 1]),
        ("shallow", [0, 1]),
    ]
    for net, found in runs.items():
        for seed, run in enumerate(found):
            assert run.path == tmp_path / "out" / "quick" / net / f"seed{seed}" / "thermo"
            assert run.series("propagator_spectrum/mu2").epochs.tolist() == [0, 1, 2, 3]
    assert seen[:3] == [("training the deep net", epoch, 3) for epoch in (1, 2, 3)]
    assert seen[-1] == ("measuring the shallow net", 8, 8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = prepare(tmp_path / "out", "quick", faces)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert [run.id for run in again["deep"]] == [run.id for run in runs["deep"]]


def test_the_papers_budget_takes_one_sample_a_step(tmp_path, faces):
    pytest.importorskip("numba", reason="numba compiles the loop")
    (run,) = prepare(tmp_path / "out", "paper", faces, nets=["deep"], epochs=2)["deep"]
    assert run.series("accuracy/train").steps.tolist() == [0, 20, 40]
    assert (run.meta["batch"], run.meta["lr"]) == (1, 0.01)


def test_the_number_of_threads_is_put_back(tmp_path, faces):
    seen = []
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prepare(
            tmp_path / "out",
            "quick",
            faces,
            nets=["shallow"],
            epochs=1,
            progress=lambda *_: seen.append(torch.get_num_threads()),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": "slow"}, "budget must be quick or paper, got 'slow'"),
        ({"nets": ["wide"]}, "net must be deep or shallow, got 'wide'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"nets": []}, "nets must name at least one"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, faces, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "out", data=faces, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, faces):
    (tmp_path / "out").write_text("")
    with pytest.raises(NotADirectoryError, match="out must be a folder, got the file"):
        prepare(tmp_path / "out", "quick", faces)


def test_images_of_another_size_are_refused_before_anything_is_written(
    tmp_path, faces, monkeypatch
):
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"images of 784 pixels, got 16 of .*faces\.npz"):
        prepare(tmp_path / "out", "quick", faces)
    assert not (tmp_path / "out").exists()


def test_numba_is_missed_before_anything_is_written(tmp_path, faces, monkeypatch):
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}")

    online._compiled.cache_clear()
    monkeypatch.setattr(online, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="online training needs numba: pip install"):
        prepare(tmp_path / "out", "paper", faces, epochs=2)
    assert not (tmp_path / "out").exists()
