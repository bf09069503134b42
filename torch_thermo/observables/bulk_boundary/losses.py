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
from torch_thermo.observables.bulk_boundary.newton import Minimum, factor_of, minimise
from torch_thermo.operators.memory import available_bytes, gib
from torch_thermo.risk.contexts import cuda_devices

Method = Literal["linear", "logit"]

_NAN = math.nan
# what the Jacobians of a chunk of examples may take
_CHUNK_BYTES = 2**28
# of what is free, the part that one example may take
_SHARE = 0.5
_MOST_OUTPUTS = 4096
# Of examples * M * R^2, what one of about ten Newton steps takes: 4e9 were 11 s (M = R = 322) to
# 20 s (M = 1000, R = 128) of one core. A closed form takes one such step.
_MOST_WORK = 2**32
_CLOSED_FORM = 4


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

    Where phi is not convex this is a stationary point reached downhill, the lowest of those found;
    behind a ReLU output one of 12 examples was measured 37 % above the least of many starts.
    Where it is False `bulk` is the lowest value seen.

    The small problem has R dimensions, the rank of A, at most M and the width of the last hidden
    stage. One core takes, for 128 examples of two hidden layers and cross entropy: .6 s at M = 100,
    R = 100; 10 s at M = 1000, R = 128; 11 s at M = R = 322. What would take minutes is refused:
    `examples * M * R^2` above 2^32, four times that for closed forms, and minima at kinks in more
    than 64 dimensions (128 examples, L1: 2.5 s at 32, 4 s at 64). The M reverse passes through the
    network come on top: they are what a deep net takes.

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
            neither a mean nor one loss per example, or does not depend on the outputs
            through autograd; with "linear", outputs that leave its domain.
        TypeError: `network` is not a Network, inputs or targets are no tensors, `loss_fn` can't be
            called.
        MemoryError: more than 4096 outputs, Jacobians of one example that would not fit, or outputs
            that would take minutes (above).
    """
    _check(network, inputs, targets, loss_fn, method)
    device = network.device if network.device.type != "mps" else torch.device("cpu")
    with _measuring(device):
        inputs, targets = _taken(inputs, device).double(), _taken(targets, device)
        loss = ExampleLoss(loss_fn)
        problem = _Bulk(network, loss, method, inputs[:1])
        size = _chunk(network, problem.size, device)
        _bounded(len(inputs), network, problem)
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
        # the activation that keeps outputs in their range is not applied
        self.linearised = method == "linear" and not linear
        self.elementwise = all(isinstance(op, Elementwise | Reshape) for op in last)
        self.output_shape = network.output_shape
        with torch.no_grad():
            self.logit_shape = network.states(example)[1].shape[1:]
        self.size = math.prod(self.output_shape if self.at_outputs else self.logit_shape)

    def solve(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Minimum]:
        """Return the boundary losses and the minima."""
        centre, jacobian = self.response(inputs)
        if self.loss.squared_error:
            targets = targets.to(centre.dtype)
        elif targets.is_floating_point():
            targets = targets.double()
        rows = torch.arange(len(inputs), device=inputs.device)
        potential = Potential(self.loss, targets, self.outputs, self.elementwise)
        boundary = self.boundary(potential, centre, rows)
        finite = inputs.reshape(len(inputs), -1).isfinite().all(1) & boundary.isfinite()
        finite &= jacobian.flatten(1).isfinite().all(1)
        values = torch.full_like(boundary, _NAN)
        converged = torch.zeros_like(finite)
        if finite.any():
            centre, targets = centre[finite], targets[finite]
            factor = factor_of(jacobian[finite])
            if self.at_outputs and self.loss.squared_error:
                found = _closed_form(
                    centre, factor, targets.reshape(len(targets), -1), boundary[finite]
                )
            else:
                potential = Potential(self.loss, targets, self.outputs, self.elementwise)
                found = self.minimise(potential, centre, factor)
            values[finite], converged[finite] = found.values, found.converged
        return torch.where(finite, boundary, _NAN), Minimum(values, converged)

    def boundary(self, potential: Potential, centre: Tensor, rows: Tensor) -> Tensor:
        """Return the losses at the network's own outputs.

        Raises:
            ValueError: autograd does not see the outputs in them: every point would look at rest.
        """
        centre = centre.detach().requires_grad_()
        values = potential.values(centre, rows)
        slopes: tuple[Tensor | None, ...] = ()
        if values.requires_grad:
            slopes = torch.autograd.grad(values.sum(), centre, allow_unused=True)
        if all(slope is None for slope in slopes):
            raise ValueError(
                "loss_fn does not depend on the outputs through autograd: it detaches them, runs "
                "under no_grad, or counts (argmax, comparisons)"
            )
        return values.detach()

    def minimise(self, potential: Potential, centre: Tensor, factor: Tensor) -> Minimum:
        """Minimise the small problems.

        Raises:
            ValueError: the loss is defined at the network's outputs, but not where the linearised
                ones go.
        """
        try:
            return minimise(potential, centre, factor, bent=not self.at_outputs)
        except (ValueError, RuntimeError) as error:
            if not self.linearised:
                raise
            raise ValueError(
                'loss_fn failed where method="linear" led the outputs: linearised, they may leave '
                f'its domain, such as [0, 1]; method="logit" keeps the output activation: {error}'
            ) from error

    def outputs(self, flat: Tensor) -> Tensor:
        """Return the network's outputs (n, *output_shape) from what is linearised, (n, M)."""
        if self.at_outputs:
            return flat.reshape(-1, *self.output_shape)
        return self.network.output_activation(flat.reshape(-1, *self.logit_shape))

    def response(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is linearised (B, M), and its Jacobian (B, M, H): one reverse pass each."""
        hidden = self.network.stages[:-1]
        count = len(inputs)
        residuals = [inputs.new_zeros(count, *stage.shape).requires_grad_() for stage in hidden]
        states, logits = self.network.states(inputs, residuals)
        centre = (states[-1] if self.at_outputs else logits).reshape(count, -1)
        size = centre.shape[1]
        if not residuals:
            return centre.detach(), inputs.new_zeros(count, size, 1)
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
        return centre.detach(), jacobian


def _closed_form(centre: Tensor, factor: Tensor, targets: Tensor, boundary: Tensor) -> Minimum:
    """`1/2 |e - L z|^2 + 1/2 |z|^2` at z = (I + L^T L)^-1 L^T e, where L^T L is diagonal.

    It is `1/2 e^T (I + A)^-1 e`; errors of z enter squared, also where A is 1/eps.
    """
    error = targets - centre
    z = (factor.mT @ error[..., None])[..., 0] / (1 + factor.square().sum(1))
    rest = error - (factor @ z[..., None])[..., 0]
    bulk = 0.5 * (rest.square().sum(1) + z.square().sum(1))
    return Minimum(torch.minimum(bulk, boundary), torch.ones_like(bulk, dtype=torch.bool))


def _chunk(network: Network, size: int, device: torch.device) -> int:
    """Return how many examples are measured at once: that their Jacobians take bounded memory.

    Raises:
        MemoryError: those of one example would not fit.
    """
    hidden = sum(stage.size for stage in network.stages[:-1])
    # the Jacobian, a graph of the states, and the small problems' matrices
    needed = 8 * (size * hidden + 4 * network.neurons + 8 * size * max(1, min(size, hidden)))
    free = int(_SHARE * available_bytes(device))
    if size > _MOST_OUTPUTS or needed > free:
        raise MemoryError(
            f"the bulk loss of one example needs {gib(needed)} for the Jacobian of {size} outputs "
            f"in {hidden} hidden neurons; at most {_MOST_OUTPUTS} outputs and {gib(free)} are "
            "allowed: read a smaller part of the model"
        )
    return max(1, min(_CHUNK_BYTES, free) // needed)


def _bounded(count: int, network: Network, problem: _Bulk) -> None:
    """Refuse what would take minutes.

    Raises:
        MemoryError: so many outputs for so many examples.
    """
    # all residuals act through the last hidden stage
    rank = min(problem.size, network.stages[-2].size if len(network.stages) > 1 else 1)
    closed = problem.at_outputs and problem.loss.squared_error
    most = _MOST_WORK * (_CLOSED_FORM if closed else 1) // (problem.size * rank**2)
    if count <= most:
        return
    cheaper = [f"take at most {most} examples" if most else "", "a loss_fn of fewer outputs"]
    if problem.loss.squared_error and not closed:
        cheaper.append('method="linear", which has a closed form')
    raise MemoryError(
        f"the bulk loss of {count} examples with {problem.size} outputs, moved in {rank} "
        f"dimensions by the last hidden stage, would take minutes: "
        + ", or ".join(filter(None, cheaper))
    )


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
