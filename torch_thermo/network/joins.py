"""Maps of several values to one: where branches of a network meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_thermo.network.base import Operation

__all__ = ["Concatenate", "Join", "Sum"]


class Join(Operation):
    """A linear map of several batches to one."""

    def __call__(self, *xs: Tensor) -> Tensor:
        """``(B, ...)`` each to ``(B, ...)``."""
        raise NotImplementedError


class Sum(Join):
    """``y = sum_k c_k x_k``: a skip connection. Shapes are broadcast, but for the batch.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        coefficients: c, one for each value.
    """

    def __init__(self, name: str, kind: str, coefficients: Sequence[float]) -> None:
        super().__init__(name, kind)
        self.coefficients = tuple(coefficients)

    def __call__(self, *xs: Tensor) -> Tensor:
        """``(B, ...)`` each to ``(B, ...)``."""
        terms = [x if c == 1 else c * x for c, x in zip(self.coefficients, xs, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


class Concatenate(Join):
    """One batch with the others' entries behind its own along an axis.

    Args:
        name: see `Operation`.
        kind: see `Operation`.
        axis: of the batches; not 0, the examples.
    """

    def __init__(self, name: str, kind: str, axis: int) -> None:
        super().__init__(name, kind)
        self.axis = axis

    def __call__(self, *xs: Tensor) -> Tensor:
        """``(B, ...)`` each to ``(B, ...)``."""
        return torch.cat(xs, self.axis)
