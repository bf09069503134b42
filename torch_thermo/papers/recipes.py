"""The two trainings of the demonstration: networks, losses, data, numbers.

(a) a tanh network with squared error and targets +-1, after V. Vanchurin, *Towards a theory of
machine learning*; (b) a bias-free ReLU VGG with the hinge loss on a binary problem, after S. W. M.
Li, *Complexity from Adaptive-Symmetries Breaking*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from torch_thermo import data
from torch_thermo.systems import VGG, TanhMLP

__all__ = [
    "Classifier",
    "CrossEntropy",
    "Hinge",
    "Recipe",
    "SignLoss",
    "SquaredError",
    "tanh_recipe",
    "vgg_recipe",
]


class SquaredError(nn.Module):
    """``1/2 sum_k (output_k - target_k)^2``, averaged over the batch."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Outputs and targets ``(batch, k)`` to a scalar."""
        return 0.5 * (output - target).square().sum(dim=1).mean()


class SignLoss(nn.Module):
    """Base of the losses of one output T and labels y = +-1."""

    @staticmethod
    def check(target: Tensor) -> None:
        """Refuse labels that such a loss has no meaning for.

        Apart from `forward`, which may be mapped over examples, where values can't be looked at.

        Raises:
            ValueError: a label is neither +1 nor -1.
        """
        strange = target[target.abs() != 1]
        if len(strange):
            raise ValueError(f"labels must be +1 or -1, got {float(strange[0]):g}")


class Hinge(SignLoss):
    """``max(0, 1 - y T)``, averaged over the batch (Li, section 2)."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Outputs T and targets y = +-1, both ``(batch,)``, to a scalar."""
        return (1 - target * output).clamp(min=0).mean()


class CrossEntropy(SignLoss):
    """``log(1 + exp(-y T))``: the cross entropy of two classes, averaged over the batch."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Outputs T and targets y = +-1, both ``(batch,)``, to a scalar."""
        return nn.functional.softplus(-target * output).mean()


class Classifier(pl.LightningModule):
    """An ordinary module: a network, a criterion, plain SGD, accuracies logged.

    Args:
        network: maps a batch of inputs to outputs.
        criterion: maps outputs and targets to the batch's mean loss; of a `SignLoss` the labels
            of each batch are checked.
        learning_rate: of SGD without momentum.
    """

    def __init__(self, network: nn.Module, criterion: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.learning_rate = learning_rate

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's outputs."""
        outputs: Tensor = self.network(inputs)
        return outputs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self._evaluate(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on held-out images."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str) -> Tensor:
        inputs, targets = batch
        if isinstance(self.criterion, SignLoss):
            self.criterion.check(targets)
        outputs = self(inputs)
        loss: Tensor = self.criterion(outputs, targets)
        self.log(f"{part}/loss", loss, on_step=False, on_epoch=True, batch_size=len(inputs))
        self.log(
            f"{part}/accuracy",
            _right(outputs, targets).float().mean(),
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(inputs),
        )
        return loss


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Which examples are classified rightly, by the largest output or by the sign of the one."""
    if outputs.ndim == 1:
        return outputs * targets > 0
    return outputs.argmax(dim=1) == targets.argmax(dim=1)


@dataclass(frozen=True)
class Recipe:
    """All that one training needs.

    Attributes:
        name: of its folder.
        title: of its column and captions.
        problem: what is learned, for captions.
        network: builds the network, with its initial weights.
        criterion: builds the loss.
        train: inputs and targets.
        test: held-out inputs and targets.
        learning_rate: of SGD.
        batch_size: examples a step.
        epochs: passes over ``train``.
    """

    name: str
    title: str
    problem: str
    network: Callable[[], nn.Module]
    criterion: Callable[[], nn.Module]
    train: TensorDataset
    test: TensorDataset
    learning_rate: float
    batch_size: int
    epochs: int


def tanh_recipe(images: data.ImageData, seed: int = 0, epochs: int | None = None) -> Recipe:
    """The tanh network: pixels in [0, 1], squared error, targets +-1.

    Batches of 32 and learning rate .1: the net of the paper, trained a short part of its course.

    Args:
        images: the data.
        seed: of the initial weights.
        epochs: None takes 40.
    """
    size = images.train_images[0].numel()

    def part(pixels: Tensor, labels: Tensor) -> TensorDataset:
        return TensorDataset(data.as_flat(pixels), data.sign_targets(labels, images.classes))

    sizes = (size, 40, 20, images.classes)
    return Recipe(
        name="tanh",
        title="tanh network",
        problem=f"{images.name}, tanh network {'-'.join(map(str, sizes))}, squared error",
        network=lambda: TanhMLP(sizes, seed=seed),
        criterion=SquaredError,
        train=part(images.train_images, images.train_labels),
        test=part(images.test_images, images.test_labels),
        learning_rate=0.1,
        batch_size=32,
        epochs=40 if epochs is None else epochs,
    )


def vgg_recipe(images: data.ImageData, seed: int = 0, epochs: int | None = None) -> Recipe:
    """The bias-free VGG of ten weight layers: the upper half of the classes against the lower.

    Images of 32 x 32, standardised per channel by the training part's mean and deviation.

    Args:
        images: the data, of at least two classes.
        seed: of the initial weights.
        epochs: None takes 20.

    Raises:
        ValueError: there is only one class.
    """
    if images.classes < 2:
        raise ValueError(f"{images.name}: a binary problem needs 2 classes, got {images.classes}")
    positive = range(images.classes // 2, images.classes)
    mean, std = data.channel_statistics(data.as_square(images.train_images))

    def part(pixels: Tensor, labels: Tensor) -> TensorDataset:
        inputs = data.standardise(data.as_square(pixels), mean, std)
        return TensorDataset(inputs, data.binary_targets(labels, positive))

    return Recipe(
        name="vgg",
        title="bias-free VGG",
        problem=f"{images.name} in two halves, bias-free ReLU VGG of 10 layers, hinge loss",
        network=lambda: VGG(depth=10, in_channels=images.shape[0], seed=seed),
        criterion=Hinge,
        train=part(images.train_images, images.train_labels),
        test=part(images.test_images, images.test_labels),
        learning_rate=0.01,
        batch_size=32,
        epochs=20 if epochs is None else epochs,
    )
