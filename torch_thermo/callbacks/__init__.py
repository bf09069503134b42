"""The Lightning layer: callbacks that measure a network while it trains."""

if not __name__.startswith("torch_thermo."):
    raise ImportError(
        "import torch_thermo.callbacks, not callbacks: the top-level folder is a link to it, and "
        "importing it by that name would make a second set of classes"
    )

from torch_thermo.callbacks.assumptions import Assumptions
from torch_thermo.callbacks.bulk_boundary import BulkBoundaryLoss
from torch_thermo.callbacks.circuit_symmetry import CircuitSymmetry
from torch_thermo.callbacks.gradient_symmetry import GradientSymmetry
from torch_thermo.callbacks.hessian_entries import HessianEntries
from torch_thermo.callbacks.hessian_spectrum import HessianSpectrum
from torch_thermo.callbacks.order_parameter import PlasticityOrderParameter
from torch_thermo.callbacks.phase import Phase
from torch_thermo.callbacks.propagator_spectrum import PropagatorSpectrum
from torch_thermo.callbacks.schedule import At, Every, Log
from torch_thermo.callbacks.session import ThermoWarning
from torch_thermo.callbacks.thermometer import Thermometer, default_plan
from torch_thermo.callbacks.weight_symmetry import WeightSymmetry

__all__ = [
    "Assumptions",
    "At",
    "BulkBoundaryLoss",
    "CircuitSymmetry",
    "Every",
    "GradientSymmetry",
    "HessianEntries",
    "HessianSpectrum",
    "Log",
    "Phase",
    "PlasticityOrderParameter",
    "PropagatorSpectrum",
    "ThermoWarning",
    "Thermometer",
    "WeightSymmetry",
    "default_plan",
]
