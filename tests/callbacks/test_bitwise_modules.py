"""The promise on modules that do unusual things."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.callbacks.support import ReLUNet, cheap, compare, loader, steps_of
from torch_thermo.callbacks import Thermometer

OFTEN = [0, 1, 2, 3, 4, 5, 6, 7, 10, 13, 15]
EXTREMES = [0, 1, 2, 3, 6, 10, 15]


class Drawing(ReLUNet):
    """Takes unlabelled examples from an iterator that cannot be copied."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.more = iter(loader(batch_size=4)) if kind == "loader" else self.endless()
        self.kind = kind

    @staticmethod
    def endless() -> Any:
        while True:
            yield from loader(batch_size=4)

    def training_step(self, batch, batch_idx):
        x, _ = next(self.more)
        return super().training_step(batch, batch_idx) + 0.1 * self(x).square().mean()


@pytest.mark.parametrize("kind", ["loader", "generator"])
def test_a_step_that_draws_from_an_iterator_is_not_measured(tmp_path, kind):
    def make():
        return Drawing(kind), loader(batch_size=16)

    told: list[str] = []
    stored = compare(tmp_path, make, [Thermometer(probe=24)], told=told)
    assert len(told) == 2, told
    assert "Drawing holds" in told[0]
    assert "which can't be copied" in told[0]
    assert "never measured order_parameter, " in told[1]
    counted = steps_of(stored)
    assert counted["order_parameter_minibatch"] == list(range(9))
    assert counted["weight_symmetry"] == [0, 1, 2, 3, 4, 6, 7, 9]
    assert counted["order_parameter"] == []
    # given the loss, all is measured
    thermometer = Thermometer(probe=24, loss_fn=nn.functional.cross_entropy)
    stored = compare(tmp_path / "given", make, [thermometer])
    assert steps_of(stored)["order_parameter"] == [0, 1, 2, 3, 4, 6, 7, 9]


class Hooked(ReLUNet):
    """Hooks on modules and parameters that keep what passes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.passed: list[float] = []
        self.net[0].register_forward_hook(lambda m, i, o: self.passed.append(float(o.sum())))
        for parameter in self.parameters():
            parameter.register_hook(lambda gradient: self.passed.append(float(gradient.sum())))
        self.net[3].register_full_backward_hook(
            lambda m, i, o: self.passed.append(float(o[0].sum()))
        )

    def own_state(self) -> Any:
        return self.passed


class Closures(ReLUNet):
    """An optimizer that calls the step several times an update."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Skipping(ReLUNet):
    """Steps without a loss."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if self.training and batch_idx % 2 else loss


class Normed(ReLUNet):
    """Power iterations change buffers in training mode; parametrisations are unusual modules."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        parametrise = nn.utils.parametrizations
        first, second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.net = nn.Sequential(
            parametrise.spectral_norm(first), nn.ReLU(), parametrise.weight_norm(second)
        )


class Recurrent(ReLUNet):
    """Keeps its hidden state, with the graph of the last step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.LSTM(2, 4, batch_first=True)
        self.out = nn.Linear(4, 3)
        self.hidden: Any = None

    def forward(self, x):
        output, self.hidden = self.net(x.view(-1, 3, 2))
        return self.out(output[:, -1])


@pytest.mark.parametrize("kind", [Hooked, Closures, Skipping, Normed, Recurrent])
def test_unusual_modules(tmp_path, kind):
    stored = compare(tmp_path, lambda: (kind(), loader(batch_size=10)), [cheap()])
    counted = steps_of(stored)
    skipped = kind is Skipping
    assert counted["order_parameter"] == OFTEN
    assert counted["hessian_extremes"] == EXTREMES
    assert len(counted["order_parameter_minibatch"]) == (9 if skipped else 15)
