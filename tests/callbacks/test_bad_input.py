"""What may go wrong in a run is one notice with the reason, and the training goes on."""

from __future__ import annotations

import importlib

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.callbacks.support import (
    Classifier,
    cheap,
    finite,
    loader,
    make_trainer,
    notices,
    steps_of,
)
from torch_thermo.callbacks import (
    At,
    Every,
    GradientSymmetry,
    HessianSpectrum,
    Log,
    PlasticityOrderParameter,
    Thermometer,
    ThermoWarning,
    WeightSymmetry,
)

START = At(steps=[0], end=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HessianSpectrum(steps=0), "steps must be at least 1, got 0"),
        (lambda: HessianSpectrum(density_steps=-1), "density_steps must be at least 1, got -1"),
        (lambda: HessianSpectrum(density_probes=0), "density_probes must be at least 1, got 0"),
        (lambda: HessianSpectrum(examples=0), "examples must be at least 1, got 0"),
        (lambda: HessianSpectrum(operators=["jacobian"]), "operators must be of .*'jacobian'"),
        (lambda: HessianSpectrum(operators=["functional"] * 2), "'functional' twice"),
        (lambda: PlasticityOrderParameter(examples=-2), "examples must be at least 1, got -2"),
        (lambda: Thermometer(budget=0), r"budget must be a share in \(0, 1\], got 0"),
        (lambda: Thermometer(budget=1.5), "got 1.5"),
        (lambda: Thermometer(callbacks=[]), "callbacks is empty"),
        (lambda: Every(steps=0), "steps must be at least 1, got 0"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HessianSpectrum(steps=2.5), r"^steps must be a whole number, got 2\.5"),
        (lambda: HessianSpectrum(density_steps="9"), "density_steps must be .* got '9'"),
        (lambda: HessianSpectrum(density_probes=True), "density_probes must be .* got True"),
        (lambda: HessianSpectrum(operators="hessian"), r'as \["hessian"\], got \'hessian\''),
        (lambda: HessianSpectrum(operators=None), "operators must be a list .* got None"),
        (lambda: HessianSpectrum(density=0), "density must be callable, got int"),
        (lambda: Thermometer(budget="a"), "budget must be a number, got 'a'"),
        (lambda: Thermometer(budget=True), "budget must be a number, got True"),
        (lambda: Thermometer(callbacks=WeightSymmetry()), "must be a list .* got WeightSymmetry"),
        (lambda: Thermometer(callbacks=[WeightSymmetry]), "got <class .*WeightSymmetry'>"),
        (lambda: Thermometer(callbacks=[pl.Callback()]), r"got <pytorch_lightning.*\.Callback "),
    ],
)
def test_arguments_of_another_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("schedule", [5, 0, ()])
@pytest.mark.parametrize(
    "kind", [PlasticityOrderParameter, GradientSymmetry, WeightSymmetry, HessianSpectrum]
)
def test_a_schedule_must_be_callable(kind, schedule):
    with pytest.raises(
        TypeError, match=f"schedule must be callable, got {type(schedule).__name__}"
    ):
        kind(schedule=schedule)


def test_extremes_alone():
    assert HessianSpectrum(operators=()).observables() == ["hessian_extremes"]


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("functional", "the functional part of the Hessian"),
        ("gauss_newton", "the Gauss-Newton matrix"),
    ],
)
def test_a_part_of_the_hessian_without_a_criterion_says_what_to_change(tmp_path, operator, name):
    class Own(Classifier):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)

    spectrum = HessianSpectrum(START, START, operators=["hessian", operator], density_steps=3)
    with notices() as texts:
        make_trainer(tmp_path, Thermometer(probe=12, callbacks=[spectrum])).fit(Own(), loader())
    assert f"{operator}_density is skipped from step 0 on: {name} needs the loss as" in texts[0]
    assert "give Thermometer(loss_fn=...)" in texts[0]
    assert "make the loss of training_step self.criterion(self(x), y) or a plain" in texts[0]
    assert len(texts) == 1, texts


def test_two_callbacks_of_one_observable_in_a_bundle_are_refused():
    with pytest.raises(ValueError, match="weight_symmetry"):
        Thermometer(callbacks=[WeightSymmetry(), WeightSymmetry(Every(steps=2))])


def test_arguments_of_members_that_would_be_dropped_are_refused():
    with pytest.raises(ValueError, match=r"GradientSymmetry.*probe"):
        Thermometer(callbacks=[GradientSymmetry(probe="val")])
    with pytest.raises(ValueError, match=r"HessianSpectrum.*loss_fn"):
        Thermometer(callbacks=[HessianSpectrum(loss_fn=nn.functional.cross_entropy)])


@pytest.mark.parametrize(
    "options",
    [
        {"logger": False},
        {"logger": False, "default_root_dir": "runs/here"},
        {"logger": False, "default_root_dir": "s3://bucket/runs"},
        {"fast_dev_run": 3},
        {"barebones": True},
    ],
)
def test_runs_without_a_logger(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    callback = cheap()
    options = {
        "accelerator": "cpu",
        "max_epochs": 1,
        **({"enable_progress_bar": False} if "barebones" not in options else {}),
        **options,
    }
    if "barebones" not in options:
        options |= {"enable_model_summary": False, "enable_checkpointing": False}
    with notices() as texts:
        pl.Trainer(callbacks=[callback], **options).fit(Classifier(), loader())
    assert len(texts) == 1, texts
    assert "no logger" in texts[0]
    updates = 3 if "fast_dev_run" in options else 6
    stored = callback.stored()
    local = options.get("default_root_dir") == "runs/here"
    root = tmp_path / "runs/here" if local else tmp_path
    assert stored.path.parent.resolve() == root / "thermo_runs"
    assert stored.id in stored.path.name
    assert finite(stored, "order_parameter_minibatch") == list(range(updates))
    assert finite(stored, "order_parameter")[-1] == updates
    assert callback.history["order_parameter"][0]["step"] == 0


def test_sanity_check_measures_nothing(tmp_path):
    class Validated(Classifier):
        def validation_step(self, batch, batch_idx):
            assert self.trainer.sanity_checking == (not thermometer.history)

    thermometer = cheap()
    trainer = make_trainer(tmp_path, thermometer, num_sanity_val_steps=2, max_epochs=1)
    trainer.fit(Validated(), loader(), loader(shuffle=False))
    assert finite(thermometer.stored(), "order_parameter") == [0, 1, 2, 3, 4, 6]


class Poisoned(Classifier):
    """From one step on weights or loss are NaN."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.what == "loss" and self.global_step >= 3:
            loss = loss * float("nan")
        return loss

    def on_train_batch_start(self, batch, batch_idx):
        if self.what == "weights" and self.global_step == 3:
            self.net[0].weight.data[0, 0] = float("nan")


@pytest.mark.parametrize("what", ["weights", "loss"])
def test_nan_in_the_middle(tmp_path, what):
    thermometer = Thermometer(probe=12)
    with notices() as texts:
        trainer = make_trainer(tmp_path, thermometer, max_epochs=2)
        trainer.fit(Poisoned(what), loader())
    assert trainer.global_step == 12
    counted = steps_of(thermometer.stored())
    assert counted["order_parameter"] == [0, 1, 2, 3]
    assert counted["order_parameter_minibatch"] == [0, 1, 2]
    assert counted["hessian_extremes"] == [0, 1, 2, 3]
    assert counted["hessian_density"] == [0, 1]
    # one of what is measured on the probe, one of the steps' own gradients
    assert len(texts) == 2, texts
    assert any("not finite" in text and "step 4" in text for text in texts)
    assert any("order_parameter_minibatch is not finite at step 3" in text for text in texts)


def test_nan_from_the_start_warns_of_nothing(tmp_path):
    class Broken(Classifier):
        def __init__(self):
            super().__init__()
            self.net[0].weight.data.fill_(float("nan"))

    callback = PlasticityOrderParameter(START, minibatch=False, probe=12)
    with notices() as texts:
        make_trainer(tmp_path, callback).fit(Broken(), loader())
    assert len(texts) == 2, texts
    assert "measured NOTHING" in texts[1]
    assert "not finite" in texts[1]


def test_a_spectrum_that_cannot_fit(tmp_path, monkeypatch):
    # enough for the extremes, too little for the densities
    memory = 2 * 4 * 53 * 12
    module = importlib.import_module("torch_thermo.observables.hessian_spectrum")
    monkeypatch.setattr(module, "available_bytes", lambda device: memory)
    spectrum = HessianSpectrum(steps=3, density_steps=60, operators=["hessian"])
    thermometer = Thermometer(probe=12, callbacks=[spectrum, PlasticityOrderParameter()])
    with notices() as texts:
        make_trainer(tmp_path, thermometer).fit(Classifier(), loader())
    assert len(texts) == 1, texts
    assert "hessian_density is skipped from step 0 on: a spectrum of 53 parameters" in texts[0]
    assert "steps=60, probes=2 (120 products)" in texts[0]
    counted = steps_of(thermometer.stored())
    assert counted["hessian_extremes"] == [0, 1, 2, 3, 6]
    assert counted["order_parameter"] == [0, 1, 2, 3, 4, 6]
    assert counted["hessian_density"] == []


def test_nothing_due(tmp_path):
    callback = PlasticityOrderParameter(At(steps=[100], end=False), minibatch=False, probe=12)
    with pytest.warns(ThermoWarning, match=r"measured NOTHING.*shorter than the schedules"):
        make_trainer(tmp_path, callback).fit(Classifier(), loader())


@pytest.mark.parametrize("logger", [None, False])
def test_what_was_never_measured_is_named(tmp_path, monkeypatch, logger):
    monkeypatch.chdir(tmp_path)
    late = At(steps=[100], end=False)
    callback = Thermometer(probe=12, callbacks=[WeightSymmetry(), GradientSymmetry(late)])
    # that there is no logger is not the reason
    with pytest.warns(ThermoWarning, match=r"never measured gradient_symmetry: no measurement"):
        make_trainer(tmp_path, callback, logger=logger).fit(Classifier(), loader())


def test_a_run_shorter_than_a_schedule_is_measured_at_its_end(tmp_path):
    for schedule in (Every(steps=100), Every(epochs=50), At(steps=[100]), Log(per_decade=1)):
        callback = GradientSymmetry(schedule, probe=12)
        with notices() as texts:
            make_trainer(tmp_path / str(schedule), callback).fit(Classifier(), loader())
        assert not texts
        assert finite(callback.stored(), "gradient_symmetry", "sign_balance")[-1] == 6


@pytest.mark.parametrize("how", ["limit", "empty", "epochs"])
def test_no_batches(tmp_path, how):
    options = {"limit": {"limit_train_batches": 0}, "epochs": {"max_epochs": 0}}.get(how, {})
    train = DataLoader([]) if how == "empty" else loader()
    with pytest.warns(ThermoWarning, match="measured NOTHING in this run: no training step"):
        make_trainer(tmp_path, Thermometer(), **options).fit(Classifier(), train)


def test_max_steps(tmp_path):
    callback = cheap()
    make_trainer(tmp_path, callback, max_epochs=-1, max_steps=4).fit(Classifier(), loader())
    counted = steps_of(callback.stored())
    assert counted["order_parameter"] == [0, 1, 2, 3, 4]
    assert counted["hessian_density"] == [0, 1, 4]
    assert callback.stored().meta["steps"] == 4


class NoEvaluation(Classifier):
    def forward(self, x):
        if not self.training:
            raise RuntimeError("this net trains only")
        return super().forward(x)


def test_a_forward_that_fails_in_eval(tmp_path):
    thermometer = cheap()
    with notices() as texts:
        trainer = make_trainer(tmp_path, thermometer)
        trainer.fit(NoEvaluation(), loader())
    assert trainer.global_step == 6
    assert len(texts) == 3, texts
    assert "the loss can't be measured: this net trains only" in texts[0]
    names = "circuit_symmetry, circuit_sample, propagator_spectrum"
    assert f"{names} failed at step 0: this net trains only" in texts[1]
    assert "never measured" in texts[2]
    counted = steps_of(thermometer.stored())
    assert counted["weight_symmetry"] == [0, 1, 2, 3, 4, 6]
    assert counted["order_parameter_minibatch"] == list(range(6))


def test_frozen_parameters_are_left_out(tmp_path):
    class Frozen(Classifier):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)

    thermometer = cheap()
    make_trainer(tmp_path, thermometer).fit(Frozen(), loader())
    names = thermometer.stored().names
    assert "order_parameter/layer/net.2.weight" in names
    assert "order_parameter/layer/net.0.weight" not in names
    assert "weight_symmetry/layer/net.0.weight" not in names
    assert steps_of(thermometer.stored())["hessian_extremes"] == [0, 1, 2, 3, 6]


def test_unfreezing_in_the_middle(tmp_path):
    class Thawing(Classifier):
        def __init__(self):
            super().__init__()
            self.net[0].requires_grad_(False)

        def on_train_batch_start(self, batch, batch_idx):
            self.net[0].requires_grad_(self.global_step >= 2)

    thermometer = cheap()
    with notices() as texts:
        make_trainer(tmp_path, thermometer).fit(Thawing(), loader())
    assert not texts
    stored = thermometer.stored()
    assert stored.series("order_parameter/layer/net.0.weight").steps[0] == 3
    assert steps_of(stored)["hessian_extremes"] == [0, 1, 2, 3, 6]


def test_an_unused_parameter_has_no_gradient(tmp_path):
    class Unused(Classifier):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(2, 2)

    thermometer = cheap()
    make_trainer(tmp_path, thermometer).fit(Unused(), loader())
    assert thermometer.stored().series("order_parameter/layer/spare.weight").values[0] == 0.0
    assert steps_of(thermometer.stored())["hessian_extremes"] == [0, 1, 2, 3, 6]


def test_sharded_strategies_are_refused_by_name(tmp_path):
    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
        pass

    def train(callback):
        strategy = FSDPStrategy(device=torch.device("cpu"))
        make_trainer(tmp_path, callback, strategy=strategy).fit(Classifier(), loader())

    for callback in (GradientSymmetry(probe=12), WeightSymmetry()):
        with pytest.raises(ValueError, match="FSDPStrategy shards the parameters"):
            train(callback)
