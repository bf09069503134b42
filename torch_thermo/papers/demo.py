"""The demonstration: two networks trained on real images with the thermometer attached.

(a) a tanh network with squared error and targets +-1, after V. Vanchurin, *Towards a theory of
machine learning*; (b) a bias-free ReLU VGG with the hinge loss on a binary problem, after S. W. M.
Li, *Complexity from Adaptive-Symmetries Breaking*. Both are ordinary Lightning runs: all that the
measurements add is one callback.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_thermo import data, figures
from torch_thermo.callbacks import Thermometer
from torch_thermo.store import Run, Series
from torch_thermo.systems import VGG, TanhMLP

__all__ = [
    "Classifier",
    "DemoRun",
    "Hinge",
    "Recipe",
    "SquaredError",
    "draw",
    "run_demo",
    "summary_table",
    "tanh_recipe",
    "vgg_recipe",
]

# The demo is to end within minutes on two cores, whatever data it is given.
MOST_TRAIN, MOST_TEST = 4000, 1000

_SUMMARY = (
    ("||grad R||^2, probe", "order_parameter/value"),
    ("||grad R||^2, minibatch", "order_parameter_minibatch/value"),
    ("risk R, probe", "order_parameter/risk"),
    ("Hessian: lambda_max", "hessian_extremes/lambda_max"),
    ("Hessian: lambda_min", "hessian_extremes/lambda_min"),
    ("Hessian: asymmetry odd3", "hessian_density/odd3"),
    ("functional part: odd3", "functional_density/odd3"),
    ("weights: sign balance", "weight_symmetry/sign_balance"),
    ("gradient: sign balance", "gradient_symmetry/sign_balance"),
)


class SquaredError(nn.Module):
    """``1/2 sum_k (output_k - target_k)^2``, averaged over the batch."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Outputs and targets ``(batch, k)`` to a scalar."""
        return 0.5 * (output - target).square().sum(dim=1).mean()


class Hinge(nn.Module):
    """``max(0, 1 - y T)``, averaged over the batch (Li, section 2)."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Outputs T and targets y = +-1, both ``(batch,)``, to a scalar."""
        return (1 - target * output).clamp(min=0).mean()


class Classifier(pl.LightningModule):
    """An ordinary module: a network, a criterion, plain SGD, accuracies logged.

    Args:
        network: maps a batch of inputs to outputs.
        criterion: maps outputs and targets to the batch's mean loss.
        learning_rate: of SGD without momentum.
    """

    def __init__(self, network: nn.Module, criterion: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.learning_rate = learning_rate

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's outputs."""
        outputs: Tensor = self.network(inputs)
        return outputs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self._evaluate(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on held-out images."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        loss: Tensor = self.criterion(outputs, targets)
        self.log(f"{part}/loss", loss, on_step=False, on_epoch=True, batch_size=len(inputs))
        self.log(
            f"{part}/accuracy",
            _right(outputs, targets).float().mean(),
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(inputs),
        )
        return loss


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Which examples are classified rightly, by the largest output or by the sign of the one."""
    if outputs.ndim == 1:
        return outputs * targets > 0
    return outputs.argmax(dim=1) == targets.argmax(dim=1)


@dataclass(frozen=True)
class Recipe:
    """All that one training needs.

    Attributes:
        name: of its folder.
        title: of its column and captions.
        problem: what is learned, for captions.
        network: builds the network, with its initial weights.
        criterion: builds the loss.
        train: inputs and targets.
        test: held-out inputs and targets.
        learning_rate: of SGD.
        batch_size: examples a step.
        epochs: passes over ``train``.
    """

    name: str
    title: str
    problem: str
    network: Callable[[], nn.Module]
    criterion: Callable[[], nn.Module]
    train: TensorDataset
    test: TensorDataset
    learning_rate: float
    batch_size: int
    epochs: int


@dataclass(frozen=True)
class DemoRun:
    """What one training left.

    Attributes:
        recipe: what was trained.
        run: the stored measurements.
        parameters: number of the network's weights.
        log_dir: TensorBoard's folder of the run.
        checkpoint: Lightning's, of the final weights, with the probe in it.
        accuracy: ``{"train": ..., "test": ...}`` of the last epoch.
        notes: on what and how each figure's observable was measured.
    """

    recipe: Recipe
    run: Run
    parameters: int
    log_dir: Path
    checkpoint: Path
    accuracy: Mapping[str, float]
    notes: Mapping[str, str]

    @property
    def caption(self) -> str:
        """Data, net and step, for the figures."""
        return (
            f"{self.recipe.problem}; {self.parameters:,} weights, SGD, learning rate "
            f"{self.recipe.learning_rate:g}, batches of {self.recipe.batch_size}, "
            f"{int(self.run.meta['steps']):,} steps."
        )


def tanh_recipe(images: data.ImageData, seed: int = 0, epochs: int | None = None) -> Recipe:
    """The tanh network: pixels in [0, 1], squared error, targets +-1.

    Batches of 32 and learning rate .1, the paper's physics in a tenth of its steps.

    Args:
        images: the data.
        seed: of the initial weights.
        epochs: None takes 40.
    """
    size = images.train_images[0].numel()

    def part(pixels: Tensor, labels: Tensor) -> TensorDataset:
        return TensorDataset(data.as_flat(pixels), data.sign_targets(labels, images.classes))

    sizes = (size, 40, 20, images.classes)
    return Recipe(
        name="tanh",
        title="tanh network",
        problem=f"{images.name}, tanh network {'-'.join(map(str, sizes))}, squared error",
        network=lambda: TanhMLP(sizes, seed=seed),
        criterion=SquaredError,
        train=part(images.train_images, images.train_labels),
        test=part(images.test_images, images.test_labels),
        learning_rate=0.1,
        batch_size=32,
        epochs=40 if epochs is None else epochs,
    )


def vgg_recipe(images: data.ImageData, seed: int = 0, epochs: int | None = None) -> Recipe:
    """The bias-free VGG of ten weight layers: the upper half of the classes against the lower.

    Images of 32 x 32, standardised per channel by the training part's mean and deviation.

    Args:
        images: the data, of at least two classes.
        seed: of the initial weights.
        epochs: None takes 20.

    Raises:
        ValueError: there is only one class.
    """
    if images.classes < 2:
        raise ValueError(f"{images.name}: a binary problem needs 2 classes, got {images.classes}")
    positive = range(images.classes // 2, images.classes)
    mean, std = data.channel_statistics(data.as_square(images.train_images))

    def part(pixels: Tensor, labels: Tensor) -> TensorDataset:
        inputs = data.standardise(data.as_square(pixels), mean, std)
        return TensorDataset(inputs, data.binary_targets(labels, positive))

    return Recipe(
        name="vgg",
        title="bias-free VGG",
        problem=f"{images.name} in two halves, bias-free ReLU VGG of 10 layers, hinge loss",
        network=lambda: VGG(depth=10, in_channels=images.shape[0], seed=seed),
        criterion=Hinge,
        train=part(images.train_images, images.train_labels),
        test=part(images.test_images, images.test_labels),
        learning_rate=0.01,
        batch_size=32,
        epochs=20 if epochs is None else epochs,
    )


def run_demo(
    out: str | Path,
    source: str | Path = "mnist5k",
    *,
    epochs: int | None = None,
    seed: int = 0,
    accelerator: str = "cpu",
    progress: bool = True,
    most_train: int = MOST_TRAIN,
    most_test: int = MOST_TEST,
    started: Callable[[Recipe], None] | None = None,
) -> list[DemoRun]:
    """Train both networks with the thermometer attached, and draw the figures.

    Args:
        out: folder of the TensorBoard logs, one below it for each net, and of ``figures``.
        source: the data, see :func:`torch_thermo.data.load`.
        epochs: of both trainings; None takes each recipe's own number.
        seed: of data split, weights, order of the batches and probe.
        accelerator: Lightning's.
        progress: whether to show Lightning's progress bar.
        most_train: use at most so many training images, drawn at random.
        most_test: the same of the held-out images.
        started: told of each recipe before its training.

    Returns:
        What the two trainings left.

    Raises:
        ValueError: ``epochs`` is below 1, or the data are not usable.
        FileNotFoundError: there is no such data file.
        ModuleNotFoundError: the extra that carries the data is missing.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    out = Path(out)
    images = data.load(source, seed=seed).subset(most_train, most_test, seed=seed)
    runs = []
    for recipe in (tanh_recipe(images, seed, epochs), vgg_recipe(images, seed, epochs)):
        if started is not None:
            started(recipe)
        runs.append(_train(recipe, out, seed, accelerator, progress))
    draw(runs, out / "figures")
    return runs


def draw(runs: list[DemoRun], folder: Path) -> list[Path]:
    """Draw the figures of the runs, PNG, and the overview of all.

    Args:
        runs: finished trainings.
        folder: where the files go.

    Returns:
        The files, the overview last.
    """
    files = []
    for done in runs:
        for name, figure in figures.run_figures(done.run, done.caption, done.notes).items():
            files.append(figures.save(figure, folder / f"{done.recipe.name}_{name}.png"))
    columns = [(done.recipe.title, done.run) for done in runs]
    caption = " ".join(done.caption for done in runs)
    files.append(figures.save(figures.overview(columns, caption), folder / "overview.png"))
    return files


def _train(recipe: Recipe, out: Path, seed: int, accelerator: str, progress: bool) -> DemoRun:
    logger = TensorBoardLogger(str(out), name=recipe.name)
    log_dir = Path(logger.log_dir)
    module = Classifier(recipe.network(), recipe.criterion(), recipe.learning_rate)
    thermometer = Thermometer()
    callbacks: list[Any] = [thermometer, *([RichProgressBar()] if progress else [])]
    with _quiet_lightning(), _one_thread():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=recipe.epochs,
            logger=logger,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
        order = torch.Generator().manual_seed(seed)
        trainer.fit(
            module,
            DataLoader(recipe.train, recipe.batch_size, shuffle=True, generator=order),
            DataLoader(recipe.test, 500),
        )
        if trainer.interrupted:
            raise KeyboardInterrupt
        checkpoint = log_dir / "last.ckpt"
        trainer.save_checkpoint(checkpoint)
    metrics = trainer.callback_metrics
    return DemoRun(
        recipe=recipe,
        run=thermometer.stored(),
        parameters=sum(p.numel() for p in module.parameters()),
        log_dir=log_dir,
        checkpoint=checkpoint,
        accuracy={part: float(metrics[f"{part}/accuracy"]) for part in ("train", "test")},
        notes=_notes(thermometer, len(recipe.train)),
    )


def _notes(thermometer: Thermometer, available: int) -> dict[str, str]:
    """On what and how each figure's observable was measured."""
    members: dict[str, Any] = {member.observable: member for member in thermometer.members()}
    probe = min(thermometer.session.probe.examples, available)
    extremes, density = members["hessian_extremes"], members["hessian_density"]
    return {
        "order_parameter": f"Probe: {probe} training examples.",
        "hessian_edges": f"{min(extremes.examples, probe)} training examples, "
        f"Lanczos with m = {extremes.steps}, k = 1.",
        "hessian_density": f"{min(density.examples, probe)} training examples, "
        f"Lanczos with m = {density.steps}, k = {density.probes}.",
        "sign_balance": f"Gradient on a probe of {probe} training examples; entries depend on "
        "each other, so the interval is descriptive.",
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """These nets are too small to gain from more, and the numbers then depend on no core count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's advice about devices and loaders: here the data are in memory."""
    # Whichever of its two names Lightning was imported by last holds the logger it writes to.
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*number of training batches.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def summary_table(done: DemoRun) -> Table:
    """What was measured: first, last and extreme value of each quantity, seconds, counts.

    Args:
        done: a finished training.
    """
    meta = done.run.meta
    spent: Mapping[str, float] = meta["seconds"]["measuring"]
    table = Table(
        title=f"{done.recipe.title}: {int(meta['steps']):,} steps, accuracy "
        f"{done.accuracy['train']:.1%} on training and {done.accuracy['test']:.1%} on held-out "
        f"images, {meta['seconds']['training']:.0f} s training, {sum(spent.values()):.0f} s "
        "measuring",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("quantity", overflow="fold")
    for column in ("first", "last", "extreme", "at step", "points"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, name in _SUMMARY:
        if name in done.run.names:
            table.add_row(label, *_summary(done.run.series(name)))
    counts: Mapping[str, int] = meta["measurements"]
    table.caption = "measurements: " + ", ".join(
        f"{name} {count:,} in {spent.get(name, 0.0):.1f} s" for name, count in counts.items()
    )
    table.caption_justify = "left"
    return table


def _summary(series: Series) -> tuple[str, str, str, str, str]:
    """First, last and extreme value, the extreme's step, and how many are finite."""
    finite = np.flatnonzero(np.isfinite(series.values))
    if finite.size == 0:
        return "undefined", "", "", "", "0"
    values, steps = series.values[finite], series.steps[finite]
    extreme = int(np.argmax(np.abs(values)))
    first, last, largest = (f"{value:.3g}" for value in (values[0], values[-1], values[extreme]))
    return first, last, largest, f"{steps[extreme]:,}", f"{finite.size:,}"
