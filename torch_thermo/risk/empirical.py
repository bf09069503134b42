"""The empirical risk of a model over fixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_thermo.risk.batches import batch_size, describe, move, re_iterable
from torch_thermo.risk.collective import entered
from torch_thermo.risk.contexts import cuda_devices, is_reentrant, second_order, seed
from torch_thermo.risk.parameters import only_device, select, vector_dtype

LossFn = Callable[[Any, Any], Tensor]
Closure = Callable[[nn.Module, Any], Any]

NO_GRADIENT = (
    "the loss has no gradient in the parameters measured: it does not depend on them, "
    "or was computed under no_grad or detached"
)
_REENTRANT = (
    "reentrant activation checkpointing cannot be measured: "
    "call checkpoint(..., use_reentrant=False) in the model"
)


class Term(NamedTuple):
    """One batch of the risk: its mean loss (a scalar with graph) and its weight."""

    loss: Tensor
    weight: float


@dataclass(frozen=True)
class GroupGradients:
    """Gradients of this rank's batches, in at most `groups` groups.

    Attributes:
        gradients: (G, n), the weighted mean gradient of each group; dtype and device of the risk.
        weights: (G,), float64 on the CPU, the total weight of each group.
        losses: (G,), float64 on the CPU, the weighted mean loss of each group.
    """

    gradients: Tensor
    weights: Tensor
    losses: Tensor


class Risk:
    r"""Empirical risk `R(theta) = sum_n w_n loss_n / sum_n w_n` over fixed batches.

    The model is measured as it is deployed: in eval mode (every `training` flag is put back),
    without autocast, with deterministic attention, at full float32 precision, never under
    `inference_mode`. `.backward()` is never called, so no `.grad` is created, read or changed.
    A forward pass that draws random numbers draws the same ones every time, from a fork of torch's
    generators, so that R is a function of theta and the caller's generators don't move. Hooks on
    parameters, which would change the gradient, don't run. A batch of weight 0 counts for nothing,
    even if its mean is NaN.

    Built from `loss_fn` the risk is *structured*: its Hessian can be split into Gauss-Newton and
    functional parts. Built by `from_closure` it is opaque: value, gradient and Hessian only.

    Args:
        model: called as `model(input)`.
        loss_fn: `loss_fn(output, target)` -> scalar mean, weighted by the number of examples, or
            (B,) losses of the examples.
        batches: a list of `(input, target)`, or anything that can be iterated again and again with
            the same result. A batch on another device is moved.
        params: names or parameters to differentiate; default: all that require a gradient.
        process_group: with one, the batches are this rank's shard, and every method is collective
            and returns the result over all ranks. All ranks must call the same methods.

    Attributes:
        model: the model.
        parameters: {name: parameter}, in the model's order.
        blocks: {name: slice} into flat vectors.
        numel: n, the number of parameters measured.
        dtype: of flat vectors: the parameters' dtype, float32 at least.
        device: of the parameters.
        structured: whether there is a `loss_fn`.

    Raises:
        TypeError: a one-shot iterator, or parameters that are complex or sharded.
        ValueError: no batch, no trainable parameter, an unknown or frozen one, several devices.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        batches: Iterable[Any],
        params: Iterable[str | Tensor] | None = None,
        process_group: Any | None = None,
    ) -> None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
        self.model = model
        self.loss_fn: LossFn | None = loss_fn
        self.process_group = process_group
        self._closure: Closure | None = None
        self._batches = re_iterable(batches)
        self.parameters = select(model, params)
        self.device = only_device(self.parameters)
        self.dtype = vector_dtype(self.parameters)
        self.blocks: dict[str, slice] = {}
        start = 0
        for name, parameter in self.parameters.items():
            self.blocks[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        self.numel = start
        self._frozen_groups = 0
        self._memo: GroupGradients | None = None
        self._samples: int | None = None

    @classmethod
    def from_closure(
        cls,
        model: nn.Module,
        closure: Closure,
        batches: Iterable[Any],
        params: Iterable[str | Tensor] | None = None,
        process_group: Any | None = None,
    ) -> Risk:
        """Build an opaque risk from `closure(model, batch) -> mean or (mean, weight)`.

        Without a weight a batch weighs its number of examples: the length of its first tensor.

        Raises:
            TypeError: `closure` is not callable, and what `Risk` raises.
        """
        if not callable(closure):
            raise TypeError(f"closure must be callable, got {type(closure).__name__}")
        risk = cls(model, closure, batches, params, process_group)
        risk.loss_fn, risk._closure = None, closure
        return risk

    @property
    def structured(self) -> bool:
        """Whether the loss is known as a function of (output, target)."""
        return self.loss_fn is not None

    @property
    def samples(self) -> int:
        """Number of examples on this rank: the lengths of the batches, summed."""
        if self._samples is None:
            # a loader draws from the global generator each time it is read
            with self.measuring():
                self._samples = sum(batch_size(batch) for batch in self.batches())
        return self._samples

    def value(self) -> float:
        """Return R(theta) as a float, summed over the batches in float64."""

        def from_groups() -> tuple[Tensor, float]:
            groups = self.group_gradients(self._frozen_groups)
            return (groups.losses @ groups.weights)[None], float(groups.weights.sum())

        def local() -> tuple[Tensor, float]:
            total = torch.zeros(1, dtype=torch.float64)
            weights = 0.0
            for batch in self.batches():
                term = self.term(batch)
                if term.weight:
                    total += term.weight * float(term.loss)
                    weights += term.weight
            return total, weights

        if self._frozen_groups:
            return float(self.average(from_groups)[0])
        with self.measuring(), torch.no_grad():
            return float(self.average(local)[0])

    def gradient(self) -> Tensor:
        """Return grad R(theta), flat (n,), in the risk's dtype and device, without a graph."""

        def local() -> tuple[Tensor, float]:
            groups = self.group_gradients(self._frozen_groups or 1)
            weights = groups.weights.to(groups.gradients)
            return weights @ groups.gradients, float(groups.weights.sum())

        return self.average(local)

    def group_gradients(self, groups: int = 8) -> GroupGradients:
        """Return the gradients of this rank's batches in `min(groups, batches)` groups.

        Batch i goes to group i mod `groups`; needs `groups` vectors of memory and one pass.
        Inside `frozen` the pass is made once.

        Raises:
            ValueError: `groups` below 1, no batch, or a loss without a gradient.
        """
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        if self._memo is not None and groups == self._frozen_groups:
            return self._memo
        sums: list[Tensor] = []
        weights: list[float] = []
        losses: list[float] = []
        constant = True
        with self.measuring():
            for index, batch in enumerate(self.batches()):
                term = self.term(batch)
                group = index % groups
                if group == len(sums):
                    sums.append(torch.zeros(self.numel, dtype=self.dtype, device=self.device))
                    weights.append(0.0)
                    losses.append(0.0)
                if not term.weight:
                    continue
                constant = constant and not term.loss.requires_grad
                sums[group].add_(self.flatten(self.differentiate(term.loss)), alpha=term.weight)
                weights[group] += term.weight
                losses[group] += term.weight * float(term.loss.detach())
        if constant and any(weights):
            raise ValueError(NO_GRADIENT)
        mass = torch.tensor(weights, dtype=torch.float64)
        # an ignored batch (weight 0) has no mean; it stays a row of zeros without weight
        divisor = torch.where(mass > 0, mass, torch.ones_like(mass))
        for row, d in zip(sums, divisor.tolist(), strict=True):
            row /= d
        result = GroupGradients(
            torch.stack(sums), mass, torch.tensor(losses, dtype=torch.float64) / divisor
        )
        if groups == self._frozen_groups:
            self._memo = result
        return result

    @contextmanager
    def frozen(self, groups: int = 8) -> Iterator[Risk]:
        """Promise that neither weights nor data change inside: gradients are computed once.

        Value, gradient and `group_gradients(groups)` come from one pass. Scopes may be nested;
        the outermost decides and keeps the result until it ends.
        """
        if self._frozen_groups:
            yield self
            return
        self._frozen_groups = groups
        try:
            yield self
        finally:
            self._frozen_groups = 0
            self._memo = None

    # -- what the operators are built from ---------------------------------------------------

    def batches(self) -> Iterator[Any]:
        """Iterate over the batches, on the risk's device; only inside `measuring`.

        Each batch has random numbers of its own, whatever was drawn with those before it.

        Raises:
            ValueError: there is none.
        """
        read = 0
        seed(self.device, read)
        for batch in self._batches:
            yield move(batch, self.device)
            read += 1
            seed(self.device, read)
        if not read:
            raise ValueError("batches is empty: a risk needs at least one batch")

    def term(self, batch: Any) -> Term:
        """Return the mean loss of one batch, with its graph, and its weight.

        Raises:
            TypeError: the loss or the closure returned something else than documented.
            ValueError: a loss of the wrong shape, a negative or non-finite weight.
        """
        if self._closure is not None:
            returned = self._closure(self.model, batch)
            if isinstance(returned, tuple):
                loss, weight = returned
                return Term(_scalar(loss, "closure"), _checked_weight(float(weight)))
            return Term(_scalar(returned, "closure"), float(batch_size(batch)))
        output, target = self.forward(batch)
        return self.loss_of(output, target, batch_size(batch))

    def forward(self, batch: Any) -> tuple[Any, Any]:
        """Return (output, target) of one batch of a structured risk, with the output's graph.

        Raises:
            TypeError: the risk is opaque, or the batch is no (input, target) pair.
        """
        self.require_structure("the output of the model")
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise TypeError(
                "with loss_fn every batch must be a pair (input, target), got "
                f"{describe(batch)}; for other batches give closure(model, batch)"
            )
        return self.model(batch[0]), batch[1]

    def loss_of(self, output: Any, target: Any, examples: int) -> Term:
        """Return the mean loss of an output and its weight.

        The weight is the number of examples; of torch's cross entropy and negative
        log-likelihood what their mean divides by: targets that are not ignored, times the
        weights of their classes.
        """
        assert self.loss_fn is not None
        loss = self.loss_fn(output, target)
        divisor = _divisor(self.loss_fn, target)
        if divisor is not None:
            return Term(_scalar(loss, "loss_fn"), divisor)
        if isinstance(loss, Tensor) and loss.dim() == 1 and loss.numel() == examples:
            return Term(loss.mean(), float(examples))
        return Term(_scalar(loss, "loss_fn", f"or ({examples},) losses"), float(examples))

    def require_structure(self, what: str) -> None:
        """Raise TypeError if the risk is opaque, naming what was asked for."""
        if self.loss_fn is None:
            raise TypeError(
                f"{what} needs the loss as loss_fn(output, target); "
                "this risk was built from a closure, which gives value, gradient and Hessian only"
            )

    def differentiate(self, scalar: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Return the gradient of `scalar` in each parameter; zeros where it does not enter.

        Raises:
            RuntimeError: reentrant activation checkpointing, with the cure.
        """
        parameters = tuple(self.parameters.values())
        if not scalar.requires_grad:
            return tuple(torch.zeros_like(p) for p in parameters)
        try:
            gradients = torch.autograd.grad(
                scalar, parameters, create_graph=create_graph, allow_unused=True
            )
        except RuntimeError as error:
            if "heckpoint" in str(error):
                raise RuntimeError(_REENTRANT) from error
            raise
        if any(g is None for g in gradients) and is_reentrant(scalar):
            raise RuntimeError(_REENTRANT)
        return tuple(
            torch.zeros_like(p) if g is None else g
            for g, p in zip(gradients, parameters, strict=True)
        )

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Put torch's generators back at the end: the next pass draws what this one drew."""
        with torch.random.fork_rng(devices=cuda_devices(self.device)):
            yield

    def flatten(self, tensors: Iterable[Tensor]) -> Tensor:
        """Join one tensor for each parameter to a flat (n,) vector of the risk's dtype."""
        # embeddings with sparse=True have sparse gradients
        dense = (t.detach().to_dense() if t.is_sparse else t.detach() for t in tensors)
        return torch.cat([t.reshape(-1).to(self.dtype) for t in dense])

    def unflatten(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Split a flat (n,) vector into tensors of the parameters' shapes and dtypes."""
        return tuple(
            vector[block].view(parameter.shape).to(parameter.dtype)
            for block, parameter in zip(self.blocks.values(), self.parameters.values(), strict=True)
        )

    def average(self, local: Callable[[], tuple[Tensor, float]]) -> Tensor:
        """Return sum(x) / sum(w) over all ranks for `local() -> (sum of w x, sum of w)`.

        The one reduction of the project. What happens on a rank travels as a status beside the
        weight: a rank that raises still enters the collective, and all stop together.

        Raises:
            ValueError: the total weight is zero.
            RuntimeError: another rank failed (this rank's own error is raised unchanged).
        """
        if self.process_group is None:
            total, weight = local()
        else:
            total, weight = _reduce(local, self.process_group, self.device)
        if not weight > 0:
            raise ValueError(f"the weights of the risk must have a positive sum, got {weight}")
        return total / weight

    def least_over_ranks(self, number: float) -> float:
        """Return the smallest of the ranks' numbers, so that all decide alike."""
        if self.process_group is None:
            return number
        import torch.distributed as dist

        shared = torch.tensor(float(number), dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN, group=self.process_group)
        return float(shared)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Enter what second derivatives need: see the class; everything is put back."""
        with second_order(self.model, self.device):
            yield


def _scalar(loss: Any, source: str, alternative: str = "") -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"{source} must return a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"{source} must return a scalar mean {alternative}".rstrip()
            + f", got shape {tuple(loss.shape)}"
        )
    return loss.reshape(())


def _divisor(loss_fn: Any, target: Any) -> float | None:
    """Return what the mean of a criterion with class weights or ignored targets divides by."""
    if not isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) or loss_fn.reduction != "mean":
        return None
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    counted = target[target != loss_fn.ignore_index]
    if loss_fn.weight is None:
        return float(counted.numel())
    return float(loss_fn.weight.double()[counted].sum())


def _checked_weight(weight: float) -> float:
    if not 0 <= weight < float("inf"):
        raise ValueError(f"the weight of a batch must be finite and not negative, got {weight}")
    return weight


def _reduce(
    local: Callable[[], tuple[Tensor, float]], group: Any, device: torch.device
) -> tuple[Tensor, float]:
    total, weight = entered(local, group, device)
    moved = total.to(device, copy=True)
    torch.distributed.all_reduce(moved, group=group)
    return moved.to(total.device), weight
