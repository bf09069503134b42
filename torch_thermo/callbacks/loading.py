"""How the run's data are read apart from the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.callbacks.trees import cloned
from torch_thermo.isolation import shadow

# arrays above this are read in place: they are the data, not state, and a copy may not fit
_BULK = 64 * 2**20
Collate = Callable[[Any], Any]


def find_loader(trainer: Trainer, split: str) -> DataLoader[Any] | None:
    """Return the loader of "train" (None if there are several) or of "val".

    Raises:
        ValueError: "val" without exactly one loader over an indexable data set.
    """
    loader = trainer.train_dataloader if split == "train" else trainer.val_dataloaders
    if split == "val":
        if isinstance(loader, list | tuple) and len(loader) == 1:
            loader = loader[0]
        if not isinstance(loader, DataLoader) or find_candidates(loader) is None:
            raise ValueError(
                'probe="val" needs one validation loader over an indexable data set, got '
                f"{type(loader).__name__}; give the batch or the loader itself"
            )
    return loader if isinstance(loader, DataLoader) else None


def find_candidates(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Return the indices a loader draws from; None if that can't be known."""
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    if loader.batch_sampler is None:
        return None  # the data set returns batches
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, DistributedSampler):
        # Lightning wraps samplers of other kinds for distributed runs
        sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    if isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler):
        return range(len(dataset))
    return None


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
