"""What the figures and the table take from stored runs: spectra, and the moments that have both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from torch_thermo.observables.canonical_ensemble import CanonicalEnsemble
from torch_thermo.observables.thermodynamics import ThermodynamicCourse, thermodynamic_course
from torch_thermo.papers.courses import Floats, course, epochs_of
from torch_thermo.spectra import SpectralMeasure
from torch_thermo.store import Run

__all__ = ["Moments", "ensemble", "moments", "spectra"]


def spectra(run: Run) -> tuple[Floats, Floats]:
    """The exact spectra of a run: epochs (E,) and log lambda (E, N), descending."""
    steps = run.array_steps("propagator_spectrum")
    logs = [run.arrays("propagator_spectrum", step)["log_eigenvalues"] for step in steps]
    return epochs_of(run, steps), np.array(logs, np.float64)


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
