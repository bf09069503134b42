"""Batches of any nesting: their tensors, their size, their device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor


def batch_size(batch: Any) -> int:
    """Return the number of examples of a batch: the length of its first tensor with dimensions.

    Raises:
        ValueError: the batch holds no such tensor.
    """
    for leaf in tensors_of(batch):
        if leaf.dim() > 0:
            return leaf.shape[0]
    raise ValueError(
        f"cannot tell the number of examples of a batch ({describe(batch)}): "
        "return (mean, weight) from a closure"
    )


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Iterate over the tensors of nested tuples, lists, mappings and `.to`-able batches."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict) or hasattr(tree, "items"):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from tensors_of(value)


def move(tree: Any, device: torch.device) -> Any:
    """Return a batch on a device, by its own `.to` where it has one."""

    def moved(leaf: Any) -> Any:
        if not hasattr(leaf, "to"):
            return leaf
        there = leaf.to(device)
        # autograd cannot save inference tensors (as trainer.validate's batches are) for backward
        return there.clone() if isinstance(there, Tensor) and there.is_inference() else there

    return mapped(moved, tree)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to each leaf: what has a `.to`, or is no tuple, list or mapping."""
    if hasattr(tree, "to"):
        return function(tree)
    return rebuilt(lambda part: mapped(function, part), tree, function)


def rebuilt(
    each: Callable[[Any], Any], tree: Any, leaf: Callable[[Any], Any] = lambda leaf: leaf
) -> Any:
    """Apply a function to each part of a tuple, list or mapping, and another to a leaf."""
    if isinstance(tree, MutableMapping):
        items = copy.copy(tree)  # keeps what a kind of its own knows (a default factory)
        items.update({key: each(value) for key, value in tree.items()})
        return items
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(each(value) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(each(value) for value in tree)
    return leaf(tree)


def re_iterable(batches: Iterable[Any]) -> Iterable[Any]:
    """Return what can be iterated again and again, or say why it can't."""
    if isinstance(batches, Tensor | dict | str) or not hasattr(batches, "__iter__"):
        raise TypeError(
            f"batches must be a list of batches or a loader, got {type(batches).__name__}"
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches is a one-shot {type(batches).__name__}: every product reads it again, "
            "so give a list or a loader"
        )
    if isinstance(batches, Sequence) and len(batches) == 0:
        raise ValueError("batches is empty: a risk needs at least one batch")
    return batches


def describe(batch: Any) -> str:
    """Return a batch's kind and length, for an error message."""
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"
