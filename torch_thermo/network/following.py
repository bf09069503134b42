"""A graph of `torch.fx` followed with a few examples, and noted as steps."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from torch_thermo.network.arithmetic import (
    ARITHMETIC,
    ARITHMETIC_FUNCTIONS,
    ARITHMETIC_METHODS,
    Joined,
)
from torch_thermo.network.errors import UnreadableNetworkError, unreadable
from torch_thermo.network.functional import FUNCTIONS, METHODS
from torch_thermo.network.live import Branch, Label, Live, Operations
from torch_thermo.network.modules import MODULES, module_class
from torch_thermo.network.operations import Operation
from torch_thermo.network.refusals import refusal
from torch_thermo.network.tracing import Call, within
from torch_thermo.network.training import evaluating

__all__ = ["Follower", "Step", "run"]

_TABLES: dict[str, dict[Any, tuple[str, Callable[..., Any]]]] = {
    "call_function": {**FUNCTIONS, **ARITHMETIC_FUNCTIONS},
    "call_method": {**METHODS, **ARITHMETIC_METHODS},
}
# what gives a new tensor, no view, where the output does not need it, as in an unused head
_NEW = ("Linear", "Conv", "BatchNorm", "linear", "conv", "batch_norm")
_SHAPE_METHODS = ("size", "dim", "ndimension", "numel", "nelement")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


class Step(NamedTuple):
    """An operation, the shape of one example behind it, and what it takes.

    Args:
        operation: what is done.
        shape: of one example behind it.
        takes: numbers of the steps whose results it takes, -1 for the input.
    """

    operation: Operation
    shape: torch.Size
    takes: tuple[int, ...]


def run(steps: Sequence[Step], inputs: Tensor) -> Tensor:
    """Return what the last step gives."""
    last_use = {taken: number for number, step in enumerate(steps) for taken in step.takes}
    values = {-1: inputs}
    for number, step in enumerate(steps):
        values[number] = step.operation(*(values[taken] for taken in step.takes))
        for taken in set(step.takes):
            if last_use[taken] == number:
                del values[taken]
    return values[len(steps) - 1]


class _Origin(NamedTuple):
    """What a step is of: steps of the same `what` share a name, lower ranks have the first pick."""

    rank: int
    name: str
    what: tuple[Any, ...]


class Follower:
    """Follows examples through the graph of a model's forward pass.

    Args:
        root: calls the model.
        graph: of its forward pass.
        examples: the batch to follow.

    Attributes:
        steps: what is done to the examples, in order; all lead to the last one's result.

    Raises:
        UnreadableNetworkError: a step that is no operation.
    """

    def __init__(self, root: Call, graph: Graph, examples: Tensor) -> None:
        self._root = root
        self._values: dict[Node, Any] = {}
        self._steps: list[Step] = []
        self._origins: list[_Origin] = []
        needed = _needed(graph)
        self._refuse_unused_in_place(graph, needed)
        self._nodes = [node for node in graph.nodes if node in needed]
        *inner, output = self._nodes
        for node in inner:
            taken = node.op == "placeholder"
            self._values[node] = Branch(examples, -1) if taken else self._followed(node)
            self._note_in_place(node)
        self.steps = self._finish(output)
        # live weights may need the others; the examples' values go
        self._values = {n: v for n, v in self._values.items() if not isinstance(v, Branch)}

    def parameters(self) -> list[Tensor]:
        """Return the live parameters that the forward pass reads, each once."""
        found: list[Tensor] = []
        for node in self._nodes:
            if node.op == "call_module":
                found += self._root.get_submodule(str(node.target)).parameters()
            elif node.op == "get_attr":
                value = self._attribute(str(node.target))
                found += [value] if isinstance(value, nn.Parameter) else []
        return list({id(parameter): parameter for parameter in found}.values())

    def _refuse_unused_in_place(self, graph: Graph, needed: set[Node]) -> None:
        """Refuse ``F.relu_(x)`` whose result is not used, where x is: it would be no step."""
        computed: set[Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder" or computed.intersection(node.all_input_nodes):
                computed.add(node)
            changed = computed.intersection(self._changed(node))
            if node not in needed and not all(self._is_own(n, needed) for n in changed):
                raise unreadable(
                    *self._label(node),
                    "it works in place on what comes from the input, and its result is not used",
                    "assign its result (x = F.relu(x))",
                )

    def _is_own(self, node: Node, needed: set[Node]) -> bool:
        """Whether a value is surely no part of one that the output depends on, nor a view of it."""
        if node in needed or node.op in ("placeholder", "get_attr"):
            return False
        changed = [other for other in self._changed(node) if isinstance(other, Node)]
        if changed:
            return all(self._is_own(other, needed) for other in changed)
        return self._label(node).kind.startswith(_NEW)

    def _note_in_place(self, node: Node) -> None:
        """Give those that take later what was changed in place, by any name, its new value."""
        for changed in self._changed(node):
            old = self._values[changed] if isinstance(changed, Node) else None
            if isinstance(old, Branch):
                # nn.Identity() and its kin give the same tensor, here the same branch
                names = [other for other, value in self._values.items() if value is old]
                self._values |= dict.fromkeys(names, self._values[node])

    def _changed(self, node: Node) -> list[Any]:
        """Return the arguments that a call changes in place."""
        if node.op == "call_module":
            in_place = getattr(self._root.get_submodule(str(node.target)), "inplace", False)
        elif node.op in ("call_function", "call_method"):
            name = getattr(node.target, "__name__", str(node.target))
            # requires_grad_ leaves the numbers as they are
            in_place = name.endswith("_") and not name.endswith(("__", "requires_grad_"))
            # torch.nn.functional notes its arguments by their names
            in_place = in_place or bool(node.kwargs.get("inplace"))
        else:
            return []
        first = node.args[:1] or tuple(node.kwargs.values())[:1]
        return [*(first if in_place else ()), node.kwargs.get("out")]

    def _finish(self, output: Node) -> tuple[Step, ...]:
        returned = output.args[0]
        branch = self._values[returned] if isinstance(returned, Node) else returned
        if not isinstance(branch, Branch):
            kind = type(self._root.model).__name__
            raise unreadable("", kind, "its output does not depend on its input")
        self._name_apart()
        return _leading_to(branch.step, self._steps)

    def _followed(self, node: Node) -> Any:
        try:
            return self._value(node)
        except (UnreadableNetworkError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise self._label(node).refuse(str(error)) from error

    def _value(self, node: Node) -> Any:
        """Return what a node gives: a branch, a live value, or a plain one such as a size."""
        if node.op == "get_attr":
            path = str(node.target)
            # what torch.fx makes of torch.tensor(2.0) is at the root, not in the model
            return Live(lambda: self._attribute(path), path, constant=not within(path))
        inputs = [self._values[other] for other in node.all_input_nodes]
        if any(isinstance(value, Branch) for value in inputs):
            return self._branch(node)
        computed = node.op == "call_module" or any(isinstance(value, Live) for value in inputs)
        if not computed or _is_shape(node):
            return self._compute(node)
        lives = [value for value in inputs if isinstance(value, Live)]
        own = str(node.target).replace("parametrizations.", "")
        constant = bool(lives) and all(value.constant for value in lives)
        live = Live(lambda: self._compute(node), lives[0].name if lives else own, constant)
        if not _has_tensor(live.read()):
            raise self._label(node).refuse(
                "it takes a number out of a weight or buffer, which would not follow the training"
            )
        return live

    def _attribute(self, path: str) -> Any:
        return operator.attrgetter(path)(self._root)

    def _compute(self, node: Node) -> Any:
        """Compute a node from the present values of those it takes."""
        args, kwargs = self._arguments(node, _present)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            with evaluating(module):
                return module(*args, **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _arguments(self, node: Node, convert: Callable[[Any], Any]) -> tuple[Any, Any]:
        def replace(argument: Any) -> Any:
            return convert(self._values[argument]) if isinstance(argument, Node) else argument

        args, kwargs = map_aggregate((tuple(node.args), dict(node.kwargs)), replace)
        return args, kwargs

    def _branch(self, node: Node) -> Any:
        """Return what is computed from the input: a size, or a branch behind more steps."""
        if _is_shape(node):
            return self._compute(node)
        label = self._label(node)
        operations, taken = self._read(node, label)
        # another one where torch makes a copy, which what is done in place does not change
        branch = taken[0]._replace() if label.kind in (*ARITHMETIC, "clone") else taken[0]
        for operation in operations:
            y = operation(*(other.value for other in taken))
            self._steps.append(Step(operation, y.shape[1:], tuple(other.step for other in taken)))
            self._origins.append(self._origin(node, label))
            branch = Branch(y, len(self._steps) - 1)
            taken = (branch,)
        return branch

    def _read(self, node: Node, label: Label) -> tuple[Operations, tuple[Branch, ...]]:
        """Return the operations of a node, and the branches that the first of them takes."""
        branches = _branches((node.args, node.kwargs), self._values)
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            args, kwargs = self._arguments(node, _as_input)
            # torch.nn's modules have one input, which may be given by its name
            read = MODULES[module_class(module)][0]
            return read(label, module, *args, *kwargs.values()), branches
        name, reader = _named(node)
        if reader is not None and name in ARITHMETIC:
            args, kwargs = self._arguments(node, _itself)
            joined: Joined = reader(label, *args, **kwargs)
            return joined
        if reader is None or len(branches) > 1:
            raise unreadable(*label, *refusal(label.kind, joins=len(branches) > 1))
        args, kwargs = self._arguments(node, _as_input)
        return reader(label, *args, **kwargs), branches

    def _origin(self, node: Node, label: Label) -> _Origin:
        """Return what a step is of: a module, a function of the same weights, or the call."""
        if node.op == "call_module":
            return _Origin(0, label.name, (node.target,))
        weights = [n for n in node.all_input_nodes if isinstance(self._values[n], Live)]
        owned = any(within(self._values[n].name.rpartition(".")[0]) for n in weights)
        what = (label.kind, *weights) if weights else (node,)
        return _Origin(1 if owned else 2, label.name, what)

    def _name_apart(self) -> None:
        """Give steps of different origins different names: torch.fx's "mul" may be a module's."""
        names: dict[tuple[Any, ...], str] = {}
        taken: set[str] = set()
        for _, wanted, what in sorted(self._origins, key=lambda origin: origin.rank):
            if what in names:
                continue
            spellings = (f"{wanted}_{number}" for number in itertools.count(1))
            name = wanted if wanted not in taken else next(s for s in spellings if s not in taken)
            names[what] = name
            taken.add(name)
        for step, origin in zip(self._steps, self._origins, strict=True):
            step.operation.name = names[origin.what]

    def _label(self, node: Node) -> Label:
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            return Label(within(str(node.target)), module_class(module).__name__)
        kind, _ = _named(node)
        for other in node.all_input_nodes:
            value = self._values.get(other)
            if isinstance(value, Live) and (owner := within(value.name.rpartition(".")[0])):
                return Label(owner, kind)
        stack = node.meta.get("nn_module_stack") or {}
        places = [place for path, _ in stack.values() if (place := within(path))]
        return Label(".".join([*places[-1:], node.name]), kind)


def _needed(graph: Graph) -> set[Node]:
    """Return the nodes that the output depends on, itself included."""
    output = next(node for node in graph.nodes if node.op == "output")
    needed, waiting = {output}, [output]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in needed:
                needed.add(node)
                waiting.append(node)
    return needed


def _named(node: Node) -> tuple[str, Callable[..., Any] | None]:
    """Return what is called, and how it is read; None where it is not."""
    plain = getattr(node.target, "__name__", str(node.target)), None
    found: tuple[str, Callable[..., Any] | None] = _TABLES[node.op].get(node.target, plain)
    return found


def _is_shape(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _has_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or has one in its tuples and lists, as those of `chunk`."""
    if isinstance(value, tuple | list):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def _branches(arguments: Any, values: dict[Node, Any]) -> tuple[Branch, ...]:
    """Return the branches among a node's arguments, each as often as it is there."""
    found: list[Branch] = []

    def note(argument: Any) -> Any:
        if isinstance(argument, Node) and isinstance(values[argument], Branch):
            found.append(values[argument])
        return argument

    map_aggregate(arguments, note)
    return tuple(found)


def _leading_to(last: int, steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps that lead to the result of step `last`, numbered anew."""
    needed, waiting = {last} - {-1}, [last]
    while waiting:
        number = waiting.pop()
        for taken in steps[number].takes if number >= 0 else ():
            if taken >= 0 and taken not in needed:
                needed.add(taken)
                waiting.append(taken)
    places = {number: place for place, number in enumerate(sorted(needed))} | {-1: -1}
    return tuple(
        steps[number]._replace(takes=tuple(places[taken] for taken in steps[number].takes))
        for number in sorted(needed)
    )


def _present(value: Any) -> Any:
    if isinstance(value, Branch):
        return value.value
    return value.read() if isinstance(value, Live) else value


def _itself(value: Any) -> Any:
    return value


def _as_input(value: Any) -> Any:
    return value.value if isinstance(value, Branch) else value
