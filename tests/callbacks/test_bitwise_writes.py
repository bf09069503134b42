"""Training steps that write to weights, or to what they reach through the trainer."""

from __future__ import annotations

import threading

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tests.callbacks.support import (
    Classifier,
    Recorder,
    assert_same,
    blobs,
    loader,
    make_trainer,
    notices,
)
from torch_thermo.callbacks import Every, HessianSpectrum, PlasticityOrderParameter, Thermometer


class Target(Classifier):
    """A target network that follows the online one, as in BYOL, MoCo and DQN."""

    def __init__(self):
        super().__init__()
        self.target = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.target.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        return (
            super().training_step(batch, batch_idx)
            + (self(batch[0]) - self.target(batch[0])).square().mean()
        )


class ClippedData(Classifier):
    def training_step(self, batch, batch_idx):
        for p in self.parameters():
            p.data.clamp_(-0.2, 0.2)
        return super().training_step(batch, batch_idx)


class ClippedInPlace(Classifier):
    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            for p in self.parameters():
                p.clamp_(-0.2, 0.2)
        return super().training_step(batch, batch_idx)


class Swapped(Classifier):
    """The memory itself is exchanged."""

    def training_step(self, batch, batch_idx):
        for p in self.parameters():
            p.data = p.data * 0.999
        return super().training_step(batch, batch_idx)


class Renormalised(Classifier):
    """The forward pass itself writes: nn.Embedding(max_norm=)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 6, max_norm=0.5)

    def forward(self, x):
        return super().forward(x + self.table((x[:, 0] > 0).long()))


class Toggled(Classifier):
    def training_step(self, batch, batch_idx):
        self.net[0].weight.requires_grad_(batch_idx % 2 == 0)
        return super().training_step(batch, batch_idx)


class Warm(Classifier):
    """The learning rate is set in the step."""

    def training_step(self, batch, batch_idx):
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] *= 0.99
            group["warm"] = group.get("warm", 0) + 1
        return super().training_step(batch, batch_idx)


class Scheduled(Classifier):
    """The step drives the scheduler, one of the trainer's and one of its own."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.own = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        theirs = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": theirs, "interval": "epoch"}}

    def training_step(self, batch, batch_idx):
        self.lr_schedulers().step()
        self.own.step()
        return super().training_step(batch, batch_idx)


class Counter(pl.Callback):
    def __init__(self):
        self.count, self.seen, self.table = 0, [], {}


class Data(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.count, self.seen = 0, []

    def train_dataloader(self):
        return loader(blobs(), shuffle=True)


class Reaching(Classifier):
    def training_step(self, batch, batch_idx):
        counter = next(c for c in self.trainer.callbacks if isinstance(c, Counter))
        for reached in (counter, self.trainer.datamodule):
            reached.count += 1
            reached.seen.append(float(batch[0].sum()))
        counter.table[counter.count] = True
        return super().training_step(batch, batch_idx)


WRITERS = [Target, ClippedData, ClippedInPlace, Swapped, Renormalised]
REACHERS = [Toggled, Warm, Scheduled]


def trained(folder, kind, thermometers, epochs=3):
    pl.seed_everything(1, verbose=False)
    module, recorder, counter, data = kind(), Recorder(), Counter(), Data()
    trainer = make_trainer(folder, *thermometers, recorder, counter, max_epochs=epochs)
    with notices() as told:
        trainer.fit(module, datamodule=data)
    state = (counter.count, counter.seen, counter.table, data.count, data.seen)
    rates = [g["lr"] for g in trainer.optimizers[0].param_groups]
    flags = [p.requires_grad for p in module.parameters()]
    return recorder, (state, rates, flags, trainer.optimizers[0].param_groups[0].get("warm")), told


@pytest.mark.parametrize("kind", [*WRITERS, *REACHERS, Reaching])
def test_the_run_is_the_same_bit_by_bit(tmp_path, kind):
    thermometer = Thermometer(
        probe=16,
        callbacks=[
            PlasticityOrderParameter(Every(steps=1)),
            HessianSpectrum(Every(steps=3), Every(steps=6), steps=3, density_steps=3),
        ],
    )
    plain = trained(tmp_path / "without", kind, [])
    measured = trained(tmp_path / "with", kind, [thermometer])
    assert_same(plain[0], measured[0])
    assert plain[1] == measured[1]
    assert thermometer.session.measurements["order_parameter"] == 19
    assert thermometer.session.measurements["order_parameter_minibatch"] == 18
    if kind is not ClippedInPlace:  # there autograd refuses the second derivative
        assert thermometer.session.measurements["hessian_extremes"] == 7
    assert any("writes to" in text for text in measured[2]) == (kind in (*WRITERS, Toggled))


class Sampler(pl.Callback):
    """Gathers in the background while a batch is measured, as monitors of the machine do."""

    def __init__(self):
        self.seen, self.lock = [], threading.Lock()


class Sampled(Classifier):
    """Writes as the thread of the callback would, at a place that a measurement comes by."""

    def training_step(self, batch, batch_idx):
        sampler = next(c for c in self.trainer.callbacks if isinstance(c, Sampler))
        with sampler.lock:
            sampler.seen.append(batch_idx)
        return super().training_step(batch, batch_idx)


def test_what_a_thread_gathers_is_not_undone(tmp_path):
    sampler = Sampler()
    callback = PlasticityOrderParameter(Every(steps=1), probe=16)
    make_trainer(tmp_path, callback, sampler).fit(Sampled(), loader())
    assert callback.session.measurements["order_parameter"] == 7
    assert len(sampler.seen) > 6
