"""How a model is read: layers, activations and pools as a graph of stages."""

from torch_thermo.network.errors import UnreadableNetworkError
from torch_thermo.network.fixed_point import FixedPoint
from torch_thermo.network.network import Network
from torch_thermo.network.one_step import StepDerivative, activation_slopes
from torch_thermo.network.stages import Stage

__all__ = [
    "FixedPoint",
    "Network",
    "Stage",
    "StepDerivative",
    "UnreadableNetworkError",
    "activation_slopes",
]
