"""How sums, multiples and concatenations are read: of branches, with numbers, with weights.

A reader has the function's own arguments, after a label: a `Branch` for what comes from the input,
`Live` for a weight. It returns the operations that do the same, and the branches that the first of
them takes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_thermo.network.joins import Concatenate, Sum
from torch_thermo.network.live import Branch, Label, Live, Operations
from torch_thermo.network.operations import Scale, Source, precise

__all__ = ["ARITHMETIC", "ARITHMETIC_FUNCTIONS", "ARITHMETIC_METHODS", "Joined", "Reader"]

Joined = tuple[Operations, tuple[Branch, ...]]
Reader = Callable[..., Joined]


def add(label: Label, input: Any, other: Any, *, alpha: Any = 1) -> Joined:
    """`torch.add`: ``input + alpha other``."""
    _check_number(label, "alpha", alpha)
    if isinstance(input, Branch) and isinstance(other, Branch):
        return _sum(label, (input, other), (1, alpha))
    if isinstance(input, Branch):
        return _affine(label, input, 1, other, alpha)
    return _affine(label, other, alpha, input)


def subtract(label: Label, input: Any, other: Any, *, alpha: Any = 1) -> Joined:
    """`torch.sub`: ``input - alpha other``."""
    _check_number(label, "alpha", alpha)
    return add(label, input, other, alpha=-alpha)


def negate(label: Label, input: Branch) -> Joined:
    """`torch.neg`."""
    return _affine(label, input, -1)


def multiply(label: Label, input: Any, other: Any) -> Joined:
    """`torch.mul` by a number or a weight."""
    branch, factor = (input, other) if isinstance(input, Branch) else (other, input)
    if isinstance(factor, Branch):
        raise label.refuse(
            "it multiplies values that come from the input by each other, as gates and attention do"
        )
    entries = _entries(label, branch, factor)
    return (Scale(*label, entries, None, _is_constant(factor)),), (branch,)


def divide(label: Label, input: Any, other: Any, *, rounding_mode: str | None = None) -> Joined:
    """`torch.div` by a number or a weight."""
    if isinstance(other, Branch):
        raise label.refuse("it divides by values that come from the input")
    if rounding_mode is not None:
        raise label.refuse(f"it rounds its quotient ({rounding_mode})")
    divisor = _entries(label, input, other)
    scale = Scale(*label, lambda: divisor().reciprocal(), None, _is_constant(other))
    return (scale,), (input,)


def concatenate(label: Label, tensors: Any, dim: int = 0, *, axis: int | None = None) -> Joined:
    """`torch.cat` along another axis than the batch."""
    branches = tuple(tensors)
    if not all(isinstance(branch, Branch) for branch in branches):
        raise label.refuse("it joins what comes from the input with other tensors")
    place = (dim if axis is None else axis) % branches[0].value.dim()
    if place == 0:
        raise label.refuse("it joins along the first axis, which is the batch")
    return ((Concatenate(*label, place),) if len(branches) > 1 else ()), branches


def _sum(label: Label, branches: tuple[Branch, ...], coefficients: Sequence[float]) -> Joined:
    if len({branch.value.dim() for branch in branches}) > 1:
        shapes = " and ".join(str(tuple(branch.value.shape[1:])) for branch in branches)
        raise label.refuse(f"it joins examples of other numbers of axes, {shapes}")
    return (Sum(*label, coefficients),), branches


def _affine(
    label: Label, branch: Branch, factor: float, shift: Any = 0, times: float = 1
) -> Joined:
    """Return ``factor branch + times shift``; no operation where that is the branch itself."""
    if not isinstance(shift, Live) and shift == 0:
        # sum() starts from 0
        return (() if factor == 1 else multiply(label, branch, factor)[0]), (branch,)
    added = _entries(label, branch, shift)
    ones = lambda: factor * torch.ones_like(added())  # noqa: E731
    return (Scale(*label, ones, lambda: times * added(), constant=True),), (branch,)


def _entries(label: Label, branch: Branch, value: Any) -> Source:
    """Return how the entries of a `Scale` are read: one, one a channel, or one a number.

    Raises:
        UnreadableNetworkError: no number and no tensor of the model that fits each example.
    """
    if not isinstance(value, Live):
        _check_number(label, "other argument", value)
        return lambda: torch.tensor([value], dtype=torch.float64)
    read = value.read
    own, shape = tuple(read().shape), tuple(branch.value.shape)
    aligned = (1,) * (len(shape) - len(own)) + own
    if len(own) > len(shape) or aligned[0] != 1 or torch.broadcast_shapes(own, shape) != shape:
        raise label.refuse(f"its weight of {own} does not fit each example of {shape[1:]}")
    if all(size == 1 for size in aligned[2:]):
        return lambda: precise(read()).reshape(-1)
    return lambda: precise(read()).reshape(aligned[1:]).expand(shape[1:]).reshape(-1)


def _is_constant(factor: Any) -> bool:
    return not isinstance(factor, Live) or factor.constant


def _check_number(label: Label, what: str, value: Any) -> None:
    if not isinstance(value, int | float):
        raise label.refuse(f"its {what} is a {type(value).__name__}, not a number")


# --- the tables


ARITHMETIC: dict[str, tuple[Reader, tuple[str, ...], str]] = {
    "add": (add, ("add",), "sum of branches; shift by a number or a weight"),
    "sub": (subtract, ("sub", "subtract"), "difference of branches; shift by a number or a weight"),
    "neg": (negate, ("neg", "negative"), "scale by -1"),
    "mul": (multiply, ("mul", "multiply"), "scale by a number or a weight"),
    "div": (
        divide,
        ("div", "divide", "true_divide", "truediv"),
        "scale by one over a number or a weight",
    ),
    "cat": (
        concatenate,
        ("cat", "concat", "concatenate"),
        "concatenation of branches, not along the batch",
    ),
}
"""From a name to its reader, its spellings, and what it is read as."""

Named = tuple[str, Reader]

ARITHMETIC_FUNCTIONS: dict[Callable[..., Any], Named] = {
    getattr(place, prefix + spelling): (name, reader)
    for name, (reader, spellings, _) in ARITHMETIC.items()
    for spelling in spellings
    for place, prefix in ((torch, ""), (operator, ""), (operator, "i"))
    # operator.concat is no function of tensors
    if hasattr(place, prefix + spelling) and not (place is operator and name == "cat")
}
ARITHMETIC_METHODS: dict[str, Named] = {
    written: (name, reader)
    for name, (reader, spellings, _) in ARITHMETIC.items()
    for spelling in spellings
    for written in (spelling, f"{spelling}_")
    if hasattr(Tensor, written)
}
