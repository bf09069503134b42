"""The probe: the fixed examples on which a run is measured."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.callbacks.loading import (
    NoIndices,
    find_candidates,
    find_loader,
    own_copy,
    read_items,
    transfer_hooks,
)
from torch_thermo.callbacks.trees import as_batches, cloned, cut, is_plain, moved, split
from torch_thermo.isolation import preserved_generators
from torch_thermo.risk import batch_size, tensors_of

EXAMPLES = 512
# micro-batches: enough of them for a standard error
_PARTS = 8
# what is at most this size travels in the checkpoint itself
SMALL = 16 * 2**20

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
        waits: whether the validation data it is drawn from are not loaded yet.

    Raises:
        ValueError: less than 1 example, an empty list, an unknown word.
        TypeError: a source that is neither, or a one-shot iterator.
    """

    source: Source = EXAMPLES
    seed: int = 0
    batches: list[Any] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    population: int | None = None
    complete: bool = False
    waits: bool = False
    _passing: bool = False
    _wanted: int = 0
    _chosen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.examples = EXAMPLES
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
        elif isinstance(self.source, list | tuple) and not self.source:
            raise ValueError(f"probe must hold at least 1 example, got {self.source!r}")
        elif isinstance(self.source, Iterator):
            raise TypeError(
                f"probe is a one-shot {type(self.source).__name__}: a second run would find it "
                "empty, so give a list of batches or a loader"
            )

    def draw(self, trainer: Trainer, model: LightningModule) -> str | None:
        """Draw the probe, or begin to collect it; return a notice if the user should know.

        `model` is a shadow of the run's module: its hooks bring a collated batch to the device.

        Raises:
            ValueError: the source holds no example.
        """
        if self.complete:
            # from a checkpoint
            self.batches = moved(self.batches, trainer.strategy.root_device)
        if self.complete or self._passing:
            return None
        notice: str | None = None
        with preserved_generators():
            if isinstance(self.source, int | str):
                if self.split == "val" and self._comes_later(trainer):
                    told, self.waits = self.waits, True
                    text = "the validation data are not loaded yet: measuring begins when they are"
                    return None if told else text
                self.waits = False
                try:
                    loader = find_loader(trainer, self.split)
                    candidates = find_candidates(loader, trainer, self.split)
                except NoIndices as reason:
                    if self.split == "val":
                        raise ValueError(
                            'probe="val" needs one validation loader over an indexable data set, '
                            f"but {reason}; give the batch or the loader itself"
                        ) from None
                    return self._collect_passing(trainer.world_size, str(reason))
                notice = self._draw_indices(trainer, loader, candidates, model)
            else:
                transfer = transfer_hooks(trainer, model)
                _seed_all(self.seed)
                given = as_batches(self.source)
                self.batches = [transfer(part) for b in given for part in split(b, _PARTS)]
        if not self.batches:
            raise ValueError(f"the probe is empty: its source {self._name()} holds no example")
        self.complete = True
        return notice

    def offer(self, batch: Any) -> None:
        """Take a training batch that passes, if the probe is collected that way."""
        if not self._passing or self.complete:
            return
        have = sum(batch_size(b) for b in self.batches)
        taken = cloned(batch)
        size = batch_size(taken)
        if size > self._wanted - have:
            taken = cut(taken, slice(0, self._wanted - have), size)
        self.batches.extend(split(taken, 1 if self.batches or size < self._wanted else _PARTS))
        self.complete = have + batch_size(taken) >= self._wanted

    def give_up(self) -> None:
        """Take no more batches that pass."""
        self._passing = False

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
            chosen.append(batch if size <= left else cut(batch, slice(0, left), size))
            left -= min(size, left)
            if left == 0:
                break
        return chosen

    def state_dict(self, world: int) -> dict[str, Any]:
        """Return indices, and the batches when they are few, plain and the only rank's."""
        state: dict[str, Any] = {"indices": list(self._chosen), "seed": self.seed}
        if self.population is not None:
            state["population"] = self.population
        tensors = [t for b in self.batches for t in tensors_of(b)]
        size = sum(t.numel() * t.element_size() for t in tensors)
        if self.complete and world == 1 and size <= SMALL and is_plain(self.batches):
            state["batches"] = moved(self.batches, "cpu")
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a stored probe up again; without stored batches its indices are read anew."""
        self._chosen = list(state["indices"])
        if "batches" in state:
            self.batches = list(state["batches"])
            self.indices = list(self._chosen)
            self.population = state.get("population")
            self.complete = True

    def _collect_passing(self, world: int, reason: str) -> str:
        self._passing = True
        self._wanted = -(-self.examples // world)
        return (
            f"{reason}, so the probe is the first {self.examples} examples that pass; measuring "
            "begins when they have"
        )

    def _draw_indices(
        self,
        trainer: Trainer,
        loader: DataLoader[Any],
        candidates: Sequence[int],
        model: LightningModule,
    ) -> str | None:
        self.population = len(candidates)
        if not set(self._chosen) <= set(candidates) or not self._chosen:
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(len(candidates), generator=generator)[: self.examples]
            self._chosen = [candidates[i] for i in order.tolist()]
        self.indices = self._chosen[trainer.global_rank :: trainer.world_size]
        dataset, collate, notice = own_copy(loader, model)
        transfer = transfer_hooks(trainer, model)
        size = -(-len(self._chosen) // (_PARTS * trainer.world_size))
        _seed_all(self.seed + trainer.global_rank)
        for start in range(0, len(self.indices), size):
            items = read_items(dataset, self.indices[start : start + size])
            self.batches.append(transfer(collate(items)))
        return notice

    @staticmethod
    def _comes_later(trainer: Trainer) -> bool:
        return trainer.val_dataloaders is None and bool(trainer.enable_validation)

    def _name(self) -> str:
        return repr(self.source) if isinstance(self.source, int | str) else "given by the user"


def _seed_all(seed: int) -> None:
    """Seed the global generators: only inside `preserved_generators`."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that augmentations draw from
    random.seed(seed)
