"""The operators of the propagator's spectrum: G of a network's one-step map, and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo.network import StepDerivative
from torch_thermo.operators.base import SymmetricOperator

__all__ = ["PropagatorInverseOperator", "PropagatorOperator"]


class PropagatorOperator(SymmetricOperator):
    """`G = (I - M)^T (I - M)` with `M = f'(y) w`, on vectors of all N neurons, the input's first.

    V. Vanchurin, *Towards a theory of machine learning*, eqs. 5.4 and 5.6. Two passes through the
    network's layers a product. Its `blocks` are the input and the stages.

    Args:
        derivative: M at a point.

    Example:
        >>> from torch_thermo.network import Network
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh()).double()
        >>> x = torch.rand(1, 3, dtype=torch.float64)
        >>> network = Network.from_module(model, x)
        >>> g = PropagatorOperator(StepDerivative(network, x, network.states(x)[0]))
        >>> bool((g.dense().det() - 1).abs() < 1e-12)
        True
    """

    def __init__(self, derivative: StepDerivative) -> None:
        self.derivative = derivative
        sizes = [shape.numel() for shape in derivative.shapes]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        blocks = {
            "input" if i == 0 else f"stage {i - 1}": slice(end - size, end)
            for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
        }
        super().__init__(derivative.neurons, derivative.dtype, derivative.device, blocks)

    def _products(self, columns: list[Tensor]) -> list[Tensor]:
        vectors = self.derivative.unflatten(torch.stack(columns, 1))
        return list(self.derivative.flatten(self._multiplied(vectors)).unbind(1))

    def _multiplied(self, vectors: list[Tensor]) -> list[Tensor]:
        residuals = _difference(vectors, self.derivative.forward(vectors))
        return _difference(residuals, self.derivative.reverse(residuals))


class PropagatorInverseOperator(PropagatorOperator):
    """`G^-1 = (I - M)^-1 (I - M)^-T`, at the cost of G: the inverse of I - M is a substitution.

    In a feed-forward network, where `I - M` is unit lower triangular; in a recurrent one the
    derivative solves by iteration.
    """

    def _multiplied(self, vectors: list[Tensor]) -> list[Tensor]:
        return self.derivative.solve(self.derivative.solve_transposed(vectors))


def _difference(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]
