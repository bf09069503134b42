"""A Lightning run that trains on the bulk loss, with the thermometer attached."""

from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.callbacks.support import blobs, cheap, compare, finite, loader, make_trainer
from torch_thermo.callbacks import At, HessianSpectrum, Thermometer
from torch_thermo.observables.bulk_loss import BulkLoss
from torch_thermo.operators import HessianOperator
from torch_thermo.risk import Risk


class OnTheBulkLoss(pl.LightningModule):
    """A tanh network whose training step returns its bulk loss."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh())
        for parameter in self.network.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        self.criterion = BulkLoss(self.network)

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        right = self(inputs).argmax(1) == targets.argmax(1)
        self.log("accuracy", right.float().mean())
        return self.criterion(inputs, targets)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def signs():
    inputs, labels = blobs().tensors
    return TensorDataset(inputs, 2 * nn.functional.one_hot(labels, 3).float() - 1)


def test_the_thermometer_measures_the_bulk_loss(tmp_path):
    """The run is the same bit by bit; the risk is the bulk loss, and the Hessian is its own."""
    told: list[str] = []
    stored = compare(
        tmp_path, lambda: (OnTheBulkLoss(), loader(signs())), [cheap()], told=told, max_epochs=2
    )
    # not a function of the output: the callback that needs one says so, once
    assert [text for text in told if "bulk_boundary" in text or "bulk loss" in text]
    assert "bulk_boundary" not in stored.observables
    for name in ("order_parameter", "gradient_symmetry", "hessian_density", "propagator_spectrum"):
        assert name in stored.observables
    steps = finite(stored, "hessian_extremes", "lambda_max")
    assert steps
    assert steps[-1] == 12


def test_its_hessian_is_that_of_the_moving_minimum(tmp_path):
    module = OnTheBulkLoss()
    inputs, targets = signs().tensors
    thermometer = Thermometer(
        probe=(inputs, targets),
        callbacks=[
            HessianSpectrum(At(steps=[0], end=False), steps=64, operators=(), examples=None)
        ],
    )
    loss = BulkLoss(copy.deepcopy(module.network).double())
    make_trainer(tmp_path, thermometer, limit_train_batches=1).fit(module, loader(signs()))
    stored = thermometer.stored().series("hessian_extremes/lambda_max").values[0]
    (model,) = loss._given
    risk = Risk.from_closure(model, lambda _, b: loss(*b), [(inputs.double(), targets.double())])
    expected = torch.linalg.eigvalsh(HessianOperator(risk).dense())
    assert stored == pytest.approx(float(expected[-1]), rel=1e-4)
