"""The graph of a model's forward pass, by `torch.fx`."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
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
    """A value whose length is that of the batch."""

    def __len__(self) -> int:
        tracer = self.tracer
        assert isinstance(tracer, _Tracer)
        return tracer.examples


class _Tracer(Tracer):
    """Stops at the modules of `torch.nn`; calls the others' forward without their hooks.

    Args:
        examples: how many ``len(x)`` says there are.
    """

    # weights that are buffers stay live
    proxy_buffer_attributes = True

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples
        self.failed: tuple[str, str] | None = None

    def proxy(self, node: Node) -> Proxy:
        """Return the stand-in for a value of the forward pass."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the table decides about a module, or its weights are computed there."""
        kind = module_class(m)
        return kind is not nn.Sequential and kind.__module__.startswith(("torch.nn.", "torch.ao."))

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Refuse what the table does not have; remember where following fails."""
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


def trace(root: Call, examples: int) -> Graph:
    """Return the graph of the model's forward pass.

    Args:
        root: calls the model; keeps the tensors that are constants of the graph.
        examples: the length of the batch that will be followed through the graph.

    Raises:
        UnreadableNetworkError: a module that is not in the table, or a forward that depends on
            its input's values.
    """
    tracer = _Tracer(examples)
    try:
        return tracer.trace(root)
    except UnreadableNetworkError:
        raise
    except Exception as error:
        name, kind = tracer.failed or ("", type(root.model).__name__)
        why = f"torch.fx cannot follow its forward: {error}"
        remedy = "read is a forward whose steps don't depend on the values or shape of its input"
        raise unreadable(name, kind, why, remedy) from error
