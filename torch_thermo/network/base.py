"""The base of the primitive maps."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Operation"]


class Operation:
    """A map from a batch ``(B, ...)`` to a batch, example by example.

    Args:
        name: the module's name in the model, or where a function is called.
        kind: the module's class or the function ("Conv2d", "relu").
    """

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, ...)`` to ``(B, ...)``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.kind!r})"
