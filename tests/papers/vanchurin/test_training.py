"""The batched training against torch's SGD, seed by seed, and against one that was broken off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.papers.vanchurin.support import budget, by_torch, parameters, patterns, small
from torch_thermo.papers.vanchurin import training
from torch_thermo.papers.vanchurin.recipe import Recipe
from torch_thermo.papers.vanchurin.snapshots import load_snapshot, snapshots
from torch_thermo.papers.vanchurin.training import BatchedTrainer, train
from torch_thermo.systems import TanhMLP

SEEDS = (0, 1, 5)


def orders(samples: int, epochs: int) -> torch.Tensor:
    """(epochs, seeds, samples): what each seed draws from its own generator."""
    found = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        found.append([torch.randperm(samples, generator=generator) for _ in range(epochs)])
    return torch.stack([torch.stack(each) for each in found], 1)


@pytest.mark.parametrize("hidden", [(6, 5), (9,), ()])
@pytest.mark.parametrize("batch", [8, 1])
def test_seeds_trained_together_are_those_trained_alone(hidden, batch):
    digits = patterns()
    sizes = (30, *hidden, 4)
    networks = [TanhMLP(sizes, seed).double() for seed in SEEDS]
    together = BatchedTrainer(
        [parameters(network) for network in networks], digits.inputs, digits.targets, batch, 0.05
    )
    for each in orders(len(digits), epochs=4):
        together.epoch(each)
        for network, order in zip(networks, each, strict=True):
            by_torch(network, digits, order, batch, 0.05)
    for found, network, seed in zip(together.weights(), networks, SEEDS, strict=True):
        expected = parameters(network)
        assert list(found) == list(expected)
        for name, weight in found.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-12)
        start = TanhMLP(sizes, seed).double().layers[0].weight
        assert (found["layers.0.weight"] - start).abs().max() > 0.01


def test_what_is_stored_is_the_training_of_each_seed_by_torch(tmp_path):
    digits = patterns()
    recipe = small(digits, budget(8, SEEDS))
    train(tmp_path, recipe, digits)
    for place, seed in enumerate(SEEDS):
        network = TanhMLP(recipe.sizes, seed).double()
        files = snapshots(recipe.folder(tmp_path, seed))
        assert list(files) == [0, 1, 2, 3, 6, 7]
        for epoch in range(8):
            if epoch:
                by_torch(network, digits, orders(len(digits), 7)[epoch - 1, place], 8, 0.05)
            if epoch in files:
                for name, weight in load_snapshot(files[epoch]).items():
                    assert weight.dtype == torch.float32
                    expected = parameters(network)[name].float()
                    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def kept(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of all files of a training."""
    return {
        f"{path.name}/{name}": array
        for path in [folder / "checkpoint.npz", *snapshots(folder).values()]
        for name, array in np.load(path).items()
    }


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(array, second[name]) for name, array in first.items()
    )


@pytest.mark.parametrize("batch", [8, 1])
def test_a_training_taken_up_ends_with_the_same_bits(tmp_path, batch):
    if batch == 1:
        pytest.importorskip("numba", reason="batches of one are trained by numba")
    digits = patterns()
    recipe = small(digits, budget(batch, SEEDS if batch > 1 else (2,), epochs=12))
    train(tmp_path / "whole", recipe, digits)
    # 3 and 6 are among the whole training's snapshots
    for epochs in (3, 6, 12):
        train(tmp_path / "parts", recipe, digits, epochs)
    for seed in recipe.budget.seeds:
        whole, parts = (kept(recipe.folder(tmp_path / name, seed)) for name in ("whole", "parts"))
        assert int(whole["checkpoint.npz/epoch"]) == 12
        assert same(whole, parts)


class BrokenOff(Exception):
    pass


def test_a_break_off_between_checkpoints_costs_nothing_but_time(tmp_path):
    digits = patterns()
    recipe = small(digits, budget(8, SEEDS, epochs=12))
    train(tmp_path / "whole", recipe, digits)

    def stop(what: str, done: int, total: int) -> None:
        assert (what, total) == ("training the deep net", 12)
        if done == 9:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        train(tmp_path / "broken", recipe, digits, progress=stop)
    folders = {seed: recipe.folder(tmp_path / "broken", seed) for seed in SEEDS}
    assert list(snapshots(folders[0])) == [0, 1, 2, 3, 6]
    # as if the second seed's last checkpoint had not been written any more
    older = np.load(recipe.folder(tmp_path / "broken", 1) / "checkpoint.npz")
    assert int(older["epoch"]) == 6
    seen = []
    train(tmp_path / "broken", recipe, digits, progress=lambda *done: seen.append(done[1]))
    assert seen == list(range(7, 13))
    for seed in SEEDS:
        whole = kept(recipe.folder(tmp_path / "whole", seed))
        assert same(whole, kept(folders[seed]))


def test_seeds_that_stand_apart_are_brought_to_the_end(tmp_path):
    digits = patterns()
    recipe = small(digits, budget(8, SEEDS))
    train(tmp_path, replace(recipe, budget=budget(8, (1,))), digits, epochs=3)
    train(tmp_path, recipe, digits)
    alone = tmp_path / "alone"
    for seed in SEEDS:
        train(alone, replace(recipe, budget=budget(8, (seed,))), digits)
        found, expected = (
            load_snapshot(snapshots(recipe.folder(place, seed))[7]) for place in (tmp_path, alone)
        )
        for name, weight in found.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


def test_what_is_trained_far_enough_is_left_alone(tmp_path, monkeypatch):
    digits = patterns()
    recipe = small(digits, budget(8, SEEDS))
    train(tmp_path, recipe, digits)
    # a finished training of the paper's length is looked at without numba
    monkeypatch.setattr(training, "_trainer", lambda *_: pytest.fail("it made a trainer"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    train(tmp_path, recipe, digits, epochs=2, progress=lambda *_: pytest.fail("it trained"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == before


def test_another_training_in_the_folder_is_refused(tmp_path):
    digits = patterns()
    recipe = small(digits, budget(8))
    train(tmp_path, recipe, digits, epochs=1)
    other: Recipe = replace(recipe, budget=replace(recipe.budget, rate=0.1))
    with pytest.raises(ValueError, match=r"holds another training, of rate 0\.05 instead of 0\.1:"):
        train(tmp_path, other, digits)
    fewer = patterns(samples=36)
    with pytest.raises(ValueError, match=r"fingerprint .*, samples 37 instead of 36:"):
        train(tmp_path, small(fewer, budget(8)), fewer)


def test_checkpoints_come_between_snapshots_too(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_CHECKPOINT_EPOCHS", 5)
    digits = patterns()
    recipe = small(digits, budget(8))

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        train(tmp_path, recipe, digits, progress=stop)
    folder = recipe.folder(tmp_path, 0)
    assert int(np.load(folder / "checkpoint.npz")["epoch"]) == 5
    assert list(snapshots(folder)) == [0, 1, 2, 3]


def test_torch_draws_as_if_nothing_had_been_trained(tmp_path):
    digits = patterns()
    before = torch.get_rng_state()
    train(tmp_path, small(digits, budget(8)), digits, epochs=1)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    digits = patterns()
    recipe = small(digits, budget(8))
    train(tmp_path, recipe, digits, epochs=2)
    path = recipe.folder(tmp_path, 0) / "checkpoint.npz"
    before = kept(path.parent)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged .*: remove it; .* anew"):
        train(tmp_path, recipe, digits, epochs=2)
    np.savez(path, epoch=3)
    with pytest.raises(ValueError, match=r"is damaged \(no generator in it\)"):
        train(tmp_path, recipe, digits, epochs=2)
    path.unlink()
    train(tmp_path, recipe, digits, epochs=2)
    assert same(kept(path.parent), before)


def test_what_a_killed_run_has_left_half_written_is_deleted(tmp_path):
    digits = patterns()
    recipe = small(digits, budget(8))
    train(tmp_path, recipe, digits, epochs=1)
    folder = recipe.folder(tmp_path, 0)
    (folder / "thermo").mkdir()
    left = [
        folder / ".checkpoint.npz.0a1b2c3d.tmp",
        folder / "snapshots" / ".epoch_1.npz.0a1b2c3d.tmp",
        folder / "thermo" / ".run.json.0a1b2c3d.tmp",
    ]
    others = [folder / "mine.tmp", folder / ".mine.tmp"]
    for path in left + others:
        path.write_bytes(b"half")
    train(tmp_path, recipe, digits, epochs=1)
    assert [path.exists() for path in left + others] == [False] * 3 + [True] * 2
