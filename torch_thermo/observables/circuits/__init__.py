"""Basis circuits: exact sums over all of them, and samples of those that are alive."""

from torch_thermo.observables.circuits.paths import Ends
from torch_thermo.observables.circuits.sampling import CircuitSample, sample_circuits
from torch_thermo.observables.circuits.sums import (
    CircuitAsymmetry,
    CircuitSums,
    circuit_asymmetry,
    circuit_sums,
)

__all__ = [
    "CircuitAsymmetry",
    "CircuitSample",
    "CircuitSums",
    "Ends",
    "circuit_asymmetry",
    "circuit_sums",
    "sample_circuits",
]
