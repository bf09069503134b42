"""Which units lead into a unit, and draws among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_thermo.network.operations import AveragePool, Convolution, Dense, Scale, Weighted

# Numbers, half a MiB: below, sorting costs more than it saves.
_CACHED = 2**16


@dataclass(frozen=True)
class Fan:
    r"""The candidates among which a path that arrives at a unit came from.

    Units are flat (row-major) indices of an example's states. Many units have the same candidates:
    all output channels of a convolution at one position, or all outputs of a linear layer. So
    candidates are kept by *row*. A row is a block of input channels seen at one output position,

    =================== ============== ===================== =========================
    operation           blocks         channels in a block   outputs of a block
    =================== ============== ===================== =========================
    convolution         groups         C_in / groups         C_out / groups
    linear              leading axes   inputs                outputs
    scale               entries        1                     1
    average-pool        channels       1                     1
    =================== ============== ===================== =========================

    and its candidates are numbered (channel, tap) as the entries of one row of the weight are.

    Attributes:
        windows: (L, K) int64, input positions of the taps of each output position; -1 is padding.
        positions: of an input channel.
        channels: in a block.
        outputs: of a block.
    """

    windows: Tensor
    positions: int
    channels: int
    outputs: int

    @classmethod
    def of(cls, operation: Weighted | AveragePool, shape: Sequence[int]) -> Fan:
        """Read the fan of an operation whose input has this shape per example."""
        positions = math.prod(shape[1:])
        if isinstance(operation, Convolution):
            outputs, channels = operation.weight.shape[:2]
            windows = operation.windows(shape)
            return cls(windows, positions, channels, outputs // operation.groups)
        if isinstance(operation, Dense):
            outputs, inputs = operation.weight.shape
            return cls(torch.zeros(1, 1, dtype=torch.int64), 1, inputs, outputs)
        if isinstance(operation, AveragePool):
            return cls(operation.windows(shape), positions, 1, 1)
        if isinstance(operation, Scale):
            places = math.prod(shape) // len(operation.weight)
            return cls(torch.arange(places)[:, None], places, 1, 1)
        raise TypeError(f"circuits know no {type(operation).__name__} ({operation.name})")

    def row(self, units: Tensor) -> Tensor:
        """Return the row of each unit of the operation's output."""
        places = len(self.windows)
        return units // (self.outputs * places) * places + units % places

    def sources(self, rows: Tensor) -> Tensor:
        """Return (rows, candidates), the input units of these rows; -1 is padding."""
        places = len(self.windows)
        window = self.windows[rows % places][:, None, :]
        channel = (rows // places)[:, None] * self.channels + torch.arange(self.channels)
        units = channel[:, :, None] * self.positions + window
        return units.where(window >= 0, -1).flatten(1)


class Table:
    """Draws candidates with probability proportional to their masses.

    Each row's cumulative masses, divided by their total and shifted by the row's number, make one
    ascending table, so that one search serves draws from any rows. The law is exact to 2^-52 times
    the number of rows; a candidate of mass 0 is never drawn.

    Args:
        masses: (rows, candidates), float64, not negative.
    """

    def __init__(self, masses: Tensor) -> None:
        table = masses.cumsum(1)
        table /= table[:, -1:].clone().clamp_min_(torch.finfo(table.dtype).tiny)
        table += torch.arange(len(table), dtype=table.dtype)[:, None]
        self._table = table

    def draw(self, row: Tensor, generator: torch.Generator) -> Tensor:
        """Return one candidate for each of `row` (draws,), rows with a positive total."""
        start = row.to(self._table)
        place = start + torch.rand(len(row), dtype=start.dtype, generator=generator)
        # the sum may round up to the next row
        place = torch.minimum(place, torch.nextafter(start + 1, start))
        table = self._table.flatten()
        if len(table) > _CACHED and len(row) > _CACHED:
            # row by row, or nearly each look at the table misses the processor's cache
            order = row.argsort()
            found = torch.empty_like(row)
            found[order] = torch.searchsorted(table, place[order], right=True)
        else:
            found = torch.searchsorted(table, place, right=True)
        return found - row * self._table.shape[1]
