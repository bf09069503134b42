"""Checks of whole numbers and seeds that are given."""

from __future__ import annotations

from numbers import Integral


def whole(name: str, value: object, least: int) -> int:
    """Return a whole number of Python's or numpy's, at least `least`.

    Raises:
        TypeError: no whole number.
        ValueError: below `least`.
    """
    if not (isinstance(value, Integral) and is_whole(value)):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def is_whole(value: object) -> bool:
    """Whether it is a whole number of Python's or numpy's; True and 1.0 are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_seed(seed: object) -> int:
    """Return what a generator of torch's takes as a seed, from 0 on.

    Raises:
        TypeError: no whole number.
        ValueError: below 0, or 2^63 and more.
    """
    number = whole("seed", seed, 0)
    if number >= 2**63:
        raise ValueError(f"seed must be below 2^63, got {seed}")
    return number
