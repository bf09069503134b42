"""Attributes, buffers and random states that are put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from types import ModuleType
from typing import Any
from weakref import ProxyTypes

import torch
from torch import Tensor, nn

__all__ = ["attributes_kept", "random_states_kept"]

_NOT_OWNED = (*ProxyTypes, ModuleType)
"""Objects that a model only refers to: a trainer, a Python module."""


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back every module's attributes, what the containers among them hold, and buffers.

    A forward pass may keep what it saw, which while it is followed are no tensors. Lists, dicts,
    sets and deques are put back at any depth, and the attributes of an object that a module has (a
    meter); objects within that object are not looked into.
    """
    kept = [(container, _contents(container)) for container in _containers(model)]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for container, contents in kept:
            now = _contents(container)
            if len(now) != len(contents) or not all(map(is_, now, contents)):
                _refill(container, contents)
        for buffer, value in buffers:
            # a buffer that is written to may not be differentiated by what was computed before
            if not buffer.equal(value):
                buffer.copy_(value)


def _containers(model: nn.Module) -> list[Any]:
    found: dict[int, Any] = {}
    objects: list[Any] = list(model.modules())
    for _ in ("the modules", "the objects they have"):
        waiting: list[Any] = [getattr(value, "__dict__", None) for value in objects]
        objects = []
        while waiting:
            value = waiting.pop()
            # not isinstance, which asks the object: a weak proxy's may be gone
            if issubclass(type(value), list | dict | set | deque):
                if id(value) not in found:
                    found[id(value)] = value
                    waiting += _contents(value)
            elif issubclass(type(value), tuple):
                waiting += value
            elif type(value) not in _NOT_OWNED:
                objects.append(value)
    return list(found.values())


def _contents(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    return list(container)


def _refill(container: Any, contents: list[Any]) -> None:
    container.clear()
    if isinstance(container, dict):
        half = len(contents) // 2
        container.update(zip(contents[:half], contents[half:], strict=True))
    elif isinstance(container, set):
        container.update(contents)
    else:
        container.extend(contents)


@contextmanager
def random_states_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put the states of torch's generators back: the CPU's, and those of the tensors' devices."""
    devices = {tensor.device for tensor in tensors}
    with torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
        yield
