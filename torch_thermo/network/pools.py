"""Pools as operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_thermo.network.base import Operation
from torch_thermo.network.windows import adaptive_windows, sliding_windows

__all__ = ["AdaptiveAveragePool", "AveragePool", "MaxPool"]

_AVERAGES: dict[int, Callable[..., Tensor]] = {
    1: F.avg_pool1d,
    2: F.avg_pool2d,
    3: F.avg_pool3d,
}
_ADAPTIVE_AVERAGES: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class AveragePool(Operation):
    """Average over windows, ``y = coefficient total(x)``.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        kernel: an axis.
        stride: an axis.
        padding: with zeros, an axis.
        ceil_mode: a last window may reach over the edge.
        count_include_pad: padding counts in the divisor.
        divisor: instead of the window's size.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> None:
        super().__init__(name, kind)
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor = divisor

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the averages ``(B, C, *outputs)``."""
        # avg_pool1d knows no divisor; nn.AvgPool1d and F.avg_pool1d have none to give
        divisor = () if len(self.kernel) == 1 else (self.divisor,)
        return _AVERAGES[len(self.kernel)](
            *(x, self.kernel, self.stride, self.padding),
            *(self.ceil_mode, self.count_include_pad, *divisor),
        )

    def total(self, x: Tensor) -> Tensor:
        """Return the sums over the windows, of the shape of y."""
        line = len(self.kernel) == 1
        # in one dimension there is no divisor to set to 1: a picture of height 1
        one, zero = ((1,), (0,)) if line else ((), ())
        y = _AVERAGES[max(2, len(self.kernel))](
            x.unsqueeze(2) if line else x,
            *(one + self.kernel, one + self.stride, zero + self.padding),
            *(self.ceil_mode, True, 1),
        )
        return y.squeeze(2) if line else y

    def coefficient(self, shape: Sequence[int]) -> Tensor:
        """Return the factor of each window's sum.

        Args:
            shape: of one example of the input, ``(C, *spatial)``.

        Returns:
            float64 on the CPU, of the output's spatial shape, which broadcasts to y: 1 over the
            number that `total` is divided by, which differs at borders.
        """
        ones = torch.ones((1, 1, *shape[1:]), dtype=torch.float64)
        # the divisor is a whole number: rounding removes what two divisions left
        return 1 / (self.total(ones) / self(ones)).round()[0, 0]

    def windows(self, shape: Sequence[int]) -> Tensor:
        """See `Convolution.windows`."""
        spatial = tuple(shape[1:])
        outputs = tuple(self.coefficient(shape).shape)
        ones = (1,) * len(spatial)
        return sliding_windows(spatial, outputs, self.kernel, self.stride, self.padding, ones)


class AdaptiveAveragePool(AveragePool):
    """Average over windows that are chosen so that the output has a given size.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        output: sizes of the output's spatial axes; None keeps an axis.
    """

    def __init__(self, name: str, kind: str, output: tuple[int | None, ...]) -> None:
        Operation.__init__(self, name, kind)
        self.output = output

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the averages ``(B, C, *output)``."""
        return _ADAPTIVE_AVERAGES[len(self.output)](x, self._sizes(x.shape[2:]))

    def total(self, x: Tensor) -> Tensor:
        """Return the sums over the windows, of the shape of y."""
        sizes = self._sizes(x.shape[2:])
        windows = self.windows(x.shape[1:]).to(x.device)
        taps = x.flatten(2)[..., windows.clamp(min=0)]
        return taps.masked_fill(windows < 0, 0).sum(-1).reshape(*x.shape[:2], *sizes)

    def coefficient(self, shape: Sequence[int]) -> Tensor:
        """See `AveragePool.coefficient`."""
        counts = (self.windows(shape) >= 0).sum(1)
        return 1 / counts.double().reshape(self._sizes(shape[1:]))

    def windows(self, shape: Sequence[int]) -> Tensor:
        """See `Convolution.windows`; windows that are smaller than others are filled with -1."""
        return adaptive_windows(shape[1:], self._sizes(shape[1:]))

    def _sizes(self, spatial: Sequence[int]) -> tuple[int, ...]:
        return tuple(n if m is None else m for n, m in zip(spatial, self.output, strict=True))


class MaxPool(Operation):
    """Maximum over windows, ``y = select(x, indices(x))``.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        pool: from x to the maxima and where they are, as torch returns them.
    """

    def __init__(
        self, name: str, kind: str, pool: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__(name, kind)
        self._pool = pool

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the maxima ``(B, C, *outputs)``."""
        return self._pool(x)[0]

    def indices(self, x: Tensor) -> Tensor:
        """Return the flat spatial position in x of each maximum: int64, shaped like y."""
        return self._pool(x)[1]

    def select(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return what stands in x ``(B, C, *spatial)`` at the positions `indices`."""
        return x.flatten(2).gather(2, indices.flatten(2)).reshape(indices.shape)
