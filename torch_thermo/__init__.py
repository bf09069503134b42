"""Measure the statistical mechanics of a neural network while it trains."""

from torch_thermo import systems
from torch_thermo.network import Network, Stage, UnreadableNetworkError
from torch_thermo.observables import (
    BulkBoundary,
    CircuitAsymmetry,
    CircuitSample,
    CircuitSums,
    HessianSpectrumResult,
    OrderParameter,
    bulk_boundary_loss,
    circuit_asymmetry,
    circuit_sums,
    gradient_symmetry,
    hessian_spectrum,
    plasticity_order_parameter,
    sample_circuits,
    weight_symmetry,
)
from torch_thermo.operators import (
    FunctionalHessianOperator,
    GaussNewtonOperator,
    HessianOperator,
)
from torch_thermo.risk import Risk
from torch_thermo.spectra import (
    Estimate,
    LanczosRun,
    SpectralMeasure,
    lanczos,
    spectral_measure,
    trace,
)
from torch_thermo.store import Run, load_run
from torch_thermo.symmetry import SignBalance, SymmetryTest, sign_balance, symmetry_test

__version__ = "0.1.0.dev0"

__all__ = [
    "BulkBoundary",
    "CircuitAsymmetry",
    "CircuitSample",
    "CircuitSums",
    "Estimate",
    "FunctionalHessianOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "HessianSpectrumResult",
    "LanczosRun",
    "Network",
    "OrderParameter",
    "Risk",
    "Run",
    "SignBalance",
    "SpectralMeasure",
    "Stage",
    "SymmetryTest",
    "UnreadableNetworkError",
    "__version__",
    "bulk_boundary_loss",
    "circuit_asymmetry",
    "circuit_sums",
    "gradient_symmetry",
    "hessian_spectrum",
    "lanczos",
    "load_run",
    "plasticity_order_parameter",
    "sample_circuits",
    "sign_balance",
    "spectral_measure",
    "symmetry_test",
    "systems",
    "trace",
    "weight_symmetry",
]
