"""Models of the common kinds, and what each observable says of them: measured, or why not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

OBSERVABLES = (
    "order_parameter",
    "order_parameter_minibatch",
    "gradient_symmetry",
    "weight_symmetry",
    "hessian_extremes",
    "hessian_density",
    "functional_density",
    "bulk_boundary",
    "circuit_symmetry",
    "circuit_sample",
    "propagator_spectrum",
)
NETWORK = ("bulk_boundary", "circuit_symmetry", "circuit_sample", "propagator_spectrum")
CIRCUITS = ("circuit_symmetry", "circuit_sample")


class Trained(pl.LightningModule):
    """A network and one of torch's losses, called in training_step as most modules do."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.objective = loss

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.objective(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Block(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.norm(self.first(x)))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def mlp(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), activation(), nn.Dropout(0.1), nn.Linear(8, 3))


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 1, bias=False),
        nn.Flatten(0),
    )


def hinge(output: Tensor, target: Tensor) -> Tensor:
    return (1 - target * output).clamp(min=0).mean()


@dataclass(frozen=True)
class Entry:
    """A model of the table.

    Attributes:
        name: of the row.
        make: builds the module; `Trained` unless it has a criterion of its own.
        shape: of an input.
        targets: "classes", "signs" or "inputs".
        skipped: {observables: the reason they are skipped for}; all others are measured.
    """

    name: str
    make: Callable[[], pl.LightningModule]
    shape: tuple[int, ...]
    targets: str = "classes"
    skipped: Mapping[tuple[str, ...], str] = field(default_factory=dict)

    def reason(self, observable: str) -> str | None:
        """Why an observable is skipped; None where it is measured."""
        for names, reason in self.skipped.items():
            if observable in names:
                return reason
        return None

    def data(self, examples: int = 16) -> TensorDataset:
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(examples, *self.shape, generator=generator)
        classes = torch.arange(examples) % 3
        targets = {"classes": classes, "signs": 2.0 * (classes > 0) - 1.0, "inputs": x}
        return TensorDataset(x, targets[self.targets])


class WithCriterion(Trained):
    """The loss is an attribute that is found by its name."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(net, loss)
        self.criterion = loss


def resnet() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Block(4), *head)


def autoencoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 6))


ZOO = (
    Entry("MLP, ReLU", lambda: Trained(mlp(nn.ReLU), F.cross_entropy), (6,)),
    Entry(
        "MLP, tanh",
        lambda: Trained(mlp(nn.Tanh), F.cross_entropy),
        (6,),
        skipped={
            CIRCUITS: "net.1 (Tanh) cannot be read: its output is no gate times its input; ReLU, "
            "LeakyReLU, PReLU and RReLU have gates"
        },
    ),
    Entry("VGG", lambda: WithCriterion(vgg(), hinge), (1, 4, 4), "signs"),
    Entry("ResNet", lambda: Trained(resnet(), F.cross_entropy), (1, 4, 4)),
    Entry(
        "transformer",
        lambda: Trained(Transformer(), F.cross_entropy),
        (5, 4),
        skipped={
            NETWORK: "net.layer (TransformerEncoderLayer) cannot be read: attention multiplies "
            "values by weights that come from the input; give module= the part that is a chain of "
            "layers"
        },
    ),
    Entry(
        "LSTM",
        lambda: Trained(Recurrent(), F.cross_entropy),
        (5, 4),
        skipped={
            NETWORK: "net.lstm (LSTM) cannot be read: it is recurrent and keeps a state beside its "
            "output; give module= the part that is a chain of layers"
        },
    ),
    Entry(
        "autoencoder",
        lambda: Trained(autoencoder(), F.mse_loss),
        (6,),
        "inputs",
        skipped={
            CIRCUITS: "the network has 6 outputs and the targets are no labels that choose one "
            "(rows of targets must have a 1 for the class and one smaller number for all others, "
            "and row 0 has not): give CircuitSymmetry(output=), the number of an output"
        },
    ),
)

_HEAD = """# What is measured on which model

`Thermometer()` on small models of the common kinds, trained with torch's own losses. What a model
does not allow is skipped with one notice, here the note below the table; the rest goes on. The
tests train each of them and compare measurements and notices with this page.

Made by `python -m tests.callbacks.model_zoo docs/models.md`.

"""


def models_table() -> str:
    """Return docs/models.md: a row a model, a column an observable, and the reasons."""
    reasons: list[str] = []
    rows = [("model", *(f"`{name}`" for name in OBSERVABLES)), ("---",) * (len(OBSERVABLES) + 1)]
    for entry in ZOO:
        cells = []
        for observable in OBSERVABLES:
            reason = entry.reason(observable)
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            number = "" if reason is None else f"skipped ({reasons.index(reason) + 1})"
            cells.append(number or "measured")
        rows.append((entry.name, *cells))
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    notes = "".join(f"{number}. {reason}\n" for number, reason in enumerate(reasons, start=1))
    return f"{_HEAD}{table}\n{notes}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.callbacks.model_zoo FILE")
    Path(sys.argv[1]).write_text(models_table(), encoding="utf-8")
