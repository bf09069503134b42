"""The demonstration: two networks trained on real images with the thermometer attached.

Both are ordinary Lightning runs: all that the measurements add is one callback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from rich.table import Table
from torch.utils.data import DataLoader

from torch_thermo import data, figures
from torch_thermo.callbacks import Thermometer
from torch_thermo.papers.folders import check_out
from torch_thermo.papers.quiet import quiet_lightning
from torch_thermo.papers.recipes import Classifier, Recipe, tanh_recipe, vgg_recipe
from torch_thermo.papers.show import run_table, run_title
from torch_thermo.papers.threads import one_thread
from torch_thermo.store import Run

__all__ = ["DemoRun", "draw", "run_demo", "summary_table"]

# The demo is to end within minutes on two cores, whatever data it is given.
MOST_TRAIN, MOST_TEST = 4000, 1000


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
        NotADirectoryError: ``out`` is a file, or lies below one.
        ModuleNotFoundError: the extra that carries the data is missing.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    out = check_out(out)
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
    with quiet_lightning(), one_thread():
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

    def examples(observable: str) -> str:
        return f"{min(members[observable].examples or probe, probe)} training examples"

    extremes, density = members["hessian_extremes"], members["hessian_density"]
    sample = members["circuit_sample"]
    whole = f"Probe: {probe} training examples."
    spectral = (
        f"{examples('hessian_density')}, Lanczos with m = {density.steps}, k = {density.probes}."
    )
    circuits = f"{examples('circuit_symmetry')}, sums over all alive circuits of each."
    descriptive = (
        f"Gradient on a probe of {probe} training examples; entries depend on each other, so the "
        "interval is descriptive."
    )
    propagator = members["propagator_spectrum"]
    states = (
        f"Mean state of {examples('propagator_spectrum')}; of a convolutional net "
        f"m = {propagator.steps}, k = {propagator.probes}."
    )
    return {
        "bulk_boundary": f"{examples('bulk_boundary')}, method {members['bulk_boundary'].method}.",
        "propagator": states,
        "propagator_density": states,
        "propagator_ridgeline": states,
        "order_parameter": whole,
        "order_against_risk": whole,
        "hessian_edges": f"{examples('hessian_extremes')}, Lanczos with m = {extremes.steps}, "
        "k = 1.",
        "hessian_density": spectral,
        "hessian_ridgeline": spectral,
        "gradient_ridgeline": whole,
        "sign_balance": descriptive,
        "w_sym": f"Gradient on a probe of {probe} training examples.",
        "circuits": circuits,
        "positive_share": circuits,
        "circuit_sample": f"{sample.paths:,} alive circuits of {examples('circuit_sample')}.",
    }


def summary_table(done: DemoRun) -> Table:
    """What was measured: first, last and extreme value of each quantity, seconds, counts.

    Args:
        done: a finished training.
    """
    return run_table(
        f"{run_title(done.recipe.title, done.run)}, accuracy {done.accuracy['train']:.1%} on "
        f"training and {done.accuracy['test']:.1%} on held-out images",
        done.run,
    )
