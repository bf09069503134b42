"""The one call that the figures make."""

from __future__ import annotations

import pytest
import torch

from tests.papers.li.support import Little, little_measured, seconds, write_pictures
from torch_thermo.papers.li import prepare, preparing, recipe, training


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A data file, and a quick budget that is quicker."""
    monkeypatch.setitem(recipe.BUDGETS, "quick", seconds(epochs=1))
    monkeypatch.setattr(recipe.Recipe, "network", lambda self, seed: Little(seed))
    monkeypatch.setattr(training, "thermometer", little_measured)
    return write_pictures(tmp_path)


def test_nets_and_seeds_are_trained_once(tmp_path, faces):
    out, seen = tmp_path / "out", []
    runs = prepare(out, "quick", faces, ("vgg", "vgg-ce"), progress=lambda *done: seen.append(done))
    assert list(runs) == ["vgg", "vgg-ce"]
    for net, found in runs.items():
        for seed, run in enumerate(found):
            assert run.path == out / "li" / "quick" / net / f"seed{seed}" / "thermo"
            assert (run.meta["net"], run.meta["seed"]) == (net, seed)
            assert run.series("training/train_risk").epochs.tolist() == [0, 1]
    assert seen == [(f"training {net}, seed {k}", 1, 1) for net in runs for k in (0, 1)]
    assert runs["vgg"][0].series("training/train_risk") != runs["vgg"][1].series(
        "training/train_risk"
    )
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = prepare(out, "quick", faces, ("vgg", "vgg-ce"))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert [run.id for run in again["vgg"]] == [run.id for run in runs["vgg"]]


def test_the_losses_are_the_nets_own(tmp_path, faces):
    runs = prepare(tmp_path / "out", "quick", faces, ("vgg", "vgg-ce"), seeds=(1,))
    network, found = Little(1), recipe.load_pictures(faces, 12)
    x, y = found.train.tensors
    with torch.no_grad():
        margin = (y * network(x)).double()
    first = {net: found[0].series("training/train_risk").values[0] for net, found in runs.items()}
    assert first["vgg"] == pytest.approx(float((1 - margin).clamp(min=0).mean()), rel=1e-5)
    assert first["vgg-ce"] == pytest.approx(float((1 + (-margin).exp()).log().mean()), rel=1e-5)


def test_the_number_of_threads_is_put_back(tmp_path, faces):
    seen = []
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prepare(
            tmp_path,
            "quick",
            faces,
            seeds=(0,),
            progress=lambda *done: seen.append(torch.get_num_threads()),
        )
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(threads)


def test_the_papers_budget_is_refused_without_cuda(tmp_path, faces, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="the paper budget needs CUDA") as caught:
        prepare(tmp_path / "out", "paper", faces)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_papers_budget_is_trained_on_cuda(tmp_path, faces, monkeypatch):
    seen = []

    def train(out, one, pictures, seed, epochs, progress):
        seen.append((one.budget.accelerator, one.budget.epochs, one.net, seed, len(pictures)))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(preparing, "train", train)
    prepare(tmp_path / "out", "paper", faces)
    assert seen == [("cuda", 300, "vgg", 0, 24)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "huge"}, "budget must be quick or paper, got 'huge'"),
        ({"nets": ()}, "nets must name at least one of vgg, vgg-ce and resnet, got none"),
        ({"nets": ("mlp",)}, "net must be of vgg, vgg-ce, resnet, got 'mlp'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seeds": ()}, r"seeds must be whole numbers from 0 on, got \[\]"),
        ({"seeds": (0, -1)}, r"seeds must be whole numbers from 0 on, got \[0, -1\]"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, faces, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(**{"out": tmp_path / "out", "data": faces} | changes)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_refused(tmp_path, faces):
    with pytest.raises(NotADirectoryError, match="out must be a folder, got the file"):
        prepare(faces / "below", "quick", faces)
