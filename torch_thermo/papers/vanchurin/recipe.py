"""What is trained: nets, data, step sizes, lengths, and when the weights are kept.

V. Vanchurin, *Towards a theory of machine learning*, section 10: tanh networks 784-40-20-10 and
784-60-10 on 6,000 MNIST digits, up to 30,000 epochs. What the paper does not say is taken so that
its numbers come out: pixels in [0, 1], Glorot-uniform weights, zero biases, targets +-1, loss
``1/2 |t - o|^2``, online SGD with learning rate .01. With targets 0 and 1 the outputs do not
saturate and mu3 of the shallow net stays near -2 instead of falling to 1e-10.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_thermo import data
from torch_thermo.systems import TanhMLP

__all__ = [
    "BUDGETS",
    "NETS",
    "SAMPLES",
    "Budget",
    "Digits",
    "Recipe",
    "load_digits",
    "recipe",
    "snapshot_epochs",
]

SAMPLES = 6000
"""Training samples of the paper."""

NETS = {"deep": (40, 20), "shallow": (60,)}
"""The paper's nets: the sizes of their hidden layers, 60 neurons in both."""


@dataclass(frozen=True)
class Budget:
    """How long and how the nets are trained.

    Attributes:
        name: of its folder.
        batch: samples a step; the loss of a step is their mean.
        rate: learning rate of plain SGD.
        seeds: of the weights and of the order of the samples, one training each.
        epochs: passes over the data.
        per_decade: snapshots of the weights in a decade of epochs.
    """

    name: str
    batch: int
    rate: float
    seeds: tuple[int, ...]
    epochs: int
    per_decade: int


BUDGETS = {
    "quick": Budget("quick", 32, 0.1, (0, 1, 2, 3, 4), 200, 10),
    "paper": Budget("paper", 1, 0.01, (0,), 30_000, 20),
}
"""``paper``: what is closest to the paper. ``quick``: the same nets in minutes, 37,600 updates at
ten times the rate against 1.8e8; in rate times updates as far as some 60 of its epochs."""


@dataclass(frozen=True)
class Digits:
    """The training set as the nets take it.

    Attributes:
        inputs: (B, pixels), float64, in [0, 1].
        targets: (B, classes), float64, +1 at the label and -1 elsewhere.
        labels: (B,), int64.
        name: for captions.
    """

    inputs: Tensor
    targets: Tensor
    labels: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> int:
        """A checksum, by which a resumed training knows its data again."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.inputs.numpy().tobytes()))


@dataclass(frozen=True)
class Recipe:
    """One net under one budget.

    Attributes:
        net: "deep" or "shallow".
        sizes: inputs, hidden layers, outputs.
        budget: how it is trained.
        samples: in an epoch.
    """

    net: str
    sizes: tuple[int, ...]
    budget: Budget
    samples: int

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch; a last batch that is not full is one too."""
        return -(-self.samples // self.budget.batch)

    def network(self, seed: int) -> TanhMLP:
        """The net with its initial weights."""
        return TanhMLP(self.sizes, seed)

    def setting(self, digits: Digits, seed: int) -> dict[str, Any]:
        """All that a training's numbers depend on but its length, as JSON holds it."""
        return {
            "sizes": list(self.sizes),
            "samples": self.samples,
            "data": digits.name,
            "fingerprint": digits.fingerprint,
            "batch": self.budget.batch,
            "rate": self.budget.rate,
            "seed": seed,
        }

    def folder(self, out: Path, seed: int) -> Path:
        """Where the training of a seed keeps its files."""
        return out / self.budget.name / self.net / f"seed{seed}"


def load_digits(source: str | Path, samples: int | None = SAMPLES) -> Digits:
    """Draw the training set.

    Args:
        source: see `torch_thermo.data.load`; of ``mnist5k`` all 5,000 digits are taken.
        samples: at most so many, drawn with seed 0; None takes all.

    Raises:
        ValueError: the data are not usable, or ``samples`` is below 1.
        FileNotFoundError, ModuleNotFoundError, OSError: see `torch_thermo.data.load`.
    """
    images = data.load(source, seed=0).subset(samples, seed=0)
    pixels, labels = images.train_images, images.train_labels
    if source == "mnist5k":
        # nothing is held out here, and the paper's number of samples is more than there are
        pixels = torch.cat([pixels, images.test_images])[:samples]
        labels = torch.cat([labels, images.test_labels])[:samples]
    return Digits(
        data.as_flat(pixels, torch.float64),
        data.sign_targets(labels, images.classes, torch.float64),
        labels,
        images.name,
    )


def recipe(budget: str, net: str, digits: Digits) -> Recipe:
    """One net under one budget, for these data.

    Raises:
        ValueError: no such budget or net.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be {' or '.join(BUDGETS)}, got {budget!r}")
    if net not in NETS:
        raise ValueError(f"net must be {' or '.join(NETS)}, got {net!r}")
    sizes = (digits.inputs.shape[1], *NETS[net], digits.targets.shape[1])
    return Recipe(net, sizes, BUDGETS[budget], len(digits))


def snapshot_epochs(epochs: int, per_decade: int) -> list[int]:
    """The epochs after which weights are kept: 0, evenly on a log scale, and the last.

    All but the last are the same for every length, so that a training can be prolonged.

    Args:
        epochs: of the training, at least 1.
        per_decade: how many in a decade, as far as they differ; at least 1.

    Raises:
        ValueError: a number is below 1.

    Example:
        >>> snapshot_epochs(30, 5)
        [0, 1, 2, 3, 4, 6, 10, 16, 25, 30]
    """
    for name, number in (("epochs", epochs), ("per_decade", per_decade)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    due, place = {0, epochs}, 0
    while (epoch := round(10 ** (place / per_decade))) <= epochs:
        due.add(epoch)
        place += 1
    return sorted(due)
