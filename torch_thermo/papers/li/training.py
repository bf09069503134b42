"""Training with Lightning and the thermometer: one seed of a net, resumable bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, Sampler

from torch_thermo.callbacks import Thermometer
from torch_thermo.papers.folders import check_setting
from torch_thermo.papers.li.measuring import thermometer
from torch_thermo.papers.li.recipe import Pictures, Recipe
from torch_thermo.papers.progress import Progress
from torch_thermo.papers.quiet import quiet_lightning
from torch_thermo.papers.recipes import Classifier
from torch_thermo.store import Run, Store, load_run

__all__ = ["EpochOrder", "train"]

_SETTING = "torch_thermo_setting"


class EpochOrder(Sampler[int]):
    """A new order of the examples each epoch, a function of seed and epoch alone.

    Lightning names the epoch before each one (`set_epoch`), also in a run that is resumed: its
    order needs no generator whose state would have to be kept.

    Args:
        examples: how many.
        seed: of all epochs' orders.
    """

    def __init__(self, examples: int, seed: int) -> None:
        self._examples, self._seed, self._epoch = examples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._examples

    def __iter__(self) -> Iterator[int]:
        # neighbouring seeds of torch's generator give unrelated orders
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + self._epoch)
        yield from torch.randperm(self._examples, generator=generator).tolist()


class _Setting(pl.Callback):
    """Writes what is trained into store and checkpoints, and tells how far the training is."""

    def __init__(
        self,
        measuring: Thermometer,
        setting: Mapping[str, Any],
        meta: Mapping[str, Any],
        what: str,
        progress: Progress | None,
    ) -> None:
        self._measuring, self._setting, self._meta = measuring, dict(setting), dict(meta)
        self._what, self._progress = what, progress

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        store = self._measuring.session.store
        if store is not None:
            store.write_meta(self._meta)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._progress is not None:
            self._progress(self._what, trainer.current_epoch + 1, trainer.max_epochs or 0)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_SETTING] = self._setting


def train(
    out: Path,
    recipe: Recipe,
    pictures: Pictures,
    seed: int,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train one seed with everything measured, or go on where it was left.

    Into `Recipe.folder` go ``checkpoints/last.ckpt``, Lightning's, after each epoch; ``thermo/``,
    the measurements; and ``metrics.csv``, Lightning's own log since it was last taken up. A
    training that was broken off goes on after its last whole epoch and ends with the same bits as
    one that was not; a finished one is not trained again; a longer one goes on from there.

    Args:
        out: the folder of all papers.
        recipe: what to train.
        pictures: the data.
        seed: of weights, order, probe and random vectors.
        epochs: None takes the budget's.
        progress: told of each epoch.

    Returns:
        The stored run.

    Raises:
        ValueError: the folder holds another training, or a damaged checkpoint.
    """
    last = recipe.budget.epochs if epochs is None else epochs
    folder = recipe.folder(out, seed)
    setting = recipe.setting(pictures, seed)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    done = _epochs_done(checkpoint, setting)
    if done < last:
        _fit(folder, recipe, pictures, seed, last, checkpoint if done else None, progress)
    return load_run(folder)


def _fit(
    folder: Path,
    recipe: Recipe,
    pictures: Pictures,
    seed: int,
    epochs: int,
    checkpoint: Path | None,
    progress: Progress | None,
) -> None:
    network, kind = recipe.network(seed), recipe.kind
    measuring = thermometer(recipe, pictures, epochs, seed)
    setting = recipe.setting(pictures, seed)
    meta = {
        **setting,
        "title": kind.title,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": epochs,
        "steps_per_epoch": recipe.steps_per_epoch,
        "budget": recipe.budget.name,
        "device": recipe.budget.accelerator,
        "held_out": len(pictures.test),
        "note": pictures.note,
    }
    what = f"training {recipe.net}, seed {seed}"
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator=recipe.budget.accelerator,
            devices=1,
            max_epochs=epochs,
            logger=CSVLogger(folder.parent, name="", version=folder.name),
            callbacks=[
                measuring,
                _Setting(measuring, setting, meta, what, progress),
                ModelCheckpoint(
                    folder / "checkpoints",
                    filename="last",
                    enable_version_counter=False,
                    save_on_train_epoch_end=True,
                ),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            Classifier(network, kind.criterion(), kind.rate),
            DataLoader(
                pictures.train, recipe.budget.batch, sampler=EpochOrder(len(pictures), seed)
            ),
            ckpt_path=None if checkpoint is None else str(checkpoint),
        )
        if trainer.interrupted:
            raise KeyboardInterrupt
    # "loss" has been overwritten by the callbacks' own description of what they differentiate
    Store.open(folder / "thermo").write_meta(meta)


def _epochs_done(checkpoint: Path, setting: Mapping[str, Any]) -> int:
    """Completed epochs of a training; 0 where there is none.

    Raises:
        ValueError: it is another training than ``setting`` says, or damaged.
    """
    if not checkpoint.is_file():
        return 0
    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)
        # Lightning writes the number of the epoch that is at its end, from 0
        epoch, held = int(found["epoch"]) + 1, found[_SETTING]
    except Exception as error:
        raise ValueError(
            f"{checkpoint} is damaged, or no checkpoint of these trainings: remove it; the "
            "training then begins anew"
        ) from error
    check_setting(checkpoint.parent.parent, held, setting)
    return epoch
