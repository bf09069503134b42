"""Symmetric operators known by their products: the base, and the loop over a risk's batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_thermo.operators.memory import available_bytes, graph_bytes
from torch_thermo.risk import Risk, batch_size, tensors_of

# of what is free, the part that graphs kept between products may take
_KEPT_SHARE = 0.4


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
    all batches are kept between products when they fit in memory (2.1-2.5 gradients a product
    instead of 3.4), and built anew when the weights have changed.

    Args:
        risk: what to differentiate.
        keep_graph: True or False to decide; None keeps the graphs if they fit.
    """

    def __init__(self, risk: Risk, keep_graph: bool | None = None) -> None:
        super().__init__(risk.numel, risk.dtype, risk.device, risk.blocks)
        self.risk = risk
        self._keep = keep_graph
        self._graphs: list[tuple[Any, float]] = []
        self._built_from: tuple[int, ...] | None = None

    @abstractmethod
    def _graph(self, batch: Any) -> tuple[Any | None, float]:
        """Return a batch's graph (None if its matrix is zero) and its weight."""

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
            for graph, weight in self._all_graphs():
                weights += weight
                if graph is None:
                    continue
                for row, direction in zip(sums, directions, strict=True):
                    product = self._apply(graph, direction)
                    row.add_(self.risk.flatten(product), alpha=weight)
            return sums, weights

        with self.risk.measuring():
            return list(self.risk.average(local).unbind(0))

    def _all_graphs(self) -> Any:
        state = tuple(p._version for p in self.risk.parameters.values())
        if self._built_from == state:
            yield from self._graphs
            return
        self._graphs, self._built_from = [], None
        keep, total = self._keep is not False, 0
        budget = _KEPT_SHARE * available_bytes(self.device)
        kept: list[tuple[Any, float]] = []
        for batch in self.risk.batches():
            graph, weight = self._graph(batch)
            if keep and self._keep is None and graph is not None:
                total += graph_bytes(self._roots(graph))
                if total > budget:
                    keep, kept = False, []
            if keep:
                kept.append((graph, weight))
            yield graph, weight
        if keep:
            self._graphs, self._built_from = kept, state


def linearised(risk: Risk, batch: Any) -> tuple[Tensor | None, float, bool]:
    """Return `<stop_grad(dloss/doutput), output>` of a batch, its weight, and if it says all.

    The Hessian of that scalar is the functional part F of the batch's Hessian. Examples whose
    dloss/doutput is zero add nothing to it and are left out of the forward pass that keeps a
    graph; the mean is still that of the whole batch. None when no example is left.

    The last value is True when the loss has no second derivative in the output (hinge, absolute
    error), so that the whole Hessian is F. It is found by one product of d2loss/doutput2 with a
    Gaussian vector, which is zero with probability 0 for a matrix that is not.

    Raises:
        TypeError: the output is not a tensor.
    """
    with torch.no_grad():
        output, target = risk.forward(batch)
    if not isinstance(output, Tensor):
        raise TypeError(
            "the functional part of the Hessian needs a model whose output is a tensor, "
            f"got {type(output).__name__}"
        )
    output = output.detach().requires_grad_()
    term = risk.loss_of(output, target, batch_size(batch))
    if not term.loss.requires_grad:
        return None, term.weight, True
    (slope,) = torch.autograd.grad(term.loss, output, create_graph=True, materialize_grads=True)
    linear = True
    if slope.requires_grad:
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(slope.shape, generator=generator, dtype=torch.float64).to(slope)
        (curved,) = torch.autograd.grad(slope, output, probe, materialize_grads=True)
        linear = not bool((curved != 0).any())
    slope = slope.detach()
    # NaN != 0, so that examples with NaN stay in and are seen
    active = (slope.reshape(slope.shape[0], -1) != 0).any(1) if slope.dim() else slope[None] != 0
    chosen = _examples(batch[0], active)
    if chosen is not None:
        if not bool(active.any()):
            return None, term.weight, linear
        return (slope[active] * risk.model(chosen)).sum(), term.weight, linear
    return (slope * risk.forward(batch)[0]).sum(), term.weight, linear


def _examples(inputs: Any, active: Tensor) -> Any | None:
    """Return the active examples of a batch's input; None if they cannot be told apart."""
    if bool(active.all()):
        return None
    if isinstance(inputs, Tensor) and inputs.dim() and inputs.shape[0] == active.shape[0]:
        return inputs[active]
    if isinstance(inputs, tuple | list | dict):
        leaves = list(tensors_of(inputs))
        if leaves and not bool(active.any()):
            return inputs
    return None
