"""The boundary loss of the outputs, and the bulk loss with the hidden neurons free to give way."""

from torch_thermo.observables.bulk_boundary.exact import STARTS
from torch_thermo.observables.bulk_boundary.losses import bulk_boundary_loss
from torch_thermo.observables.bulk_boundary.result import BulkBoundary, Method

__all__ = ["STARTS", "BulkBoundary", "Method", "bulk_boundary_loss"]
