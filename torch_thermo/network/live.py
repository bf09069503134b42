"""What readers of modules and functions share: labels, and weights that are read when needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from torch_thermo.network.errors import UnreadableNetworkError, unreadable
from torch_thermo.network.operations import Operation, Source

__all__ = ["Branch", "Label", "Live", "Operations", "needed", "source"]

Operations = tuple[Operation, ...]


class Label(NamedTuple):
    """Name and kind of what is read, for operations and errors."""

    name: str
    kind: str

    def refuse(self, why: str) -> UnreadableNetworkError:
        """Return the error that says why it is not read."""
        return unreadable(self.name, self.kind, why)


class Live(NamedTuple):
    """A tensor of the model that does not depend on the input; `read` gives its present value.

    Or tensors in a tuple or list, as `torch.chunk` gives them. `constant`: it is a tensor that the
    forward pass makes of numbers alone, none of the model's.
    """

    read: Callable[[], Any]
    name: str = ""
    constant: bool = False


class Branch(NamedTuple):
    """A value that is computed from the input, and the step that gives it; -1 is the input."""

    value: Tensor
    step: int


def source(label: Label, what: str, value: Any) -> Source | None:
    """Return how a weight is read; None for none.

    Raises:
        UnreadableNetworkError: the weight is computed from the input, or no tensor.
    """
    if value is None:
        return None
    if isinstance(value, Live):
        return value.read
    if isinstance(value, Tensor):
        raise label.refuse(f"its {what} is computed from the input")
    raise label.refuse(f"its {what} is a {type(value).__name__}, not a tensor of the model")


def needed(label: Label, what: str, value: Any) -> Source:
    """Return how a weight is read that must be there.

    Raises:
        UnreadableNetworkError: there is none, or see `source`.
    """
    found = source(label, what, value)
    if found is None:
        raise label.refuse(f"it has no {what}")
    return found
