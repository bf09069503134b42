"""Hessian entries in real trainings: what is stored is what the function says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.callbacks.model_zoo import ZOO
from tests.callbacks.support import (
    Classifier,
    compare,
    finite,
    loader,
    make_trainer,
    notices,
    vectors,
)
from torch_thermo import Risk
from torch_thermo.callbacks import At, Every, HessianEntries, Thermometer, default_plan
from torch_thermo.observables import hessian_entries


def trained(folder, callback, module=None, **options):
    if module is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = Classifier()
    make_trainer(folder, callback, **options).fit(module, loader(shuffle=False))
    return module, callback.stored()


def hinge(output, target):
    """Active where the class's logit is not far above the mean: a part of the examples."""
    own = output.gather(1, target[:, None])[:, 0]
    return (output.mean(1) - own + 0.2).clamp(min=0).mean()


def test_stored_is_what_the_function_says(tmp_path):
    callback = HessianEntries(columns=40, rows=50, examples=None, seed=3, loss_fn=hinge)
    module, run = trained(tmp_path, callback)
    module.eval()  # as the probe is measured
    risk = Risk(module, hinge, callback.session.probe.batches)
    found = hessian_entries(risk, 40, 50, seed=3)
    assert 10 < len(found.entries) < found.samples
    for name, value in found.summary(seed=3).items():
        stored = run.series(f"hessian_entries/{name}").values[-1]
        assert stored == pytest.approx(value, rel=1e-4, nan_ok=True), name
    arrays = run.arrays("hessian_entries")
    np.testing.assert_array_equal(arrays["columns"], found.columns)
    np.testing.assert_array_equal(arrays["rows"], found.rows)
    np.testing.assert_array_equal(arrays["structural"], found.structural)
    np.testing.assert_array_equal(arrays["silent"], found.silent)
    np.testing.assert_allclose(arrays["z_1"], found.normalised_means(), rtol=1e-4, atol=1e-6)
    given = found.normalised_means(given_active=True)
    np.testing.assert_allclose(arrays["z_active"], given, rtol=1e-4, atol=1e-6)
    chosen = found.correlations(seed=3)
    count = len(chosen.column)
    assert count > 5
    np.testing.assert_array_equal(arrays["correlation_column"], chosen.column)
    np.testing.assert_array_equal(arrays["correlation_row"], chosen.row)
    np.testing.assert_allclose(arrays["correlation"], chosen.test.matrix, atol=1e-4)
    for name in ("correlation", "correlation_active", "significant", "significant_active"):
        assert arrays[name].shape == (count, count)
    assert arrays["null_quantiles"].shape == arrays["null_levels"].shape == (4,)
    assert (np.diff(arrays["null_quantiles_active"]) > 0).all()
    given_active = found.correlations(given_active=True, seed=3).test
    for name, test in (("", chosen.test), ("_active", given_active)):
        stored = arrays[f"sign_null_quantiles{name}"]
        np.testing.assert_allclose(stored, test.sign_null_quantiles, atol=1e-3)
    # given active the correlations are others
    assert np.abs(arrays["correlation_active"] - arrays["correlation"]).max() > 0.01


def test_same_parameters_at_each_step(tmp_path):
    _, run = trained(tmp_path, HessianEntries(Every(steps=3), columns=4, rows=5))
    steps = run.array_steps("hessian_entries")
    assert steps == [0, 3, 6]
    for name in ("columns", "rows"):
        drawn = [run.arrays("hessian_entries", step)[name].tolist() for step in steps]
        assert drawn[0] == drawn[1] == drawn[2]


def test_defaults(tmp_path):
    module, run = trained(tmp_path, HessianEntries())
    count = sum(p.numel() for p in module.parameters())
    assert count < 128
    # one a decade and the end; the net has fewer parameters than the rows asked for
    assert finite(run, "hessian_entries", "active_share") == [0, 1, 6]
    assert run.arrays("hessian_entries")["z_1"].shape == (16, count)


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_every_kind_of_model_is_measured(tmp_path, entry):
    callback = HessianEntries(At(steps=[0]), columns=2, rows=8, examples=8)
    with notices() as told:
        make_trainer(tmp_path, callback, max_steps=1).fit(
            entry.make(), loader(entry.data(), batch_size=4)
        )
    assert told == []
    run = callback.stored()
    assert finite(run, "hessian_entries", "active_share") == [0, 1]
    assert 0 <= run.series("hessian_entries/structural_share").values[0] <= 1


def test_the_run_is_not_disturbed(tmp_path):
    stored = compare(tmp_path, vectors, [HessianEntries(Every(steps=2), columns=4, rows=8)])
    assert finite(stored, "hessian_entries", "share_below")[:2] == [0, 2]


def test_with_the_plan(tmp_path):
    entries = HessianEntries(At(steps=[0]), columns=3, rows=4)
    names = Thermometer(callbacks=[*default_plan(), entries]).observables()
    assert names[-1] == "hessian_entries"
    assert "hessian_entries" not in Thermometer().observables()


class Opaque(Classifier):
    """A loss that is not a function of output and target."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.criterion(self(x), y) + self.net[0].weight.square().sum()


def test_an_opaque_loss_is_skipped_with_one_notice(tmp_path):
    callback = HessianEntries(Every(steps=2))
    with notices() as texts:
        make_trainer(tmp_path, callback).fit(Opaque(), loader(shuffle=False))
    told = {text for text in texts if ": hessian_entries is skipped from step 0 on" in text}
    told = {text for text in told if "NOTHING" not in text}
    assert len(told) == 1
    assert "the Hessian of each example needs the loss as a function of the output" in told.pop()
    assert finite(callback.stored(), "hessian_entries", "active_share") == []


def test_a_solved_net_is_undefined_and_told_by_numbers(tmp_path):
    """No example is active: p and the bound are 0, the shares NaN."""

    def solved(output, target):
        return (-1e6 - output).clamp(min=0).mean()

    callback = HessianEntries(At(steps=[0]), columns=4, rows=8, loss_fn=solved)
    _, run = trained(tmp_path, callback)
    last = {
        name: float(run.series(f"hessian_entries/{name}").values[-1])
        for name in ("active_share", "bound", "share_below", "correlation", "silent_share")
    }
    assert (last["active_share"], last["bound"], last["silent_share"]) == (0.0, 0.0, 1.0)
    assert math.isnan(last["share_below"])
    assert math.isnan(last["correlation"])


@pytest.mark.parametrize("name", ["columns", "rows", "examples"])
def test_refusals(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        HessianEntries(**{name: 0})
    with pytest.raises(TypeError):
        HessianEntries(**{name: torch.ones(2)})
