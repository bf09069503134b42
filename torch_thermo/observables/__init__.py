"""Observables: pure functions from a risk or a network to a frozen dataclass."""

from torch_thermo.observables.bulk_boundary import BulkBoundary, bulk_boundary_loss
from torch_thermo.observables.circuits import (
    CircuitAsymmetry,
    CircuitSample,
    CircuitSums,
    circuit_asymmetry,
    circuit_sums,
    sample_circuits,
)
from torch_thermo.observables.gradient_symmetry import gradient_symmetry
from torch_thermo.observables.hessian_spectrum import HessianSpectrumResult, hessian_spectrum
from torch_thermo.observables.order_parameter import OrderParameter, plasticity_order_parameter
from torch_thermo.observables.weight_symmetry import weight_symmetry

__all__ = [
    "BulkBoundary",
    "CircuitAsymmetry",
    "CircuitSample",
    "CircuitSums",
    "HessianSpectrumResult",
    "OrderParameter",
    "bulk_boundary_loss",
    "circuit_asymmetry",
    "circuit_sums",
    "gradient_symmetry",
    "hessian_spectrum",
    "plasticity_order_parameter",
    "sample_circuits",
    "weight_symmetry",
]
