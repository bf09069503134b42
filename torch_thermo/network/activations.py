"""How elementwise activations are read, as functions and as modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_thermo.network.live import Label, Operations, needed
from torch_thermo.network.operations import Elementwise

__all__ = ["ACTIVATIONS", "Activation", "prelu"]


class Activation(NamedTuple):
    """An elementwise activation.

    Args:
        module: its class in `torch.nn`.
        name: of its function in `torch.nn.functional`.
        arguments: names, shared by both, and defaults.
        slope: from the arguments to the slope of the negative side, for an activation that is
            the identity on the positive side and homogeneous; None where it is not.
    """

    module: type[nn.Module]
    name: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    slope: Callable[..., float | None] | None = None

    def read(self, label: Label, input: Tensor, *arguments: Any, **keywords: Any) -> Operations:
        """The function as an operation."""
        given = dict(zip((*self.arguments, "inplace"), arguments, strict=False)) | keywords
        if given.pop("training", False):
            raise label.refuse("it is random in eval mode: give it training=self.training")
        given.pop("inplace", None)
        values = {**self.arguments, **given}
        slope = None if self.slope is None else self.slope(**values)
        gate = None if slope is None else partial(_gate, slope=slope)
        function: Callable[..., Tensor] = getattr(F, self.name)
        return (Elementwise(*label, lambda x: function(x, **values), gate),)


def _gate(y: Tensor, slope: float | Tensor) -> Tensor:
    return torch.where(y > 0, torch.ones_like(y), slope * torch.ones_like(y))


def prelu(label: Label, input: Tensor, weight: Any) -> Operations:
    """`F.prelu`: one slope, or one a channel, that is learnt."""
    read = needed(label, "weight", weight)

    def slope(x: Tensor) -> Tensor:
        value = read().to(x)
        return value.reshape((-1,) + (1,) * (x.dim() - 2)) if value.numel() > 1 else value

    def gate(y: Tensor) -> Tensor:
        return _gate(y, slope(y))

    return (Elementwise(*label, lambda x: F.prelu(x, read().to(x)), gate),)


def _threshold(threshold: float, value: float) -> float | None:
    return 0.0 if threshold == value == 0 else None


ACTIVATIONS: tuple[Activation, ...] = (
    Activation(nn.ReLU, "relu", slope=lambda: 0.0),
    Activation(
        *(nn.LeakyReLU, "leaky_relu", {"negative_slope": 0.01}),
        slope=lambda negative_slope: negative_slope,
    ),
    Activation(
        *(nn.RReLU, "rrelu", {"lower": 1 / 8, "upper": 1 / 3}),
        slope=lambda lower, upper: (lower + upper) / 2,
    ),
    Activation(nn.Threshold, "threshold", {"threshold": None, "value": None}, _threshold),
    Activation(nn.ReLU6, "relu6"),
    Activation(nn.Hardtanh, "hardtanh", {"min_val": -1.0, "max_val": 1.0}),
    Activation(nn.ELU, "elu", {"alpha": 1.0}),
    Activation(nn.SELU, "selu"),
    Activation(nn.CELU, "celu", {"alpha": 1.0}),
    Activation(nn.GELU, "gelu", {"approximate": "none"}),
    Activation(nn.SiLU, "silu"),
    Activation(nn.Mish, "mish"),
    Activation(nn.Tanh, "tanh"),
    Activation(nn.Sigmoid, "sigmoid"),
    Activation(nn.Softplus, "softplus", {"beta": 1.0, "threshold": 20.0}),
    Activation(nn.Softsign, "softsign"),
    Activation(nn.Hardswish, "hardswish"),
    Activation(nn.Hardsigmoid, "hardsigmoid"),
    Activation(nn.LogSigmoid, "logsigmoid"),
    Activation(nn.Tanhshrink, "tanhshrink"),
    Activation(nn.Softshrink, "softshrink", {"lambd": 0.5}),
    Activation(nn.Hardshrink, "hardshrink", {"lambd": 0.5}),
)
"""All but PReLU, which has weights."""
