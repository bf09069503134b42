"""A model's forward pass read as operations, with `torch.fx`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_thermo.network.errors import unreadable
from torch_thermo.network.following import Follower
from torch_thermo.network.refusals import refusal
from torch_thermo.network.tracing import Call, trace, unwrapped
from torch_thermo.network.training import evaluating

__all__ = ["read_model"]

_HELD = (list, dict, set)


def read_model(model: nn.Module, example_input: Tensor) -> Follower:
    """Read a model's forward pass; see `Network.from_module`."""
    model = unwrapped(model)
    _check_modules(model)
    # another number of examples, so that a batch size in the code is not taken for a shape
    count = 2 if len(example_input) != 2 else 3
    places = torch.arange(count, device=example_input.device) % len(example_input)
    with _undisturbed(model), torch.no_grad(), _uncompiled():
        root = Call(model)
        graph = trace(root, count)
        expected = _output(model, example_input)
        followed = Follower(root, graph, example_input[places])
        y = example_input
        for step in followed.steps:
            y = step.operation(y)
        _verify(type(model).__name__, y, expected)
    return followed


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run what torch.compile made as it was written."""
    # set_stance imports the compiler, seconds of work that a model without it is spared
    known = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if known else nullcontext():
        yield


def _output(model: nn.Module, example_input: Tensor) -> Tensor:
    kind = type(model).__name__
    try:
        output = model(example_input)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        shape = tuple(example_input.shape)
        why = f"its forward fails on an example_input of shape {shape}: {error}"
        raise unreadable("", kind, why, "give a batch that it takes") from error
    if not isinstance(output, Tensor):
        raise unreadable("", kind, f"it returns a {type(output).__name__}, not one tensor")
    return output


def _verify(kind: str, ours: Tensor, expected: Tensor) -> None:
    same = ours.shape == expected.shape and ours.dtype == expected.dtype
    if same:
        # relative to the largest output; half of the digits, which rounding leaves in deep nets
        tolerance = torch.finfo(expected.dtype).eps ** 0.5
        finite = expected[expected.isfinite()].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        same = torch.allclose(ours, expected, tolerance, tolerance * scale, equal_nan=True)
    if not same:
        raise unreadable(
            "",
            kind,
            "what was read gives another output than the model: a forward hook, an operation in "
            "place or a branch acts beside what its forward returns",
        )


def _check_modules(root: nn.Module) -> None:
    for name, module in root.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise unreadable(name, kind, "it is TorchScript", "read is the module it was made from")
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(isinstance(t, UninitializedParameter | UninitializedBuffer) for t in tensors):
            raise unreadable(name, kind, *refusal("LazyLinear"))
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils"):
                raise unreadable(
                    *(name, kind),
                    f"its weight is rewritten at each forward pass ({type(hook).__name__})",
                    "read are torch.nn.utils.parametrizations; prune.remove makes pruning final",
                )


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, and all put back: flags, attributes, buffers, torch's generators.

    A forward pass may keep what it saw, which while it is followed are no tensors.
    """
    attributes = [vars(module) for module in model.modules()]
    inner = [value for held in attributes for value in held.values() if type(value) in _HELD]
    kept = [(container, container.copy()) for container in (*inner, *attributes)]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    with torch.random.fork_rng([d for d in devices if d.type == "cuda"]), evaluating(model):
        try:
            yield
        finally:
            for container, items in kept:
                if isinstance(container, list):
                    container[:] = items
                else:
                    container.clear()
                    container.update(items)
            for buffer, value in buffers:
                # a buffer that is written to may not be differentiated by what was computed before
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
