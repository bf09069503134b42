"""The check of numbers of steps and probes."""

from __future__ import annotations

import operator


def require_whole(name: str, value: object) -> None:
    """Refuse what is not a whole number of at least 1.

    Raises:
        TypeError: not a whole number; a bool is none.
        ValueError: below 1.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if operator.index(value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
