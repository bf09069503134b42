"""The callbacks serve both names Lightning is imported by, and both command lines."""

from __future__ import annotations

import importlib
import pickle
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from tests.callbacks.support import loader, steps_of
from torch_thermo.callbacks import (
    BulkBoundaryLoss,
    CircuitSymmetry,
    GradientSymmetry,
    HessianSpectrum,
    PlasticityOrderParameter,
    PropagatorSpectrum,
    Thermometer,
    WeightSymmetry,
)
from torch_thermo.callbacks.thermometer import default_plan

ROOTS = ["lightning.pytorch", "pytorch_lightning"]
EACH_ROOT = [
    pytest.param(
        root,
        marks=pytest.mark.skipif(find_spec(root.split(".")[0]) is None, reason=f"no {root}"),
    )
    for root in ROOTS
]
ALL = [
    Thermometer,
    PlasticityOrderParameter,
    GradientSymmetry,
    WeightSymmetry,
    HessianSpectrum,
    BulkBoundaryLoss,
    CircuitSymmetry,
    PropagatorSpectrum,
]


def module_of(root: str) -> type:
    base: Any = importlib.import_module(root).LightningModule

    class Net(base):
        def __init__(self, width: int = 5) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
            self.criterion = nn.CrossEntropyLoss()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            loss = self.criterion(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Net


def quiet(root: str, folder: Any) -> dict[str, Any]:
    logger = importlib.import_module(f"{root}.loggers").CSVLogger(folder, name="", version="run")
    return {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": logger,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }


@pytest.mark.parametrize("root", EACH_ROOT)
def test_both_trainers(tmp_path, root):
    trainer_class = importlib.import_module(root).Trainer
    spectrum = HessianSpectrum(steps=3, density_steps=3)
    callback = Thermometer(
        probe=12,
        callbacks=[PlasticityOrderParameter(), GradientSymmetry(), WeightSymmetry(), spectrum],
    )
    trainer = trainer_class(callbacks=[callback], **quiet(root, tmp_path))
    trainer.fit(module_of(root)(), loader())
    counted = steps_of(callback.stored())
    assert counted["order_parameter_minibatch"] == list(range(6))
    assert counted["order_parameter"] == [0, 1, 2, 3, 4, 6]
    assert counted["functional_density"] == [0, 1, 6]


@pytest.mark.parametrize("root", EACH_ROOT)
@pytest.mark.parametrize("kind", ALL)
def test_callbacks_are_of_both_roots(root, kind):
    assert issubclass(kind, importlib.import_module(root).Callback)


@pytest.mark.parametrize("root", EACH_ROOT)
def test_both_command_lines(tmp_path, root):
    cli_class = importlib.import_module(f"{root}.cli").LightningCLI
    arguments = [
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.enable_checkpointing=false",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.max_epochs=1",
        "--trainer.callbacks+=torch_thermo.callbacks.Thermometer",
        "--trainer.callbacks.probe=12",
        "--trainer.callbacks.budget=0.5",
        "--trainer.callbacks.module=net",
        "--trainer.callbacks+=torch_thermo.callbacks.HessianSpectrum",
        "--trainer.callbacks.schedule=torch_thermo.callbacks.Every",
        "--trainer.callbacks.schedule.steps=3",
        "--trainer.callbacks.operators=[hessian]",
        "--model.width=4",
    ]
    cli = cli_class(
        module_of(root),
        args=arguments,
        run=False,
        save_config_callback=None,
        seed_everything_default=1,
    )
    bundle, spectrum = [c for c in cli.trainer.callbacks if type(c) in ALL]
    assert bundle._arguments[0] == 12
    assert bundle.budget == 0.5
    assert bundle.module == "net"
    assert [member.observable for member in spectrum.members()] == [
        "hessian_extremes",
        "hessian_density",
    ]
    assert [step for step in range(8) if spectrum.schedule(step, None)] == [0, 3, 6]
    assert cli.model.net[0].out_features == 4


@pytest.mark.parametrize("kind", ALL)
def test_callbacks_can_be_pickled(kind):
    copied = pickle.loads(pickle.dumps(kind()))
    assert copied.state_key == kind().state_key
    assert list(copied.observables()) == list(kind().observables())


@pytest.mark.skipif(find_spec("lightning") is None, reason="no lightning")
@pytest.mark.parametrize(("missing", "left"), [ROOTS, ROOTS[::-1]])
def test_a_missing_root_is_no_reason_to_fail(monkeypatch, missing, left):
    original = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == missing:
            raise ModuleNotFoundError(name)
        return original(name, *rest)

    before = original("torch_thermo.callbacks._roots")
    monkeypatch.setattr(importlib, "import_module", without)
    monkeypatch.delitem(sys.modules, "torch_thermo.callbacks._roots")
    again = original("torch_thermo.callbacks._roots")
    assert again.Callback.__bases__ == (original(left).Callback,)
    assert before.Callback.__bases__ == tuple(original(root).Callback for root in ROOTS[::-1])


def test_the_bundle_has_every_public_callback():
    kinds = {type(member) for member in default_plan()}
    assert kinds == set(ALL) - {Thermometer}
