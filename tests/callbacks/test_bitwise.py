"""The first promise: a run with the callbacks is bit by bit the run without, and is measured."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from tests.callbacks.support import (
    TwoOptimizers,
    cheap,
    compare,
    csv_columns,
    event_scalars,
    loader,
    run,
    steps_of,
    tensorboard,
    vectors,
)
from torch_thermo import load_run
from torch_thermo.callbacks import (
    Every,
    PlasticityOrderParameter,
    Thermometer,
    WeightSymmetry,
)
from torch_thermo.callbacks.thermometer import default_plan

# 3 epochs of 5 steps
OFTEN = [0, 1, 2, 3, 4, 5, 6, 7, 10, 13, 15]  # 8 a decade, the epoch ends 5, 10, 15, the end
EXTREMES = [0, 1, 2, 3, 6, 10, 15]  # 4 a decade, the end
DENSITIES = [0, 1, 10, 15]  # 1 a decade, the end
PLAN = {
    "order_parameter": OFTEN,
    "order_parameter_minibatch": list(range(15)),
    "gradient_symmetry": OFTEN,
    "weight_symmetry": OFTEN,
    "hessian_extremes": EXTREMES,
    "hessian_density": DENSITIES,
    "functional_density": DENSITIES,
    "bulk_boundary": OFTEN,
    "circuit_symmetry": OFTEN,
    "circuit_sample": DENSITIES,
    "propagator_spectrum": DENSITIES,
}


class Images(Dataset):
    """Images with augmentation that draws from all three generators, and a state of its own."""

    def __init__(self, examples: int = 40) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(examples, 1, 6, 6, generator=generator)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        image = self.images[index] + 0.1 * torch.randn(1, 6, 6)
        if random.random() < 0.5:
            image = image.flip(-1)
        return image * float(np.random.uniform(0.9, 1.1)), index % 3  # noqa: NPY002


class ConvNet(pl.LightningModule):
    """BatchNorm, dropout, torchmetrics, lists, counters, a logger, random numbers; no forward."""

    def __init__(self, data: Images) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)
        )
        self.head = nn.Linear(48, 3)
        self.accuracy = MulticlassAccuracy(3)
        self.data = data
        self.losses: list[float] = []
        self.calls = 0
        self.register_buffer("average", torch.zeros(3))

    def own_state(self) -> Any:
        metric = {name: getattr(self.accuracy, name) for name in self.accuracy._defaults}
        return [self.losses, self.calls, self.data.reads, metric, self.accuracy._update_count]

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.head(self.net(x + 0.01 * torch.randn_like(x)))
        loss = nn.functional.cross_entropy(logits, y) * (1 + 0.01 * random.random())
        loss = loss + 0.001 * float(np.random.rand())  # noqa: NPY002
        self.calls += 1
        self.losses.append(float(loss.detach()))
        self.average.mul_(0.9).add_(0.1 * logits.detach().mean(0))
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"loss": loss, "calls": float(self.calls)}, prog_bar=True)
        if hasattr(self.logger.experiment, "add_scalar"):
            self.logger.experiment.add_scalar("user/loss", loss.detach(), self.calls)
        return {"loss": loss, "logits": logits}

    def validation_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])
        self.log("validation", loss)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)]


def images() -> Any:
    data = Images()
    return ConvNet(data), DataLoader(data, batch_size=8, shuffle=True)


def test_convolutional_net_without_forward(tmp_path):
    def loggers(path):
        return [tensorboard(path), CSVLogger(path, name="", version="csv")]

    validation = DataLoader(Images(16), batch_size=8)
    told: list[str] = []
    stored = compare(
        tmp_path,
        images,
        # net and head are called in training_step alone: net is read, on what it gets there
        [Thermometer(module="net")],
        loggers=loggers,
        data=validation,
        told=told,
        gradient_clip_val=0.5,
        num_sanity_val_steps=2,
    )
    # an opaque loss has no functional part, and the bulk loss needs the last part
    assert steps_of(stored) == {**PLAN, "functional_density": [], "bulk_boundary": []}
    assert (
        sum("bulk_boundary is skipped from step 0 on: the bulk loss needs" in t for t in told) == 1
    )
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    ours = event_scalars(measured / "tb", ours=False)
    assert ours == event_scalars(plain / "tb", ours=False)
    assert {"user/loss", "accuracy_step", "accuracy_epoch", "validation"} <= set(ours)
    columns = csv_columns(measured / "csv" / "metrics.csv")
    assert columns == csv_columns(plain / "csv" / "metrics.csv")
    assert "validation" in columns


class Standard(ConvNet):
    """The same with a standard loss that is called in training_step alone."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.logits(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.calls += 1
        self.losses.append(float(loss.detach()))
        self.average.mul_(0.9).add_(0.1 * logits.detach().mean(0))
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return loss


class Whole(Standard):
    def forward(self, x):
        return self.head(self.net(x))

    def logits(self, x):
        return self(x)


class OnlyChild(Standard):
    """No forward, and one child with parameters."""

    def __init__(self, data: Images) -> None:
        super().__init__(data)
        self.net.append(self.head)
        del self.head

    def logits(self, x):
        return self.net(x)


@pytest.mark.parametrize(("kind", "loss"), [(Whole, "self(x)"), (OnlyChild, "self.net(x)")])
def test_convolutional_net_with_a_standard_loss(tmp_path, kind, loss):
    def make():
        data = Images()
        return kind(data), DataLoader(data, batch_size=8, shuffle=True)

    told: list[str] = []
    stored = compare(tmp_path, make, [cheap()], told=told)
    assert told == []
    assert steps_of(stored) == PLAN
    assert stored.meta["loss"] == f"F.cross_entropy({loss}, y), which equals training_step's"


def test_bias_free_net_with_criterion(tmp_path):
    stored = compare(tmp_path, vectors, [Thermometer()])
    assert steps_of(stored) == PLAN


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1},
    ],
    ids=lambda options: next(iter(options.items()))[0] + "=" + str(next(iter(options.values()))),
)
def test_variants(tmp_path, options):
    stored = compare(tmp_path, vectors, [cheap()], **options)
    # 48 examples in batches of 10: 5 batches an epoch
    updates = {"accumulate_grad_batches": 9, "max_epochs": 10}.get(next(iter(options)), 15)
    counted = steps_of(stored)
    assert counted["order_parameter_minibatch"] == list(range(updates))
    for name in ("order_parameter", "hessian_extremes", "hessian_density", "functional_density"):
        assert counted[name][:2] == [0, 1], name
        assert counted[name][-1] == updates, name


def test_manual_optimisation_with_two_optimizers(tmp_path):
    def make():
        return TwoOptimizers(), loader(batch_size=10)

    thermometer = Thermometer(closure=lambda module, batch: module.loss(batch), probe=24)
    stored = compare(tmp_path, make, [thermometer])
    counted = steps_of(stored)
    # two updates a batch: what is due is measured when a batch has ended
    assert counted["order_parameter"] == [0, 2, 4, 6, 10, 18, 20, 24, 30]
    assert counted["hessian_extremes"] == [0, 2, 6, 10, 18, 30]
    for index in (0, 1):
        series = stored.series(f"order_parameter_minibatch/value_optimizer{index}")
        assert series.steps.tolist() == list(range(index, 30, 2))
        assert np.isfinite(series.values).all()


def test_worker_processes(tmp_path):
    def make():
        data = Images(24)
        workers = {"num_workers": 1, "persistent_workers": True}
        return ConvNet(data), DataLoader(data, batch_size=8, shuffle=True, **workers)

    stored = compare(tmp_path, make, [cheap()])
    assert steps_of(stored)["order_parameter"] == [0, 1, 2, 3, 4, 6, 7, 9]


@pytest.mark.parametrize("index", range(len(default_plan())))
def test_each_callback_alone(tmp_path, index):
    callback = default_plan()[index]
    stored = compare(tmp_path, vectors, [callback], max_epochs=2)
    names = list(callback.observables())
    counted = {name: steps for name, steps in steps_of(stored).items() if steps}
    assert sorted(counted) == sorted(names)
    for name in names:
        assert counted[name] == [step for step in PLAN[name] if step < 10] + (
            [] if name == "order_parameter_minibatch" else [10]
        )


def test_callbacks_side_by_side_share_a_store(tmp_path):
    callbacks = [PlasticityOrderParameter(probe=24), WeightSymmetry(Every(steps=4))]
    stored = compare(tmp_path, vectors, callbacks, max_epochs=2)
    assert stored.path == callbacks[1].stored().path
    assert steps_of(stored)["order_parameter_minibatch"] == list(range(10))
    assert steps_of(stored)["weight_symmetry"] == [0, 4, 8, 10]
    assert set(stored.meta["measurements"]) == {
        "order_parameter", "order_parameter_minibatch", "weight_symmetry"
    }  # fmt: skip
    assert [p.name for p in stored.path.parent.iterdir() if p.name.startswith("thermo")] == [
        "thermo"
    ]


def test_budget(tmp_path):
    thermometer = Thermometer(budget=0.2, probe=24)
    stored = compare(tmp_path, vectors, [thermometer])
    assert steps_of(stored)["order_parameter_minibatch"] == list(range(15))
    assert steps_of(stored)["order_parameter"][0] == 0


def test_two_runs_measure_the_same(tmp_path):
    values = []
    for name in ("one", "two"):
        thermometer = cheap()
        run(tmp_path / name, vectors, [thermometer])
        stored = load_run(thermometer.stored().path)
        values.append({n: stored.series(n).values.tolist() for n in stored.names})
    assert str(values[0]) == str(values[1])  # NaN equals itself in text
