"""What is raised when a model cannot be read."""

from __future__ import annotations

__all__ = ["READ", "UnreadableNetworkError", "unreadable"]

READ = (
    "read are linear layers, convolutions, batch normalisation in eval mode, pools, reshapes, "
    "elementwise activations, and sums and concatenations of branches"
)


class UnreadableNetworkError(TypeError):
    """A model, or a part of it, that is not made of layers `Network` knows.

    The message names the part (its name in the model), what it is, why it is not read and what
    would be.
    """


def unreadable(name: str, kind: str, why: str, remedy: str = READ) -> UnreadableNetworkError:
    """Return the error for the part `name` ("": the model) of class or function `kind`."""
    return UnreadableNetworkError(f"{name or 'the model'} ({kind}) cannot be read: {why}; {remedy}")
