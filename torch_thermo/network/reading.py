"""A model's forward pass read as operations, with `torch.fx`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_thermo.network.errors import UnreadableNetworkError, unreadable
from torch_thermo.network.following import Follower, run
from torch_thermo.network.keeping import attributes_kept, random_states_kept
from torch_thermo.network.refusals import refusal
from torch_thermo.network.tracing import Call, trace, unwrapped
from torch_thermo.network.training import evaluating

__all__ = ["read_model"]


def read_model(model: nn.Module, example_input: Tensor) -> Follower:
    """Read a model's forward pass; see `Network.from_module`."""
    model = unwrapped(model)
    try:
        return _read(model, example_input)
    except RecursionError as error:
        kind, why = type(model).__name__, "its modules are nested too deeply for Python's stack"
        raise unreadable("", kind, why, "nest them less deeply") from error


def _read(model: nn.Module, example_input: Tensor) -> Follower:
    _check_modules(model)
    # another number of examples, so that a batch size in the code is not taken for a shape
    count = 2 if len(example_input) != 2 else 3
    places = torch.arange(count, device=example_input.device) % len(example_input)
    tensors = (*model.parameters(), *model.buffers())
    with random_states_kept(tensors), evaluating(model), torch.no_grad(), _uncompiled():
        root = Call(model)
        examples = example_input[places]
        with attributes_kept(model):
            graph = trace(root, examples)
        expected = [(example_input, "on the example_input", _output(model, example_input))]
        numbers = torch.randn(example_input.shape, generator=torch.Generator().manual_seed(0))
        numbers = numbers.to(example_input)
        # zeros, or an example for which all units are dead, would not show what is missing
        with suppress(UnreadableNetworkError):
            where = "on random numbers of the example_input's shape"
            expected.append((numbers, where, _output(model, numbers)))
        followed = Follower(root, graph, examples)
        for x, where, output in expected:
            _verify(type(model).__name__, run(followed.steps, x), output, where)
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
        with attributes_kept(model):
            # its first operation may work in place
            output = model(example_input.clone())
    except (torch.OutOfMemoryError, RecursionError):
        raise
    except Exception as error:
        shape = tuple(example_input.shape)
        why = f"its forward fails on an example_input of shape {shape}: {error}"
        raise unreadable("", kind, why, "give a batch that it takes") from error
    if not isinstance(output, Tensor):
        raise unreadable("", kind, f"it returns a {type(output).__name__}, not one tensor")
    return output


def _verify(kind: str, ours: Tensor, expected: Tensor, where: str) -> None:
    difference = _difference(ours, expected)
    if difference:
        raise unreadable(
            "",
            kind,
            f"what was read gives another output than the model {where} ({difference}): a forward "
            "hook, an operation in place or a branch acts beside what its forward returns",
        )


def _difference(ours: Tensor, expected: Tensor) -> str:
    """Return how what was read differs from the model's output; "" within rounding."""
    for what in ("shape", "dtype", "device"):
        read, given = getattr(ours, what), getattr(expected, what)
        if read != given:
            read, given = (tuple(v) if what == "shape" else v for v in (read, given))
            return f"{what} {read} instead of {given}"
    # relative to the largest output; half of the digits, which rounding leaves in deep nets
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    if torch.allclose(ours, expected, tolerance, tolerance * scale, equal_nan=True):
        return ""
    gap = (ours - expected).abs()
    gap = gap[gap.isfinite()]
    if not gap.any():
        return "values that are not finite are elsewhere"
    return f"values differ by up to {float(gap.max()):.3g}, the largest is {scale:.3g}"


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
