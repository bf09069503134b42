"""How the run's data are read apart from the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.callbacks.trees import cloned
from torch_thermo.isolation import shadow

# arrays above this are read in place: they are the data, not state, and a copy may not fit
_BULK = 64 * 2**20
Collate = Callable[[Any], Any]


class NoIndices(Exception):
    """Why examples can't be drawn from the run's data by index."""


def find_loader(trainer: Trainer, split: str) -> DataLoader[Any]:
    """Return the loader of "train" or of "val".

    Raises:
        NoIndices: there is not exactly one, or it is no `DataLoader`.
    """
    loader: Any = trainer.train_dataloader if split == "train" else trainer.val_dataloaders
    if split == "val" and isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if isinstance(loader, DataLoader):
        return loader
    if loader is None:
        raise NoIndices("there is none")
    raise NoIndices(f"the data come from a {type(loader).__name__}, not from one DataLoader")


def find_candidates(loader: DataLoader[Any], trainer: Trainer, split: str) -> Sequence[int]:
    """Return the indices a loader draws from; a weighted drawing's as if all weighed the same.

    Raises:
        NoIndices: that can't be known.
    """
    dataset, batch_sampler = loader.dataset, loader.batch_sampler
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise NoIndices(f"the data set {name} has no indices")
    if batch_sampler is None:
        raise NoIndices(f"the data set {name} returns whole batches (batch_size=None)")
    sampler = getattr(batch_sampler, "sampler", loader.sampler)
    ranks = 1
    if isinstance(sampler, DistributedSampler):
        ranks = sampler.num_replicas
        # Lightning wraps samplers of other kinds for distributed runs
        sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)
    candidates: Sequence[int]
    if isinstance(sampler, SubsetRandomSampler):
        candidates = list(sampler.indices)
    elif isinstance(sampler, WeightedRandomSampler):
        candidates = sampler.weights.nonzero().flatten().tolist()
    elif isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler):
        candidates = range(len(dataset))
    else:
        raise NoIndices(f"it is not known which examples a {type(sampler).__name__} draws")
    if split == "val" or not trainer.overfit_batches:
        return candidates
    # Lightning has put the loader in order, and takes its first batches in every epoch
    if type(batch_sampler) is not BatchSampler:
        kind = type(batch_sampler).__name__
        raise NoIndices(f"it is not known which examples are in the first batches of a {kind}")
    return candidates[: int(trainer.num_training_batches) * batch_sampler.batch_size * ranks]


def own_copy(loader: DataLoader[Any], model: LightningModule) -> tuple[Any, Collate, str | None]:
    """Return copies of data set and collate function, and a notice if they share state.

    Files that they open and state that they keep are then not the run's.
    """
    dataset: Any = loader.dataset
    collate: Any = loader.collate_fn
    if isinstance(getattr(collate, "__self__", None), nn.Module):
        collate = collate.__func__.__get__(model)  # the run's module: its shadow collates
    holder: Any = nn.Module()
    holder.__dict__.update(dataset=dataset, collate=collate)
    name = type(dataset).__name__
    try:
        copied, uncopied = shadow(holder, share=[model, *_bulk(dataset)])
    except RuntimeError as error:
        return (
            dataset,
            collate,
            (
                f"the data set {name} can't be copied ({error}): the probe is read from the run's "
                "own, whose state the reading may change"
            ),
        )
    notice = f"the probe is read from a copy of {name} that shares: {', '.join(uncopied)}"
    return copied.dataset, copied.collate, notice if uncopied else None


def read_items(dataset: Any, indices: Sequence[int]) -> Any:
    """Return examples as a loader gets them."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(list(indices))
    return [dataset[i] for i in indices]


def transfer_hooks(trainer: Trainer, model: LightningModule) -> Collate:
    """Return what Lightning does to a batch before `training_step`, run on copies."""
    datamodule = _copied_datamodule(trainer)

    def owner(hook: str) -> Any:
        if datamodule is not None and any(
            hook in vars(kind)
            and not kind.__module__.startswith(("lightning.", "pytorch_lightning."))
            for kind in type(datamodule).__mro__
        ):
            return datamodule
        return model

    def transfer(batch: Any) -> Any:
        device = trainer.strategy.root_device
        batch = trainer.precision_plugin.convert_input(batch)
        batch = owner("on_before_batch_transfer").on_before_batch_transfer(batch, 0)
        batch = owner("transfer_batch_to_device").transfer_batch_to_device(batch, device, 0)
        batch = owner("on_after_batch_transfer").on_after_batch_transfer(batch, 0)
        # a view of the data set's memory would change with it
        return cloned(batch)

    return transfer


def _copied_datamodule(trainer: Trainer) -> Any:
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is None:
        return None
    data = [v for v in vars(datamodule).values() if isinstance(v, Dataset | DataLoader)]
    holder: Any = nn.Module()
    holder.__dict__["datamodule"] = datamodule
    return shadow(holder, share=[trainer, *data])[0].datamodule


def _bulk(tree: Any, depth: int = 4) -> Iterator[object]:
    if isinstance(tree, Tensor | np.ndarray):
        if tree.nbytes > _BULK:
            yield tree
        return
    parts: Any = ()
    if isinstance(tree, Dataset):
        parts = vars(tree).values()
    elif isinstance(tree, dict):
        parts = tree.values()
    elif isinstance(tree, list | tuple):
        parts = tree[:1000]
    for part in parts if depth else ():
        yield from _bulk(part, depth - 1)
