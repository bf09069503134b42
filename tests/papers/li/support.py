"""A handful of easy pictures, and a budget of seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from torch_thermo.callbacks import (
    HessianSpectrum,
    PlasticityOrderParameter,
    Thermometer,
    WeightSymmetry,
)
from torch_thermo.papers.li.course import TrainingCourse
from torch_thermo.papers.li.recipe import BUDGETS, Budget, Pictures, Recipe, load_pictures

NAMES = np.array(["airplane", "automobile", "bird"])


def write_pictures(folder: Path, name: str = "pictures", names: np.ndarray = NAMES) -> Path:
    """A data file: the third class is noise, the others differ in brightness."""
    rng = np.random.default_rng(1)
    arrays = {"class_names": names}
    for part, count in (("train", 36), ("test", 15)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 156, (count, 8, 8, 3)) + 100 * (labels == 1)[:, None, None, None]
        arrays |= {f"{part}_images": images.astype(np.uint8), f"{part}_labels": labels}
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def pictures(folder: Path) -> Pictures:
    """12 training and 10 held-out pictures."""
    return load_pictures(write_pictures(folder), 12)


def seconds(epochs: int = 2) -> Budget:
    """The quick budget on 12 pictures, three steps an epoch."""
    return replace(BUDGETS["quick"], samples=12, batch=5, epochs=epochs, seeds=(0, 1), width=2)


class Little(nn.Sequential):
    """Three weight layers without biases and one output, as fast as the VGG is not."""

    def __init__(self, seed: int) -> None:
        layers = (
            nn.utils.skip_init(nn.Conv2d, 3, 4, 4, stride=4, bias=False),
            nn.utils.skip_init(nn.Linear, 256, 6, bias=False),
            nn.utils.skip_init(nn.Linear, 6, 1, bias=False),
        )
        generator = torch.Generator().manual_seed(seed)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        convolution, hidden, last = layers
        super().__init__(
            convolution, nn.ReLU(), nn.Flatten(), hidden, nn.ReLU(), last, nn.Flatten(0)
        )


class LittleRecipe(Recipe):
    """A recipe of the little net."""

    def network(self, seed: int) -> nn.Module:
        return Little(seed)


def little_measured(recipe: Recipe, found: Pictures, epochs: int, seed: int) -> Thermometer:
    """What is quick to measure."""
    callbacks = [
        TrainingCourse({"train": found.train, "test": found.test}),
        PlasticityOrderParameter(),
        WeightSymmetry(),
        HessianSpectrum(steps=2, operators=()),
    ]
    return Thermometer(probe=found.train[:], callbacks=callbacks, seed=seed)
