"""The empirical risk of a model over fixed batches, and the contexts it is measured in."""

from torch_thermo.risk.batches import batch_size, mapped, rebuilt, tensors_of
from torch_thermo.risk.collective import entered
from torch_thermo.risk.contexts import second_order
from torch_thermo.risk.empirical import NO_GRADIENT, Closure, GroupGradients, LossFn, Risk, Term

__all__ = [
    "NO_GRADIENT",
    "Closure",
    "GroupGradients",
    "LossFn",
    "Risk",
    "Term",
    "batch_size",
    "entered",
    "mapped",
    "rebuilt",
    "second_order",
    "tensors_of",
]
