"""A graph of `torch.fx` followed with a few examples, and noted as operations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from torch_thermo.network.errors import UnreadableNetworkError, unreadable
from torch_thermo.network.functional import FUNCTIONS, METHODS
from torch_thermo.network.live import Label, Live, Operations
from torch_thermo.network.modules import MODULES, module_class
from torch_thermo.network.operations import Operation
from torch_thermo.network.refusals import refusal
from torch_thermo.network.tracing import Call, within
from torch_thermo.network.training import evaluating

__all__ = ["Follower", "Step"]

_SHAPE_METHODS = ("size", "dim", "ndimension", "numel", "nelement")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


class Step(NamedTuple):
    """An operation and the shape of one example behind it."""

    operation: Operation
    shape: torch.Size


class _Flow(NamedTuple):
    """A value that is computed from the input, and the steps that lead to it."""

    value: Tensor
    steps: tuple[Step, ...]


class Follower:
    """Follows examples through the graph of a model's forward pass.

    Args:
        root: calls the model.
        graph: of its forward pass.
        examples: the batch to follow.

    Attributes:
        steps: what is done to the examples, in order.

    Raises:
        UnreadableNetworkError: a step that is no operation.
    """

    def __init__(self, root: Call, graph: Graph, examples: Tensor) -> None:
        self._root = root
        self._values: dict[Node, Any] = {}
        needed = _needed(graph)
        self._refuse_unused_in_place(graph, needed)
        self._nodes = [node for node in graph.nodes if node in needed]
        *inner, output = self._nodes
        for node in inner:
            taken = node.op == "placeholder"
            self._values[node] = _Flow(examples, ()) if taken else self._followed(node)
        self.steps = self._finish(output)
        # live weights may need the others; the examples' values go
        self._values = {n: v for n, v in self._values.items() if not isinstance(v, _Flow)}

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
        """Refuse ``F.relu_(x)`` whose result is not used: in the graph it is no step."""
        computed: set[Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder" or computed.intersection(node.all_input_nodes):
                computed.add(node)
            if node not in needed and computed.intersection(self._changed(node)):
                raise unreadable(
                    *self._label(node),
                    "it works in place on what comes from the input, and its result is not used",
                    "assign its result (x = F.relu(x))",
                )

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
        flow = self._values[returned] if isinstance(returned, Node) else returned
        if not isinstance(flow, _Flow):
            kind = type(self._root.model).__name__
            raise unreadable("", kind, "its output does not depend on its input")
        return flow.steps

    def _followed(self, node: Node) -> Any:
        try:
            return self._value(node)
        except (UnreadableNetworkError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise self._label(node).refuse(str(error)) from error

    def _value(self, node: Node) -> Any:
        """Return what a node gives: a flow, a live tensor, or a plain value such as a size."""
        if node.op == "get_attr":
            path = str(node.target)
            return Live(lambda: self._attribute(path), path)
        inputs = [self._values[other] for other in node.all_input_nodes]
        if any(isinstance(value, _Flow) for value in inputs):
            return self._flow(node)
        if node.op == "call_module" or any(isinstance(value, Live) for value in inputs):
            names = [value.name for value in inputs if isinstance(value, Live)]
            name = names[0] if names else str(node.target).replace("parametrizations.", "")
            live = Live(lambda: self._compute(node), name)
            value = live.read()
            return live if isinstance(value, Tensor) else value
        return self._compute(node)

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

    def _flow(self, node: Node) -> Any:
        """Return what is computed from the input: a size, or a flow with one more step."""
        if _is_shape(node):
            return self._compute(node)
        flows = _flows((node.args, node.kwargs), self._values)
        read = self._reader(node, self._label(node), len(flows))
        (flow,) = flows
        args, kwargs = self._arguments(node, _as_input)
        steps, y = flow.steps, flow.value
        for operation in read(*args, **kwargs):
            y = operation(y)
            steps = (*steps, Step(operation, y.shape[1:]))
        return _Flow(y, steps)

    def _reader(self, node: Node, label: Label, flows: int) -> Callable[..., Operations]:
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            reader = MODULES[module_class(module)][0]
            # torch.nn's modules have one input, which may be given by its name
            return lambda *args, **kwargs: reader(label, module, *args, *kwargs.values())
        _, function = _named(node)
        if function is None or flows > 1:
            raise unreadable(*label, *refusal(label.kind, joins=flows > 1))
        return partial(function, label)

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


def _named(node: Node) -> tuple[str, Callable[..., Operations] | None]:
    """Return what is called, and how it is read; None where it is not."""
    table: Any = METHODS if node.op == "call_method" else FUNCTIONS
    if node.target in table:
        name, reader = table[node.target]
        return name, reader
    return getattr(node.target, "__name__", str(node.target)), None


def _is_shape(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _flows(arguments: Any, values: dict[Node, Any]) -> list[_Flow]:
    """Return the flows among a node's arguments, each as often as it is there."""
    found: list[_Flow] = []

    def note(argument: Any) -> Any:
        if isinstance(argument, Node) and isinstance(values[argument], _Flow):
            found.append(values[argument])
        return argument

    map_aggregate(arguments, note)
    return found


def _present(value: Any) -> Any:
    if isinstance(value, _Flow):
        return value.value
    return value.read() if isinstance(value, Live) else value


def _as_input(value: Any) -> Any:
    return value.value if isinstance(value, _Flow) else value
