"""The phase and the assumptions in real trainings: what they store is what the functions say."""

from __future__ import annotations

import math
import re

import pytest
import torch

from tests.callbacks.support import (
    Classifier,
    ReLUNet,
    compare,
    events,
    finite,
    loader,
    make_trainer,
    notices,
    tensorboard,
    vectors,
)
from torch_thermo import Risk, dashboard
from torch_thermo.callbacks import (
    Assumptions,
    At,
    Every,
    Phase,
    Thermometer,
    default_plan,
)
from torch_thermo.observables import check_assumptions, phase

SMALL = {"steps": 4, "probes": 2}
CHEAP = {**SMALL, "paths": 50, "columns": 2, "rows": 4, "examples": 16}


class Dead(ReLUNet):
    """From the second epoch on no unit is on."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[3].weight.data.zero_()
            self.net[0].weight.data.zero_()


def last(run, name):
    return float(run.series(name).values[-1])


def test_the_phase_is_that_of_the_function(tmp_path):
    module = ReLUNet()
    callback = Phase(probe=24, tolerance=0.01, **SMALL)
    make_trainer(tmp_path, callback).fit(module, loader(shuffle=False))
    module.eval()
    risk = Risk(module, module.criterion, callback.session.probe.batches)
    found = phase(risk, 0.01, **SMALL)
    run = callback.stored()
    assert {n.partition("/")[2] for n in run.names} == {"code", *found.evidence}
    for name, value in found.evidence.items():
        assert last(run, f"phase/{name}") == pytest.approx(value, rel=1e-4, nan_ok=True)
    assert last(run, "phase/code") == pytest.approx(found.code, nan_ok=True)
    assert str(run.arrays("phase")["text"]).startswith(f"**{found.name}**: ")
    assert finite(run, "phase", "risk") == [0, 1, 6]


def test_assumptions_are_those_of_the_function(tmp_path):
    module = ReLUNet()
    callback = Assumptions(**CHEAP)
    make_trainer(tmp_path, callback).fit(module, loader(shuffle=False))
    module.eval()
    risk = Risk(module, module.criterion, callback.session.probe.part(16))
    expected = check_assumptions(
        risk, **{name: value for name, value in CHEAP.items() if name != "examples"}
    ).summary()
    run = callback.stored()
    assert {n.partition("/")[2] for n in run.names} == set(expected)
    for name, value in expected.items():
        if not name.startswith("error_"):  # rounding
            stored = last(run, f"assumptions/{name}")
            assert stored == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name
    assert last(run, "assumptions/layers") == 2
    assert last(run, "assumptions/holds_functional_blocks") == 1
    assert last(run, "assumptions/holds_own_blocks") == 0  # cross entropy
    assert "| tr F = 0 | yes |" in str(run.arrays("assumptions")["text"])


def test_a_change_is_told_once(tmp_path):
    callback = Phase(Every(steps=1), probe=24, steps=15)
    with notices() as texts:
        make_trainer(tmp_path, callback, max_epochs=3).fit(Dead(momentum=0.0), loader())
    codes = [row["code"] for row in callback.history["phase"]]
    assert 1.0 in codes[:7]
    assert 2.0 not in codes[:7]
    assert set(codes[8:]) == {2.0}
    told = [text for text in texts if "the net is frustrated at step" in text]
    assert len(told) == 1
    assert re.search("plastic before: the order parameter .0. is 0", told[0])


def test_the_last_phase_outlives_a_checkpoint():
    callback = Phase()
    callback._name = "plastic"
    other = Phase()
    other.recall(callback.memory())
    assert other._name == "plastic"
    other.reset(sharded=False)
    assert other.memory() == {"name": ""}


def test_the_last_phase_outlives_a_real_resume(tmp_path):
    """It was plastic before the checkpoint, and is frustrated at once after it."""

    class Killed(ReLUNet):
        def on_train_start(self):
            if self.current_epoch:
                self.net[3].weight.data.zero_()
                self.net[0].weight.data.zero_()

    def fit(callback, epochs, checkpoint=None):
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, callback, max_epochs=epochs)
        with notices() as texts:
            trainer.fit(Killed(momentum=0.0), loader(shuffle=False), ckpt_path=checkpoint)
        return trainer, [text for text in texts if "the net is frustrated at step" in text]

    first = Phase(Every(steps=1), probe=24, steps=15)
    trainer, told = fit(first, 1)
    assert first.history["phase"][-1]["code"] == 1.0
    assert not told
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = Phase(Every(steps=1), probe=24, steps=15)
    _, told = fit(again, 2, tmp_path / "saved.ckpt")
    assert {row["code"] for row in again.history["phase"]} == {2.0}
    assert len(told) == 1
    assert "plastic before" in told[0]


def test_the_text_is_shown_beside_the_card(tmp_path):
    bundle = Thermometer(callbacks=[Phase(**SMALL), Assumptions(**CHEAP)], probe=24)
    make_trainer(tmp_path, bundle, logger=tensorboard(tmp_path)).fit(ReLUNet(), loader())
    tags = events(tmp_path / "tb").Tags()
    for name in ("phase", "assumptions"):
        assert f"thermo/{name}/text/text_summary" in tags["tensors"]
        assert f"thermo/{name}/about/text_summary" in tags["tensors"]
    assert "thermo/phase/order_parameter" in tags["scalars"]


@pytest.mark.parametrize("name", ["phase", "assumptions"])
def test_cards_and_charts_name_what_is_stored(name, tmp_path):
    layout = dashboard.custom_scalar_layout([name])
    assert name in dashboard.CARDS
    tags = [tag for charts in layout.values() for _, tags in charts.values() for tag in tags]
    callback = {"phase": Phase(**SMALL), "assumptions": Assumptions(**CHEAP)}[name]
    make_trainer(tmp_path, callback).fit(ReLUNet(), loader())
    for tag in tags:
        stored = [n for n in callback.stored().names if re.match(tag, f"thermo/{n}")]
        assert len(stored) == 1, tag


@pytest.mark.parametrize("make", [vectors, lambda: (Classifier(), loader())])
def test_the_run_is_not_disturbed(tmp_path, make):
    """Bit for bit: weights, optimizer, generators and logged metrics."""
    bundle = Thermometer(
        callbacks=[Phase(Every(steps=2), **SMALL), Assumptions(Every(steps=3), **CHEAP)], probe=24
    )
    run = compare(tmp_path, make, [bundle])
    assert len(finite(run, "phase", "risk")) > 5
    assert len(finite(run, "assumptions", "error_layer_balance")) > 3


def test_beside_the_plan(tmp_path):
    """Neither is in the plan; both can be added to it."""
    plan = default_plan()
    names = [name for callback in plan for name in callback.observables()]
    assert names == list(Thermometer().observables())
    assert "phase" not in names
    assert "assumptions" not in names
    bundle = Thermometer(callbacks=[*plan, Phase(), Assumptions()])
    assert list(bundle.observables()) == [*names, "phase", "assumptions"]


def test_a_loss_that_is_only_known_as_a_closure(tmp_path):
    """No functional part: neither plastic nor its identities, the rest is measured."""

    class Opaque(ReLUNet):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 0.01 * sum(
                p.square().sum() for p in self.parameters()
            )

    bundle = Thermometer(
        callbacks=[Phase(At(steps=[0]), **SMALL), Assumptions(At(steps=[0]), **CHEAP)], probe=24
    )
    make_trainer(tmp_path, bundle).fit(Opaque(), loader())
    run = bundle.stored()
    assert math.isnan(last(run, "phase/code"))
    assert "functional part needs the loss" in str(run.arrays("phase")["text"])
    assert math.isfinite(last(run, "phase/lambda_min"))
    assert math.isnan(last(run, "assumptions/error_functional_trace"))
    assert last(run, "assumptions/holds_own_blocks") == 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Phase(tolerance=-1), ValueError, "tolerance must be finite and at least 0, got"),
        (lambda: Phase(tolerance="0"), TypeError, "tolerance must be a number, got '0'"),
        (lambda: Phase(steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda: Phase(probes=2.5), TypeError, "probes must be a whole number, got 2.5"),
        (lambda: Assumptions(layers=0), ValueError, "layers must be at least 1, got 0"),
        (lambda: Assumptions(paths=-1), ValueError, "paths must be at least 0, got -1"),
        (lambda: Assumptions(rows=1.5), TypeError, "rows must be a whole number, got 1.5"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_weights_that_are_not_finite_are_told(tmp_path):
    class Broken(ReLUNet):
        def on_train_start(self):
            self.net[0].weight.data[0, 0] = torch.nan

    bundle = Thermometer(callbacks=[Phase(**SMALL), Assumptions(**CHEAP)], probe=24)
    with notices() as texts:
        make_trainer(tmp_path, bundle).fit(Broken(), loader())
    assert [text for text in texts if "not finite" in text]
