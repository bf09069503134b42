"""The primitive maps a network is made of: batch in, batch out.

Each computes in the dtype and on the device of its input: weights are cast to it, so a float32
model can be evaluated in float64. Weights are read from the model at each call, so that a network
follows the training. All are differentiable, twice where torch's own functions are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_thermo.network.base import Operation
from torch_thermo.network.errors import unreadable
from torch_thermo.network.pools import AdaptiveAveragePool, AveragePool, MaxPool
from torch_thermo.network.windows import sliding_windows

__all__ = [
    "AdaptiveAveragePool",
    "AveragePool",
    "Convolution",
    "Dense",
    "Elementwise",
    "MaxPool",
    "Operation",
    "Reshape",
    "Scale",
    "Source",
    "Weighted",
    "normalisation",
    "precise",
]

Source = Callable[[], Tensor]
"""Reads a live tensor of the model."""

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Weighted(Operation):
    """``y = apply(x, weight, bias)``, linear in x and in (weight, bias) together.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        weight: reads the live weight.
        bias: reads the live bias; None without one.

    Attributes:
        constant: whether the weight is a number that the forward pass has, and none of the model's.
    """

    constant = False

    def __init__(self, name: str, kind: str, weight: Source, bias: Source | None) -> None:
        super().__init__(name, kind)
        self._weight = weight
        self._bias = bias

    @property
    def weight(self) -> Tensor:
        """The model's live weight, not detached."""
        return self._weight()

    @property
    def bias(self) -> Tensor | None:
        """The model's live bias, not detached; None without one."""
        return None if self._bias is None else self._bias()

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The map with these weights, of the shapes of `weight` and `bias`, in x's dtype."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """``apply(x, weight, bias)`` with the live weights."""
        bias = self.bias
        return self.apply(x, self.weight.to(x), None if bias is None else bias.to(x))


class Dense(Weighted):
    """``y = x W^T + b`` on the last axis: `nn.Linear`. W has shape (outputs, inputs)."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Weighted.apply`."""
        return F.linear(x, weight, bias)


class Convolution(Weighted):
    """A convolution over 1, 2 or 3 spatial axes with zero padding: `nn.Conv1d` to `nn.Conv3d`.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        weight: reads the live weight ``(C_out, C_in / groups, *kernel)``.
        bias: reads the live bias ``(C_out,)``; None without one.
        stride: an axis.
        padding: an axis, or "same" or "valid".
        dilation: an axis.
        groups: of channels that don't see each other.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        weight: Source,
        bias: Source | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__(name, kind, weight, bias)
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Weighted.apply`."""
        convolve = _CONVOLUTIONS[len(self.stride)]
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def windows(self, shape: Sequence[int]) -> Tensor:
        """Return which input positions each output position reads.

        Args:
            shape: of one example of the input, ``(C, *spatial)``.

        Returns:
            int64 on the CPU, of shape ``(L, K)``: for each of the L output positions and K taps,
            both in row-major order, the flat spatial position of the input; -1 where the tap falls
            on padding. The same for every channel.
        """
        spatial, kernel = tuple(shape[1:]), tuple(self.weight.shape[2:])
        span = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
        if self.padding == "same":
            # of an odd total the larger part is on the right, as in torch
            left, total = [s // 2 for s in span], span
        else:
            left = [0] * len(span) if isinstance(self.padding, str) else list(self.padding)
            total = [2 * p for p in left]
        outputs = [
            (n + t - s - 1) // step + 1
            for n, t, s, step in zip(spatial, total, span, self.stride, strict=True)
        ]
        return sliding_windows(spatial, outputs, kernel, self.stride, left, self.dilation)


class Scale(Weighted):
    """``y_k = weight_k x_k + bias_k``: a diagonal layer, such as batch normalisation in eval mode.

    With one entry for all numbers of an example, one for each channel (axis 1), or one for each
    number, in row-major order; `bias` has as many as `weight`.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        weight: reads what multiplies: of a quotient x / p it is 1 / p.
        bias: reads the live shift; None without one.
        constant: see `Weighted`; that of ``x / 255``, of ``-x``, and the 1 of a shift ``x + b``.
    """

    def __init__(
        self, name: str, kind: str, weight: Source, bias: Source | None, constant: bool = False
    ) -> None:
        super().__init__(name, kind, weight, bias)
        self.constant = constant

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Weighted.apply`."""
        each = len(weight) == x.shape[1:].numel()
        shape = x.shape[1:] if each else (-1,) + (1,) * (x.dim() - 2)
        y = x * weight.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)


def normalisation(
    mean: Source, variance: Source, gamma: Source | None, beta: Source | None, eps: float
) -> tuple[Source, Source]:
    """Return weight and bias of the `Scale` that is batch normalisation in eval mode.

    ``weight = gamma / sqrt(var + eps)``, ``bias = beta - mean weight`` from the live running
    statistics, computed in float64 so that they serve any input's dtype.

    Args:
        mean: reads the running mean.
        variance: reads the running variance.
        gamma: reads gamma; None: 1.
        beta: reads beta; None: 0.
        eps: added to the variance.
    """

    def weight() -> Tensor:
        factor = (precise(variance()) + eps).rsqrt()
        return factor if gamma is None else precise(gamma()) * factor

    def bias() -> Tensor:
        shift = -precise(mean()) * weight()
        return shift if beta is None else precise(beta()) + shift

    return weight, bias


class Reshape(Operation):
    """Another shape of the same numbers of each example, in the same (row-major) order.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        shape: of one example of the output.
    """

    def __init__(self, name: str, kind: str, shape: Sequence[int]) -> None:
        super().__init__(name, kind)
        self.shape = torch.Size(shape)

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, ...)`` to ``(B, *shape)``."""
        return x.reshape(x.shape[0], *self.shape)


class Elementwise(Operation):
    """``y_i = f(x_i)``: an activation.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        function: f.
        gate: for a positively homogeneous f (f(a x) = a f(x), a > 0) the factor g(x) with
            f(x) = g(x) x; None for another.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        function: Callable[[Tensor], Tensor],
        gate: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(name, kind)
        self._function = function
        self._gate = gate

    def __call__(self, x: Tensor) -> Tensor:
        """F of each number."""
        return self._function(x)

    @property
    def homogeneous(self) -> bool:
        """Whether f(a x) = a f(x) for a > 0, so that there is a `gate`."""
        return self._gate is not None

    def gate(self, y: Tensor) -> Tensor:
        """Return g with ``f(y) = g y``, shaped like y.

        Raises:
            UnreadableNetworkError: f is not positively homogeneous.
        """
        if self._gate is None:
            raise unreadable(
                *(self.name, self.kind, "its output is no gate times its input"),
                "ReLU, LeakyReLU, PReLU and RReLU have gates",
            )
        return self._gate(y)


def precise(tensor: Tensor) -> Tensor:
    """Return it in float64 where its device has that."""
    return tensor if tensor.device.type == "mps" else tensor.double()
