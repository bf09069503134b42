"""A network given as one matrix of weights between neurons."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_thermo.network.activations import ACTIVATIONS
from torch_thermo.network.joins import Sum
from torch_thermo.network.keeping import random_states_kept
from torch_thermo.network.live import Label, Operations
from torch_thermo.network.modules import MODULES, module_class
from torch_thermo.network.operations import Dense, Elementwise, Operation, Source
from torch_thermo.network.stages import Stage, composed

__all__ = ["Indices", "matrix_stages"]

Indices = int | slice | Sequence[int] | Tensor
"""Neurons: their numbers, also as a numpy array, a slice of all, or how many."""


def matrix_stages(
    w: Tensor,
    b: Tensor,
    activation: Callable[[Tensor], Tensor],
    inputs: Indices,
    outputs: Indices,
) -> tuple[list[Stage], Tensor]:
    """Return the stages of ``x = f(w x + b)`` and the neurons in their order; see `from_matrix`.

    The blocks of w between two stages are `Dense` maps that read w anew at each call; a block that
    is 0 is left out. Several of them are joined by a `Sum`; the first one has the bias.

    Returns:
        The stages, and the neurons' numbers, the input's first and then stage by stage, (N,).
    """
    _check_weights(w, b)
    count = len(w)
    entering = _numbers("inputs", inputs, count, first=True)
    leaving = _numbers("outputs", outputs, count, first=False)
    both = sorted(set(entering) & set(leaving))
    if both:
        raise ValueError(f"inputs and outputs must be different neurons, both have {both}")
    taken = {*entering, *leaving}
    hidden = [i for i in range(count) if i not in taken]
    linked = (w.detach() != 0).cpu()
    levels = _levels(linked, entering, hidden, leaving)
    if levels is None:
        names, groups = ["hidden", "output"], [hidden, leaving]
    else:
        names = [*(f"hidden {number}" for number in range(1, len(levels) + 1)), "output"]
        groups = [*levels, leaving]
    functions = _elementwise(activation, w)
    named = [(name, group) for name, group in zip(names, groups, strict=True) if group]
    places = [entering, *(group for _, group in named)]
    read_from = ["input", *(name for name, _ in named)]
    stages = [
        _stage(name, group, places, read_from, linked, functions, w, b) for name, group in named
    ]
    return stages, torch.tensor([i for place in places for i in place])


def _check_weights(w: Tensor, b: Tensor) -> None:
    for name, tensor in (("w", w), ("b", b)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating-point numbers, got {tensor.dtype}")
    if w.dim() != 2 or w.shape[0] != w.shape[1]:
        raise ValueError(f"w must be a square matrix (N, N), got {tuple(w.shape)}")
    if len(w) < 2:
        raise ValueError(
            f"w must be of at least 2 neurons, an input and an output, got {tuple(w.shape)}"
        )
    if b.shape != w.shape[:1]:
        raise ValueError(f"b must be of shape ({len(w)},), as w has rows, got {tuple(b.shape)}")
    for name, tensor in (("w", w), ("b", b)):
        wrong = (~tensor.detach().isfinite()).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            raise ValueError(f"{name} must be finite, got {tensor[place].item()} at {place}")


def _numbers(name: str, indices: Indices, count: int, first: bool) -> list[int]:
    """Return neurons' numbers; a plain number means so many of the first or of the last."""
    if isinstance(indices, Tensor):
        if indices.dim() != 1 or indices.dtype == torch.bool or indices.is_floating_point():
            shape = tuple(indices.shape)
            raise ValueError(f"{name} must be whole numbers, got {indices.dtype} of shape {shape}")
        indices = indices.tolist()
    if isinstance(indices, bool):
        raise ValueError(f"{name} must be neurons' numbers or how many, got {indices}")
    how_many = _whole(indices)
    if how_many is not None:
        if not 1 <= how_many < count:
            raise ValueError(
                f"{name} must be from 1 to {count - 1} of {count} neurons, got {indices}"
            )
        return list(range(how_many) if first else range(count - how_many, count))
    if isinstance(indices, slice):
        indices = range(count)[indices]
    if not isinstance(indices, Iterable):
        kind = type(indices).__name__
        raise TypeError(f"{name} must be neurons' numbers, a slice or how many, got {kind}")
    numbers = []
    for given in indices:
        number = _whole(given)
        if number is None or not 0 <= number < count:
            raise ValueError(f"{name} must be whole numbers from 0 to {count - 1}, got {given!r}")
        numbers.append(number)
    if not numbers:
        raise ValueError(f"{name} must be at least 1 neuron, got none")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} must be different neurons, got {numbers}")
    return numbers


def _whole(number: object) -> int | None:
    """Return a whole number of Python's, numpy's or torch's; None for anything else."""
    # numpy's truth values were whole numbers once
    if type(number).__name__ in ("bool", "bool_") or not isinstance(number, SupportsIndex):
        return None
    try:
        return operator.index(number)
    except TypeError:
        return None


def _levels(
    linked: Tensor, entering: list[int], hidden: list[int], leaving: list[int]
) -> list[list[int]] | None:
    """Return the hidden neurons by the longest path that leads to them; None in a recurrent net.

    Recurrent is what has a cycle, and what reads an output: that is no stage before the last.
    """
    if linked[hidden + leaving][:, leaving].any():
        return None
    inner = linked[hidden][:, hidden]
    waits_for = inner.sum(1)
    levels: list[list[int]] = []
    left = torch.ones(len(hidden), dtype=torch.bool)
    while bool(left.any()):
        ready = left & (waits_for == 0)
        if not bool(ready.any()):
            return None
        waits_for = waits_for - inner[:, ready].sum(1)
        left = left & ~ready
        levels.append([hidden[i] for i in ready.nonzero()[:, 0].tolist()])
    return levels


def _stage(
    name: str,
    rows: list[int],
    places: list[list[int]],
    names: list[str],
    linked: Tensor,
    functions: Operations,
    w: Tensor,
    b: Tensor,
) -> Stage:
    """Return the stage of the neurons `rows`, which reads those of `places`, called `names`."""
    read = [k for k, columns in enumerate(places) if bool(linked[rows][:, columns].any())]
    # a neuron that reads nothing has its bias
    read = read or [0]
    linear: list[Operation] = [
        Dense(
            name if len(read) == 1 else f"{name} from {names[k]}",
            "Linear",
            _block(w, rows, places[k]),
            _entries(b, rows) if k == read[0] else None,
        )
        for k in read
    ]
    wiring: tuple[tuple[int, ...], ...] | None = None
    if len(read) > 1:
        linear.append(Sum(name, "add", (1.0,) * len(read)))
        blocks = range(len(read))
        wiring = (*((k,) for k in blocks), tuple(~k for k in blocks))
    parents = tuple(k - 1 for k in read)
    # of its own, or it would be taken for one activation behind which the stages branch
    own = tuple(copy(function) for function in functions)
    for function in own:
        function.name = f"{name} activation"
    return Stage(name, parents, tuple(linear), own, torch.Size((len(rows),)), wiring)


def _block(w: Tensor, rows: list[int], columns: list[int]) -> Source:
    if _consecutive(rows) and _consecutive(columns):
        i, j = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return lambda: w[i, j]
    row, column = torch.tensor(rows)[:, None], torch.tensor(columns)
    return lambda: w[row.to(w.device), column.to(w.device)]


def _entries(b: Tensor, rows: list[int]) -> Source:
    if _consecutive(rows):
        return lambda: b[rows[0] : rows[-1] + 1]
    return lambda: b[torch.tensor(rows, device=b.device)]


def _consecutive(numbers: list[int]) -> bool:
    return numbers == list(range(numbers[0], numbers[-1] + 1))


def _elementwise(activation: Callable[[Tensor], Tensor], like: Tensor) -> Operations:
    """Return the activation as elementwise operations.

    Raises:
        ValueError: one that mixes neurons, tells them apart, or changes what it is given.
    """
    if not callable(activation):
        raise TypeError(f"activation must be callable, got {type(activation).__name__}")
    if isinstance(activation, type):
        kind = activation.__name__
        raise TypeError(f"activation must be no class: give {kind}(), an object")
    name = getattr(activation, "__name__", type(activation).__name__)
    x = 2 * torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x.to(like.device, like.dtype)
    with torch.no_grad(), random_states_kept([like]):
        try:
            operations = _read(Label("activation", name), activation, x)
            given = x.clone()
            together = composed(operations, given)
            alone = [composed(operations, entry.reshape(1, 1).clone()) for entry in x.flatten()]
        except Exception as error:
            raise ValueError(
                f"activation must take each number by itself; {name} fails on a batch of "
                f"{x.shape[1]} or of 1: {error}"
            ) from error
    if not given.equal(x):
        raise ValueError(f"activation must leave its input as it is; {name} works in place")
    # vectorised functions may round the last digits otherwise
    tolerance = torch.finfo(x.dtype).eps ** 0.75
    same = (
        together.shape == x.shape
        and all(y.shape == (1, 1) for y in alone)
        and torch.allclose(torch.cat(alone).reshape(x.shape), together, tolerance, tolerance, True)
    )
    if not same:
        raise ValueError(
            f"activation must be elementwise; {name} gives others for several neurons together "
            "than for each alone"
        )
    return operations


def _read(label: Label, activation: Callable[[Tensor], Tensor], x: Tensor) -> Operations:
    """Return what a table of activations knows of it, such as its gate, or the function itself."""
    if isinstance(activation, nn.Module):
        kind = module_class(activation)
        if kind in MODULES:
            operations = MODULES[kind][0](label, activation, x)
            bends = bool(operations) or kind is nn.Identity
            if not bends or not all(isinstance(o, Elementwise) for o in operations):
                raise ValueError(f"{kind.__name__} is no activation")
            return operations
    for known in ACTIVATIONS:
        if activation in (getattr(F, known.name), getattr(torch, known.name, None)):
            return known.read(label, x)
    return (Elementwise(*label, activation),)
