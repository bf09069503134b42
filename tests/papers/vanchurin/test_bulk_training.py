"""Training on the bulk loss beside the boundary loss: what is stored, resumed, counted, judged."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from torch_thermo.figures import style
from torch_thermo.figures.paper import paper_figure
from torch_thermo.papers import verdicts
from torch_thermo.papers.reproduction import Session, chosen, reproduce
from torch_thermo.papers.vanchurin import bulk_training as experiment
from torch_thermo.papers.vanchurin.bulk_course import (
    bulk_training_caption,
    bulk_training_panels,
    bulk_training_rows,
    more,
)
from torch_thermo.papers.vanchurin.bulk_training import FLAT, bulk_training, flatness
from torch_thermo.spectra import lanczos
from torch_thermo.store import Store


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A file of images of three kinds, each a bright row in noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(72) % 3
    images = generator.integers(0, 60, (72, 5, 5))
    images[np.arange(72), labels] += 150
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    halves = {"train": slice(0, 48), "test": slice(48, 72)}
    np.savez(
        path,
        **{f"{part}_images": images[which].astype(np.uint8) for part, which in halves.items()},
        **{f"{part}_labels": labels[which] for part, which in halves.items()},
    )
    return path


@pytest.fixture
def small(monkeypatch):
    """Two seeds, batches of 8, few products."""
    plan = replace(experiment.BUDGETS["quick"], batch=8, seeds=(0, 1), epochs=3)
    monkeypatch.setitem(experiment.BUDGETS, "quick", plan)
    for name, value in {"HIDDEN": (5, 4), "_EXAMPLES": 16, "_STEPS": 8, "_PROBES": 2}.items():
        monkeypatch.setattr(experiment, name, value)


def numbers(run):
    return {name: run.series(name).values.tolist() for name in run.names}


def test_what_is_stored_drawn_and_judged(digits, small, tmp_path):
    told = []
    runs = bulk_training(tmp_path, data=digits, progress=lambda *what: told.append(what))
    assert told[-1][1:] == (12, 12)
    assert [len(found) for found in runs.values()] == [2, 2]
    for loss, found in runs.items():
        for run in found:
            for name in ("accuracy/test", "bulk_exact/bulk", "bulk_exact/boundary"):
                assert run.series(name).steps.tolist() == [0, 6, 12, 18]
            assert run.series("bulk_hessian/directions").epochs.tolist() == [0, 1, 2]
            assert ("boundary_hessian/directions" in run.names) == (loss == "boundary")
            risk = run.series(f"bulk_exact/{loss}").values
            assert risk[-1] < 0.8 * risk[0]
    # both begin at the same weights
    for one, other in zip(*runs.values(), strict=True):
        for name in ("accuracy/test", "bulk_exact/bulk", "bulk_hessian/trace"):
            assert one.series(name).values[0] == other.series(name).values[0]
        assert one.series("bulk_exact/bulk").values[1] != other.series("bulk_exact/bulk").values[1]
    assert "search/converged" in runs["bulk"][0].names
    panels = bulk_training_panels(runs)
    assert style.render(paper_figure(panels, bulk_training_caption(runs))).shape[2] == 3
    assert [len(panel.traces) for panel in panels] == [2, 2, 2, 3, 3, 2]
    rows = bulk_training_rows(runs)
    assert len(rows) == 6
    own = [
        found.series(f"{loss}_hessian/directions").values[-1]
        for loss in ("bulk", "boundary")
        for found in runs[loss]
    ]
    assert rows[0].ours == pytest.approx((own[0] / own[2] + own[1] / own[3]) / 2)
    assert all(math.isfinite(row.ours) and row.spread >= 0 for row in rows)


def test_it_is_an_experiment(digits, small, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "DOTS_PER_INCH", 20)
    session = Session(tmp_path, data=str(digits), epochs=1)
    ((_, outcome),) = reproduce(chosen(["vanchurin/bulk-training"]), session)
    folder = tmp_path / "vanchurin" / "quick"
    assert outcome.files[0] == folder / "bulk-training.png"
    assert all(path.stat().st_size for path in outcome.files)
    assert len(outcome.rows) == 6
    assert (folder / "bulk_training" / "bulk" / "seed1" / "thermo" / "run.json").is_file()


def test_what_was_broken_off_is_taken_up_bit_for_bit(digits, small, tmp_path):
    whole = bulk_training(tmp_path / "whole", data=digits)
    (first, _) = bulk_training(tmp_path / "parts", data=digits, epochs=1)["bulk"]
    # measured, but the weights were not kept: it is forgotten
    Store.open(first.path).append("accuracy", 7, None, {"test": 0.0})
    parts = bulk_training(tmp_path / "parts", data=digits, epochs=3)
    for loss, found in whole.items():
        for one, other in zip(found, parts[loss], strict=True):
            assert numbers(one) == numbers(other)
    again = bulk_training(tmp_path / "parts", data=digits, epochs=2)
    assert numbers(again["bulk"][0]) == numbers(parts["bulk"][0])


def test_other_settings_are_not_gone_on_with(digits, small, tmp_path, monkeypatch):
    bulk_training(tmp_path, data=digits, epochs=1)
    plan = replace(experiment.BUDGETS["quick"], rate=0.2)
    monkeypatch.setitem(experiment.BUDGETS, "quick", plan)
    with pytest.raises(ValueError, match=r"lr 0\.1 instead of 0\.2"):
        bulk_training(tmp_path, data=digits, epochs=2)


def test_bad_arguments(digits, tmp_path):
    with pytest.raises(ValueError, match="budget must be quick or paper, got 'long'"):
        bulk_training(tmp_path, "long", digits)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        bulk_training(tmp_path, data=digits, epochs=0)


def rotated(values):
    """A matrix of these eigenvalues in random directions."""
    generator = torch.Generator().manual_seed(0)
    n = len(values)
    axes, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (axes * values) @ axes.T


def test_flatness_of_a_known_spectrum():
    """Some large eigenvalues, a group above and a group below the threshold, the rest 0."""
    values = torch.zeros(800, dtype=torch.float64)
    values[:5] = torch.tensor([10.0, -7.0, 5.0, 3.0, 2.0]).double()
    values[5:65] = torch.linspace(2, 4, 60).double() * FLAT * 10
    values[65:165] = torch.linspace(0.05, 0.3, 100).double() * FLAT * 10
    matrix = rotated(values)
    found = flatness(lanczos(matrix, 60, probes=8), 800)
    trace, squares = float(values.sum()), float(values.square().sum())
    assert found.largest == pytest.approx(10, rel=1e-9)
    # the noise of counting k of them by p probes of random signs is sqrt(2 k / p)
    assert found.directions == pytest.approx(65, abs=3 * math.sqrt(2 * 60 / 8))
    assert found.flat == pytest.approx(1 - found.directions / 800)
    assert found.trace == pytest.approx(trace, rel=0.05)
    assert found.squares == pytest.approx(squares, rel=0.01)
    assert found.participation == pytest.approx(trace**2 / squares, rel=0.1)
    # of any multiple of the risk it is the same
    other = flatness(lanczos(1e-3 * matrix, 60, probes=8), 800)
    assert other.participation == pytest.approx(found.participation, rel=1e-6)
    assert other.directions == pytest.approx(found.directions, rel=1e-6)


def test_large_eigenvalues_count_once():
    """By the probes' own weights the sum of squares would be off by a tenth."""
    values = torch.zeros(300, dtype=torch.float64)
    values[:3] = torch.tensor([9.0, 6.0, 1.0]).double()
    run = lanczos(rotated(values), 4, probes=2)
    plain = 300 * float((run.weights * run.ritz.square()).sum()) / 2
    assert abs(plain / 118 - 1) > 0.1
    assert flatness(run, 300).squares == pytest.approx(118, rel=1e-6)


def test_the_rule_refuses():
    assert more(1.0, 1.5, 0.1, 0.1) == verdicts.REPRODUCED
    assert more(1.0, 0.6, 0.1, 0.1) == verdicts.NOT_REPRODUCED
    assert more(1.0, 1.5, 0.1, 0.3) == verdicts.WITHIN_SPREAD
    assert more(1.0, 0.6, 0.1, 0.3) == verdicts.WITHIN_SPREAD
    assert more(1.0, 1.05, 0.1, 0.01) == verdicts.NOT_REPRODUCED
    assert more(1.0, 1.5, 0.1, math.nan) == verdicts.REPRODUCED
    assert more(1.0, math.nan, 0.1, 0.1) == verdicts.NOT_MEASURED
