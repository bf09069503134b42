"""What is stored of a training, measured again by other means."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.papers.vanchurin.support import budget, patterns, small
from torch_thermo.papers.vanchurin import measuring
from torch_thermo.papers.vanchurin.measuring import measure
from torch_thermo.papers.vanchurin.recipe import Recipe, snapshot_epochs
from torch_thermo.papers.vanchurin.snapshots import load_snapshot, snapshots
from torch_thermo.papers.vanchurin.training import train
from torch_thermo.store import load_run
from torch_thermo.systems import TanhMLP

STEPS_PER_EPOCH = 5  # 37 samples in batches of 8
DIGITS = patterns()


def recipe(epochs: int = 20) -> Recipe:
    return small(DIGITS, replace(budget(8, seeds=(4, 2), epochs=epochs), per_decade=10))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a measured training; not to be changed."""
    out = tmp_path_factory.mktemp("vanchurin")
    train(out, recipe(), DIGITS)
    runs = measure(out, recipe(), DIGITS)
    return out, runs


@pytest.fixture
def copied(measured, tmp_path):
    shutil.copytree(measured[0], tmp_path / "out")
    return tmp_path / "out"


def network(out, seed: int, epoch: int) -> TanhMLP:
    module = TanhMLP(recipe().sizes).double()
    module.load_state_dict(load_snapshot(snapshots(recipe().folder(out, seed))[epoch]))
    return module


def epochs_of(run, observable: str) -> list[int]:
    steps = run.array_steps(observable)
    return [step // STEPS_PER_EPOCH for step in steps]


def test_each_observable_is_measured_where_it_is_due(measured):
    first, second = measured[1]
    every = snapshot_epochs(20, 10)
    assert epochs_of(first, "propagator_spectrum") == epochs_of(first, "bulk_boundary") == every
    assert epochs_of(second, "propagator_spectrum") == every
    assert epochs_of(second, "bulk_boundary") == [0, 1, 2, 3, 4, 6, 10, 16, 20]
    assert epochs_of(first, "bulk_exact") == [0, 1, 3, 10, 20]
    assert "bulk_exact" not in second.observables
    for run in (first, second):
        for name in run.names:
            series = run.series(name)
            assert (series.epochs * STEPS_PER_EPOCH == series.steps).all()


@pytest.mark.parametrize("epoch", [0, 20])
def test_values_are_those_of_the_stored_weights(measured, epoch):
    out, runs = measured
    step = epoch * STEPS_PER_EPOCH
    for seed, run in zip((4, 2), runs, strict=True):
        module = network(out, seed, epoch)
        with torch.no_grad():
            outputs = module(DIGITS.inputs)
        boundary = 0.5 * (outputs - DIGITS.targets).square().sum(1)
        arrays = run.arrays("bulk_boundary", step)
        np.testing.assert_allclose(arrays["boundary"], boundary, rtol=1e-12)
        assert (arrays["bulk"] <= arrays["boundary"]).all()
        assert arrays["converged"].all()

        def stored(name: str, run=run) -> float:
            series = run.series(name)
            return float(series.values[series.steps == step].item())

        assert stored("bulk_boundary/boundary") == pytest.approx(float(boundary.mean()))
        assert stored("bulk_boundary/bulk") == pytest.approx(arrays["bulk"].mean())
        right = outputs.argmax(1) == DIGITS.labels
        assert stored("accuracy/train") == pytest.approx(float(right.double().mean()))
        logs = run.arrays("propagator_spectrum", step)["log_eigenvalues"]
        np.testing.assert_allclose(logs, dense(module), atol=1e-10)
        assert stored("propagator_spectrum/mu2") == pytest.approx((logs**2).sum())
        assert stored("propagator_spectrum/mu3") == pytest.approx((logs**3).sum())


def dense(module: TanhMLP) -> np.ndarray:
    """Log lambda of (I - M)^T (I - M), M = f'(y of the mean state) w, all of it at once."""
    layers = [layer for layer in module.layers if isinstance(layer, torch.nn.Linear)]
    offsets = np.cumsum([0, *module.sizes])
    m = np.zeros((offsets[-1], offsets[-1]))
    state = DIGITS.inputs
    with torch.no_grad():
        for place, layer in enumerate(layers):
            slopes = 1 - torch.tanh(layer(state.mean(0))) ** 2
            rows = slice(offsets[place + 1], offsets[place + 2])
            m[rows, offsets[place] : offsets[place + 1]] = slopes[:, None] * layer.weight
            state = torch.tanh(layer(state))
    return 2 * np.log(np.linalg.svd(np.eye(len(m)) - m, compute_uv=False))


def test_the_exact_loss_is_that_of_the_first_samples(measured, tmp_path, monkeypatch):
    run = measured[1][0]
    assert run.arrays("bulk_exact", 0)["bulk"].shape == (37,)
    values = run.series("bulk_exact/bulk").values
    assert (values <= run.series("bulk_exact/boundary").values).all()
    monkeypatch.setattr(measuring, "EXACT_SAMPLES", 9)
    short = recipe(epochs=1)
    train(tmp_path, short, DIGITS)
    fewer = measure(tmp_path, short, DIGITS)[0]
    boundary = run.arrays("bulk_boundary", 0)["boundary"][:9]
    np.testing.assert_allclose(fewer.arrays("bulk_exact", 0)["boundary"], boundary, rtol=1e-12)


def counting(monkeypatch) -> list[str]:
    """The names of what is measured from now on."""
    seen: list[str] = []

    def counted(name, function):
        def measured(*given):
            seen.append(name)
            return function(*given)

        return measured

    wrapped = {name: counted(name, one) for name, one in measuring._MEASURE.items()}
    monkeypatch.setattr(measuring, "_MEASURE", wrapped)
    return seen


def test_a_second_pass_measures_what_is_missing_alone(copied, monkeypatch):
    seen = counting(monkeypatch)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    measure(copied, recipe(), DIGITS)
    assert seen == []
    assert {path: path.read_bytes() for path in before} == before
    # broken off behind the arrays of the last spectrum, before its row
    lines = recipe().folder(copied, 2) / "thermo" / "propagator_spectrum.jsonl"
    kept = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(b"".join(kept[:-1]))
    runs = measure(copied, recipe(), DIGITS)
    assert seen == ["propagator_spectrum"]
    assert len(runs[1].series("propagator_spectrum/mu2")) == len(snapshot_epochs(20, 10))


def test_a_longer_training_is_measured_on(copied, monkeypatch):
    longer = recipe(epochs=25)
    train(copied, longer, DIGITS)
    seen = counting(monkeypatch)
    runs = measure(copied, longer, DIGITS)
    # epoch 25 of both seeds, its exact loss of the first
    assert sorted(seen) == sorted(
        2 * ["accuracy", "propagator_spectrum", "bulk_boundary"] + ["bulk_exact"]
    )
    assert epochs_of(runs[0], "bulk_exact") == [0, 1, 3, 10, 20, 25]
    assert runs[0].meta["epochs"] == 25


def test_the_run_says_what_was_trained(measured):
    meta = measured[1][0].meta
    expected = {
        "net": "deep",
        "budget": "b8",
        "sizes": [30, 6, 5, 4],
        "data": "patterns",
        "samples": 37,
        "batch": 8,
        "lr": 0.05,
        "seed": 4,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "epochs": 20,
        "steps": 100,
    }
    assert {name: meta[name] for name in expected} == expected


def test_the_store_is_read_meanwhile(tmp_path):
    short = recipe(epochs=2)
    train(tmp_path, short, DIGITS)
    seen = []

    def look(what: str, done: int, total: int) -> None:
        assert (what, total) == ("measuring the deep net", 6)
        run = load_run(short.folder(tmp_path, 4))
        seen.append((done, len(run.series("accuracy/train"))))

    measure(tmp_path, short, DIGITS, look)
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 3)]


def test_another_trainings_measurements_are_moved_aside(copied):
    folder = recipe().folder(copied, 4)
    for name in ("checkpoint.npz", "snapshots"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    other = replace(recipe(), budget=replace(recipe().budget, rate=0.2, seeds=(4,)))
    train(copied, other, DIGITS, epochs=1)
    run = measure(copied, other, DIGITS)[0]
    assert run.series("accuracy/train").epochs.tolist() == [0, 1]
    assert run.meta["lr"] == 0.2
    assert len(list(folder.glob("thermo-*"))) == 1


def test_a_net_that_is_not_trained_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no snapshots in .*seed4: train first"):
        measure(tmp_path, recipe(), DIGITS)
    assert not list(tmp_path.iterdir())


def test_what_was_measured_in_another_way_is_measured_anew(copied, monkeypatch):
    before = [load_run(recipe().folder(copied, seed)) for seed in (4, 2)]
    stored = [run.series("bulk_boundary/bulk").values for run in before]
    spoil(copied, "bulk_boundary")
    monkeypatch.setitem(measuring.MEASURED_AS, "bulk_boundary", 2)
    seen = counting(monkeypatch)
    runs = measure(copied, recipe(), DIGITS)
    assert set(seen) == {"bulk_boundary"}
    assert len(seen) == sum(map(len, stored))
    for run, values in zip(runs, stored, strict=True):
        np.testing.assert_allclose(run.series("bulk_boundary/bulk").values, values, rtol=1e-12)
        assert run.meta["measured_as"] == measuring.MEASURED_AS
    seen.clear()
    measure(copied, recipe(), DIGITS)
    assert seen == []


def test_a_store_that_does_not_say_how_it_was_measured_is_measured_anew(copied, monkeypatch):
    folder = recipe().folder(copied, 4) / "thermo"
    header = json.loads((folder / "run.json").read_text())
    del header["meta"]["measured_as"]
    (folder / "run.json").write_text(json.dumps(header))
    stale = folder / "bulk_exact" / "1.npz"
    stale.write_bytes(b"")
    seen = counting(monkeypatch)
    run = measure(copied, recipe(), DIGITS)[0]
    every = len(snapshot_epochs(20, 10))
    assert [seen.count(name) for name in measuring.MEASURED_AS] == [every, every, every, 5]
    assert not stale.exists()
    assert run.meta["measured_as"] == measuring.MEASURED_AS


def test_a_pass_that_is_broken_off_while_measuring_anew_is_taken_up(copied, monkeypatch):
    monkeypatch.setitem(measuring.MEASURED_AS, "accuracy", 2)
    seen = counting(monkeypatch)

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(copied, recipe(), DIGITS, stop)
    measure(copied, recipe(), DIGITS)
    assert seen == ["accuracy"] * 2 * len(snapshot_epochs(20, 10))


def spoil(out, name: str) -> None:
    """Numbers as an older way of measuring would have left them."""
    for path in out.rglob(f"{name}.jsonl"):
        path.write_text(path.read_text().replace('"bulk":', '"bulk":1'))


def test_each_observable_has_its_number():
    assert measuring.MEASURED_AS.keys() == measuring._MEASURE.keys()


def test_a_damaged_snapshot_is_named(copied):
    path = snapshots(recipe().folder(copied, 4))[3]
    path.write_bytes(path.read_bytes()[:100])
    shutil.rmtree(recipe().folder(copied, 4) / "thermo")
    with pytest.raises(ValueError, match=r"epoch_3\.npz is damaged .*: remove it"):
        measure(copied, recipe(), DIGITS)
    path.unlink()
    assert 3 not in epochs_of(measure(copied, recipe(), DIGITS)[0], "bulk_boundary")
