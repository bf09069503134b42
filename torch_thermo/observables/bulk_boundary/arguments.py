"""What a measurement of the bulk loss is given: checks, limits, and the state it is computed in."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import get_args

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary.result import Method
from torch_thermo.operators.memory import available_bytes, gib
from torch_thermo.risk.contexts import cuda_devices
from torch_thermo.spectra.arguments import require_whole

# what the Jacobians of a chunk of examples may take
_CHUNK_BYTES = 2**28
# of what is free, the part that one example may take
_SHARE = 0.5
_MOST_OUTPUTS = 4096
# Of examples * M * R^2, what one of about ten Newton steps takes: 4e9 were 11 s (M = R = 322) to
# 20 s (M = 1000, R = 128) of one core. A closed form takes one such step.
_MOST_WORK = 2**32
_CLOSED_FORM = 4


def check(network: object, inputs: object, targets: object, loss_fn: object, method: str) -> None:
    """Refuse what is no network, tensor or loss function, and shapes that don't match.

    Raises:
        TypeError: as `bulk_boundary_loss` says.
        ValueError: as `bulk_boundary_loss` says.
    """
    if not isinstance(network, Network):
        raise TypeError(
            f"network must be a Network, got {type(network).__name__}: "
            "Network.from_module(model, example_input) reads a model"
        )
    if method not in get_args(Method):
        raise ValueError(f'method must be "linear", "logit" or "exact", got {method!r}')
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    for name, given in (("inputs", inputs), ("targets", targets)):
        if name == "targets" and given is None:
            continue
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
        if given.is_complex():
            raise TypeError(f"{name} must be real, got {given.dtype}")
    assert isinstance(inputs, Tensor)
    assert targets is None or isinstance(targets, Tensor)
    expected = tuple(network.input_shape)
    if inputs.shape[1:] != network.input_shape or inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(
            f"inputs must have shape (B, {', '.join(map(str, expected))}) with B at least 1, "
            f"got {tuple(inputs.shape)}"
        )
    if targets is None:
        return
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


def check_search(starts: object, seed: object = 0, m: object = 0.0, damping: object = 0.0) -> None:
    """Refuse numbers that are none, or out of range.

    Args:
        starts: whole, at least 1.
        seed: whole, at least 0.
        m: finite, at least 0.
        damping: at least 0, less than 1.

    Raises:
        TypeError: no number, no whole number; a bool is neither.
        ValueError: out of range.
    """
    require_whole("starts", starts)
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if operator.index(seed) < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if not 0 <= _number("m", m) < math.inf:
        raise ValueError(f"m must be finite and at least 0, got {m}")
    if not 0 <= _number("damping", damping) < 1:
        raise ValueError(f"damping must be at least 0 and less than 1, got {damping}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def check_linearised(network: Network, method: str, local: bool) -> None:
    """Refuse what the methods that linearise the response do not cover.

    Args:
        network: of any kind.
        method: "linear" or "logit".
        local: there is a local objective, or no target.

    Raises:
        ValueError: a local objective, or a recurrent network.
    """
    if local:
        raise ValueError(
            f'method="{method}" linearises the response to clamped targets: targets=None, m > 0 '
            'and an interaction need method="exact"'
        )
    if network.is_recurrent:
        raise ValueError(
            f'method="{method}" linearises a feed-forward response, and this network is '
            'recurrent: take method="exact"'
        )


def chunk(network: Network, size: int, device: torch.device) -> int:
    """Return how many examples (times starts) are measured at once: in bounded memory.

    Args:
        network: of N neurons.
        size: M, the numbers that respond to residuals.
        device: where.

    Raises:
        MemoryError: the Jacobian of one would not fit.
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


def bounded(count: int, network: Network, size: int, closed: bool, squared_error: bool) -> None:
    """Refuse what would take minutes.

    Args:
        count: of examples.
        network: of the examples.
        size: M, the numbers that respond to residuals.
        closed: the small problem has a closed form.
        squared_error: the loss is.

    Raises:
        MemoryError: so many outputs for so many examples.
    """
    # all residuals of a chain act through the last hidden stage
    rank = network.stages[-2].size if len(network.stages) > 1 else 1
    if not network.is_chain:
        rank = sum(stage.size for stage in network.stages[:-1])
    rank = min(size, rank)
    most = _MOST_WORK * (_CLOSED_FORM if closed else 1) // (size * rank**2)
    if count <= most:
        return
    cheaper = [f"take at most {most} examples" if most else "", "a loss_fn of fewer outputs"]
    if squared_error and not closed:
        cheaper.append('method="linear", which has a closed form')
    raise MemoryError(
        f"the bulk loss of {count} examples with {size} outputs, moved in {rank} dimensions by "
        "the hidden stages before them, would take minutes: " + ", or ".join(filter(None, cheaper))
    )


def device_of(network: Network) -> torch.device:
    """Return the network's device, the CPU if that has no float64."""
    return network.device if network.device.type != "mps" else torch.device("cpu")


def taken(tensor: Tensor, device: torch.device) -> Tensor:
    """Return it on the device, out of any graph and of inference mode."""
    tensor = tensor.detach().to(device)
    return tensor.clone() if tensor.is_inference() else tensor


def taken_targets(targets: Tensor, device: torch.device, squared_error: bool) -> Tensor:
    """Return targets on the device, as float64 where they are no labels."""
    targets = taken(targets, device)
    return targets.double() if squared_error or targets.is_floating_point() else targets


@contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """Gradients on whatever the caller's mode, no autocast, torch's generators left alone."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # a loss function may draw numbers
        stack.enter_context(torch.random.fork_rng(devices=cuda_devices(device)))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield
