"""The boundary loss of the outputs, and the bulk loss with the hidden neurons free to give way."""

from torch_thermo.observables.bulk_boundary.losses import (
    BulkBoundary,
    Method,
    bulk_boundary_loss,
)

__all__ = ["BulkBoundary", "Method", "bulk_boundary_loss"]
