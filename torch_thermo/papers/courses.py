"""Stored runs over their epochs: one quantity of several seeds, with its spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torch_thermo.figures.paper import Look, Trace
from torch_thermo.papers.verdicts import Claim, Row
from torch_thermo.store import Run

__all__ = ["Course", "Floats", "course", "epochs_of", "judged", "median", "over_seeds", "spread"]

Floats: TypeAlias = npt.NDArray[np.float64]


def spread(values: Sequence[float] | Floats) -> float:
    """Standard deviation over seeds, with n - 1; NaN with fewer than two."""
    array = np.asarray(values, np.float64)
    return float(array.std(ddof=1)) if len(array) > 1 else float("nan")


def median(values: Floats) -> float:
    """Of those that are finite; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def judged(claim: Claim, values: Floats, note: str = "") -> Row:
    """The line of the table for a number of several seeds, (S,): their mean, with the spread.

    NaN where one of them has no number.
    """
    return claim.judge(float(np.mean(values)), spread(values), note)


@dataclass(frozen=True, eq=False)
class Course:
    """One quantity over the training of several seeds.

    Attributes:
        epochs: (E,), those that all seeds have.
        values: (S, E).
    """

    epochs: Floats
    values: Floats

    @property
    def mean(self) -> Floats:
        """(E,), over the seeds."""
        mean: Floats = self.values.mean(0)
        return mean

    def at(self, epoch: float) -> tuple[float, Floats]:
        """The last epoch measured up to ``epoch``, and the values there, (S,)."""
        place = max(0, int(np.searchsorted(self.epochs, epoch, side="right")) - 1)
        return float(self.epochs[place]), self.values[:, place]

    def since(self, epoch: float, until: float = np.inf) -> Course:
        """The part from an epoch on, up to another."""
        kept = (self.epochs >= epoch) & (self.epochs <= until)
        return Course(self.epochs[kept], self.values[:, kept])

    def trace(self, label: str, look: Look = "curve", null: Course | None = None) -> Trace:
        """The mean over the seeds, with their range as a band where there are several.

        Args:
            label: its name in the legend.
            look: how it is drawn.
            null: what random signs alone would give, at the same epochs.
        """
        floor = None if null is None else null.mean
        if len(self.values) == 1:
            return Trace(label, self.epochs, self.values[0], null=floor, look=look)
        low, high = self.values.min(0), self.values.max(0)
        band = f"range of {len(self.values)} seeds"
        return Trace(label, self.epochs, self.mean, low, high, band, null=floor, look=look)


def course(runs: Sequence[Run], name: str) -> Course:
    """A stored series of several seeds, at the steps that all have.

    Args:
        runs: of the seeds.
        name: ``observable/quantity``.

    Raises:
        KeyError: a run has no such series.
        ValueError: no step is common to all.
    """
    series = [run.series(name) for run in runs]
    steps = sorted(set.intersection(*(set(one.steps.tolist()) for one in series)))
    if not steps:
        raise ValueError(f"no step at which all of {len(runs)} runs have {name}")
    rows = [np.isin(one.steps, steps) for one in series]
    values = np.array([one.values[kept] for one, kept in zip(series, rows, strict=True)])
    return Course(epochs_of(runs[0], steps), values)


def over_seeds(runs: Sequence[Run], measure: Callable[[Run], tuple[Floats, Any]]) -> Course:
    """The course of what a function of a run gives, at the epochs that all have.

    Args:
        runs: of the seeds.
        measure: epochs (E,) and values (E,) of a run.
    """
    parts = [measure(run) for run in runs]
    epochs = sorted(set.intersection(*(set(part[0].tolist()) for part in parts)))
    rows = [np.asarray(part[1], np.float64)[np.isin(part[0], epochs)] for part in parts]
    return Course(np.array(epochs), np.array(rows))


def epochs_of(run: Run, steps: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
    """The epochs of some steps, (n,): steps over the run's own number of them an epoch."""
    return np.array(steps) / int(run.meta["steps_per_epoch"])
