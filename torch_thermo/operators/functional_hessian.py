"""The functional part of the Hessian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_thermo.operators.base import DIRECT, contracted, linearised
from torch_thermo.operators.hessian import HessianOperator, _gradient_graph
from torch_thermo.risk import Risk


class FunctionalHessianOperator(HessianOperator):
    r"""`F = sum_n w_n sum_c l'_nc d2 o_nc / d theta2 / sum_n w_n`, so that `H = GGN + F`.

    The Hessian of `< stop_grad(dloss/doutput), output >`: one double backward, where the
    difference of the two other operators costs eight times as much. Examples whose dloss/doutput
    is zero are left out. Of a bias-free piecewise-linear net each layer's own block of F is zero,
    so tr F = 0; away from kinks `F theta = (L - 1) grad R` with L weight layers and the hinge loss
    (Li, Figs. 6 and 8a).

    Args:
        risk: structured.
        keep_graph: True or False to decide; None keeps the graphs if they fit.

    Raises:
        TypeError: the risk is opaque, or (at the first product) the output is not a tensor or the
            loss depends on parameters also past the output.
    """

    part_name = "the functional part of the Hessian"

    def _graph(self, batch: Any) -> tuple[Any, float]:
        part = linearised(self.risk, batch)
        if part is None:
            raise TypeError(f"{self.part_name} needs a tensor as model output")
        if part.direct:
            raise TypeError(DIRECT.format(self.part_name))
        return _gradient_graph(self, contracted(self.risk, batch, part)), part.weight


def is_whole_hessian(risk: Risk) -> bool:
    """Return whether H = F at these weights, so that a product with one is that with the other.

    So it is where the loss is piecewise linear in the output (hinge, absolute error) and reaches
    the parameters through it alone. Of an opaque risk it is not known: False. With a process group
    collective.
    """
    if not risk.structured:
        return False

    def local() -> tuple[Tensor, float]:
        with risk.measuring():
            parts = [linearised(risk, batch) for batch in risk.batches()]
        more = sum(part is None or not part.complete for part in parts)
        return torch.tensor([float(more)]), 1.0

    return not risk.average(local).item()
