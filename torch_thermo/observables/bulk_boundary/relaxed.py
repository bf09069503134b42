"""States relaxed from several starts, the lowest of each example kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Relaxed:
    """The lowest minima found; float64, on the device of the inputs.

    Attributes:
        states: of all stages, one (B, *stage.shape) each, the output last: the target it is clamped
            to for the squared error, what it settles at without targets, else the network's output.
        residuals: of the hidden stages, `x_l - f(W_l x_{l-1} + b_l)`: in a feed-forward network
            `network.states(inputs, residuals)` gives the hidden states back.
        values: (B,), NaN where an input, an output or the loss is not finite.
        converged: (B,), bool: whether the lowest point is at rest, its gradient 0.
        spread: (B,), the highest less the lowest of the starts' minima; NaN where fewer than two
            converged.
        boundary: (B,), the loss of the network's own outputs; NaN without targets.
    """

    states: list[Tensor] = field(repr=False)
    residuals: list[Tensor] = field(repr=False)
    values: Tensor = field(repr=False)
    converged: Tensor = field(repr=False)
    spread: Tensor = field(repr=False)
    boundary: Tensor = field(repr=False)

    @classmethod
    def joined(cls, parts: Sequence[Relaxed]) -> Relaxed:
        """Return the examples of several parts as one."""
        return cls(
            [torch.cat(stage) for stage in zip(*(part.states for part in parts), strict=True)],
            [torch.cat(stage) for stage in zip(*(part.residuals for part in parts), strict=True)],
            torch.cat([part.values for part in parts]),
            torch.cat([part.converged for part in parts]),
            torch.cat([part.spread for part in parts]),
            torch.cat([part.boundary for part in parts]),
        )


@dataclass(frozen=True)
class Ends:
    """Where S starts of B examples ended.

    Attributes:
        points: (S, B, D), residuals or states.
        values: (S, B), infinite where none was tried.
        converged: (S, B).
    """

    points: Tensor
    values: Tensor
    converged: Tensor

    @classmethod
    def none(cls, starts: int, like: Tensor) -> Ends:
        """Return ends to be filled in.

        Args:
            starts: S.
            like: (B, D).
        """
        values = like.new_full((starts, len(like)), torch.inf)
        return cls(like.new_zeros(starts, *like.shape), values, torch.zeros_like(values).bool())

    def put(self, rows: Tensor, ended: tuple[Tensor, Tensor, Tensor]) -> None:
        """Fill in the ends (S n, ...) of all starts of the examples `rows`."""
        for mine, its in zip((self.points, self.values, self.converged), ended, strict=True):
            mine[:, rows] = its.unflatten(0, (-1, len(rows)))

    def lowest(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the lowest points (B, D), values (B,), convergence (B,) and spread (B,)."""
        best = self.values.argmin(0, keepdim=True)
        points = self.points.gather(0, best[..., None].expand(-1, -1, self.points.shape[2]))[0]
        high = torch.where(self.converged, self.values, -torch.inf).amax(0)
        low = torch.where(self.converged, self.values, torch.inf).amin(0)
        spread = torch.where(self.converged.sum(0) > 1, high - low, torch.nan)
        values, converged = self.values.gather(0, best)[0], self.converged.gather(0, best)[0]
        return points, values, converged, spread
