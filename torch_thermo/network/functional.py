"""How functions and tensor methods are read: those of `torch.nn.functional`, `torch`, `Tensor`.

A reader has the function's own arguments, after a label, and returns the operations that do the
same in eval mode; none where nothing is done. The input is the tensor that comes there when the
model is read, weights are `Live`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_thermo.network.activations import ACTIVATIONS, prelu
from torch_thermo.network.live import Label, Operations, needed, source
from torch_thermo.network.operations import (
    AdaptiveAveragePool,
    AveragePool,
    Convolution,
    Dense,
    Elementwise,
    MaxPool,
    Reshape,
    Scale,
    normalisation,
)

__all__ = ["FUNCTIONS", "METHODS", "READERS"]

_RELU = next(activation for activation in ACTIVATIONS if activation.name == "relu")

T = TypeVar("T")
Size = int | Sequence[int]


def _tuple(value: T | Sequence[T], n: int) -> tuple[T, ...]:
    """One value for each of n axes. A single number in a sequence serves all, as in torch."""
    if isinstance(value, Sequence):
        values = tuple(value)
        return values * n if len(values) == 1 else values
    return (value,) * n


def _batched(label: Label, input: Tensor, spatial: int) -> None:
    if input.dim() != spatial + 2:
        raise label.refuse(
            f"its input has {input.dim()} axes, not {spatial + 2}: batch, channels, {spatial} "
            "spatial"
        )


# --- layers


def linear(label: Label, input: Tensor, weight: Any, bias: Any = None) -> Operations:
    """`F.linear`."""
    if input.dim() < 2:
        raise label.refuse("its input has one axis, which is the batch")
    read = needed(label, "weight", weight)
    if read().dim() != 2:
        raise label.refuse("its weight is no matrix")
    return (Dense(*label, read, source(label, "bias", bias)),)


def convolution(n: int) -> Callable[..., Operations]:
    """Return the reader of `F.conv1d`, `F.conv2d` or `F.conv3d`."""

    def read(
        label: Label,
        input: Tensor,
        weight: Any,
        bias: Any = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
    ) -> Operations:
        _batched(label, input, n)
        read_weight, read_bias = needed(label, "weight", weight), source(label, "bias", bias)
        return (
            Convolution(
                *label,
                read_weight,
                read_bias,
                stride=_tuple(stride, n),
                padding=padding if isinstance(padding, str) else _tuple(padding, n),
                dilation=_tuple(dilation, n),
                groups=groups,
            ),
        )

    return read


def batch_norm(
    label: Label,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Operations:
    """`F.batch_norm`."""
    if training or running_mean is None or running_var is None:
        raise label.refuse("it normalises with the batch's own statistics, in eval mode too")
    statistics = (
        needed(label, "running mean", running_mean),
        needed(label, "running variance", running_var),
    )
    affine = source(label, "weight", weight), source(label, "bias", bias)
    return (Scale(*label, *normalisation(*statistics, *affine, eps)),)


# --- pools


def max_pool(n: int) -> Callable[..., Operations]:
    """Return the reader of `F.max_pool1d`, `F.max_pool2d` or `F.max_pool3d`."""
    pool: Callable[..., Any] = getattr(F, f"max_pool{n}d")

    def read(
        label: Label,
        input: Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Operations:
        _batched(label, input, n)
        _one_output(label, return_indices)
        arguments = (kernel_size, stride, padding, dilation, ceil_mode)
        return (MaxPool(*label, lambda x: pool(x, *arguments, return_indices=True)),)

    return read


def adaptive_max_pool(n: int) -> Callable[..., Operations]:
    """Return the reader of `F.adaptive_max_pool1d` to `3d`."""
    pool: Callable[..., Any] = (
        F.adaptive_max_pool1d,
        F.adaptive_max_pool2d,
        F.adaptive_max_pool3d,
    )[n - 1]

    def read(
        label: Label, input: Tensor, output_size: Any, return_indices: bool = False
    ) -> Operations:
        _batched(label, input, n)
        _one_output(label, return_indices)
        return (MaxPool(*label, lambda x: pool(x, output_size, return_indices=True)),)

    return read


def _one_output(label: Label, return_indices: bool) -> None:
    if return_indices:
        raise label.refuse("it returns indices beside its output")


def average_pool(n: int) -> Callable[..., Operations]:
    """Return the reader of `F.avg_pool1d`, `F.avg_pool2d` or `F.avg_pool3d`."""

    def read(
        label: Label,
        input: Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Operations:
        _batched(label, input, n)
        windows = _tuple(kernel_size, n), _tuple(stride or kernel_size, n), _tuple(padding, n)
        return (AveragePool(*label, *windows, ceil_mode, count_include_pad, divisor_override),)

    return read


def adaptive_average_pool(n: int) -> Callable[..., Operations]:
    """Return the reader of `F.adaptive_avg_pool1d` to `3d`."""

    def read(label: Label, input: Tensor, output_size: Any) -> Operations:
        _batched(label, input, n)
        return (AdaptiveAveragePool(*label, _tuple(output_size, n)),)

    return read


def mean(label: Label, input: Tensor, dim: Size | None = None, keepdim: bool = False) -> Operations:
    """`torch.mean` over spatial axes: an average pool, and the axes that go."""
    if dim is None:
        raise label.refuse("it averages over the batch")
    axes = {axis % input.dim() for axis in _tuple(dim, 1)}
    spatial = input.dim() - 2
    if not axes or min(axes) < 2 or spatial > 3:
        raise label.refuse(
            "it averages over other axes than the spatial ones (behind the channels)"
        )
    output = tuple(1 if axis in axes else None for axis in range(2, input.dim()))
    pool = AdaptiveAveragePool(*label, output)
    if keepdim:
        return (pool,)
    left = [size for axis, size in enumerate(input.shape) if axis not in axes]
    return pool, Reshape(*label, left[1:])


# --- limits


def clamp(label: Label, input: Tensor, min: Any = None, max: Any = None) -> Operations:
    """`torch.clamp` between numbers; ``clamp(min=0)`` is a ReLU."""
    if not all(limit is None or isinstance(limit, int | float) for limit in (min, max)):
        raise label.refuse("its limits are tensors, not numbers")
    if min == 0 and max is None:
        return _RELU.read(label, input)
    return (Elementwise(*label, lambda x: torch.clamp(x, min, max)),)


# --- what does nothing to the numbers


def dropout(
    label: Label, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Operations:
    """`F.dropout` and its kin."""
    if training and p > 0:
        raise label.refuse("it is active in eval mode: give it training=self.training")
    return ()


def identity(label: Label, input: Tensor, *arguments: Any, **keywords: Any) -> Operations:
    """What leaves the numbers as they are."""
    return ()


def cast(method: str) -> Callable[..., Operations]:
    """Return the reader of a tensor method that gives another dtype or device."""

    def read(label: Label, input: Tensor, *arguments: Any, **keywords: Any) -> Operations:
        output = getattr(input, method)(*arguments, **keywords)
        if (output.dtype, output.device) != (input.dtype, input.device):
            raise label.refuse(f"it makes {output.dtype} on {output.device} of its input")
        return ()

    return read


def reshape(method: str) -> Callable[..., Operations]:
    """Return the reader of a tensor method that gives another shape."""

    def read(label: Label, input: Tensor, *arguments: Any, **keywords: Any) -> Operations:
        output = getattr(input, method)(*arguments, **keywords)
        return reshaped(label, input, output)

    return read


def reshaped(label: Label, input: Tensor, output: Tensor) -> Operations:
    """Return the reshape from `input` to `output`; none where nothing changes."""
    if output.dim() == 0 or output.shape[0] != input.shape[0]:
        raise label.refuse(
            f"it makes {tuple(output.shape)} of {tuple(input.shape)}, whose first axis is the batch"
        )
    return () if output.shape == input.shape else (Reshape(*label, output.shape[1:]),)


# --- the tables


RESHAPES = ("flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view")
UNCHANGED = ("clone", "contiguous")
CASTS = ("double", "float", "to")

READERS: dict[str, Callable[..., Operations]] = {
    "linear": linear,
    **{f"conv{n}d": convolution(n) for n in (1, 2, 3)},
    "batch_norm": batch_norm,
    **{f"max_pool{n}d": max_pool(n) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": average_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": adaptive_max_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": adaptive_average_pool(n) for n in (1, 2, 3)},
    "mean": mean,
    **{name: clamp for name in ("clamp", "clip")},
    "dropout": dropout,
    **{f"dropout{n}d": dropout for n in (1, 2, 3)},
    "alpha_dropout": dropout,
    "feature_alpha_dropout": dropout,
    **{name: reshape(name) for name in RESHAPES},
    **{name: identity for name in UNCHANGED},
    **{name: cast(name) for name in CASTS},
    **{activation.name: activation.read for activation in ACTIVATIONS},
    "prelu": prelu,
}
"""How a function or a tensor method of this name is read; a trailing underscore is left out."""


Named = tuple[str, Callable[..., Operations]]


def _functions() -> dict[Callable[..., Any], Named]:
    found: dict[Callable[..., Any], Named] = {}
    for name, reader in READERS.items():
        # these of torch have other arguments or outputs
        places = (F,) if name in ("batch_norm", "adaptive_max_pool1d") else (F, torch)
        for place in places:
            for spelling in (name, f"{name}_"):
                if callable(function := getattr(place, spelling, None)):
                    found[function] = name, reader
    return found


FUNCTIONS = _functions()
METHODS: dict[str, Named] = {
    spelling: (name, reader)
    for name, reader in READERS.items()
    for spelling in (name, f"{name}_")
    if hasattr(Tensor, spelling)
}
