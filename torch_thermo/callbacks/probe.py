"""The probe: the fixed examples on which a run is measured."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.isolation import preserved_generators
from torch_thermo.risk import batch_size, tensors_of

# micro-batches: enough of them for a standard error
_PARTS = 8
# a probe of at most this size travels in the checkpoint itself
_SMALL = 16 * 2**20

Source = Any  # a number of examples, "train", "val", a batch, or a loader


@dataclass
class Probe:
    """Examples drawn once, in micro-batches, the same for every measurement of a run.

    Args:
        source: how many training examples; or "train" or "val" (512 of them); or a batch; or a
            loader, taken whole.
        seed: of the drawing, and of the data set's augmentation in it.

    Attributes:
        batches: the micro-batches, as the training would get them, on the run's device.
        indices: of the examples drawn from a map-style data set, on this rank.
        population: how many examples these were drawn from without replacement; None if unknown.
        complete: whether the probe can be measured on.

    Raises:
        ValueError: less than 1 example, an unknown word.
        TypeError: a source that is neither.
    """

    source: Source = 512
    seed: int = 0
    batches: list[Any] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    population: int | None = None
    complete: bool = False
    _passing: bool = False

    def __post_init__(self) -> None:
        self.examples = 512
        self.split = "train"
        if isinstance(self.source, str):
            if self.source not in ("train", "val"):
                raise ValueError(f'probe must be "train" or "val", got {self.source!r}')
            self.split = self.source
        elif isinstance(self.source, int) and not isinstance(self.source, bool):
            if self.source < 1:
                raise ValueError(f"probe must be at least 1 example, got {self.source}")
            self.examples = self.source
        elif isinstance(self.source, bool | float) or self.source is None:
            raise TypeError(
                f'probe must be a number, "train", "val", a batch or a loader, got {self.source!r}'
            )

    def draw(self, trainer: Trainer, transfer: Callable[[Any], Any]) -> str | None:
        """Draw the probe, or begin to collect it; return a notice if the user should know.

        `transfer` brings a collated batch to the device through the module's own hooks.

        Raises:
            ValueError: the source holds no example.
        """
        if self.complete or self._passing:
            return None
        if isinstance(self.source, int | str):
            loader = _loader(trainer, self.split)
            candidates = None if loader is None else _candidates(loader)
            if loader is None or candidates is None:
                return self._collect_passing()
            notice = self._draw_indices(trainer, loader, candidates, transfer)
        else:
            notice = None
            with preserved_generators():
                _seed_all(self.seed)
                given = _as_batches(self.source)
                self.batches = [transfer(part) for b in given for part in _split(b, _PARTS)]
        if not self.batches:
            raise ValueError(f"the probe is empty: its source {self._name()} holds no example")
        self.complete = True
        return notice

    def offer(self, batch: Any) -> None:
        """Take a training batch that passes, if the probe is collected that way."""
        if not self._passing or self.complete:
            return
        have = sum(batch_size(b) for b in self.batches)
        taken = _cloned(batch)
        size = batch_size(taken)
        if size > self.examples - have:
            taken = _part(taken, slice(0, self.examples - have), size)
        self.batches.extend(_split(taken, 1 if self.batches or size < self.examples else _PARTS))
        self.complete = have + batch_size(taken) >= self.examples

    def close_collection(self) -> None:
        """Take what has passed so far as the probe: the training data are over."""
        self.complete = self.complete or bool(self.batches)

    def part(self, examples: int | None) -> list[Any]:
        """Return the first micro-batches, cut to `examples` (all: None)."""
        if examples is None:
            return self.batches
        chosen: list[Any] = []
        left = examples
        for batch in self.batches:
            size = batch_size(batch)
            chosen.append(batch if size <= left else _part(batch, slice(0, left), size))
            left -= min(size, left)
            if left == 0:
                break
        return chosen

    def state_dict(self, world: int) -> dict[str, Any]:
        """Return indices, and the batches when they are few, plain and the only rank's."""
        state: dict[str, Any] = {"indices": list(self.indices), "seed": self.seed}
        if self.population is not None:
            state["population"] = self.population
        tensors = [t for b in self.batches for t in tensors_of(b)]
        size = sum(t.numel() * t.element_size() for t in tensors)
        if self.complete and world == 1 and size <= _SMALL and _plain(self.batches):
            state["batches"] = _on_cpu(self.batches)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a stored probe up again; without stored batches it is drawn anew."""
        if "batches" in state:
            self.batches = list(state["batches"])
            self.indices = list(state["indices"])
            self.population = state.get("population")
            self.complete = True

    def _collect_passing(self) -> str:
        self._passing = True
        return (
            "the training data can't be indexed, so the probe is the first "
            f"{self.examples} examples that pass; measuring begins when they have"
        )

    def _draw_indices(
        self,
        trainer: Trainer,
        loader: DataLoader[Any],
        candidates: Sequence[int],
        transfer: Callable[[Any], Any],
    ) -> str | None:
        self.population = len(candidates)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(candidates), generator=generator)[: self.examples]
        chosen = [candidates[i] for i in order.tolist()]
        self.indices = chosen[trainer.global_rank :: trainer.world_size]
        dataset, notice = _own_copy(loader.dataset)
        size = -(-len(chosen) // (_PARTS * trainer.world_size))
        with preserved_generators():
            _seed_all(self.seed + trainer.global_rank)
            for start in range(0, len(self.indices), size):
                items = _items(dataset, self.indices[start : start + size])
                self.batches.append(transfer(loader.collate_fn(items)))
        return notice

    def _name(self) -> str:
        return repr(self.source) if isinstance(self.source, int | str) else "given by the user"


def transfer_hooks(trainer: Trainer, model: LightningModule) -> Callable[[Any], Any]:
    """Return what Lightning does to a batch before `training_step`, run on a shadow."""
    datamodule = getattr(trainer, "datamodule", None)

    def owner(hook: str) -> Any:
        if datamodule is not None and any(
            hook in vars(kind) and not kind.__module__.startswith(("lightning.", "pytorch_light"))
            for kind in type(datamodule).__mro__
        ):
            return datamodule
        return model

    def transfer(batch: Any) -> Any:
        batch = owner("on_before_batch_transfer").on_before_batch_transfer(batch, 0)
        device = trainer.strategy.root_device
        batch = owner("transfer_batch_to_device").transfer_batch_to_device(batch, device, 0)
        batch = owner("on_after_batch_transfer").on_after_batch_transfer(batch, 0)
        # a view of the data set's memory would change with it
        return _cloned(batch)

    return transfer


def _loader(trainer: Trainer, split: str) -> Any | None:
    loader = trainer.train_dataloader if split == "train" else trainer.val_dataloaders
    if split == "val":
        if isinstance(loader, list | tuple) and len(loader) == 1:
            loader = loader[0]
        if not isinstance(loader, DataLoader) or _candidates(loader) is None:
            raise ValueError(
                'probe="val" needs one validation loader over an indexable data set, got '
                f"{type(loader).__name__}; give the batch or the loader itself"
            )
    return loader if isinstance(loader, DataLoader) else None


def _candidates(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Return the indices a loader draws from; None if that can't be known."""
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    if loader.batch_sampler is None:
        return None  # the data set returns batches
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    # Lightning wraps samplers for distributed runs
    inner = getattr(sampler, "dataset", None)
    if isinstance(sampler, DistributedSampler) and isinstance(
        getattr(inner, "_sampler", None), SubsetRandomSampler
    ):
        sampler = inner._sampler  # type: ignore[union-attr]
    if isinstance(sampler, SubsetRandomSampler):
        return list(sampler.indices)
    if isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler):
        return range(len(dataset))
    return None


def _own_copy(dataset: Any) -> tuple[Any, str | None]:
    """Return a copy of a data set, so that files it opens and state it keeps are not the run's."""
    if type(dataset) is TensorDataset or (
        type(dataset) is Subset and type(dataset.dataset) is TensorDataset
    ):
        return dataset, None  # stateless, and the copy could be large
    try:
        return pickle.loads(pickle.dumps(dataset)), None
    except Exception as error:
        return dataset, (
            f"the data set {type(dataset).__name__} can't be pickled ({error}): the probe is read "
            "from the run's own copy, whose state the reading may change"
        )


def _items(dataset: Any, indices: list[int]) -> Any:
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(indices)
    return [dataset[i] for i in indices]


def _seed_all(seed: int) -> None:
    """Seed the global generators: only inside `preserved_generators`."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that augmentations draw from
    random.seed(seed)


def _as_batches(source: Any) -> Iterable[Any]:
    if isinstance(source, Tensor | dict) or (
        isinstance(source, tuple | list) and any(isinstance(item, Tensor) for item in source)
    ):
        return [source]
    if not hasattr(source, "__iter__"):
        return [source]
    return list(source)


def _split(batch: Any, parts: int) -> list[Any]:
    size = batch_size(batch)
    step = -(-size // parts)
    if parts == 1 or size <= 1:
        return [batch]
    return [_part(batch, slice(i, min(i + step, size)), size) for i in range(0, size, step)]


def _part(batch: Any, where: slice, size: int) -> Any:
    """Cut the tensors (and lists) of one entry an example; leave the rest as it is."""

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size:
            return leaf[where]
        return leaf

    return _map(cut, batch)


def _cloned(batch: Any) -> Any:
    def clone(leaf: Any) -> Any:
        return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf

    with torch.inference_mode(False):
        return _map(clone, batch)


def _on_cpu(batches: Any) -> Any:
    return _map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, batches)


def _plain(tree: Any) -> bool:
    """Whether a tree loads with weights_only=True."""
    if type(tree) in (list, tuple):
        return all(_plain(item) for item in tree)
    if type(tree) is dict:
        return all(type(key) in (str, int) and _plain(item) for key, item in tree.items())
    return type(tree) in (Tensor, int, float, str, bool, type(None))


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        mapped = {key: _map(function, value) for key, value in tree.items()}
        return mapped if type(tree) is dict else type(tree)(mapped)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(function, value) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(_map(function, value) for value in tree)
    return function(tree)
