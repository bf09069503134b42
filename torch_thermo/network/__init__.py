"""How a model is read: layers, activations and pools as a chain of stages."""

from torch_thermo.network.errors import UnreadableNetworkError
from torch_thermo.network.network import Network
from torch_thermo.network.stages import Stage

__all__ = ["Network", "Stage", "UnreadableNetworkError"]
