"""Observables: pure functions from a risk or a network to a frozen dataclass."""

from torch_thermo.observables.assumptions import Assumptions, check_assumptions
from torch_thermo.observables.bulk_boundary import BulkBoundary, bulk_boundary_loss
from torch_thermo.observables.bulk_loss import BulkLoss
from torch_thermo.observables.canonical_ensemble import CanonicalEnsemble, Printed
from torch_thermo.observables.circuits import (
    CircuitAsymmetry,
    CircuitSample,
    CircuitShares,
    CircuitSums,
    LayerMarginals,
    OperationMarginals,
    circuit_asymmetry,
    circuit_sums,
    layer_marginals,
    sample_circuits,
    stream_circuits,
)
from torch_thermo.observables.correlation import (
    CorrelationTest,
    benjamini_hochberg,
    correlation_test,
)
from torch_thermo.observables.entry_statistics import (
    CouplingSetSize,
    EntryCorrelations,
    HessianEntries,
)
from torch_thermo.observables.gradient_symmetry import gradient_symmetry
from torch_thermo.observables.hessian_entries import hessian_entries
from torch_thermo.observables.hessian_spectrum import HessianSpectrumResult, hessian_spectrum
from torch_thermo.observables.identities import Identity
from torch_thermo.observables.order_parameter import OrderParameter, plasticity_order_parameter
from torch_thermo.observables.phase import Phase, phase
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
    "Assumptions",
    "BulkBoundary",
    "BulkLoss",
    "CanonicalEnsemble",
    "CircuitAsymmetry",
    "CircuitSample",
    "CircuitShares",
    "CircuitSums",
    "CorrelationTest",
    "CouplingSetSize",
    "EntryCorrelations",
    "FirstLaw",
    "Gap",
    "HessianEntries",
    "HessianSpectrumResult",
    "Identity",
    "LayerMarginals",
    "OperationMarginals",
    "OrderParameter",
    "Phase",
    "Printed",
    "PropagatorSpectrum",
    "ThermodynamicCourse",
    "TwoLevelFreeEnergy",
    "benjamini_hochberg",
    "beta_from_gap",
    "bulk_boundary_loss",
    "check_assumptions",
    "circuit_asymmetry",
    "circuit_sums",
    "correlation_test",
    "first_law",
    "gradient_symmetry",
    "hessian_entries",
    "hessian_spectrum",
    "layer_marginals",
    "phase",
    "plasticity_order_parameter",
    "propagator_spectrum",
    "sample_circuits",
    "spectral_gaps",
    "stream_circuits",
    "thermodynamic_course",
    "unstable_log_eigenvalue",
    "weight_symmetry",
]
