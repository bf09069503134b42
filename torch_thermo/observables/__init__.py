"""Observables: pure functions from a risk or a model to a frozen dataclass."""

from torch_thermo.observables.gradient_symmetry import gradient_symmetry
from torch_thermo.observables.hessian_spectrum import HessianSpectrumResult, hessian_spectrum
from torch_thermo.observables.order_parameter import OrderParameter, plasticity_order_parameter
from torch_thermo.observables.weight_symmetry import weight_symmetry

__all__ = [
    "HessianSpectrumResult",
    "OrderParameter",
    "gradient_symmetry",
    "hessian_spectrum",
    "plasticity_order_parameter",
    "weight_symmetry",
]
