"""The graph of a model's forward pass, by `torch.fx`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node, Proxy, Tracer
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize

from torch_thermo.network.errors import UnreadableNetworkError, unreadable
from torch_thermo.network.modules import MODULES, module_class
from torch_thermo.network.refusals import refusal

__all__ = ["Call", "trace", "unwrapped", "within"]


class Call(nn.Module):
    """Calls a model with one argument; holds what torch.fx puts at the root of what it traces.

    So arguments behind the first have their defaults, a forward may take ``*args``, and the model
    itself gets no new attributes.

    Args:
        model: is called.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """Return what the model returns."""
        return self.model(x)


def within(path: str) -> str:
    """Return a path below `Call` as a path below the model; "" for the model itself."""
    return path.partition(".")[2]


def unwrapped(module: nn.Module) -> nn.Module:
    """Return what torch.compile, DataParallel and DistributedDataParallel are wrapped around."""
    while True:
        if isinstance(module, DataParallel | DistributedDataParallel):
            module = module.module
        elif type(module).__name__ == "OptimizedModule":
            # torch.compile's; its module takes seconds to import
            module = module.get_submodule("_orig_mod")
        else:
            return module


class _Proxy(Proxy):
    """A value with the number of axes and the sizes it has for the examples.

    The first size stays a step of the graph: it is another one for another batch.
    """

    def __len__(self) -> int:
        return self._tracer().shape(self.node)[0]

    def dim(self) -> int:
        """Return the number of axes."""
        return len(self._tracer().shape(self.node))

    ndimension = dim

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.dim()

    def size(self, dim: int | None = None) -> Any:
        """Return one size or all."""
        if dim is None:
            return self.shape
        return self._first() if dim == 0 else self.shape[dim]

    @property
    def shape(self) -> tuple[Any, ...]:
        """All sizes."""
        sizes = self._tracer().shape(self.node)
        return (self._first(), *sizes[1:]) if sizes else ()

    def _first(self) -> Any:
        return self.tracer.create_proxy("call_method", "size", (self, 0), {})

    def _tracer(self) -> _Tracer:
        assert isinstance(self.tracer, _Tracer)
        return self.tracer


class _Tracer(Tracer):
    """Stops at the modules of `torch.nn`; calls the others' forward without their hooks.

    Args:
        examples: the batch that has the sizes.
    """

    # weights that are buffers stay live
    proxy_buffer_attributes = True

    def __init__(self, examples: Tensor) -> None:
        super().__init__()
        self.examples = examples
        self._computed: Interpreter | None = None
        # weights and calls are then what they are, not noted
        self._computing = False
        self.failed: tuple[str, str] | None = None

    def proxy(self, node: Node) -> Proxy:
        """Return the stand-in for a value of the forward pass."""
        return _Proxy(node, self)

    def shape(self, node: Node) -> torch.Size:
        """Return the shape of a value, computed by the graph so far."""
        if self._computed is None:
            self._computed = _Computed(self.root, graph=self.graph)
        env = self._computed.env
        for step in self.graph.nodes:
            if step.op == "placeholder":
                env[step] = self.examples
            elif step not in env:
                self._computing = True
                try:
                    env[step] = self._computed.run_node(step)
                finally:
                    self._computing = False
            if step is node:
                break
        value = env[node]
        if not isinstance(value, Tensor):
            raise TypeError(f"{node.name} is no tensor")
        return value.shape

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a module's attribute, or the stand-in for it."""
        if self._computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the table decides about a module, or its weights are computed there."""
        kind = module_class(m)
        return kind is not nn.Sequential and kind.__module__.startswith(("torch.nn.", "torch.ao."))

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Refuse what the table does not have; remember where following fails."""
        if self._computing:
            return forward(*args, **kwargs)
        m = unwrapped(m)
        path, kind = self.path_of_module(m), module_class(m)
        known = kind in MODULES or isinstance(m, parametrize.ParametrizationList)
        if self.is_leaf_module(m, path) and not known:
            raise unreadable(within(path), type(m).__name__, *refusal(kind.__name__))
        try:
            signature(m.forward).bind(*args, **kwargs)
        except TypeError as error:
            why = f"its forward takes other inputs than it is given here ({error})"
            raise unreadable(within(path), type(m).__name__, why) from error
        try:
            return super().call_module(m, m.forward, args, kwargs)
        except Exception:
            self.failed = self.failed or (within(path), type(m).__name__)
            raise


class _Computed(Interpreter):
    """Computes a graph's values, without hooks."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a module's forward."""
        return self.module.get_submodule(target).forward(*args, **kwargs)


def trace(root: Call, examples: Tensor) -> Graph:
    """Return the graph of the model's forward pass.

    Args:
        root: calls the model; keeps the tensors that are constants of the graph.
        examples: the batch that will be followed through the graph; may be changed in place.

    Raises:
        UnreadableNetworkError: a module that is not in the table, or a forward that depends on
            its input's values or the number of examples.
    """
    tracer = _Tracer(examples)
    try:
        with _buffers_take_proxies():
            return tracer.trace(root)
    except (UnreadableNetworkError, RecursionError):
        raise
    except Exception as error:
        name, kind = tracer.failed or ("", type(root.model).__name__)
        why = f"torch.fx cannot follow its forward: {error}"
        remedy = "read is a forward whose steps don't depend on its input's values"
        raise unreadable(name, kind, why, remedy) from error


@contextmanager
def _buffers_take_proxies() -> Iterator[None]:
    """Let a forward assign what is traced to a buffer: torch 2.8 takes tensors alone there."""
    own = nn.Module.__setattr__

    def assign(module: nn.Module, name: str, value: Any) -> None:
        buffers = vars(module).get("_buffers", {})
        if isinstance(value, Proxy) and name in buffers:
            buffers[name] = value
        else:
            own(module, name, value)

    nn.Module.__setattr__ = assign  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.__setattr__ = own  # type: ignore[method-assign]
