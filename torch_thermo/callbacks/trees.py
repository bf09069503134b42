"""Batches of any nesting: cut, cloned, moved."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from torch_thermo.risk import batch_size, mapped, rebuilt


def as_batches(source: Any) -> Iterable[Any]:
    """Return the batches of a loader or a list of batches; a batch alone as one."""
    if isinstance(source, Tensor) or hasattr(source, "items") or not hasattr(source, "__iter__"):
        return [source]
    if isinstance(source, tuple | list) and any(isinstance(item, Tensor) for item in source):
        return [source]
    return list(source)


def split(batch: Any, parts: int) -> list[Any]:
    """Cut a batch into at most so many parts."""
    size = batch_size(batch)
    step = -(-size // parts)
    if parts == 1 or size <= 1:
        return [batch]
    return [cut(batch, slice(i, min(i + step, size)), size) for i in range(0, size, step)]


def cut(batch: Any, where: slice, size: int) -> Any:
    """Cut tensors and lists that have an entry an example; leave the rest as it is."""
    if isinstance(batch, Tensor):
        return batch[where] if batch.dim() and batch.shape[0] == size else batch
    if isinstance(batch, list | tuple) and len(batch) == size:
        if not any(isinstance(item, Tensor | list | tuple | dict) for item in batch):
            return batch[where]  # names, or numbers that are no tensor
    return rebuilt(lambda part: cut(part, where, size), batch)


def cloned(batch: Any) -> Any:
    """Return a copy whose tensors have no graph and memory of their own."""

    def own(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().clone()
        return copy.deepcopy(leaf) if hasattr(leaf, "to") else leaf

    with torch.inference_mode(False):
        return mapped(own, batch)


def moved(batch: Any, device: torch.device | str) -> Any:
    """Return the batch on a device."""
    return mapped(lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf, batch)


def is_plain(tree: Any) -> bool:
    """Whether a tree loads with weights_only=True."""
    if type(tree) in (list, tuple):
        return all(is_plain(item) for item in tree)
    if type(tree) is dict:
        return all(type(key) in (str, int) and is_plain(item) for key, item in tree.items())
    return type(tree) in (Tensor, int, float, str, bool, type(None))
