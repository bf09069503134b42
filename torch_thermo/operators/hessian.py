"""The Hessian of a risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_thermo.operators.base import CONSTANT, RiskOperator, contracted, linearised


class HessianOperator(RiskOperator):
    r"""`H = d2 R / d theta2`, by reverse over reverse differentiation.

    `H v = d/dtheta <grad R(theta), v>`. Of a structured risk whose loss is piecewise linear in
    the output, H is its functional part, and only the examples with a slope are differentiated
    (Li, sec. on the Hessian: with hinge loss l'' = 0). At a kink autograd takes one side: H is
    the Hessian of the smooth region theta lies in.

    Args:
        risk: structured or opaque.
        keep_graph: True or False to decide; None keeps the graphs if they fit.
    """

    def _graph(self, batch: Any) -> tuple[Any, float]:
        if self.risk.structured:
            part = linearised(self.risk, batch)
            if part is not None and part.complete:
                return _gradient_graph(self, contracted(self.risk, batch, part)), part.weight
        term = self.risk.term(batch)
        return _gradient_graph(self, term.loss if term.weight else None), term.weight

    def _apply(self, graph: Any, direction: tuple[Tensor, ...]) -> Sequence[Tensor]:
        return _second_derivative(self, graph, direction)

    def _roots(self, graph: Any) -> Sequence[Tensor]:
        return tuple(graph)


def _gradient_graph(operator: RiskOperator, scalar: Tensor | None) -> Any:
    """Return the gradient of a scalar with its graph; of None, that is zero, None."""
    if scalar is None:
        return None
    if not scalar.requires_grad:
        return CONSTANT
    return operator.risk.differentiate(scalar, create_graph=True)


def _second_derivative(
    operator: RiskOperator, gradient: tuple[Tensor, ...], direction: tuple[Tensor, ...]
) -> Sequence[Tensor]:
    """Return d/dtheta <gradient, direction>."""
    parameters = tuple(operator.risk.parameters.values())
    # a gradient that does not depend on theta (the last layer's, of a linear net) has no graph
    pairs = [(g, d) for g, d in zip(gradient, direction, strict=True) if g.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(p) for p in parameters)
    graded, vectors = zip(*pairs, strict=True)
    return torch.autograd.grad(
        graded, parameters, vectors, retain_graph=True, materialize_grads=True
    )
