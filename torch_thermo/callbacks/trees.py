"""Batches of any nesting: cut, cloned, moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from torch_thermo.risk import batch_size


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
    return _rebuilt(lambda part: cut(part, where, size), batch)


def cloned(batch: Any) -> Any:
    """Return a copy whose tensors have no graph and memory of their own."""
    with torch.inference_mode(False):
        return mapped(lambda leaf: leaf.detach().clone(), batch)


def moved(batch: Any, device: torch.device | str) -> Any:
    """Return the batch on a device."""
    return mapped(lambda leaf: leaf.to(device), batch)


def is_plain(tree: Any) -> bool:
    """Whether a tree loads with weights_only=True."""
    if type(tree) in (list, tuple):
        return all(is_plain(item) for item in tree)
    if type(tree) is dict:
        return all(type(key) in (str, int) and is_plain(item) for key, item in tree.items())
    return type(tree) in (Tensor, int, float, str, bool, type(None))


def mapped(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    return _rebuilt(lambda part: mapped(function, part), tree)


def _rebuilt(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        items = {key: function(value) for key, value in tree.items()}
        return items if type(tree) is dict else type(tree)(items)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(function(value) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(function(value) for value in tree)
    return tree
