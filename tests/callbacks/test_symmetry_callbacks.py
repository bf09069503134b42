"""The two symmetry callbacks in real trainings: what they store is what the functions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.callbacks.support import Classifier, ReLUNet, finite, loader, make_trainer, notices
from torch_thermo import Risk, gradient_symmetry, symmetry_test, weight_symmetry
from torch_thermo.callbacks import GradientSymmetry, Thermometer, WeightSymmetry
from torch_thermo.callbacks import symmetry as shared
from torch_thermo.dashboard import histogram_arrays, layer_histograms

POOLED = (
    "n",
    "sign_balance",
    "low",
    "high",
    "butler",
    "butler_p",
    "odd_moment",
    "w_sym",
    "w_sym_null",
)


def trained(folder, callback, module=None, **options):
    module = module or ReLUNet()
    make_trainer(folder, callback, **options).fit(module, loader(shuffle=False))
    return module, callback.stored()


def last(run, name):
    return float(run.series(name).values[-1])


def assert_stored(run, observable, layers, pooled, rel=1e-12):
    """The stored numbers of the last step are those of these entries."""
    test = symmetry_test(pooled)
    expected = {name: getattr(test, name) for name in POOLED if name not in ("low", "high")} | dict(
        zip(("low", "high"), test.interval, strict=True)
    )
    for name in POOLED:
        assert last(run, f"{observable}/{name}") == pytest.approx(expected[name], rel=rel), name
    for name, layer in layers.items():
        for stored, value in (
            ("layer", layer.sign_balance),
            ("w_sym", layer.w_sym),
            ("w_sym_null", layer.w_sym_null),
        ):
            assert last(run, f"{observable}/{stored}/{name}") == pytest.approx(value, rel=rel)
    assert {n.partition("/")[2] for n in run.names if n.startswith(f"{observable}/")} == {
        *POOLED,
        *(f"{kind}/{name}" for name in layers for kind in ("layer", "w_sym", "w_sym_null")),
    }


def test_weights_are_those_of_the_function(tmp_path):
    module, run = trained(tmp_path, WeightSymmetry())
    pooled = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert_stored(run, "weight_symmetry", weight_symmetry(module), pooled)
    assert last(run, "weight_symmetry/n") == pooled.numel() == 72


def test_gradients_are_those_of_the_function(tmp_path):
    module, run = trained(tmp_path, callback := GradientSymmetry())
    module.eval()  # as the probe is measured
    risk = Risk(module, module.criterion, callback.session.probe.batches)
    assert_stored(run, "gradient_symmetry", gradient_symmetry(risk), risk.gradient(), rel=1e-5)
    assert last(run, "gradient_symmetry/w_sym") > 0


def test_measured_as_often_as_planned(tmp_path):
    _, run = trained(tmp_path, Thermometer(callbacks=[WeightSymmetry(), GradientSymmetry()]))
    for observable in ("weight_symmetry", "gradient_symmetry"):
        assert finite(run, observable, "w_sym") == [0, 1, 2, 3, 4, 6]
        assert run.array_steps(observable) == [0, 1, 2, 3, 4, 6]
        assert run.meta["measurements"][observable] == 6


def test_histograms_of_the_final_weights(tmp_path):
    module, run = trained(tmp_path, WeightSymmetry())
    layers = {name: p.detach() for name, p in module.named_parameters()}
    pooled = torch.cat([p.reshape(-1) for p in layers.values()])
    expected = {**histogram_arrays(pooled), **layer_histograms(layers)}
    stored = run.arrays("weight_symmetry")
    assert stored.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(stored[name], array)
    assert stored["counts"].sum() == 72
    assert stored["layer_names"].tolist() == list(layers)


def test_frozen_weights_are_left_out(tmp_path):
    module = Classifier()
    module.net[0].requires_grad_(False)
    _, run = trained(tmp_path, WeightSymmetry(), module)
    assert last(run, "weight_symmetry/n") == 18
    assert "weight_symmetry/layer/net.0.weight" not in run.names


def test_a_layer_of_zeros_is_undefined_and_the_others_are_not(tmp_path):
    module = Classifier(lr=0.0)
    torch.nn.init.zeros_(module.net[2].bias)
    _, run = trained(tmp_path, WeightSymmetry(), module)
    assert math.isnan(last(run, "weight_symmetry/layer/net.2.bias"))
    assert math.isnan(last(run, "weight_symmetry/w_sym/net.2.bias"))
    assert math.isfinite(last(run, "weight_symmetry/w_sym"))


class Breaking(ReLUNet):
    """A weight becomes NaN in the fourth batch."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            self.net[3].weight.data[0, 0] = math.nan
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [WeightSymmetry, GradientSymmetry])
def test_weights_that_are_not_finite_are_told_and_the_training_goes_on(tmp_path, kind):
    callback = kind()
    with notices() as texts:
        trainer = make_trainer(tmp_path, callback)
        trainer.fit(Breaking(), loader(shuffle=False))
    assert trainer.global_step == 6
    told = [text for text in texts if f"{callback.observable} failed at step 4" in text]
    assert len(told) == 1
    assert "not finite" in told[0] or "NaN" in told[0]
    assert finite(callback.stored(), callback.observable, "w_sym") == [0, 1, 2, 3]


def test_the_layer_that_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match=r"net\.0\.bias is not finite"):
        shared.symmetries(
            [("net.0.weight", torch.ones(2, 2)), ("net.0.bias", torch.tensor([math.inf]))], 0
        )


def test_a_large_net_is_ordered_in_part(monkeypatch):
    monkeypatch.setattr(shared, "RANKED", 500)
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(40, 100, generator=generator) + 0.2
    layers = [("large", large), ("small", large[0])]
    found = shared.symmetries(layers, seed=3).scalars
    pooled = torch.cat([large.reshape(-1), large[0]])
    test = symmetry_test(pooled, seed=3, most=500)
    assert test.ranked == 500
    assert found["n"] == 4100
    assert found["sign_balance"] == symmetry_test(pooled).sign_balance
    assert (found["butler"], found["w_sym"]) == (test.butler, test.w_sym)
    assert found["w_sym/large"] == symmetry_test(large, seed=3, most=500).w_sym
    assert found["w_sym/small"] == symmetry_test(large[0]).w_sym
    assert found["w_sym"] != shared.symmetries(layers, seed=4).scalars["w_sym"]


def test_nothing_to_measure_is_undefined():
    found = shared.symmetries([], 0)
    assert found.scalars["n"] == 0
    assert math.isnan(found.scalars["w_sym"])
    assert found.arrays == {}


def test_figures_that_the_dashboard_draws(tmp_path):
    measured = shared.symmetries([("a", torch.randn(5))], 0)
    assert list(measured.figures) == ["histogram", "ridgeline"]
