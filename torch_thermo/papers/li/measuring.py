"""What is measured during a training, on how many images, and when."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thermo.callbacks import (
    Assumptions,
    At,
    BulkBoundaryLoss,
    CircuitSymmetry,
    Every,
    GradientSymmetry,
    HessianEntries,
    HessianSpectrum,
    Phase,
    PlasticityOrderParameter,
    PropagatorSpectrum,
    Thermometer,
    WeightSymmetry,
)
from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.papers.li.course import TrainingCourse
from torch_thermo.papers.li.recipe import Pictures, Recipe, measured_epochs

__all__ = ["PROBE", "SAMPLED", "thermometer"]

# Training images of the probe: of order parameter and gradient. Products with the Hessian cost most
# and are of the first of them; of fewer with a loss that keeps all examples active, as the hinge
# loss does not. What is done example by example is of few, and circuits are drawn from fewest.
PROBE, _CURVATURE, _ACTIVE, _EACH, SAMPLED = 1024, 512, 128, 64, 8


def thermometer(recipe: Recipe, pictures: Pictures, epochs: int, seed: int) -> Thermometer:
    """All callbacks: cheap ones after each epoch, the others at `measured_epochs`.

    Densities and assumptions, which cost most, at the paper's own alone.

    Args:
        recipe: what is trained.
        pictures: the data; `TrainingCourse` evaluates both parts whole, all else is measured on
            training images drawn once.
        epochs: of the training.
        seed: of probe and random vectors.
    """
    each, seldom = Every(epochs=1), At(epochs=measured_epochs(epochs))
    papers = At(epochs=measured_epochs(epochs, early=False))
    curved = _CURVATURE if recipe.kind.loss == "hinge" else _ACTIVE
    members: list[ThermoCallback] = [
        TrainingCourse({"train": pictures.train, "test": pictures.test}),
        PlasticityOrderParameter(each, seed=seed),
        GradientSymmetry(each, seed=seed),
        WeightSymmetry(each, seed=seed),
        HessianSpectrum(seldom, density=papers, examples=curved, seed=seed),
        CircuitSymmetry(seldom, seldom, sample_examples=SAMPLED, orders=(0, 1, 2), seed=seed),
        HessianEntries(seldom, columns=8, examples=curved, seed=seed),
        Phase(seldom, recipe.kind.floor, examples=curved, seed=seed),
        Assumptions(papers, seed=seed),
        BulkBoundaryLoss(seldom, examples=_EACH, seed=seed),
        PropagatorSpectrum(seldom, examples=_EACH, seed=seed),
    ]
    return Thermometer(probe=_probe(pictures, seed), callbacks=members, seed=seed)


def _probe(pictures: Pictures, seed: int) -> tuple[Tensor, Tensor]:
    """Training images drawn without replacement, as one batch."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    inputs, labels = pictures.train.tensors
    return inputs[order[:PROBE]], labels[order[:PROBE]]
