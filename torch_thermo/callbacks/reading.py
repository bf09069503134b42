"""What is read of a module: a part of it as a Network, and the examples as that part gets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        UnreadableNetworkError: what it is made of is not read, or it can't take `inputs`.
        FloatingPointError: its output on `inputs` is not finite.
    """
    module = model.get_submodule(part)
    name = _name(model, part)
    if not inputs.is_floating_point():
        raise UnreadableNetworkError(
            f"{name} gets {inputs.dtype}, and circuits and states are of floating-point inputs: "
            "name by module= the part behind the embedding"
        )
    # a copy: its first operation may be in place
    checked = inputs[:_CHECKED].clone()
    with torch.no_grad(), _lasting(f"{name} cannot be read"):
        output = module(checked.clone())
    if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
        raise FloatingPointError("the network's output is not finite")
    return Network.from_module(module, checked)


def examples_of(
    model: nn.Module, part: str, batches: Sequence[Any], closure: Closure | None
) -> tuple[str, Tensor, Tensor | None, bool]:
    """Return what a part gets for each example, with the targets.

    The closure is run, for a training step may prepare what it gives to the forward; without one
    the forward gets the first of each batch.

    Args:
        model: a shadow.
        part: the name of the part; "" for the whole. Of a model whose forward the closure does not
            call, the child is taken that it does call.
        batches: of the probe.
        closure: gives the loss of a batch; None where only the forward can be run.

    Returns:
        The name of the part; (n, ...) what it gets; (n, ...) the other entry of each pair that is a
        batch, None where there is none; whether the part's output is the forward's.

    Raises:
        TypeError: the part is not called once with one tensor, or not with one shape.
    """
    inputs, targets = [], []
    last = True
    for batch in batches:
        if part or closure is not None:
            part, got, second, is_last = _caught(model, part, batch, closure)
            last = last and is_last
        else:
            got, second = _first(batch), _other(batch, ())
        inputs.append(got)
        targets.append(second)
    joined = [target for target in targets if target is not None]
    fits = len(joined) == len(inputs) and all(
        len(target) == len(got) for target, got in zip(joined, inputs, strict=True)
    )
    return part, _joined(inputs), (_joined(joined) if fits else None), last


def _first(batch: Any) -> Tensor:
    """Return the input of a batch: itself, or its first entry."""
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if not isinstance(first, Tensor):
        raise TypeError(
            f"the model's input must be a tensor to be read, got a {type(first).__name__}: name "
            "by module= the part that gets one"
        )
    return first


def _other(batch: Any, memory: Sequence[int]) -> Tensor | None:
    """Return the targets: the second of a batch, or the first where the model gets the second."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        return None
    swapped = len(batch) == 2 and isinstance(batch[1], Tensor) and _memory(batch[1]) in memory
    target = batch[0] if swapped else batch[1]
    return target if isinstance(target, Tensor) and target.dim() else None


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Calls:
    """What a module was called with, and what it returned."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.outputs: list[Any] = []
        # where the first arguments are: what reshapes a batch's entry shares its memory
        self.memory: list[int] = []


@contextmanager
def _watched(module: nn.Module) -> Iterator[_Calls]:
    """Record a module's calls; its `forward` is wrapped, for hooks miss who calls that itself."""
    calls = _Calls()
    before = vars(module).get("forward")
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        calls.memory += [_memory(argument) for argument in given if isinstance(argument, Tensor)]
        # copies: what comes later may write to them in place
        calls.given.append(tuple(_copied(argument) for argument in given))
        output = forward(*args, **kwargs)
        calls.outputs.append(_copied(output))
        return output

    vars(module)["forward"] = watched
    try:
        yield calls
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


def _caught(
    model: nn.Module, part: str, batch: Any, closure: Closure | None
) -> tuple[str, Tensor, Tensor | None, bool]:
    """Return a part, its input, the targets, and whether its output is the forward's."""
    names = dict.fromkeys([part, *_whole(model)])
    if not part:
        names.update(dict.fromkeys(children_with_parameters(model)))
    with ExitStack() as stack:
        calls = {name: stack.enter_context(_watched(model.get_submodule(name))) for name in names}
        if closure is None:
            first = _first(batch)
            with _lasting(f"{type(model).__name__} cannot be run on the first of each batch"):
                model(first)
        else:
            closure(model, batch)
    if not part and not calls[""].given:
        part = _called_child(model, calls)
    mine = calls[part]
    name = _name(model, part)
    if len(mine.given) != 1:
        raise TypeError(
            f"{name} is called {len(mine.given)} times in a pass of {type(model).__name__}: a part "
            "to be read is called once; name another by module="
        )
    if len(mine.given[0]) != 1 or not isinstance(mine.given[0][0], Tensor):
        kinds = ", ".join(type(argument).__name__ for argument in mine.given[0])
        raise TypeError(
            f"{name} gets ({kinds}): a part to be read gets one tensor; name another by module="
        )
    got: Tensor = mine.given[0][0]
    memory = [place for name in (part, *_whole(model)) for place in calls[name].memory]
    return part, got, _other(batch, memory), _is_last(model, part, batch, calls)


def _whole(model: nn.Module) -> list[str]:
    """Return what gives the model's output: itself, or the child that stands for its forward."""
    if has_forward(model):
        return [""]
    forward = vars(model).get("forward")
    return [name for name, child in model.named_children() if child is forward]


def _called_child(model: nn.Module, calls: dict[str, _Calls]) -> str:
    """Return the child that a step calls which does not call the forward.

    Raises:
        TypeError: it calls none or several.
    """
    called = [name for name, found in calls.items() if name and found.given]
    if len(called) == 1:
        return called[0]
    raise TypeError(
        f"the loss of {type(model).__name__} does not call its forward, and of its children not "
        f"one but {', '.join(called) or 'none'}: name the part to read by module="
    )


def _is_last(model: nn.Module, part: str, batch: Any, calls: dict[str, _Calls]) -> bool:
    """Return whether a part's output is the model's: that of its forward, never a loss."""
    whole = _whole(model)
    if not whole:
        return False
    modules = [model.get_submodule(name) for name in (part, whole[0])]
    if modules[0] is modules[1]:
        return True
    if calls[whole[0]].outputs:
        return _is_same(calls[whole[0]].outputs[-1], calls[part].outputs[0])
    # the step goes past the forward, which may take what the part gets or what the batch has
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    for given in (calls[part].given[0][0], first):
        with ExitStack() as stack:
            mine, theirs = (stack.enter_context(_watched(module)) for module in modules)
            try:
                model(_copied(given))
            except Exception:  # it is not what the forward takes
                continue
            return len(mine.outputs) == 1 and _is_same(theirs.outputs[-1], mine.outputs[0])
    return False


@contextmanager
def _lasting(what: str) -> Iterator[None]:
    """Turn what inputs of a wrong shape or type raise into an error that names the remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, UnreadableNetworkError):
        raise  # of this moment, or said already
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnreadableNetworkError(
            f"{what}: {error}; name by module= the part that gets one tensor of the right shape, "
            "and leave the loss to training_step or closure= where that prepares the inputs"
        ) from error


def _name(model: nn.Module, part: str) -> str:
    return part or type(model).__name__


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _is_same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape:
        return False
    # an example that is not a number leaves the others to be compared
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _joined(parts: list[Tensor]) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise TypeError(f"the examples must have one shape to be read, got {sorted(shapes)[:3]}")
    return torch.cat(parts)
