from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OBSERVABLES = [
    "order_parameter",
    "order_parameter_minibatch",
    "hessian_extremes",
    "hessian_density",
    "functional_density",
    "hessian_entries",
    "weight_symmetry",
    "gradient_symmetry",
    "bulk_boundary",
    "circuit_symmetry",
    "circuit_sample",
    "circuit_sample_order1",
    "circuit_sample_order2",
    "propagator_spectrum",
    "phase",
    "assumptions",
]


def events(folder) -> EventAccumulator:
    guidance = {"histograms": 0, "images": 0, "tensors": 0, "scalars": 0}
    return EventAccumulator(str(folder), size_guidance=guidance).Reload()
