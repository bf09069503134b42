"""The generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_thermo.operators.base import CONSTANT, DIRECT, RiskOperator, output_slope
from torch_thermo.risk import batch_size


class _Graph(NamedTuple):
    output: Tensor  # o(theta), with graph
    slope: Tensor  # dloss/do at a detached copy of o, with graph
    point: Tensor  # that copy
    dual: Tensor  # a dummy u of the output's shape
    pulled: tuple[Tensor, ...]  # J^T u, linear in u, with graph


class GaussNewtonOperator(RiskOperator):
    r"""`GGN = sum_n w_n J_n^T (d2 loss_n / d o2) J_n / sum_n w_n`, J_n = d o_n / d theta.

    Positive semidefinite for losses convex in the output. J v is had by differentiating J^T u in
    u (reverse mode twice): forward mode fails on some losses and layers.

    Args:
        risk: structured.
        keep_graph: True or False to decide; None keeps the graphs if they fit.

    Raises:
        TypeError: the risk is opaque, or (at the first product) the output is not a tensor or the
            loss depends on parameters also past the output.
    """

    part_name = "the Gauss-Newton matrix"

    def _graph(self, batch: Any) -> tuple[Any, float]:
        output, target = self.risk.forward(batch)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{self.part_name} needs a tensor as model output, got {type(output).__name__}"
            )
        point = output.detach().requires_grad_()
        term = self.risk.loss_of(point, target, batch_size(batch))
        if not (term.weight and term.loss.requires_grad):
            return None, term.weight
        if not output.requires_grad:
            return CONSTANT, term.weight
        slope, direct = output_slope(self.risk, term.loss, point)
        if direct:
            raise TypeError(DIRECT.format(self.part_name))
        if not slope.requires_grad:
            return None, term.weight
        dual = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(
            output,
            tuple(self.risk.parameters.values()),
            dual,
            create_graph=True,
            materialize_grads=True,
        )
        return _Graph(output, slope, point, dual, pulled), term.weight

    def _apply(self, graph: Any, direction: tuple[Tensor, ...]) -> Sequence[Tensor]:
        pairs = [(p, d) for p, d in zip(graph.pulled, direction, strict=True) if p.requires_grad]
        pulled, vectors = zip(*pairs, strict=True)
        (pushed,) = torch.autograd.grad(pulled, graph.dual, vectors, retain_graph=True)
        (curved,) = torch.autograd.grad(
            graph.slope, graph.point, pushed, retain_graph=True, materialize_grads=True
        )
        return torch.autograd.grad(
            graph.output,
            tuple(self.risk.parameters.values()),
            curved,
            retain_graph=True,
            materialize_grads=True,
        )

    def _roots(self, graph: Any) -> Sequence[Tensor]:
        return (graph.slope, *graph.pulled)
