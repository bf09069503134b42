"""Bulk and boundary loss: what remains of the loss when the hidden neurons may give way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.network.operations import AveragePool, Elementwise, Reshape, Weighted
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss, LossFn, Potential
from torch_thermo.observables.bulk_boundary.newton import Minimum, minimise, positive_axes
from torch_thermo.operators.memory import available_bytes, gib
from torch_thermo.risk.contexts import cuda_devices

Method = Literal["linear", "logit"]

_NAN = math.nan
# what the Jacobians of a chunk of examples may take
_CHUNK_BYTES = 2**28
# of what is free, the part that one example may take
_SHARE = 0.5
_MOST_OUTPUTS = 4096


@dataclass(frozen=True)
class BulkBoundary:
    """Bulk and boundary loss of each example.

    Attributes:
        bulk: (B,), float64 on the CPU; at most `boundary`, NaN where that is not finite.
        boundary: (B,), float64 on the CPU: the loss of the network's own outputs.
        converged: (B,), bool on the CPU: whether `bulk` is a minimum, as `bulk_boundary_loss` says.
        method: "linear" or "logit".
        reason: why an example is NaN; empty when none is.
    """

    bulk: Tensor = field(repr=False)
    boundary: Tensor = field(repr=False)
    converged: Tensor = field(repr=False)
    method: Method
    reason: str = ""

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


def bulk_boundary_loss(
    network: Network,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: LossFn | None = None,
    method: Method = "logit",
) -> BulkBoundary:
    r"""Measure the bulk and boundary loss of each example (Vanchurin, eqs. 3.1, 3.2; Figs. 2, 3).

    The boundary loss is `loss(o, t)` of the outputs o, the paper's `1/2 |t - o|^2` (eq. 3.1) unless
    a `loss_fn` is given. The bulk loss (eq. 3.2) is the smallest
    `1/2 sum_l |x_l - f(W_l x_{l-1} + b_l)|^2` over the states x of the hidden neurons, input and
    output clamped to the data. With the residuals `r_l = x_l - f(W_l x_{l-1} + b_l)` of the hidden
    stages as unknowns it is

        min_r 1/2 sum_l |r_l|^2 + loss(o(r), t),

    where the last term is the output neurons' own residual; other losses take its place. Both
    methods linearise the response to r at r = 0, with J_l the Jacobian in r_l:

    - "linear": of the outputs, `A = sum_l J_l J_l^T`. For the squared error
      `1/2 e^T (I + A)^-1 e`, e = t - o; for other losses `min_u 1/2 u^T A u + loss(o + A u, t)`.
    - "logit": of the pre-activations y of the last stage; the output activation f is kept,
      `min_u 1/2 u^T A u + loss(f(y + A u), t)`, by damped Newton steps from u = 0 and, where f
      bends, from `A u = -y` on those outputs whose loss the other sign of y lowers; the lower
      minimum is kept. The same as "linear" where f is linear.

    Both approximate the exact bulk loss from either side; neither exceeds the boundary loss. What
    follows an output activation (pools, reshapes) belongs to f. Without hidden stages A = 0 and the
    bulk loss is the boundary loss.

    `converged` is True where the small problem is solved, one of:

    - in closed form (squared error, nothing but linear maps between A and the loss);
    - one pre-activation: a bracket, 2^-64 of its first width, at whose ends the derivative has
      opposite signs, about the best of 193 points;
    - several: with `A = L L^T` and u = L^-T z, `|z + L^T phi'| <= 1e-8 (|z| + |L^T phi'|)` or
      within rounding (|z| is the length of all residuals r), phi the loss as a function of y;
    - several, f linear, and phi has a kink or no second derivative there: a lower bound from
      cutting planes, valid for a convex phi, is within 1e-9 of the boundary loss. (Behind a bent f
      a minimum at a kink is found, if at all, without being known as one.)

    Where phi is not convex this is a stationary point reached downhill, the lowest of those found.
    Where it is False `bulk` is the lowest value seen.

    Everything is computed in float64 on the network's device (on the CPU if that has no float64):
    `1 - tanh^2` has four digits left in float32 at |y| = 5 and is 0 beyond 9.1. No `.grad` is
    created or changed, and torch's generators don't move.

    Args:
        network: a chain.
        inputs: (B, *network.input_shape).
        targets: (B, *network.output_shape) for the squared error; with a `loss_fn` what it takes,
            one entry an example, such as class labels (B,).
        loss_fn: `loss_fn(output, target)` -> mean or (B,) losses; called with each example as a
            batch of one.
        method: "linear" or "logit".

    Raises:
        ValueError: shapes that don't match, an unknown method, a `loss_fn` that fails or returns
            neither a mean nor one loss per example.
        TypeError: `network` is not a Network, inputs or targets are no tensors, `loss_fn` can't be
            called.
        MemoryError: more than 4096 outputs, or Jacobians of one example that would not fit.
    """
    _check(network, inputs, targets, loss_fn, method)
    device = network.device if network.device.type != "mps" else torch.device("cpu")
    with _measuring(device):
        inputs, targets = _taken(inputs, device).double(), _taken(targets, device)
        loss = ExampleLoss(loss_fn)
        problem = _Bulk(network, loss, method, inputs[:1])
        size = _chunk(network, problem.size, device)
        parts = [
            problem.solve(x, t)
            for x, t in zip(inputs.split(size), targets.split(size), strict=True)
        ]
        boundary = torch.cat([part[0] for part in parts]).cpu()
        bulk = torch.cat([part[1].values for part in parts]).cpu()
        converged = torch.cat([part[1].converged for part in parts]).cpu()
    return BulkBoundary(bulk, boundary, converged, method, _reason(bulk))


class _Bulk:
    """How a chunk of examples is measured.

    Args:
        network: a chain.
        loss: of the outputs.
        method: "linear" or "logit".
        example: an input (1, *input_shape), for shapes.
    """

    def __init__(
        self, network: Network, loss: ExampleLoss, method: Method, example: Tensor
    ) -> None:
        self.network = network
        self.loss = loss
        last = network.stages[-1].activation
        linear = all(isinstance(op, AveragePool | Reshape | Weighted) for op in last)
        # linear maps leave the problem as it is: it is smaller behind them
        self.at_outputs = method == "linear" or linear
        self.elementwise = all(isinstance(op, Elementwise | Reshape) for op in last)
        self.output_shape = network.output_shape
        with torch.no_grad():
            self.logit_shape = network.states(example)[1].shape[1:]
        self.size = math.prod(self.output_shape if self.at_outputs else self.logit_shape)

    def solve(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Minimum]:
        """Return the boundary losses and the minima."""
        centre, gram = self.response(inputs)
        if self.loss.squared_error:
            targets = targets.to(centre.dtype)
        elif targets.is_floating_point():
            targets = targets.double()
        rows = torch.arange(len(inputs), device=inputs.device)
        potential = Potential(self.loss, targets, self.outputs, self.elementwise)
        boundary = potential.values(centre, rows).detach()
        finite = inputs.reshape(len(inputs), -1).isfinite().all(1) & boundary.isfinite()
        finite &= gram.flatten(1).isfinite().all(1)
        values = torch.full_like(boundary, _NAN)
        converged = torch.zeros_like(finite)
        if finite.any():
            centre, gram, targets = centre[finite], gram[finite], targets[finite]
            if self.at_outputs and self.loss.squared_error:
                found = _closed_form(
                    centre, gram, targets.reshape(len(targets), -1), boundary[finite]
                )
            else:
                potential = Potential(self.loss, targets, self.outputs, self.elementwise)
                found = minimise(potential, centre, gram, bent=not self.at_outputs)
            values[finite], converged[finite] = found.values, found.converged
        return torch.where(finite, boundary, _NAN), Minimum(values, converged)

    def outputs(self, flat: Tensor) -> Tensor:
        """Return the network's outputs (n, *output_shape) from what is linearised, (n, M)."""
        if self.at_outputs:
            return flat.reshape(-1, *self.output_shape)
        return self.network.output_activation(flat.reshape(-1, *self.logit_shape))

    def response(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is linearised (B, M), and A (B, M, M): one reverse pass an output."""
        hidden = self.network.stages[:-1]
        count = len(inputs)
        residuals = [inputs.new_zeros(count, *stage.shape).requires_grad_() for stage in hidden]
        states, logits = self.network.states(inputs, residuals)
        centre = (states[-1] if self.at_outputs else logits).reshape(count, -1)
        size = centre.shape[1]
        if not residuals:
            return centre.detach(), inputs.new_zeros(count, size, size)
        jacobian = inputs.new_empty(count, size, sum(stage.size for stage in hidden))
        for k in range(size):
            unit = torch.zeros_like(centre)
            unit[:, k] = 1
            rows = torch.autograd.grad(
                centre,
                residuals,
                unit,
                retain_graph=k + 1 < size,
                allow_unused=True,
                materialize_grads=True,
            )
            torch.cat([row.reshape(count, -1) for row in rows], 1, out=jacobian[:, k])
        return centre.detach(), jacobian @ jacobian.mT


def _closed_form(centre: Tensor, gram: Tensor, targets: Tensor, boundary: Tensor) -> Minimum:
    """`1/2 e^T (I + A)^-1 e`, along A's axes: a Cholesky factor fails where A is 1/eps."""
    values, axes = positive_axes(gram)
    along = (axes.mT @ (targets - centre)[..., None])[..., 0]
    bulk = 0.5 * (along.square() / (1 + values)).sum(1)
    return Minimum(torch.minimum(bulk, boundary), torch.ones_like(bulk, dtype=torch.bool))


def _chunk(network: Network, size: int, device: torch.device) -> int:
    """Return how many examples are measured at once: that their Jacobians take bounded memory.

    Raises:
        MemoryError: those of one example would not fit.
    """
    hidden = sum(stage.size for stage in network.stages[:-1])
    # the Jacobian, a graph of the states, and the small problems' matrices
    needed = 8 * (size * hidden + 4 * network.neurons + 8 * size**2)
    free = int(_SHARE * available_bytes(device))
    if size > _MOST_OUTPUTS or needed > free:
        raise MemoryError(
            f"the bulk loss of one example needs {gib(needed)} for the Jacobian of {size} outputs "
            f"in {hidden} hidden neurons; at most {_MOST_OUTPUTS} outputs and {gib(free)} are "
            "allowed: read a smaller part of the model"
        )
    return max(1, min(_CHUNK_BYTES, free) // needed)


def _check(network: object, inputs: object, targets: object, loss_fn: object, method: str) -> None:
    if not isinstance(network, Network):
        raise TypeError(
            f"network must be a Network, got {type(network).__name__}: "
            "Network.from_module(model, example_input) reads a model"
        )
    if method not in get_args(Method):
        raise ValueError(f'method must be "linear" or "logit", got {method!r}')
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    for name, given in (("inputs", inputs), ("targets", targets)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
        if given.is_complex():
            raise TypeError(f"{name} must be real, got {given.dtype}")
    assert isinstance(inputs, Tensor)
    assert isinstance(targets, Tensor)
    expected = tuple(network.input_shape)
    if inputs.shape[1:] != network.input_shape or inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(
            f"inputs must have shape (B, {', '.join(map(str, expected))}) with B at least 1, "
            f"got {tuple(inputs.shape)}"
        )
    if targets.dim() == 0 or len(targets) != len(inputs):
        raise ValueError(
            f"targets must have one entry for each of the {len(inputs)} inputs, "
            f"got shape {tuple(targets.shape)}"
        )
    if loss_fn is None and targets.shape[1:] != network.output_shape:
        wanted = (len(inputs), *network.output_shape)
        raise ValueError(
            f"targets must have the outputs' shape {wanted} for the squared error, got "
            f"{tuple(targets.shape)}: give one-hot or +-1 targets, or the loss_fn that takes these"
        )


def _taken(tensor: Tensor, device: torch.device) -> Tensor:
    """Return it on the device, out of any graph and of inference mode."""
    tensor = tensor.detach().to(device)
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def _measuring(device: torch.device) -> Iterator[None]:
    """Gradients on whatever the caller's mode, no autocast, torch's generators left alone."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # a loss function may draw numbers
        stack.enter_context(torch.random.fork_rng(devices=cuda_devices(device)))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _reason(bulk: Tensor) -> str:
    missing = bulk.isnan().nonzero()[:, 0].tolist()
    if not missing:
        return ""
    return (
        f"{len(missing)} of {len(bulk)} examples have an input, an output or a loss that is not "
        f"finite, the first is example {missing[0]}"
    )


def _stderr(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else _NAN
