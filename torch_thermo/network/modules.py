"""How modules of `torch.nn` are read: the table that decides, and from which the docs are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from torch_thermo.network import functional
from torch_thermo.network.activations import ACTIVATIONS, Activation, prelu
from torch_thermo.network.live import Label, Live, Operations
from torch_thermo.network.training import evaluating

__all__ = ["MODULES", "Reader", "module_class"]

Reader = Callable[[Label, Any, Tensor], Operations]


def live(module: nn.Module, name: str) -> Live | None:
    """Return how `module.name` is read, or None where the module has none.

    A parametrised weight is computed anew, in eval mode: in training mode the spectral norm's
    estimate would be moved.
    """
    if getattr(module, name) is None:
        return None
    if not parametrize.is_parametrized(module, name):
        return Live(lambda: getattr(module, name), name)

    def read() -> Tensor:
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        with evaluating(parametrizations):
            return getattr(module, name)  # type: ignore[no-any-return]

    return Live(read, name)


def _linear(label: Label, m: nn.Linear, x: Tensor) -> Operations:
    return functional.linear(label, x, live(m, "weight"), live(m, "bias"))


def _convolution(n: int) -> Reader:
    function = functional.convolution(n)

    def read(label: Label, m: Any, x: Tensor) -> Operations:
        if m.padding_mode != "zeros":
            raise label.refuse(f"its padding mode is {m.padding_mode!r}, not 'zeros'")
        weights = live(m, "weight"), live(m, "bias")
        return function(label, x, *weights, m.stride, m.padding, m.dilation, m.groups)

    return read


def _batch_norm(*dimensions: int) -> Reader:
    def read(label: Label, m: Any, x: Tensor) -> Operations:
        if x.dim() not in dimensions:
            raise label.refuse(f"its input has {x.dim()} axes, not {dimensions[-1]}")
        return functional.batch_norm(
            label,
            x,
            live(m, "running_mean"),
            live(m, "running_var"),
            live(m, "weight"),
            live(m, "bias"),
            eps=m.eps,
        )

    return read


def _attributes(function: Callable[..., Operations], *names: str) -> Reader:
    """The reader of a function whose arguments are the module's attributes of the same names."""

    def read(label: Label, m: Any, x: Tensor) -> Operations:
        return function(label, x, **{name: getattr(m, name) for name in names})

    return read


def _activation(activation: Activation) -> Reader:
    return _attributes(activation.read, *activation.arguments)


def _prelu(label: Label, m: nn.PReLU, x: Tensor) -> Operations:
    return prelu(label, x, live(m, "weight"))


def _nothing(label: Label, m: nn.Module, x: Tensor) -> Operations:
    return ()


def _reshape(label: Label, m: nn.Module, x: Tensor) -> Operations:
    return functional.reshaped(label, x, m.forward(x))


_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")

MODULES: dict[type[nn.Module], tuple[Reader, str]] = {
    nn.Linear: (_linear, "layer, on the last axis"),
    nn.Conv1d: (_convolution(1), "layer; zero padding"),
    nn.Conv2d: (_convolution(2), "layer; zero padding"),
    nn.Conv3d: (_convolution(3), "layer; zero padding"),
    nn.BatchNorm1d: (_batch_norm(2, 3), "scale and shift by the running statistics"),
    nn.BatchNorm2d: (_batch_norm(4), "scale and shift by the running statistics"),
    nn.BatchNorm3d: (_batch_norm(5), "scale and shift by the running statistics"),
    nn.SyncBatchNorm: (_batch_norm(2, 3, 4, 5), "scale and shift by the running statistics"),
    nn.MaxPool1d: (_attributes(functional.max_pool(1), *_MAX), "pool"),
    nn.MaxPool2d: (_attributes(functional.max_pool(2), *_MAX), "pool"),
    nn.MaxPool3d: (_attributes(functional.max_pool(3), *_MAX), "pool"),
    nn.AvgPool1d: (_attributes(functional.average_pool(1), *_AVERAGE), "pool"),
    nn.AvgPool2d: (
        _attributes(functional.average_pool(2), *_AVERAGE, "divisor_override"),
        "pool",
    ),
    nn.AvgPool3d: (
        _attributes(functional.average_pool(3), *_AVERAGE, "divisor_override"),
        "pool",
    ),
    **{
        kind: (
            _attributes(functional.adaptive_max_pool(n), "output_size", "return_indices"),
            "pool",
        )
        for n, kind in enumerate(
            (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), 1
        )
    },
    **{
        kind: (_attributes(functional.adaptive_average_pool(n), "output_size"), "pool")
        for n, kind in enumerate(
            (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), 1
        )
    },
    nn.Flatten: (_reshape, "reshape"),
    nn.Unflatten: (_reshape, "reshape"),
    nn.Identity: (_nothing, "nothing"),
    **{
        kind: (_nothing, "nothing in eval mode")
        for kind in (
            *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
            *(nn.AlphaDropout, nn.FeatureAlphaDropout),
        )
    },
    **{a.module: (_activation(a), "activation") for a in ACTIVATIONS},
    nn.PReLU: (_prelu, "activation with learnt slopes"),
}
"""From a class of `torch.nn` to its reader and to what it is read as."""


def module_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of `torch.nn` that computes `module`, else the module's own class.

    Parametrised modules are what they were before. A subclass that keeps its parent's `forward` is
    read as the parent, one with a `forward` of its own is followed.
    """
    own: type[nn.Module] = parametrize.type_before_parametrizations(module)
    for kind in own.__mro__:
        if kind.__module__.startswith("torch.nn.") and all(
            getattr(own, name, None) is getattr(kind, name, None)
            for name in ("forward", "_conv_forward")
        ):
            return kind
    return own
