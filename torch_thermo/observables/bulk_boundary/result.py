"""What a measurement of the bulk and boundary loss returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Method = Literal["linear", "logit", "exact"]

_NAN = math.nan


@dataclass(frozen=True)
class BulkBoundary:
    """Bulk and boundary loss of each example.

    Attributes:
        bulk: (B,), float64 on the CPU; with m = 0 at most `boundary`; NaN where that is not finite.
        boundary: (B,), float64 on the CPU: the loss of the network's own outputs; NaN without
            targets.
        converged: (B,), bool on the CPU: whether `bulk` is a minimum, as `bulk_boundary_loss` says.
        method: "linear", "logit" or "exact".
        reason: why an example is NaN; empty when none is.
        spread: (B,), float64 on the CPU: the highest less the lowest of the minima that the starts
            of "exact" led to; NaN where fewer than two converged. None for other methods.
    """

    bulk: Tensor = field(repr=False)
    boundary: Tensor = field(repr=False)
    converged: Tensor = field(repr=False)
    method: Method
    reason: str = ""
    spread: Tensor | None = field(default=None, repr=False)

    @property
    def bulk_mean(self) -> float:
        """Mean bulk loss U; late in training a few misclassified examples carry it."""
        return float(self.bulk.mean())

    @property
    def boundary_mean(self) -> float:
        """Mean boundary loss."""
        return float(self.boundary.mean())

    @property
    def bulk_stderr(self) -> float:
        """Standard error of the mean bulk loss over examples; NaN for fewer than two."""
        return _stderr(self.bulk)

    @property
    def boundary_stderr(self) -> float:
        """Standard error of the mean boundary loss over examples; NaN for fewer than two."""
        return _stderr(self.boundary)

    @property
    def bulk_median(self) -> float:
        """Median bulk loss (the mean of the middle two)."""
        return float(self.bulk.quantile(0.5))

    @property
    def boundary_median(self) -> float:
        """Median boundary loss (the mean of the middle two)."""
        return float(self.boundary.quantile(0.5))

    @property
    def ratio(self) -> float:
        """Mean bulk over mean boundary loss; NaN where the boundary loss is 0."""
        boundary = self.boundary_mean
        return self.bulk_mean / boundary if boundary != 0 else _NAN

    @property
    def converged_share(self) -> float:
        """Share of the examples whose bulk loss is a minimum."""
        return float(self.converged.double().mean())

    @property
    def spread_mean(self) -> float:
        """Mean spread of the examples that have one; NaN where none has."""
        return _NAN if self.spread is None else float(self.spread.nanmean())

    def summary(self) -> dict[str, float]:
        """Return the numbers that are stored and compared.

        Returns:
            bulk, boundary (means over the examples, in the units of the loss), bulk_stderr,
            boundary_stderr, bulk_median, boundary_median, ratio, converged (a share); of the method
            "exact" also spread. All examples count, also those that did not converge.
        """
        found = {
            "bulk": self.bulk_mean,
            "boundary": self.boundary_mean,
            "bulk_stderr": self.bulk_stderr,
            "boundary_stderr": self.boundary_stderr,
            "bulk_median": self.bulk_median,
            "boundary_median": self.boundary_median,
            "ratio": self.ratio,
            "converged": self.converged_share,
        }
        return found if self.spread is None else {**found, "spread": self.spread_mean}


def _stderr(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else _NAN
