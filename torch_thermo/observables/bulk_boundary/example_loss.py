"""The loss of each example of a batch, from a loss function that means over batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

LossFn = Callable[[Tensor, Tensor], Tensor]

DIVIDED_OUT = (
    "its class weights do not count: a mean divides them out of the loss of one example; give "
    "reduction='sum' or 'none', whose losses of single examples keep them"
)
"""What is told of a loss function that `divides_weights`."""

# what the second derivatives of one batched backward may take
_BATCH_BYTES = 2**25


class ExampleLoss:
    """Losses (B,) of the examples, differentiable in the outputs.

    Without a loss function the paper's `1/2 |target - output|^2` over all outputs (Vanchurin,
    eq. 3.1). A loss function is called with the batch of one of each example, through `vmap`, and
    example by example where it can't be vectorised (it asks for values, or has no such rule). What
    a mean divides out of a batch of one, such as the class weights of cross entropy, does not
    count.

    Parameters and buffers of a loss function that is a module are taken in float64, as a copy.

    Args:
        loss_fn: `loss_fn(output, target)` -> the mean or the (1,) loss of a batch of one.
    """

    def __init__(self, loss_fn: LossFn | None) -> None:
        self.squared_error = loss_fn is None
        self._loss_fn = _in_float64(loss_fn) if loss_fn is not None else None
        self._vectorised = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses.

        Args:
            outputs: (B, ...), float64.
            targets: (B, ...).

        Raises:
            ValueError: the loss function fails on a batch of one, or returns more than one loss.
        """
        if self._loss_fn is None:
            return 0.5 * (targets - outputs).square().reshape(len(outputs), -1).sum(1)
        if self._vectorised:
            try:
                return self._mapped(outputs, targets)
            except (RuntimeError, ValueError):
                # told apart from a loss that fails on any input by the loop, which raises
                self._vectorised = False
        pairs = zip(outputs.split(1), targets.split(1), strict=True)
        return torch.stack([self._of_one(o, t) for o, t in pairs])

    def _mapped(self, outputs: Tensor, targets: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # an operation without a rule of its own is run in a loop, with a remark on its speed
            warnings.filterwarnings("ignore", message=".*performance drop")
            found: Tensor = torch.func.vmap(lambda o, t: self._of_one(o[None], t[None]))(
                outputs, targets
            )
        return found

    def _of_one(self, output: Tensor, target: Tensor) -> Tensor:
        assert self._loss_fn is not None
        try:
            loss = self._loss_fn(output, target)
        except Exception as error:
            raise ValueError(
                f"loss_fn failed on a batch of one, outputs {tuple(output.shape)} of float64 and "
                f"targets {tuple(target.shape)} of {str(target.dtype).removeprefix('torch.')}: "
                f"{error}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                "loss_fn must return a mean over the batch or one loss per example, "
                f"got {what} for one example"
            )
        return loss.reshape(()).double()


def ignored(loss_fn: LossFn | None, targets: Tensor) -> Tensor:
    """Return (n,) whether all of an example's targets are what torch's losses ignore."""
    if targets.is_floating_point():
        return torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    matches = targets == getattr(loss_fn, "ignore_index", -100)
    return matches.reshape(len(targets), -1).all(1)


def divides_weights(loss_fn: LossFn | None) -> bool:
    """Return whether it is a loss of torch that divides by the class weights of the labels.

    The means of the others that take weights divide by the number of examples.
    """
    return (
        isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss)
        and loss_fn.weight is not None
        and loss_fn.reduction == "mean"
    )


class Potential:
    """Loss of each example as a function of its pre-activations: `phi(y) = loss(f(y), target)`.

    Args:
        loss: of the outputs.
        targets: (B, ...).
        activation: f, from (n, M) to the outputs (n, ...).
        elementwise: whether each output depends on one pre-activation alone.
    """

    def __init__(
        self,
        loss: ExampleLoss,
        targets: Tensor,
        activation: Callable[[Tensor], Tensor],
        elementwise: bool,
    ) -> None:
        self._loss = loss
        self._targets = targets
        self._activation = activation
        self._elementwise = elementwise
        # of a squared error of such outputs the second derivative is a diagonal
        self.diagonal = elementwise and loss.squared_error

    def take(self, rows: Tensor) -> Potential:
        """Return that of the examples `rows` (n,) alone."""
        return Potential(self._loss, self._targets[rows], self._activation, self._elementwise)

    def values(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return phi (n,) of the examples `rows` (n,) at `logits` (n, M)."""
        return self._loss(self._activation(logits), self._targets[rows])

    def boundary(self, logits: Tensor) -> Tensor:
        """Return phi (B,) of all examples at their own `logits` (B, M).

        Raises:
            ValueError: autograd does not see the logits in it: every point would look at rest.
        """
        logits = logits.detach().requires_grad_()
        values = self.values(logits, torch.arange(len(logits), device=logits.device))
        slopes: tuple[Tensor | None, ...] = ()
        if values.requires_grad:
            slopes = torch.autograd.grad(values.sum(), logits, allow_unused=True)
        if all(slope is None for slope in slopes):
            raise ValueError(
                "loss_fn does not depend on the outputs through autograd: it detaches them, runs "
                "under no_grad, or counts (argmax, comparisons)"
            )
        return values.detach()

    def slopes(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return phi (n,) and its gradient (n, M)."""
        logits = logits.detach().requires_grad_()
        values = self.values(logits, rows)
        return values.detach(), _gradient(values.sum(), logits).detach()

    def curvatures(
        self, logits: Tensor, rows: Tensor, factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return phi (n,), its gradient (n, M) and `phi'' L` (n, M, R).

        Args:
            logits: (n, M).
            rows: (n,), which examples.
            factor: L (n, M, R); one product with phi'' for each of its columns.

        Raises:
            NotImplementedError: the loss has no second derivative in torch.
        """
        logits = logits.detach().requires_grad_()
        values = self.values(logits, rows)
        gradient = _gradient(values.sum(), logits, create_graph=True)
        try:
            if self.diagonal:
                bent = _gradient(gradient.sum(), logits)[..., None] * factor
            else:
                bent = _products(gradient, logits, factor)
        except RuntimeError as error:
            raise NotImplementedError(f"the loss has no second derivative: {error}") from error
        return values.detach(), gradient.detach(), bent.detach()


def _products(gradient: Tensor, logits: Tensor, factor: Tensor) -> Tensor:
    """Return `phi'' L` (n, M, R), the columns of L in batches of bounded memory."""
    if not gradient.requires_grad:
        return torch.zeros_like(factor)
    columns = factor.movedim(2, 0)
    size = max(1, _BATCH_BYTES // (8 * logits.numel()))
    parts = []
    with warnings.catch_warnings():
        # as in `ExampleLoss`
        warnings.filterwarnings("ignore", message=".*performance drop")
        for part in columns.split(size):
            found: tuple[Tensor, ...] = torch.autograd.grad(
                gradient,
                logits,
                part,
                retain_graph=True,
                is_grads_batched=True,
                allow_unused=True,
                materialize_grads=True,
            )
            parts.append(found[0])
    return torch.cat(parts).movedim(0, 2)


def _gradient(scalar: Tensor, wrt: Tensor, create_graph: bool = False) -> Tensor:
    """Return the gradient of a scalar, zeros where it does not depend on `wrt`."""
    if not scalar.requires_grad:
        return torch.zeros_like(wrt)
    found: tuple[Tensor, ...] = torch.autograd.grad(
        scalar,
        wrt,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return found[0]


def _in_float64(loss_fn: LossFn) -> LossFn:
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    state = {
        name: tensor.detach().double() if tensor.is_floating_point() else tensor.detach()
        for name, tensor in chain(loss_fn.named_parameters(), loss_fn.named_buffers())
    }
    if not state:
        return loss_fn
    module = loss_fn

    def called(output: Tensor, target: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(module, state, (output, target))
        return found

    return called
