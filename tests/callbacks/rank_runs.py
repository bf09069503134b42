"""What test_ranks runs on two processes: `python rank_runs.py FOLDER NAME ...`."""

from __future__ import annotations

import json
import os
import random
import sys
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from torch_thermo.callbacks import (
    BulkBoundaryLoss,
    CircuitSymmetry,
    Every,
    GradientSymmetry,
    HessianSpectrum,
    PlasticityOrderParameter,
    PropagatorSpectrum,
    Thermometer,
    WeightSymmetry,
)

EXAMPLES = 43  # two shards that are not equal


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(EXAMPLES, 6, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(), nn.Dropout(0.1), nn.Linear(5, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.trace: list[str] = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("loss", loss, sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        weights = torch.cat([p.detach().reshape(-1) for p in self.parameters()])
        drawn = sha256(repr((torch.get_rng_state().tolist(), random.getstate())).encode())
        self.trace.append(f"{weights.numpy().tobytes().hex()} {drawn.hexdigest()}")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Moody(Net):
    """On the second rank the criterion differs from the training's loss, and must not be taken."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (1.0 + 0.5 * self.global_rank)


class Passing(IterableDataset):
    def __init__(self, examples: int) -> None:
        self.examples = examples

    def __iter__(self) -> Any:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        x, y = data().tensors
        return ((x[i], y[i]) for i in range(rank, self.examples, 2))


def spectrum() -> HessianSpectrum:
    return HessianSpectrum(
        Every(steps=2), Every(steps=3), steps=4, density_steps=4, density_probes=1
    )


def plan() -> list[Any]:
    return [
        PlasticityOrderParameter(),
        GradientSymmetry(),
        WeightSymmetry(),
        spectrum(),
        # more than a rank has, and an odd number of them
        BulkBoundaryLoss(examples=37),
        CircuitSymmetry(sample=Every(steps=4), paths=300, sample_examples=5),
        PropagatorSpectrum(Every(steps=4), examples=37),
    ]


class BreaksBefore(BulkBoundaryLoss):
    """The second rank raises where the first waits for its rows."""

    def __init__(self) -> None:
        super().__init__(Every(steps=1))

    def _rows(self, moment):
        if moment.trainer.global_rank == 1 and moment.step == 1:
            raise ValueError("no rows here")
        return super()._rows(moment)

    def measure(self, moment):
        if moment.trainer.global_rank == 1 and moment.step == 3:
            raise ValueError("no table here")
        return super().measure(moment)


class Breaks(GradientSymmetry):
    """The second rank's measurement raises: outside a reduction, inside, or for good."""

    def __init__(self, how: str) -> None:
        super().__init__(Every(steps=1))
        self.how = how

    def measure(self, moment):
        second = moment.trainer.global_rank == 1
        if second and self.how == "outside" and moment.step == 1:
            raise ValueError("not here")
        if second and self.how == "lasting":
            raise TypeError("never here")
        if second and self.how == "after":
            super().measure(moment)
            raise ValueError("too late")
        return super().measure(moment)


def failing_closure(module: Any, batch: Any) -> Any:
    if module.trainer.global_rank == 1 and module.trainer.global_step == 1:
        raise ValueError("a batch that cannot be read")
    return module.criterion(module(batch[0]), batch[1])


def fails_at_first(module: Any, batch: Any) -> Any:
    if module.trainer.global_rank == 1 and module.trainer.global_step == 0:
        raise TypeError("not yet")
    return module.criterion(module(batch[0]), batch[1])


def thermometers(name: str) -> list[Any]:
    members = plan()
    if name in ("outside", "lasting", "after"):
        members = [PlasticityOrderParameter(), Breaks(name), spectrum()]
    if name == "rows":
        members = [BreaksBefore(), CircuitSymmetry(Every(steps=1), Every(steps=4), 300)]
    closures = {"inside": failing_closure, "first": fails_at_first}
    options: dict[str, Any] = {"closure": closures.get(name)}
    if name == "budget":
        options["budget"] = 1.0
    return [] if name == "plain" else [Thermometer(probe=EXAMPLES, callbacks=members, **options)]


def main(folder: Path, name: str) -> None:
    pl.seed_everything(1, verbose=False)
    callbacks = thermometers(name)
    train: Any = DataLoader(data(), batch_size=6, shuffle=True)
    if name == "passing":
        train = DataLoader(Passing(EXAMPLES), batch_size=6)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=2,
        callbacks=callbacks,
        logger=CSVLogger(folder, name="", version="run"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=2,
        # the shards of the data that pass are not equal, and DDP waits for nobody
        limit_train_batches=3 if name == "passing" else None,
    )
    module = (Moody if name == "moody" else Net)()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, train)
    report = {
        "trace": module.trace,
        "steps": trainer.global_step,
        "measured": callbacks[0].session.measurements if callbacks else {},
        "indices": callbacks[0].session.probe.indices if callbacks else [],
        "store": str(callbacks[0].session.store.path)
        if callbacks and callbacks[0].session.store
        else "",
        "notices": [str(w.message) for w in caught if w.category.__name__ == "ThermoWarning"],
    }
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[2:]:
        main(Path(sys.argv[1]) / argument, argument)
