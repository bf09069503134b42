"""Basis circuits: exact sums over all of them, and samples of those that are alive."""

from torch_thermo.observables.circuits.marginals import (
    CircuitShares,
    LayerMarginals,
    OperationMarginals,
    layer_marginals,
)
from torch_thermo.observables.circuits.paths import Ends
from torch_thermo.observables.circuits.samples import CircuitPaths, CircuitSample
from torch_thermo.observables.circuits.sampling import sample_circuits, stream_circuits
from torch_thermo.observables.circuits.sums import (
    CircuitAsymmetry,
    CircuitSums,
    circuit_asymmetry,
    circuit_sums,
)

__all__ = [
    "CircuitAsymmetry",
    "CircuitPaths",
    "CircuitSample",
    "CircuitShares",
    "CircuitSums",
    "Ends",
    "LayerMarginals",
    "OperationMarginals",
    "circuit_asymmetry",
    "circuit_sums",
    "layer_marginals",
    "sample_circuits",
    "stream_circuits",
]
