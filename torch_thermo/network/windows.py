"""Which positions of the input each position of a convolution's or a pool's output reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["adaptive_windows", "combine_axes", "sliding_windows"]


def sliding_windows(
    spatial: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    left: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the flat input position of each tap of each output position, -1 for padding.

    Along an axis tap t of output o reads ``stride o + dilation t - left``.

    Args:
        spatial: sizes of the input's spatial axes.
        outputs: sizes of the output's.
        kernel: taps an axis.
        stride: step of the window an axis.
        left: padding before the first input an axis.
        dilation: distance of two taps an axis.

    Returns:
        int64 of shape ``(prod(outputs), prod(kernel))``, both in row-major order.
    """
    axes = [
        stride[a] * torch.arange(outputs[a])[:, None]
        + dilation[a] * torch.arange(kernel[a])
        - left[a]
        for a in range(len(spatial))
    ]
    return combine_axes(spatial, axes)


def adaptive_windows(spatial: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """Return the windows of an adaptive pool: output o reads floor(o n/m) to ceil((o+1) n/m) - 1.

    Windows of one pool may differ in size: the shorter ones are filled up with -1.

    Returns:
        int64 of shape ``(prod(outputs), taps of the largest window)``.
    """
    axes = []
    for n, m in zip(spatial, outputs, strict=True):
        o = torch.arange(m)
        start, end = o * n // m, -(-(o + 1) * n // m)
        tap = torch.arange(int((end - start).max()))
        position = start[:, None] + tap
        axes.append(torch.where(position < end[:, None], position, -1))
    return combine_axes(spatial, axes)


def combine_axes(spatial: Sequence[int], axes: Sequence[Tensor]) -> Tensor:
    """Return flat positions (L, K) from each axis's positions (l, k); outside the input: -1."""
    flat = torch.zeros(1, 1, dtype=torch.int64)
    inside = torch.ones(1, 1, dtype=torch.bool)
    for size, position in zip(spatial, axes, strict=True):
        here = (position >= 0) & (position < size)
        shape = (flat.shape[0] * position.shape[0], flat.shape[1] * position.shape[1])
        flat = (flat[:, None, :, None] * size + position[None, :, None, :]).reshape(shape)
        inside = (inside[:, None, :, None] & here[None, :, None, :]).reshape(shape)
    return flat.where(inside, -1)
