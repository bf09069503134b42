"""What is trained: nets, losses, data, step sizes, lengths, and when it is measured.

S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking* (arXiv:2201.07934): a 12-layer VGG
without biases, hinge loss ``max(0, 1 - y T(x))``, CIFAR-10 made binary, 300 epochs. The paper gives
neither the two classes nor widths, learning rate and batch size: those below are ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from torch_thermo import data
from torch_thermo.papers.recipes import CrossEntropy, Hinge, SignLoss
from torch_thermo.systems import VGG, ResNet

__all__ = [
    "BUDGETS",
    "CLASSES",
    "EPOCHS",
    "NETS",
    "Budget",
    "Net",
    "Pictures",
    "Recipe",
    "load_pictures",
    "measured_epochs",
    "recipe",
]

CLASSES = ("airplane", "automobile")
"""The two classes: y = -1 and y = +1."""

EPOCHS = (0, 10, 20, 30, 40, 100, 160, 200, 260, 300)
"""The epochs of the paper's Figs. 3 and 4."""

# Besides the paper's epochs: most happens in the first. Few of those, for with the hinge loss a
# product with the Hessian takes longest while most examples are active.
_EARLY = (5, 15, 25, 35)


@dataclass(frozen=True)
class Net:
    """One of the nets and its loss.

    Attributes:
        title: for captions.
        loss: its name.
        criterion: builds the loss.
        rate: learning rate of plain SGD.
        floor: a risk up to it counts as solved; a cross entropy never is 0.
    """

    title: str
    loss: str
    criterion: Callable[[], nn.Module]
    rate: float
    floor: float = 0.0


NETS = {
    "vgg": Net("bias-free VGG", "hinge", Hinge, 0.02),
    "vgg-ce": Net("bias-free VGG", "cross entropy", CrossEntropy, 0.02, 0.01),
    "resnet": Net("ResNet with biases and BatchNorm", "cross entropy", CrossEntropy, 0.05, 0.01),
}
"""The paper's net, and two that leave its assumptions: another loss, another kind of net."""


@dataclass(frozen=True)
class Budget:
    """How long the nets are trained, how large they are, and on what.

    Attributes:
        name: of its folder.
        vgg: weight layers of the VGG.
        resnet: weight layers of the ResNet.
        width: channels of the ResNet's first stage.
        samples: training images of both classes, drawn with seed 0; None takes all.
        batch: images a step.
        seeds: of the weights and of the order of the images, one training each.
        epochs: passes over the data.
        accelerator: Lightning's.
    """

    name: str
    vgg: int
    resnet: int
    width: int
    samples: int | None
    batch: int
    seeds: tuple[int, ...]
    epochs: int
    accelerator: str


BUDGETS = {
    "quick": Budget("quick", 10, 8, 8, 2000, 32, (0, 1, 2), 40, "cpu"),
    "paper": Budget("paper", 12, 20, 64, None, 128, (0,), 300, "cuda"),
}
"""``paper``: the net of the paper's depth and size, and its epochs. ``quick``: minutes a training
on a CPU."""


@dataclass(frozen=True)
class Pictures:
    """Images of the two classes as the nets take them.

    Attributes:
        train: inputs (n, channels, 32, 32), float32, each channel with mean 0 and standard
            deviation 1 over the training images, and labels y (n,), float32, +1 and -1.
        test: the same of the held-out images.
        name: for captions.
        note: what is to be said of the data wherever results are shown; may be empty.
    """

    train: TensorDataset
    test: TensorDataset
    name: str
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse labels that the losses have no meaning for."""
        for part in (self.train, self.test):
            SignLoss.check(part.tensors[1])

    def __len__(self) -> int:
        return len(self.train)

    @property
    def fingerprint(self) -> int:
        """A checksum, by which a resumed training knows its data again."""
        found = 0
        for tensor in (*self.train.tensors, *self.test.tensors):
            found = zlib.crc32(tensor.numpy().tobytes(), found)
        return found


@dataclass(frozen=True)
class Recipe:
    """One net under one budget.

    Attributes:
        net: "vgg", "vgg-ce" or "resnet".
        budget: how it is trained.
        samples: in an epoch.
        channels: of the images.
    """

    net: str
    budget: Budget
    samples: int
    channels: int

    @property
    def kind(self) -> Net:
        """Its loss and learning rate."""
        return NETS[self.net]

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch; a last batch that is not full is one too."""
        return -(-self.samples // self.budget.batch)

    def network(self, seed: int) -> nn.Module:
        """The net with its initial weights."""
        if self.net == "resnet":
            return ResNet(self.budget.resnet, self.channels, width=self.budget.width, seed=seed)
        return VGG(self.budget.vgg, self.channels, seed)

    def setting(self, pictures: Pictures, seed: int) -> dict[str, Any]:
        """All that a training's numbers depend on but its length, as JSON holds it."""
        return {
            "net": self.net,
            "depth": self.budget.resnet if self.net == "resnet" else self.budget.vgg,
            "width": self.budget.width if self.net == "resnet" else 0,
            "loss": self.kind.loss,
            "lr": self.kind.rate,
            "batch": self.budget.batch,
            "seed": seed,
            "data": pictures.name,
            "classes": list(CLASSES),
            "samples": self.samples,
            "fingerprint": pictures.fingerprint,
        }

    def folder(self, out: Path, seed: int) -> Path:
        """Where the training of a seed keeps its files."""
        return out / "li" / self.budget.name / self.net / f"seed{seed}"


def load_pictures(source: str | Path, samples: int | None = None) -> Pictures:
    """The images of the two classes.

    Args:
        source: see `torch_thermo.data.load`; images of named classes, `CLASSES` among them. Where
            the name of the data has "jpeg" in it, `Pictures.note` calls them recompressed.
        samples: at most so many training images, drawn with seed 0; None takes all.

    Raises:
        ValueError: the data are not usable, or lack one of the classes.
        FileNotFoundError, ModuleNotFoundError, OSError: see `torch_thermo.data.load`.
    """
    images = data.load(source)
    missing = [name for name in CLASSES if name not in images.class_names]
    if missing:
        raise ValueError(
            f"{images.name}: the nets learn {' and '.join(CLASSES)}, and there is no "
            f"{missing[0]} among the classes {', '.join(images.class_names)}; take cifar10"
        )
    minus, plus = (images.class_names.index(name) for name in CLASSES)

    def part(pixels: Tensor, labels: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
        (chosen,) = torch.where((labels == minus) | (labels == plus))
        if count is not None:
            generator = torch.Generator().manual_seed(0)
            chosen = chosen[torch.randperm(len(chosen), generator=generator)[:count]]
        y = data.binary_targets(labels[chosen], [plus])
        if len(y.unique()) < 2:
            raise ValueError(f"{images.name}: a part of the data lacks one of {', '.join(CLASSES)}")
        return data.as_square(pixels[chosen]), y

    train = part(images.train_images, images.train_labels, samples)
    test = part(images.test_images, images.test_labels)
    mean, std = data.channel_statistics(train[0])
    return Pictures(
        TensorDataset(data.standardise(train[0], mean, std), train[1]),
        TensorDataset(data.standardise(test[0], mean, std), test[1]),
        images.name,
        "images recompressed as JPEG" if "jpeg" in images.name.lower() else "",
    )


def recipe(budget: str, net: str, pictures: Pictures) -> Recipe:
    """One net under one budget, for these data.

    Raises:
        ValueError: no such budget or net.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be {' or '.join(BUDGETS)}, got {budget!r}")
    if net not in NETS:
        raise ValueError(f"net must be of {', '.join(NETS)}, got {net!r}")
    return Recipe(net, BUDGETS[budget], len(pictures), pictures.train.tensors[0].shape[1])


def measured_epochs(epochs: int, early: bool = True) -> tuple[int, ...]:
    """The epochs at which much is measured: the paper's, some early ones between, and the last.

    All but the last are the same for every length, so that a training can be prolonged.

    Args:
        epochs: of the training.
        early: whether with those between the paper's.

    Example:
        >>> measured_epochs(20)
        (0, 5, 10, 15, 20)
    """
    due = {*EPOCHS, epochs, *(_EARLY if early else ())}
    return tuple(sorted(epoch for epoch in due if epoch <= epochs))
