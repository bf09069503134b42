"""BulkBoundaryLoss in real trainings: what it stores is what the function says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.callbacks.support import Classifier, blobs, finite, loader, make_trainer, notices
from torch_thermo.callbacks import At, BulkBoundaryLoss
from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss, losses
from torch_thermo.observables.bulk_boundary.exact import relax

START = At(steps=[0], end=False)
SCALARS = {
    "bulk", "boundary", "bulk_stderr", "boundary_stderr", "bulk_median", "boundary_median",
    "ratio", "converged",
}  # fmt: skip


class Tanh(Classifier):
    """With hidden units that bend everywhere: minima are not at kinks."""

    def __init__(self):
        super().__init__()
        self.net[1] = nn.Tanh()


def at_start(folder, callback, module):
    """Train, and return what a measurement of the initial weights has to be."""
    x, y = blobs().tensors
    network = Network.from_module(module, x)
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    with notices() as told:
        make_trainer(folder, callback).fit(module, loader())
    module.load_state_dict(initial)
    chosen = callback.session.probe.indices[: callback.examples]
    return network, x[chosen], y[chosen], told


@pytest.mark.parametrize("method", ["logit", "linear"])
def test_stored_is_what_the_function_says(tmp_path, method):
    module = Classifier()
    callback = BulkBoundaryLoss(START, method, examples=20)
    network, x, y, told = at_start(tmp_path, callback, module)
    assert told == []
    expected = bulk_boundary_loss(network, x, y, nn.CrossEntropyLoss(), method)
    stored = callback.stored()
    row = {name.partition("/")[2]: float(stored.series(name).values[0]) for name in stored.names}
    assert set(row) == SCALARS
    bulk, boundary = expected.bulk.numpy(), expected.boundary.numpy()
    assert len(bulk) == 20
    assert row["bulk"] == pytest.approx(bulk.mean(), rel=1e-6)
    assert row["boundary"] == pytest.approx(boundary.mean(), rel=1e-6)
    assert row["bulk_stderr"] == pytest.approx(bulk.std(ddof=1) / math.sqrt(20), rel=1e-6)
    assert row["boundary_stderr"] == pytest.approx(boundary.std(ddof=1) / math.sqrt(20), rel=1e-6)
    assert row["bulk_median"] == pytest.approx(np.median(bulk), rel=1e-6)
    assert row["boundary_median"] == pytest.approx(np.median(boundary), rel=1e-6)
    assert row["ratio"] == pytest.approx(bulk.mean() / boundary.mean(), rel=1e-6)
    assert row["ratio"] < 1.0
    assert row["converged"] == expected.converged.double().mean()
    arrays = stored.arrays("bulk_boundary", 0)
    np.testing.assert_allclose(arrays["bulk"], bulk, rtol=1e-6)
    np.testing.assert_allclose(arrays["boundary"], boundary, rtol=1e-6)
    assert arrays["converged"].dtype == bool
    assert arrays["converged"].tolist() == expected.converged.tolist()


def test_exact_is_the_function_with_its_starts_and_seed(tmp_path):
    module = Tanh()
    callback = BulkBoundaryLoss(START, "exact", examples=20, starts=3, seed=5)
    network, x, y, told = at_start(tmp_path, callback, module)
    assert told == []
    expected = bulk_boundary_loss(network, x, y, nn.CrossEntropyLoss(), "exact", starts=3, seed=5)
    row = callback.history["bulk_boundary"][0]
    assert {*SCALARS, "spread"} <= set(row)
    for name, value in expected.summary().items():
        assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-12)
    assert row["converged"] == 1.0


def test_examples_that_do_not_converge_are_told_with_their_number(tmp_path, monkeypatch):
    def astray(*given, **options):
        found = relax(*given, **options)
        return replace(found, converged=torch.arange(len(found.values)) >= 3)

    monkeypatch.setattr(losses, "relax", astray)
    callback = BulkBoundaryLoss(lambda step, epoch: True, "exact", examples=20)
    with notices() as told:
        make_trainer(tmp_path, callback).fit(Tanh(), loader())
    rows = callback.history["bulk_boundary"]
    assert len(rows) > 1
    assert all(row["converged"] == pytest.approx(17 / 20) for row in rows)
    assert len(told) == 1
    assert "the bulk loss of 3 of 20 examples is no minimum" in told[0]


def test_the_methods_differ(tmp_path):
    class Bent(Classifier):
        def __init__(self):
            super().__init__()
            self.net.append(nn.Tanh())

    bulks = []
    for method in ("logit", "linear"):
        torch.manual_seed(0)
        callback = BulkBoundaryLoss(START, method)
        make_trainer(tmp_path / method, callback).fit(Bent(), loader())
        bulks.append(callback.history["bulk_boundary"][0]["bulk"])
    assert bulks[0] != pytest.approx(bulks[1], rel=1e-3)


def test_the_given_loss_comes_first(tmp_path):
    callback = BulkBoundaryLoss(START, loss_fn=nn.functional.multi_margin_loss)
    module = Classifier()
    network, x, y, told = at_start(tmp_path, callback, module)
    assert told == []
    expected = bulk_boundary_loss(network, x, y, nn.functional.multi_margin_loss)
    assert callback.history["bulk_boundary"][0]["bulk"] == pytest.approx(expected.bulk_mean)


@pytest.mark.parametrize("source", ["closure", "training_step"])
def test_a_loss_that_is_no_function_of_the_output(tmp_path, source):
    class Penalty(Classifier):
        def training_step(self, batch, batch_idx):
            penalty = sum(p.square().sum() for p in self.parameters())
            return super().training_step(batch, batch_idx) + 0.1 * penalty

    def closure(module, batch):
        return module.criterion(module(batch[0]), batch[1])

    callback = BulkBoundaryLoss(closure=closure if source == "closure" else None)
    with notices() as told:
        make_trainer(tmp_path, callback).fit(Penalty(), loader())
    assert len(told) == 2, told
    assert "bulk_boundary is skipped from step 0 on: the bulk loss needs the loss as a" in told[0]
    assert "give Thermometer(loss_fn=...)" in told[0]
    assert "measured NOTHING" in told[1]


@pytest.mark.parametrize("ignored", [-100, 2])
def test_examples_without_a_loss_are_left_out(tmp_path, ignored):
    x, y = blobs().tensors
    given = torch.where(torch.arange(48) % 4 == 1, ignored, y)
    criterion = nn.CrossEntropyLoss(ignore_index=ignored)
    module, callback = Classifier(), BulkBoundaryLoss(START)
    module.criterion = criterion
    network = Network.from_module(module, x)
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    with notices() as told:
        make_trainer(tmp_path, callback).fit(module, loader(TensorDataset(x, given)))
    module.load_state_dict(initial)
    indices = torch.tensor(callback.session.probe.indices)
    kept = indices[given[indices] != ignored]
    assert told == [
        f"torch-thermo: {48 - len(kept)} of 48 examples have no loss, for their targets are "
        "ignored, and are left out of the bulk and the boundary loss"
    ]
    expected = bulk_boundary_loss(network, x[kept], given[kept], criterion)
    stored = callback.history["bulk_boundary"][0]
    assert stored["bulk"] == pytest.approx(expected.bulk_mean, rel=1e-6)
    assert stored["boundary"] == pytest.approx(expected.boundary_mean, rel=1e-6)
    assert stored["converged"] == 1.0
    assert len(callback.stored().arrays("bulk_boundary", 0)["bulk"]) == len(kept)


def test_class_weights_that_a_mean_divides_out_are_told(tmp_path):
    module, callback = Classifier(), BulkBoundaryLoss(lambda step, epoch: True, examples=20)
    classes = module(blobs().tensors[0]).shape[1]
    module.criterion = nn.CrossEntropyLoss(weight=torch.arange(1.0, 1.0 + classes))
    with notices() as told:
        make_trainer(tmp_path, callback).fit(module, loader())
    assert len(callback.history["bulk_boundary"]) > 1
    assert len(told) == 1, told
    assert "class weights" in told[0]
    assert "reduction='sum'" in told[0]


def test_nothing_but_ignored_examples_is_told(tmp_path):
    x = blobs().tensors[0]
    callback = BulkBoundaryLoss(
        START, probe=(x[:8], torch.full((8,), -100)), loss_fn=nn.functional.cross_entropy
    )
    with notices() as told:
        make_trainer(tmp_path, callback).fit(Classifier(), loader())
    assert any("none of 8 examples has a loss: all targets are ignored" in text for text in told)


@pytest.mark.parametrize("where", ["weights", "one example"])
def test_what_is_not_finite_is_told_and_does_not_last(tmp_path, where):
    class Broken(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            if where == "weights" and self.global_step == 2:
                self.net[0].weight.data.fill_(float("nan"))
            if where == "weights" and self.global_step == 4:
                for parameter in self.parameters():
                    parameter.data.fill_(0.1)

    data = blobs()
    if where == "one example":
        data.tensors[0][40] = float("inf")
    # behind those that the reading is checked on
    callback = BulkBoundaryLoss(lambda step, epoch: True, examples=None, probe=data.tensors)
    with notices() as told:
        make_trainer(tmp_path, callback).fit(Broken(momentum=0.0), loader(data, shuffle=False))
    assert sum(text.startswith("torch-thermo: bulk_boundary failed") for text in told) == 1
    assert "is not finite" in told[0]
    assert f"failed at step {3 if where == 'weights' else 0}" in told[0]
    steps = finite(callback.stored(), "bulk_boundary", "bulk") if callback.history else []
    assert steps == ([0, 1, 2, 5, 6] if where == "weights" else [])


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"must be of \['exact', 'linear', 'logit'\], got 'x'"):
        BulkBoundaryLoss(method="x")
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        BulkBoundaryLoss(method="exact", starts=0)
    with pytest.raises(TypeError, match=r"starts must be a whole number, got 2\.5"):
        BulkBoundaryLoss(starts=2.5)
    with pytest.raises(TypeError, match="starts must be a whole number, got True"):
        BulkBoundaryLoss(starts=True)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        BulkBoundaryLoss(seed=-1)
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        BulkBoundaryLoss(examples=0)
