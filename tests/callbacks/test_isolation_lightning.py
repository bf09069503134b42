"""The shadow of modules as Lightning's users write them."""

import lightning.pytorch as pl
import torch
import torchmetrics
from torch import nn

from torch_thermo.isolation import shadow


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"rate": 0.1})
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.metrics = torchmetrics.MetricCollection(
            [torchmetrics.MeanSquaredError(), torchmetrics.MeanMetric()], prefix="train/"
        )
        self.outputs = []

    def training_step(self, batch, index):
        x, y = batch
        output = self.net(x)
        self.accuracy(output, y)
        self.metrics["MeanMetric"](output.mean())
        self.outputs.append(output)
        return nn.functional.cross_entropy(output, y)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, generator=generator), torch.randint(0, 2, (6,), generator=generator)


def test_metrics_of_the_run_see_nothing():
    module = Module()
    module.training_step(batch(), 0)
    copied, uncopied = shadow(module)
    assert uncopied == []
    expected = module.accuracy.compute(), module.metrics["MeanMetric"].compute()
    for seed in range(1, 5):
        loss = copied.training_step(batch(seed), 0)
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    assert all(g.isfinite().all() for g in gradients)
    for metric in (module.accuracy, module.metrics["MeanMetric"]):
        metric._computed = None  # what is cached would hide a change
    assert (module.accuracy.compute(), module.metrics["MeanMetric"].compute()) == expected
    assert module.accuracy._update_count == 1
    assert copied.accuracy._update_count == 5
    assert len(module.outputs) == 1
    assert len(copied.outputs) == 5


def test_the_metrics_of_the_shadow_go_on_from_the_runs():
    module, twin = Module(), Module()
    twin.load_state_dict(module.state_dict())
    module.training_step(batch(), 0)
    copied, _ = shadow(module)
    copied.training_step(batch(1), 0)
    twin.training_step(batch(), 0)
    twin.training_step(batch(1), 0)
    assert torch.equal(copied.accuracy.compute(), twin.accuracy.compute())


def test_a_trainer_is_left_out_of_the_copy():
    module = Module()
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    module.trainer = trainer
    copied, _ = shadow(module, share=[trainer])
    assert module._trainer is trainer
    assert copied._trainer in (None, trainer)
    assert copied.hparams == module.hparams
    assert copied.hparams is not module.hparams
