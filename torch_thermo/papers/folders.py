"""Folders that trainings write to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["check_out", "check_setting"]


def check_out(out: str | Path) -> Path:
    """Return a folder that can be written to, or made.

    Raises:
        NotADirectoryError: it is a file, or lies below one.
    """
    out = Path(out)
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"out must be a folder, got the file {path}")
    return out


def check_setting(folder: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a folder with another training.

    Args:
        folder: of a training.
        held: all that its numbers depend on, as it was stored.
        wanted: the same of the training to be.

    Raises:
        ValueError: they differ; the message says in what.
    """
    differing = [
        f"{name} {held.get(name)!r} instead of {wanted.get(name)!r}"
        for name in sorted({*held, *wanted})
        if held.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError(
            f"{folder} holds another training, of {', '.join(differing)}: "
            "name another folder, or remove it"
        )
