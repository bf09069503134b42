"""What the figures and the table take from stored runs: courses over epochs, spectra, spreads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from torch_thermo.figures.paper import Look, Trace
from torch_thermo.observables.canonical_ensemble import CanonicalEnsemble
from torch_thermo.observables.thermodynamics import ThermodynamicCourse, thermodynamic_course
from torch_thermo.spectra import SpectralMeasure
from torch_thermo.store import Run

__all__ = [
    "Course",
    "Floats",
    "Moments",
    "course",
    "ensemble",
    "moments",
    "over_seeds",
    "spectra",
    "spread",
]

Floats: TypeAlias = npt.NDArray[np.float64]


def spread(values: Sequence[float] | Floats) -> float:
    """Standard deviation over seeds, with n - 1; NaN with fewer than two."""
    array = np.asarray(values, np.float64)
    return float(array.std(ddof=1)) if len(array) > 1 else float("nan")


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

    def trace(self, label: str, look: Look = "curve") -> Trace:
        """The mean over the seeds, with their range as a band where there are several."""
        if len(self.values) == 1:
            return Trace(label, self.epochs, self.values[0], look=look)
        low, high = self.values.min(0), self.values.max(0)
        band = f"range of {len(self.values)} seeds"
        return Trace(label, self.epochs, self.mean, low, high, band, look=look)


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
    return Course(np.array(steps) / _steps_per_epoch(runs[0]), values)


def spectra(run: Run) -> tuple[Floats, Floats]:
    """The exact spectra of a run: epochs (E,) and log lambda (E, N), descending."""
    steps = run.array_steps("propagator_spectrum")
    logs = [run.arrays("propagator_spectrum", step)["log_eigenvalues"] for step in steps]
    return np.array(steps) / _steps_per_epoch(run), np.array(logs, np.float64)


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of a run that have both a spectrum and a bulk loss.

    Attributes:
        epochs: (E,).
        energies: (E,), the mean bulk loss U.
        ensembles: of the spectra.
    """

    epochs: Floats
    energies: Floats
    ensembles: list[CanonicalEnsemble]

    def laws(self, fixed_beta: float, count: int | None = None) -> ThermodynamicCourse:
        """Both laws along the run, see `thermodynamic_course`."""
        return thermodynamic_course(self.ensembles, self.energies.tolist(), fixed_beta, count)

    def between(self, first: float, last: float) -> Moments:
        """Those from one epoch to another."""
        kept = np.flatnonzero((self.epochs >= first) & (self.epochs <= last))
        return Moments(self.epochs[kept], self.energies[kept], [self.ensembles[i] for i in kept])


def moments(run: Run) -> Moments:
    """Take the moments of a run."""
    epochs, logs = spectra(run)
    bulk = course([run], "bulk_boundary/bulk")
    kept = np.isin(epochs, bulk.epochs)
    energies = bulk.values[0][np.isin(bulk.epochs, epochs[kept])]
    return Moments(epochs[kept], energies, [ensemble(row) for row in logs[kept]])


def ensemble(log_eigenvalues: Floats) -> CanonicalEnsemble:
    """The canonical ensemble of the eigenvalues of log G, (N,)."""
    return CanonicalEnsemble(SpectralMeasure.from_eigenvalues(torch.as_tensor(log_eigenvalues)))


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


def _steps_per_epoch(run: Run) -> int:
    return int(run.meta["steps_per_epoch"])
