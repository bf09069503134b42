"""The reading end of a store."""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torch_thermo.store.files import (
    Entries,
    locate,
    read_entries,
    read_header,
    stored_observables,
)


@dataclass(frozen=True, eq=False)
class Series:
    """One quantity over a run, sorted by step.

    Attributes:
        steps: (n,) int64, completed optimizer updates of the weights that were measured.
        values: (n,) float64.
        epochs: (n,) float64, completed epochs, NaN where none was stored.
    """

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    epochs: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)


def _parts(directory: Path) -> list[tuple[Path, int | None]]:
    """The stores a run is made of, the oldest first, each with the last step it counts for."""
    parts: list[tuple[Path, int | None]] = []
    header, last = read_header(directory), None
    seen: set[Path] = set()
    while True:
        parts.append((directory, last))
        seen.add(directory.resolve())
        link = header.get("continues")
        if link is None:
            return parts[::-1]
        older = _follow(directory, link)
        if older is None or older.resolve() in seen:
            warnings.warn(
                f"the older measurements of {directory}, of run {link['id']} up to step "
                f"{link['after']}, are not found at {link['absolute']}",
                stacklevel=3,
            )
            return parts[::-1]
        last = link["after"] if last is None else min(last, link["after"])
        directory, header = older, read_header(older)


def _follow(directory: Path, link: Mapping[str, Any]) -> Path | None:
    for candidate in (directory / link["path"], Path(link["absolute"])):
        if (candidate / "run.json").is_file() and read_header(candidate)["id"] == link["id"]:
            return candidate
    return None


class Run:
    """A stored run: see :func:`load_run`.

    A snapshot: each observable is read when first asked for, and not again.

    Attributes:
        path: the store's directory.
        id: the run's id.
        meta: what the run said of itself.
    """

    def __init__(self, path: Path) -> None:
        """Use :func:`load_run`."""
        header = read_header(path)
        self.path = path
        self.id = str(header["id"])
        self.meta: dict[str, Any] = header["meta"]
        self._parts = _parts(path)
        self._read: dict[str, Entries] = {}
        self._named: dict[str, list[str]] = {}

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, path={str(self.path)!r}, observables={self.observables})"

    @property
    def observables(self) -> list[str]:
        """The observables that have measurements, sorted."""
        found: set[str] = set().union(*(stored_observables(part) for part, _ in self._parts))
        return sorted(name for name in found if self._has(name))

    @property
    def names(self) -> list[str]:
        """All series, ``observable/quantity``, sorted."""
        return [name for observable in self.observables for name in self._names_of(observable)]

    def series(self, name: str) -> Series:
        """One quantity over the run.

        Args:
            name: ``observable/quantity``, e.g. ``"order_parameter/value"``.

        Raises:
            KeyError: no such series; the message names close ones.
        """
        observable, _, quantity = name.partition("/")
        rows = self._entries(observable).rows
        chosen = [rows[step] for step in sorted(rows) if quantity in rows[step].values]
        if not chosen:
            raise KeyError(_unknown("series", name, self.names))
        return Series(
            steps=np.array([row.step for row in chosen], dtype=np.int64),
            values=np.array([row.values[quantity] for row in chosen], dtype=np.float64),
            epochs=np.array(
                [math.nan if row.epoch is None else row.epoch for row in chosen], dtype=np.float64
            ),
        )

    def array_steps(self, observable: str) -> list[int]:
        """The steps at which arrays of the observable are stored, sorted.

        Raises:
            KeyError: no such observable; the message names close ones.
        """
        # not asked of self.observables: that reads them all, one with a row at every step
        if not self._has(observable):
            raise KeyError(_unknown("observable", observable, self.observables))
        return sorted(self._entries(observable).arrays)

    def arrays(self, observable: str, step: int | None = None) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one measurement.

        Args:
            observable: the observable's name, e.g. ``"hessian_density"``.
            step: the step; ``None``: the last one stored.

        Raises:
            KeyError: no such observable, or no arrays at this step.
        """
        steps = self.array_steps(observable)
        if step is None and steps:
            step = steps[-1]
        if step is None or step not in steps:
            at = f" at step {step}" if step is not None else ""
            raise KeyError(f"{observable} has no arrays{at}; they are at steps {steps}")
        with np.load(self._entries(observable).arrays[step], allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def to_dataframe(self) -> Any:
        """All series side by side: a pandas DataFrame, a row a step, a column a name.

        The index is ``step``, the first column ``epoch``, and NaN stands where a quantity was not
        measured.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas") from error
        columns: dict[str, Any] = {}
        epochs: dict[int, float] = {}
        for name in self.names:
            series = self.series(name)
            columns[name] = pd.Series(series.values, index=series.steps)
            known = ~np.isnan(series.epochs)
            epochs.update(
                zip(series.steps[known].tolist(), series.epochs[known].tolist(), strict=True)
            )
        frame = pd.DataFrame(columns).sort_index()
        frame.index.name = "step"
        frame.insert(0, "epoch", pd.Series(epochs, dtype="float64").reindex(frame.index))
        return frame

    def _has(self, observable: str) -> bool:
        entries = self._entries(observable)
        return bool(entries.rows or entries.arrays)

    def _names_of(self, observable: str) -> list[str]:
        if observable not in self._named:
            rows = self._entries(observable).rows.values()
            quantities: set[str] = set().union(*(row.values for row in rows))
            self._named[observable] = sorted(f"{observable}/{name}" for name in quantities)
        return self._named[observable]

    def _entries(self, observable: str) -> Entries:
        if observable not in self._read:
            merged = Entries()
            for directory, last in self._parts:
                part = read_entries(directory, observable)
                if last is not None:
                    part.supersede(last)
                merged.rows.update(part.rows)
                merged.arrays.update(part.arrays)
            self._read[observable] = merged
        return self._read[observable]


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:5]
    return f"no {what} {name!r}" + (f"; there are {', '.join(close)}" if close else "")


def load_run(path: str | os.PathLike[str]) -> Run:
    """Open a stored run for reading, also while it goes on.

    A store that goes on from an older one is read together with it, without the older one's
    measurements of steps after the one it was resumed from.

    Args:
        path: a store's directory, or a logger's directory with ``thermo/`` in it.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is not a store, or was written by a newer version of torch-thermo.
    """
    return Run(locate(path))
