"""Entries of the functional Hessian, example by example, and what their bootstrap would say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torch_thermo.observables.entry_statistics import HessianEntries
from torch_thermo.operators.base import DIRECT, Linearised, linearised
from torch_thermo.operators.memory import available_bytes, gib
from torch_thermo.risk import NO_GRADIENT, Risk, batch_size

Indices = int | Sequence[int] | Tensor

_WHAT = "the Hessian entries of each example"
# of what is free, the part that the stored entries may take
_STORE_SHARE = 0.5
# positive examples on which it is seen which entries can't be anything but 0: several, for a
# max-pool lets through one cell of each
_POSITIVE = 4
# so many are drawn if no number is given, of a smaller net all
_COLUMNS, _ROWS = 32, 128


def hessian_entries(
    risk: Risk, columns: Indices | None = None, rows: Indices | None = None, *, seed: int = 0
) -> HessianEntries:
    r"""Measure entries of the functional Hessian of each example (Li, Figs. 6 and 7).

    `E_n[i, j] = sum_c l'_nc d2 o_nc / d theta_i d theta_j` with l' = dloss/doutput: the Hessian of
    the example's loss where the loss is piecewise linear in the output (hinge). Examples with
    l' = 0 have none and are not differentiated. One product with a unit vector gives a column,
    of which the rows are kept; statistics of minibatches are then drawn from what is stored, with
    no product more. Where a loss weighs its examples E_n has the weight, so that the mean over all
    examples is the entry of `FunctionalHessianOperator(risk)`. Examples of weight 0 (of torch's
    cross entropy those whose targets are all ignored, or of a class of weight 0) are no examples:
    they are left out.

    Examples are differentiated one by one, on a graph that all columns share. On a CPU that is no
    slower than torch.func's vmap over examples (1.2 against 1.4 ms a product on the 10-layer VGG,
    one core), takes the memory of one example, and works for all that autograd differentiates
    twice (recurrent nets, attention).

    An entry is *structurally* zero when no path from input to output passes both weights: two
    weights of one layer (of a net without smooth activations), or weights whose units don't meet.
    These are found on copies of the weights that are random and positive, on random positive
    inputs: there every sum over paths has positive terms only and every ReLU is open, so that an
    entry is exactly 0 if there is no path. An `nn.Embedding` of the input gives the mean of its
    rows there, as if each token stood at each place; whole numbers that reach no embedding
    uncopied can't be drawn, and are the last batch's own, each place shuffled over its examples.
    An entry counts as structural if it is exactly 0 there and in all examples measured. So the word
    says too much of nets whose units are closed at positive weights and inputs (a ReLU of a
    negated or a far lower value, a BatchNorm with a high running mean), and of tokens in no
    embedding that the batch lacks: there an entry can be 0 in all that was looked at and have a
    path.

    Args:
        risk: structured. With a process group the examples of all ranks count.
        columns: flat indices of parameters, or how many to draw; default 32, of a smaller net all.
        rows: the same, default 128; drawn apart from the columns.
        seed: of the draws.

    Returns:
        The store, on the CPU in float64.

    Raises:
        TypeError: `risk` is not a Risk, or is opaque; output or input is not a tensor with an
            example a row; the loss depends on parameters also past the output; an example's output
            depends on the others of its batch; indices that are not whole numbers.
        ValueError: no index, one outside the parameters or one twice; nothing depends on the
            parameters.
        RuntimeError: the model or the loss has no second derivatives in torch.
        MemoryError: the store would not fit.
        FloatingPointError: an entry is not finite.
    """
    if not isinstance(risk, Risk):
        raise TypeError(f"risk must be a Risk, got {type(risk).__name__}")
    risk.require_structure(_WHAT)
    generator = torch.Generator().manual_seed(seed)
    numel = risk.numel
    columns = min(_COLUMNS, numel) if columns is None else columns
    i = _indices("columns", columns, numel, generator)
    j = _indices("rows", min(_ROWS, numel) if rows is None else rows, numel, generator)
    chosen = _Chosen(i, j, _places(risk, i), _places(risk, j))
    stored: list[_Part] = []

    def local() -> tuple[Tensor, float]:
        _ensure_fits(risk, chosen)
        part = _of_batches(risk, chosen, seed)
        stored.append(part)
        return torch.zeros(1), part.weight

    with risk.measuring(), _second_derivatives():
        # the reduction carries a failing rank's status to the others
        risk.average(local)
    part = _gathered(risk, stored[0])
    if not bool(torch.isfinite(part.entries).all()):
        raise FloatingPointError("an entry of the Hessian is not finite: weights or loss hold NaN")
    samples = len(part.active)
    return HessianEntries(
        columns=chosen.columns,
        rows=chosen.rows,
        # the mean over the examples is to be the risk's, which divides by the weights
        entries=part.entries.mul_(samples / part.weight),
        active=part.active,
        structural=part.impossible & ~(part.entries != 0).any(0),
        products=part.products,
    )


class _Place(NamedTuple):
    owner: int  # number of the parameter
    positions: Tensor  # which of the indices fall into it
    local: Tensor  # where


class _Chosen(NamedTuple):
    columns: Tensor
    rows: Tensor
    column_places: tuple[_Place, ...]
    row_places: tuple[_Place, ...]


class _Part(NamedTuple):
    entries: Tensor  # (active, C, R), times the weight of the example
    active: Tensor  # (samples,) bool, of the examples of a weight above 0
    weight: float
    impossible: Tensor  # (C, R) bool, no path on positive weights
    products: int


def _of_batches(risk: Risk, chosen: _Chosen, seed: int) -> _Part:
    """Return what this rank's batches give; only inside `measuring`."""
    found: list[Tensor] = []
    active: list[Tensor] = []
    weight = 0.0
    impossible = torch.ones(len(chosen.columns), len(chosen.rows), dtype=torch.bool)
    last = None
    for batch in risk.batches():
        if not batch_size(batch):
            continue
        part = _checked(linearised(risk, batch), batch)
        weight += part.weight
        moving = torch.zeros(batch_size(batch), dtype=torch.bool)
        if part.slope is not None and part.output is not None:
            # examples with NaN stay in, to be seen: the slope of max(0, NaN) is 0
            nonzero = (part.slope != 0) | ~torch.isfinite(part.output)
            moving = nonzero.reshape(len(nonzero), -1).any(1).cpu()
            for index in moving.nonzero()[:, 0].tolist():
                alone = _alone(risk, batch[0], part.output, index)
                gradient = risk.differentiate((part.slope[index] * alone).sum(), create_graph=True)
                entries = _columns(gradient, tuple(risk.parameters.values()), chosen)
                found.append(part.weight * entries)
        active.append(moving[_counted(risk, part, batch, moving)])
        last = batch
    if last is not None:
        impossible = _impossible(risk, last[0], chosen, seed)
    shape = (0, *impossible.shape)
    stored = torch.stack(found) if found else torch.zeros(shape, dtype=torch.float64)
    products = (len(found) + _POSITIVE) * len(chosen.columns)
    every = torch.cat(active) if active else torch.zeros(0, dtype=torch.bool)
    return _Part(stored, every, weight, impossible, products)


def _counted(risk: Risk, part: Linearised, batch: Any, moving: Tensor) -> Tensor:
    """Return which examples of a batch have a weight, (samples,) bool."""
    counted = torch.ones_like(moving)
    if not part.weight:
        return counted.logical_not_()
    if not isinstance(risk.loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) or part.output is None:
        return counted  # other losses weigh all examples alike, see `Risk.loss_of`
    for index in (~moving).nonzero()[:, 0].tolist():
        alone = slice(index, index + 1)
        counted[index] = risk.loss_of(part.output[alone], batch[1][alone], 1).weight > 0
    return counted


@contextmanager
def _second_derivatives() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "is not implemented" not in text and "differentiate twice" not in text:
            raise
        raise RuntimeError(f"the model or loss has no second derivatives ({text})") from error


def _checked(part: Linearised | None, batch: Any) -> Linearised:
    if part is None:
        raise TypeError(f"{_WHAT} need a tensor as model output")
    if part.direct:
        raise TypeError(DIRECT.format(_WHAT))
    examples = batch_size(batch)
    inputs = batch[0]
    if not (isinstance(inputs, Tensor) and inputs.dim() and len(inputs) == examples):
        kind = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs)
        raise TypeError(f"{_WHAT} need a tensor with an example a row as input, got {kind}")
    if part.output is not None and part.output.shape[:1] != (examples,):
        raise TypeError(
            f"{_WHAT} need an output with an example a row, got shape {tuple(part.output.shape)} "
            f"for {examples} examples"
        )
    return part


def _alone(risk: Risk, inputs: Tensor, outputs: Tensor, index: int) -> Tensor:
    """Return the output of one example alone, with its graph, if it is that in the batch."""
    output = _answer(risk, risk.model, inputs[index : index + 1])
    expected = outputs[index : index + 1]
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5 * outputs.abs().amax()
    # NaN differs from nothing: it goes on, to be seen in the entries
    if output.shape != expected.shape or bool((output - expected).abs().amax() > tolerance):
        raise TypeError(
            f"{_WHAT} need a model that answers an example alone as in its batch, and example "
            f"{index} differs: batch statistics, a time axis in front, or random numbers in forward"
        )
    if not output.requires_grad:
        raise ValueError(NO_GRADIENT)
    return cast(Tensor, output[0])


def _answer(risk: Risk, model: Callable[[Tensor], Any], example: Tensor) -> Any:
    with risk.rehearsal():
        try:
            return model(example)
        except Exception as error:  # as batch statistics of one example
            raise TypeError(f"{_WHAT} need a model that takes one alone: {error}") from error


def _columns(gradient: Sequence[Tensor], parameters: Sequence[Tensor], chosen: _Chosen) -> Tensor:
    """Differentiate the chosen entries of a gradient; keep the chosen rows, (C, R)."""
    result = torch.zeros(len(chosen.columns), len(chosen.rows), dtype=torch.float64)
    owners = [parameters[place.owner] for place in chosen.row_places]
    order = torch.cat([place.positions for place in chosen.row_places])
    positions, found = [], []
    for place in chosen.column_places:
        part = gradient[place.owner]
        # a gradient that does not depend on theta (the last layer's, of a linear net) has no graph
        if not part.requires_grad:
            continue
        entries = _flat(part)[place.local.to(part.device)].unbind()
        positions.append(place.positions)
        for entry in entries:
            products = torch.autograd.grad(entry, owners, retain_graph=True, materialize_grads=True)
            kept = (
                _flat(product)[place.local.to(product.device)]
                for product, place in zip(products, chosen.row_places, strict=True)
            )
            found.append(torch.cat([rows.detach().double() for rows in kept]))
    if found:
        result[torch.cat(positions)[:, None], order] = torch.stack(found).cpu()
    return result


def _flat(tensor: Tensor) -> Tensor:
    # embeddings with sparse=True have sparse gradients
    return (tensor.to_dense() if tensor.is_sparse else tensor).reshape(-1)


def _places(risk: Risk, indices: Tensor) -> tuple[_Place, ...]:
    """Return which parameters flat indices fall into, those without one left out."""
    found = []
    for owner, block in enumerate(risk.blocks.values()):
        positions = ((indices >= block.start) & (indices < block.stop)).nonzero()[:, 0]
        if len(positions):
            found.append(_Place(owner, positions, indices[positions] - block.start))
    return tuple(found)


def _impossible(risk: Risk, inputs: Tensor, chosen: _Chosen, seed: int) -> Tensor:
    """Return which entries are exactly 0 at random positive weights and inputs, (C, R) bool."""
    generator = torch.Generator().manual_seed(seed)

    def positive(like: Tensor) -> Tensor:
        draw = 0.5 + torch.rand(like.shape, generator=generator, dtype=torch.float64)
        # by the fan-in, so that a deep net neither explodes nor dies out
        fan_in = like[0].numel() if like.dim() > 1 else 1
        return (draw / max(fan_in, 1)).to(like)

    weights = {name: positive(p) for name, p in risk.model.named_parameters()}
    measured = tuple(weights[name].requires_grad_() for name in risk.parameters)
    zero = torch.ones(len(chosen.columns), len(chosen.rows), dtype=torch.bool)
    for index in range(_POSITIVE):
        example = inputs[index % len(inputs)][None]
        if example.is_floating_point():
            example = (0.5 + torch.rand(example.shape, generator=generator)).to(example)
        elif not example.is_complex():
            drawn = torch.randint(len(inputs), example.shape, generator=generator)
            example = inputs.gather(0, drawn.to(inputs.device))
        with _every_token(risk.model, example):
            output = _answer(risk, lambda x: functional_call(risk.model, weights, (x,)), example)
        slope = 0.5 + torch.rand(output.shape, generator=generator)
        scalar = (slope.to(output) * output).sum()
        if scalar.requires_grad:
            gradient = torch.autograd.grad(
                scalar, measured, create_graph=True, materialize_grads=True
            )
            zero &= _columns(gradient, measured, chosen) == 0
    return zero


@contextmanager
def _every_token(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Make embeddings of the input give the mean of their rows: every token at every place."""
    storage = example.untyped_storage().data_ptr()

    def mean(module: nn.Embedding, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not args or args[0].untyped_storage().data_ptr() != storage:
            return output  # of positions, say
        rows = torch.arange(module.num_embeddings, device=output.device)
        # the row of padding is a constant
        rows = rows[rows != module.padding_idx] if module.padding_idx is not None else rows
        return module.weight[rows].mean(0).expand_as(output)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                stack.enter_context(module.register_forward_hook(mean))
        yield


def _indices(name: str, wanted: Indices, numel: int, generator: torch.Generator) -> Tensor:
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not 1 <= wanted <= numel:
            raise ValueError(f"{name} must lie between 1 and the {numel} parameters, got {wanted}")
        return torch.randperm(numel, generator=generator)[:wanted].sort().values
    if isinstance(wanted, bool | str) or not isinstance(wanted, Sequence | Tensor):
        raise TypeError(f"{name} must be a number or a list of indices, got {wanted!r}")
    indices = torch.as_tensor(wanted)
    if indices.dim() != 1 or not len(indices):
        raise ValueError(f"{name} must be a list of at least one index, got {wanted!r}")
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{name} must be whole numbers, got {indices.dtype}")
    if bool(((indices < 0) | (indices >= numel)).any()):
        bad = int(indices[(indices < 0) | (indices >= numel)][0])
        raise ValueError(f"{name} must lie between 0 and {numel - 1}, got {bad}")
    distinct, counts = indices.unique(return_counts=True)
    if len(distinct) < len(indices):
        twice = int(distinct[counts > 1][0])
        raise ValueError(f"{name} must not repeat an index, got {twice} more than once")
    return indices.cpu().long()


def _ensure_fits(risk: Risk, chosen: _Chosen) -> None:
    entries = len(chosen.columns) * len(chosen.rows)
    needed = 8 * risk.samples * entries
    free = int(_STORE_SHARE * available_bytes(torch.device("cpu")))
    if needed > free:
        raise MemoryError(
            f"{len(chosen.columns)} x {len(chosen.rows)} entries of {risk.samples} examples need "
            f"{gib(needed)} and {gib(free)} may be used: keep at most "
            f"{math.floor(free / (8 * risk.samples))} entries"
        )


def _gathered(risk: Risk, part: _Part) -> _Part:
    """Return the parts of all ranks as one, in the order of the ranks."""
    if risk.process_group is None:
        return part
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size(risk.process_group)
    dist.all_gather_object(parts, tuple(part), group=risk.process_group)
    every = [_Part(*fields) for fields in parts]
    return _Part(
        torch.cat([p.entries for p in every]),
        torch.cat([p.active for p in every]),
        math.fsum(p.weight for p in every),
        torch.stack([p.impossible for p in every]).all(0),
        sum(p.products for p in every),
    )
