"""What is read of a module: a part of it as a Network, and the examples as that part gets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_thermo.callbacks._roots import LightningModule
from torch_thermo.callbacks.quiet import children_with_parameters, has_forward
from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.risk import Closure

Part = str | nn.Module | None

# the reading is checked on so many examples
_CHECKED = 8


@dataclass(frozen=True)
class Reading:
    """A part of the model and some examples, at one moment.

    Attributes:
        network: the part.
        inputs: (n, ...), what the part gets for each example.
        targets: (n, ...), the second part of the batches; None where there is none.
        last: whether the part's output is the model's.
    """

    network: Network
    inputs: Tensor
    targets: Tensor | None
    last: bool


def check_part(part: object) -> None:
    """Raise if what is given as `module=` is neither a name nor a module."""
    if not (part is None or isinstance(part, str | nn.Module)):
        raise TypeError(f"module must be a name or an nn.Module, got {type(part).__name__}")


def find_part(pl_module: LightningModule, part: Part) -> str | None:
    """Return the dotted name of a part below a LightningModule; "" for itself, None for None.

    Raises:
        ValueError: it has no such part; names its children.
    """
    if part is None:
        return None
    for name, candidate in pl_module.named_modules(remove_duplicate=False):
        if part is candidate or (part == name and name):
            return str(name)
    given = repr(part) if isinstance(part, str) else f"a {type(part).__name__} that is not in it"
    children = ", ".join(name for name, _ in pl_module.named_children())
    raise ValueError(
        f"module must be a part of {type(pl_module).__name__}, by its name below it or itself, "
        f"got {given}: it has {children or 'no parts'}"
    )


def choose_part(model: nn.Module) -> str:
    """Return the part to read where none is named: the whole, else its only child.

    Raises:
        UnreadableNetworkError: it has no forward and not one child with parameters.
    """
    if has_forward(model):
        return ""
    children = children_with_parameters(model)
    if len(children) == 1:
        return children[0]
    found = f"{len(children)} ({', '.join(children)})" if children else "none"
    raise UnreadableNetworkError(
        f"{type(model).__name__} cannot be read: it defines no forward, and of its children not "
        f"one but {found} have parameters; name the part to read by module="
    )


def read_part(model: nn.Module, part: str, inputs: Tensor) -> Network:
    """Read a part of a shadow.

    Raises:
        UnreadableNetworkError: what it is made of is not read.
        FloatingPointError: its output on `inputs` is not finite.
    """
    module = model.get_submodule(part)
    # a copy: its first operation may be in place
    checked = inputs[:_CHECKED].clone()
    with torch.no_grad():
        output = module(checked.clone())
    if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
        raise FloatingPointError("the network's output is not finite")
    return Network.from_module(module, checked)


def examples_of(
    model: nn.Module, part: str, batches: Sequence[Any], closure: Closure | None
) -> tuple[Tensor, Tensor | None, bool]:
    """Return what a part gets for each example, the targets, and whether its output is the model's.

    What comes before the part is run: the model's forward on the first of each batch, or, where
    it has none or the batches are of another kind, the closure.

    Raises:
        TypeError: the part is not called once with one tensor, or not with one shape.
    """
    inputs, targets = [], []
    last = True
    for batch in batches:
        if part:
            got, is_last = _caught(model, part, batch, closure)
            last = last and is_last
        else:
            got = _first(batch)
        inputs.append(got)
        second = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        targets.append(second if isinstance(second, Tensor) and second.dim() else None)
    joined = [target for target in targets if target is not None]
    fits = len(joined) == len(inputs) and all(
        len(target) == len(got) for target, got in zip(joined, inputs, strict=True)
    )
    return _joined(inputs), (_joined(joined) if fits else None), last


def _first(batch: Any) -> Tensor:
    """Return the input of a batch: itself, or its first entry."""
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if not isinstance(first, Tensor):
        raise TypeError(
            f"the model's input must be a tensor to be read, got a {type(first).__name__}: name "
            "by module= the part that gets one"
        )
    return first


def _caught(
    model: nn.Module, part: str, batch: Any, closure: Closure | None
) -> tuple[Tensor, bool]:
    """Return what the part got when the model ran, and whether its output was the model's."""
    given: list[tuple[Any, ...]] = []
    outputs: list[Any] = []

    # copies: what comes later may write to them in place
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append(tuple(_copied(argument) for argument in (*args, *kwargs.values())))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(_copied(output))

    module = model.get_submodule(part)
    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        if closure is None or (has_forward(model) and isinstance(batch, Tensor | tuple | list)):
            returned = model(_first(batch))
        else:
            returned = closure(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if len(given) != 1:
        raise TypeError(
            f"{part} is called {len(given)} times in a pass of {type(model).__name__}: a part to "
            "be read is called once"
        )
    if len(given[0]) != 1 or not isinstance(given[0][0], Tensor):
        kinds = ", ".join(type(argument).__name__ for argument in given[0])
        raise TypeError(f"{part} gets ({kinds}): a part to be read gets one tensor")
    # of a module without a forward the only child stands for it
    return given[0][0], vars(model).get("forward") is module or _is_same(returned, outputs[0])


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_same(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def _joined(parts: list[Tensor]) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise TypeError(f"the examples must have one shape to be read, got {sorted(shapes)[:3]}")
    return torch.cat(parts)
