"""The outputs of a network as a function of its hidden residuals, and their Jacobian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.network.operations import AveragePool, Elementwise, Reshape, Weighted
from torch_thermo.observables.bulk_boundary.example_loss import Potential


class Response:
    """`x_l = f(W_l x_{l-1} + b_l) + r_l` with the input clamped: what the residuals r do.

    What responds, y, are the pre-activations of the last stage, or its outputs: behind a linear
    activation these are the same problem, and the outputs are the smaller one.

    Args:
        network: not recurrent.
        inputs: (B, *input_shape).
        outputs: y are the outputs even behind an activation that bends.

    Attributes:
        hidden: H, the number of hidden neurons.
        size: M, the numbers that respond.
        linear: whether the last activation is.
        at_outputs: whether y are the outputs.
        elementwise: whether each output depends on one pre-activation alone.
    """

    def __init__(self, network: Network, inputs: Tensor, outputs: bool = False) -> None:
        self.network = network
        self._shapes = [stage.shape for stage in network.stages[:-1]]
        self.hidden = sum(shape.numel() for shape in self._shapes)
        last = network.stages[-1].activation
        self.linear = all(isinstance(op, AveragePool | Reshape | Weighted) for op in last)
        self.elementwise = all(isinstance(op, Elementwise | Reshape) for op in last)
        self.at_outputs = outputs or self.linear
        self._inputs = inputs
        # what reads the input alone stays as it is, whatever the residuals
        with torch.no_grad():
            self._fixed = [
                stage.pre_activation(*(inputs for _ in stage.parents))
                if set(stage.parents) == {-1}
                else None
                for stage in network.stages
            ]
            first = torch.zeros(1, dtype=torch.long, device=inputs.device)
            responding = self._respond(self.split(inputs.new_zeros(1, self.hidden)), first)
        self._shape = responding.shape[1:]
        self.size = self._shape.numel()

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return residuals (n, H) as one tensor (n, *stage.shape) for each hidden stage."""
        parts = flat.split([shape.numel() for shape in self._shapes], 1) if self._shapes else ()
        return [p.reshape(-1, *s) for p, s in zip(parts, self._shapes, strict=True)]

    def values(self, residuals: Tensor, rows: Tensor) -> Tensor:
        """Return y (n, M) of the examples `rows` (n,) with residuals (n, H)."""
        with torch.no_grad():
            return self._respond(self.split(residuals), rows).reshape(len(rows), self.size)

    def states(self, residuals: Tensor, rows: Tensor) -> list[Tensor]:
        """Return the states of all stages, (n, *stage.shape) each."""
        with torch.no_grad():
            return self._states(self.split(residuals), rows)[0]

    def pull(self, residuals: Tensor, rows: Tensor, potential: Potential) -> tuple[Tensor, Tensor]:
        """Return phi(y) (n,) and its gradient J^T phi' (n, H): one reverse pass."""
        residuals = residuals.detach().requires_grad_()
        y = self._respond(self.split(residuals), rows).reshape(len(rows), self.size)
        phi = potential.values(y, rows)
        (slope,) = torch.autograd.grad(
            phi.sum(), residuals, allow_unused=True, materialize_grads=True
        )
        return phi.detach(), slope

    def jacobian(self, residuals: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (n, M) and dy/dr (n, M, max(H, 1)): one reverse pass for each of M."""
        count = len(rows)
        if not self._shapes:
            return self.values(residuals, rows), residuals.new_zeros(count, self.size, 1)
        parts = [part.detach().requires_grad_() for part in self.split(residuals)]
        y = self._respond(parts, rows).reshape(count, self.size)
        jacobian = y.new_empty(count, self.size, self.hidden)
        for k in range(self.size):
            unit = torch.zeros_like(y)
            unit[:, k] = 1
            slopes = torch.autograd.grad(
                y,
                parts,
                unit,
                retain_graph=k + 1 < self.size,
                allow_unused=True,
                materialize_grads=True,
            )
            torch.cat([slope.reshape(count, -1) for slope in slopes], 1, out=jacobian[:, k])
        return y.detach(), jacobian

    def outputs(self, y: Tensor) -> Tensor:
        """Return the network's outputs (n, *output_shape) from y (n, M)."""
        if self.at_outputs:
            return y.reshape(-1, *self.network.output_shape)
        return self.network.output_activation(y.reshape(-1, *self._shape))

    def _respond(self, residuals: Sequence[Tensor], rows: Tensor) -> Tensor:
        states, logits = self._states(residuals, rows)
        return states[-1] if self.at_outputs else logits

    def _states(self, residuals: Sequence[Tensor], rows: Tensor) -> tuple[list[Tensor], Tensor]:
        states: list[Tensor] = []
        for number, (stage, fixed) in enumerate(zip(self.network.stages, self._fixed, strict=True)):
            if fixed is None:
                logits = stage.pre_activation(
                    *(self._inputs[rows] if p < 0 else states[p] for p in stage.parents)
                )
            else:
                logits = fixed[rows]
            state = stage.state(logits)
            states.append(state + residuals[number] if number < len(residuals) else state)
        return states, logits
