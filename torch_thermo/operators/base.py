"""Symmetric operators known by their products: the base, and the loop over a risk's batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_thermo.operators.memory import available_bytes, graph_bytes
from torch_thermo.risk import NO_GRADIENT, Risk, batch_size

# the graph of a batch that no measured parameter enters
CONSTANT = object()
# of what is free, the part that graphs kept between products may take
_KEPT_SHARE = 0.4
DIRECT = (
    "{} needs a loss that depends on the parameters through the output alone, but loss_fn reaches "
    "parameters by itself: only the full Hessian is defined"
)


class SymmetricOperator(ABC):
    """A real symmetric (n, n) matrix that is never formed.

    Attributes:
        shape: (n, n).
        dtype: of the vectors it takes and gives.
        device: where it lives.
        blocks: {name: slice} of the index range; empty where there are none.
    """

    def __init__(
        self, n: int, dtype: torch.dtype, device: torch.device, blocks: dict[str, slice]
    ) -> None:
        self.shape = (n, n)
        self.dtype = dtype
        self.device = device
        self.blocks = blocks

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return the product with v (n,) or with the k columns of V (n, k).

        Raises:
            TypeError: not a tensor, or of another dtype.
            ValueError: of another length.
        """
        if not isinstance(vectors, Tensor):
            raise TypeError(f"an operator multiplies tensors, got {type(vectors).__name__}")
        if vectors.dtype != self.dtype:
            raise TypeError(f"the vectors must be {self.dtype}, got {vectors.dtype}")
        if vectors.dim() not in (1, 2) or vectors.shape[0] != self.shape[0]:
            raise ValueError(
                f"the vectors must have shape ({self.shape[0]},) or ({self.shape[0]}, k), "
                f"got {tuple(vectors.shape)}"
            )
        columns = vectors.detach().to(self.device)
        if columns.dim() == 1:
            return self._products([columns])[0].to(vectors.device)
        if columns.shape[1] == 0:
            return vectors.detach().clone()
        return torch.stack(self._products(list(columns.unbind(1))), dim=1).to(vectors.device)

    @abstractmethod
    def _products(self, columns: list[Tensor]) -> list[Tensor]:
        """Return the product with each of some (n,) vectors."""

    def dense(self) -> Tensor:
        """Return the matrix, by n products: for small n and for tests."""
        return self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)


class RiskOperator(SymmetricOperator):
    """A second derivative of a risk: a weighted mean over its batches of a batch's matrix.

    A subclass says how a batch's graph is built and how a vector goes through it. The graphs of
    all batches are kept between products when they fit in memory (2.1-2.7 gradients a product
    instead of 3.4), and built anew when the weights have changed.

    Args:
        risk: what to differentiate.
        keep_graph: True or False to decide; None keeps the graphs if they fit.

    Raises:
        TypeError: the risk is opaque, and the operator has a `part_name`.
    """

    #: its name in errors, if it is a part of the Hessian that only a structured risk has
    part_name: ClassVar[str] = ""

    def __init__(self, risk: Risk, keep_graph: bool | None = None) -> None:
        if self.part_name:
            risk.require_structure(self.part_name)
        super().__init__(risk.numel, risk.dtype, risk.device, risk.blocks)
        self.risk = risk
        self._keep = keep_graph
        self._graphs: list[tuple[Any, float]] = []
        self._built_from: list[Tensor] | None = None

    @abstractmethod
    def _graph(self, batch: Any) -> tuple[Any | None, float]:
        """Return a batch's graph (None if its matrix is zero, or `CONSTANT`) and its weight."""

    @abstractmethod
    def _apply(self, graph: Any, direction: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Return the batch's product with a direction, one tensor a parameter."""

    @abstractmethod
    def _roots(self, graph: Any) -> Sequence[Tensor]:
        """Return the tensors that hold the graph, to see how large it is."""

    def _products(self, columns: list[Tensor]) -> list[Tensor]:
        directions = [self.risk.unflatten(column) for column in columns]

        def local() -> tuple[Tensor, float]:
            sums = torch.zeros(len(columns), self.risk.numel, dtype=self.dtype, device=self.device)
            weights = 0.0
            constant = True
            for graph, weight in self._all_graphs():
                weights += weight
                constant = constant and (graph is CONSTANT or not weight)
                if graph is None or graph is CONSTANT:
                    continue
                for row, direction in zip(sums, directions, strict=True):
                    product = self._apply(graph, direction)
                    row.add_(self.risk.flatten(product), alpha=weight)
            if constant and weights:
                raise ValueError(NO_GRADIENT)
            return sums, weights

        with self.risk.measuring():
            return list(self.risk.average(local).unbind(0))

    def _all_graphs(self) -> Any:
        if self._is_current():
            yield from self._graphs
            return
        self._graphs, self._built_from = [], None
        keep, total = self._keep is not False, 0
        budget = _KEPT_SHARE * available_bytes(self.device)
        kept: list[tuple[Any, float]] = []
        for batch in self.risk.batches():
            graph, weight = self._graph(batch)
            if keep and self._keep is None and not (graph is None or graph is CONSTANT):
                total += graph_bytes(self._roots(graph))
                if total > budget:
                    keep, kept = False, []
            if keep:
                kept.append((graph, weight))
            yield graph, weight
        if keep:
            self._graphs, self._built_from = kept, [t.detach().clone() for t in self._state()]

    def _state(self) -> list[Tensor]:
        held = [*self.risk.model.parameters(), *self.risk.model.buffers()]
        return [t for t in held if t.layout == torch.strided]  # sparse ones can't be compared

    def _is_current(self) -> bool:
        # the values themselves: version counters miss what is written through `.data`, as many
        # optimizers do
        before, now = self._built_from, self._state()
        return (
            before is not None
            and len(before) == len(now)
            and all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
        )


@dataclass(frozen=True)
class Linearised:
    """A batch's loss made linear in the output: `<stop_grad(dloss/doutput), output>`.

    Attributes:
        weight: the batch's.
        slope: dloss/doutput; None where the loss is constant in the output.
        output: the output it belongs to.
        complete: the Hessian of the linear loss is the loss's: it has no second derivative in the
            output (hinge, absolute error) and reaches the parameters through the output alone.
        direct: the loss depends on parameters also past the output.
    """

    weight: float
    slope: Tensor | None = None
    output: Tensor | None = None
    complete: bool = True
    direct: bool = False


def linearised(risk: Risk, batch: Any) -> Linearised | None:
    """Differentiate a batch's loss in the output; None if the output is not a tensor.

    A second derivative in the output is found by one product of d2loss/doutput2 with a Gaussian
    vector, which is zero with probability 0 for a matrix that is not.
    """
    with risk.rehearsal():
        with torch.no_grad():
            output, target = risk.forward(batch)
        if not isinstance(output, Tensor):
            return None
        output = output.detach().requires_grad_()
        term = risk.loss_of(output, target, batch_size(batch))
    if not (term.weight and term.loss.requires_grad):
        return Linearised(term.weight)
    slope, direct = output_slope(risk, term.loss, output)
    curved = False
    if slope.requires_grad:
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(slope.shape, generator=generator, dtype=torch.float64).to(slope)
        (product,) = torch.autograd.grad(slope, output, probe, materialize_grads=True)
        curved = bool((product != 0).any())
    complete = not (curved or direct)
    return Linearised(term.weight, slope.detach(), output.detach(), complete, direct)


def contracted(risk: Risk, batch: Any, part: Linearised) -> Tensor | None:
    """Return `<slope, output>` with its graph, whose Hessian is F; None where the slope is 0.

    Examples without a slope add nothing and are left out of the forward pass; the mean is still
    that of the whole batch. Where the others' output changes without them (batch statistics, a
    time axis in front, dropout) all stay in.
    """
    slope, output = part.slope, part.output
    if slope is None or output is None:
        return None
    # examples with NaN stay in, to be seen: the slope of max(0, NaN) is 0
    nonzero = (slope != 0) | ~torch.isfinite(output)
    if not bool(nonzero.any()):
        return None
    inputs = batch[0]
    if isinstance(inputs, Tensor) and inputs.dim() and output.shape[:1] == inputs.shape[:1]:
        active = nonzero.reshape(len(nonzero), -1).any(1)
        chosen = None if bool(active.all()) else _alone(risk, inputs[active])
        if chosen is not None and _is_same(chosen.detach(), output[active]):
            return (slope[active] * chosen).sum()
    whole: Tensor = risk.forward(batch)[0]
    return (slope * whole).sum()


def output_slope(risk: Risk, loss: Tensor, output: Tensor) -> tuple[Tensor, bool]:
    """Return dloss/doutput with its graph, and whether parameters enter the loss elsewhere too."""
    slope, *direct = torch.autograd.grad(
        loss, (output, *risk.parameters.values()), create_graph=True, allow_unused=True
    )
    return torch.zeros_like(output) if slope is None else slope, any(g is not None for g in direct)


def _alone(risk: Risk, inputs: Tensor) -> Tensor | None:
    try:
        with risk.rehearsal():
            part = risk.model(inputs)
    except Exception:  # a model may need the whole batch; if not that, the pass over it says so
        return None
    if isinstance(part, Tensor):
        return part
    return None


def _is_same(part: Tensor, output: Tensor) -> bool:
    if part.shape != output.shape:
        return False
    tolerance = torch.finfo(output.dtype).eps ** 0.5 * output.abs().amax()
    return bool((part - output).abs().amax() <= tolerance)
