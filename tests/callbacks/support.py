"""Small runs, and a recorder that sees every bit of them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from torch_thermo.callbacks import (
    At,
    BulkBoundaryLoss,
    CircuitSymmetry,
    GradientSymmetry,
    HessianSpectrum,
    PlasticityOrderParameter,
    PropagatorSpectrum,
    Thermometer,
    ThermoWarning,
    WeightSymmetry,
)
from torch_thermo.callbacks.probe import Probe


def digest(tree: Any) -> Any:
    """A value that is equal for trees that are equal bit by bit."""
    if isinstance(tree, Tensor):
        data = tree.detach().cpu().to_dense().contiguous()
        content = data.view(torch.uint8) if data.dim() else data.reshape(1).view(torch.uint8)
        return (str(data.dtype), tuple(data.shape), hashlib.sha256(content.numpy()).hexdigest())
    if isinstance(tree, dict):
        return {str(key): digest(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [digest(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return hashlib.sha256(tree.tobytes()).hexdigest()
    if isinstance(tree, float) and tree != tree:
        return "nan"
    return tree


def generators() -> Any:
    """The states of the global generators."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the run's own generator
    return digest([torch.get_rng_state(), [kind, keys, *rest], random.getstate()])


class Recorder(pl.Callback):
    """Records all that a run is, in every hook around a step. Placed after the thermometer."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Any]] = []

    def see(self, hook: str, trainer: Any, module: Any, **extra: Any) -> None:
        state = {
            "weights": {name: digest(p) for name, p in module.named_parameters()},
            "gradients": {name: digest(p.grad) for name, p in module.named_parameters()},
            "buffers": {name: digest(b) for name, b in module.named_buffers()},
            "optimizers": [digest(o.state_dict()) for o in trainer.optimizers],
            "flags": [m.training for m in module.modules()],
            "python": digest(module.own_state()) if hasattr(module, "own_state") else None,
            "hook": module._current_fx_name,
            "generators": generators(),
            "logged": digest(dict(trainer.logged_metrics)),
            "callback": digest(dict(trainer.callback_metrics)),
            "step": trainer.global_step,
            **{key: digest(value) for key, value in extra.items()},
        }
        self.records.append((hook, state))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.see("batch start", trainer, pl_module, batch=batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.see("before step", trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.see("batch end", trainer, pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *rest):
        self.see("validation batch end", trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.see("epoch end", trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        self.see("train end", trainer, pl_module)


def assert_same(one: Recorder, other: Recorder) -> None:
    """Assert that two runs were the same at every record, naming the first difference."""
    assert [hook for hook, _ in one.records] == [hook for hook, _ in other.records]
    for number, ((hook, left), (_, right)) in enumerate(
        zip(one.records, other.records, strict=True)
    ):
        for name in left:
            assert left[name] == right[name], f"{name} differs at record {number} ({hook})"


def make_trainer(folder: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    """A quiet trainer on the CPU; a CSV logger without version folders unless asked otherwise."""
    logger = options.pop("logger", None)
    options = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(folder, name="", version="run") if logger is None else logger,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        **options,
    }
    return pl.Trainer(callbacks=list(callbacks), **options)


def tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="", version="tb")


def blobs(examples: int = 48, features: int = 6, classes: int = 3) -> TensorDataset:
    """A classification problem that can be learned, always the same."""
    generator = torch.Generator().manual_seed(3)
    target = torch.arange(examples) % classes
    centres = torch.randn(classes, features, generator=generator)
    noise = torch.randn(examples, features, generator=generator)
    return TensorDataset(centres[target] + noise, target)


def loader(data: Any = None, batch_size: int = 8, **options: Any) -> DataLoader:
    return DataLoader(data or blobs(), batch_size=batch_size, **{"shuffle": True, **options})


class Classifier(pl.LightningModule):
    """The plain case: forward, criterion, SGD with momentum."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.options = options

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **{"lr": 0.1, "momentum": 0.9, **self.options})


@contextlib.contextmanager
def notices() -> Iterator[list[str]]:
    """Collect the texts of our own warnings; all others stay silent."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught if issubclass(w.category, ThermoWarning)]


def finite(run: Any, observable: str, quantity: str = "value") -> list[int]:
    """The steps at which the stored quantity is finite; none if it was never stored."""
    if f"{observable}/{quantity}" not in run.names:
        return []
    series = run.series(f"{observable}/{quantity}")
    return series.steps[np.isfinite(series.values)].tolist()


MAIN = {
    "order_parameter": "value",
    "order_parameter_minibatch": "value",
    "gradient_symmetry": "sign_balance",
    "weight_symmetry": "sign_balance",
    "hessian_extremes": "lambda_max",
    "hessian_density": "trace",
    "functional_density": "trace",
    "bulk_boundary": "bulk",
    "circuit_symmetry": "mass_asymmetry",
    "circuit_sample": "sign_balance",
    "propagator_spectrum": "mu2",
}


def steps_of(run: Any) -> dict[str, list[int]]:
    """{observable: the steps at which its main quantity is stored and finite}."""
    return {name: finite(run, name, quantity) for name, quantity in MAIN.items()}


class ReLUNet(Classifier):
    """A bias-free ReLU net with dropout; criterion and forward."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.Sequential(
            nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3, bias=False)
        )


class TwoOptimizers(pl.LightningModule):
    """Manual optimisation: two optimizers that step in turn, each with its own gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.2))
        self.second = nn.Linear(4, 3)

    def loss(self, batch):
        return nn.functional.cross_entropy(self.second(self.first(batch[0]).tanh()), batch[1])

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("loss", loss)

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.first.parameters(), lr=0.1, momentum=0.5),
            torch.optim.Adam(self.second.parameters(), lr=0.01),
        )


def cheap(**options: Any) -> Thermometer:
    """All observables, on few examples with few products."""
    spectrum = HessianSpectrum(steps=3, density_steps=3, density_probes=1, examples=16)
    plan = [
        PlasticityOrderParameter(),
        GradientSymmetry(),
        WeightSymmetry(),
        spectrum,
        BulkBoundaryLoss(examples=16),
        CircuitSymmetry(examples=16, paths=200),
        PropagatorSpectrum(examples=16),
    ]
    return Thermometer(**{"probe": 24, "callbacks": plan, **options})


def run(folder: Path, make: Any, thermometers: list[Any], data: Any = None, **options: Any) -> Any:
    """Train once, with or without thermometers; return the recorder and the trainer."""
    pl.seed_everything(7, verbose=False)
    module, train = make()
    recorder = Recorder()
    trainer = make_trainer(folder, *thermometers, recorder, **{"max_epochs": 3, **options})
    trainer.fit(module, train, data)
    return recorder, trainer


def compare(folder: Path, make: Any, thermometers: list[Any], **options: Any) -> Any:
    """Train with and without; assert that all is the same; return the stored run.

    `told`: a list that receives our notices. `loggers`: folder -> loggers.
    """
    loggers = options.pop("loggers", lambda path: None)
    told = options.pop("told", [])
    plain, _ = run(folder / "plain", make, [], logger=loggers(folder / "plain"), **options)
    with notices() as texts:
        measured, _ = run(
            folder / "measured", make, thermometers, logger=loggers(folder / "measured"), **options
        )
    assert len(plain.records) > 30
    assert_same(plain, measured)
    told += texts
    assert not [text for text in texts if "fail" in text or "NOTHING" in text], texts
    return thermometers[0].stored()


def vectors(**options: Any) -> Any:
    return ReLUNet(**options), loader(batch_size=10)


class Numbered(Dataset):
    """Example i is full of i; counts what is read."""

    def __init__(self, examples: int = 48) -> None:
        self.examples = examples
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return torch.full((6,), float(index)), index % 3


def drawn(folder: Path, probe: Any, train: Any, module: Any = None, **options: Any) -> Probe:
    """Train an epoch and return the probe of the run."""
    callback = PlasticityOrderParameter(At(steps=[0], end=False), probe=probe, **options)
    make_trainer(folder, callback).fit(module or Classifier(), train)
    return callback.session.probe


def numbers(probe: Probe) -> list[int]:
    return [int(i) for batch in probe.batches for i in batch[0][:, 0]]


def csv_columns(path: Path) -> dict[str, list[tuple[str, str]]]:
    """{column: (step, value) pairs} of a metrics.csv, without ours."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for name, value in row.items():
            if value and name != "step" and not name.startswith("thermo/"):
                columns.setdefault(name, []).append((row["step"], value))
    return columns


def events(path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def event_scalars(path: Path, ours: bool) -> dict[str, list[tuple[int, float]]]:
    """{tag: (step, value) pairs} of TensorBoard's files: ours, or the run's own."""
    accumulator = events(path)
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
        if tag.startswith("thermo/") == ours
    }
