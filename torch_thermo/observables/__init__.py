"""Observables: pure functions from a risk or a network to a frozen dataclass."""

from torch_thermo.observables.bulk_boundary import BulkBoundary, bulk_boundary_loss
from torch_thermo.observables.bulk_loss import BulkLoss
from torch_thermo.observables.canonical_ensemble import CanonicalEnsemble, Printed
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
from torch_thermo.observables.propagator_spectrum import (
    PropagatorSpectrum,
    propagator_spectrum,
)
from torch_thermo.observables.spectral_gaps import Gap, spectral_gaps
from torch_thermo.observables.thermodynamics import (
    FirstLaw,
    ThermodynamicCourse,
    first_law,
    thermodynamic_course,
)
from torch_thermo.observables.two_level import (
    TwoLevelFreeEnergy,
    beta_from_gap,
    unstable_log_eigenvalue,
)
from torch_thermo.observables.weight_symmetry import weight_symmetry

__all__ = [
    "BulkBoundary",
    "BulkLoss",
    "CanonicalEnsemble",
    "CircuitAsymmetry",
    "CircuitSample",
    "CircuitSums",
    "FirstLaw",
    "Gap",
    "HessianSpectrumResult",
    "OrderParameter",
    "Printed",
    "PropagatorSpectrum",
    "ThermodynamicCourse",
    "TwoLevelFreeEnergy",
    "beta_from_gap",
    "bulk_boundary_loss",
    "circuit_asymmetry",
    "circuit_sums",
    "first_law",
    "gradient_symmetry",
    "hessian_spectrum",
    "plasticity_order_parameter",
    "propagator_spectrum",
    "sample_circuits",
    "spectral_gaps",
    "thermodynamic_course",
    "unstable_log_eigenvalue",
    "weight_symmetry",
]
