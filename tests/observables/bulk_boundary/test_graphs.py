"""Bulk and boundary loss of networks with skip connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.network.branched import Basic, ResNet
from tests.network.support import randn, randomised
from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss

STATES = ("stem_relu", "block.relu1", "block.relu2", "stream")


class Block(nn.Module):
    """Post-activation, with a convolution on the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.shortcut = nn.BatchNorm2d(3), nn.Conv2d(2, 3, 1)
        self.relu1, self.relu2 = nn.ReLU(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv2(self.relu1(self.conv1(x))))
        z: Tensor = self.relu2(y + self.shortcut(x))
        return z


class Net(nn.Module):
    """A module at each state, so that a hook can add to it."""

    def __init__(self, bend: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.stem_relu = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()
        self.block = Block()
        self.stream = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 3)
        self.bend = bend()

    def forward(self, x: Tensor) -> Tensor:
        y = self.stream(self.block(self.stem_relu(self.stem(x))))
        # the stream is used twice: a state whose activation is the identity
        y = (y + F.max_pool2d(y, 3, 1, 1)).mean((2, 3))
        z: Tensor = self.bend(self.head(y))
        return z


def jacobians(model: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and their Jacobians in what hooks add to the states, by dense autograd."""
    shapes: list[torch.Size] = []

    def outputs(residuals: Tensor | None) -> Tensor:
        parts = iter(() if residuals is None else residuals.split([s.numel() for s in shapes]))

        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            if residuals is None:
                shapes.append(output.shape)
                return output
            return output + next(parts).reshape(output.shape)

        handles = [model.get_submodule(name).register_forward_hook(hook) for name in STATES]
        y: Tensor = model(x[None])[0]
        for handle in handles:
            handle.remove()
        return y

    y = outputs(None).detach()
    zeros = torch.zeros(sum(s.numel() for s in shapes), dtype=x.dtype)
    return y, torch.autograd.functional.jacobian(outputs, zeros)


def test_linear_is_dense_least_squares() -> None:
    """min_r |r|^2 / 2 + |e - J r|^2 / 2 over the residuals of all states."""
    model = randomised(Net(nn.Tanh)).eval()
    network = Network.from_module(model, randn(2, 1, 5, 5))
    # 50 + 75 + 75 + 75
    assert [stage.parents for stage in network.stages] == [(-1,), (0,), (0, 1), (2,), (3,)]
    x, targets = randn(4, 1, 5, 5, seed=5), randn(4, 3, seed=6)
    found = bulk_boundary_loss(network, x, targets, method="linear")
    for k in range(4):
        y, jacobian = jacobians(model, x[k])
        assert jacobian.shape == (3, 275)
        error = targets[k] - y
        system = torch.cat([torch.eye(275, dtype=torch.float64), jacobian])
        right = torch.cat([torch.zeros(275, dtype=torch.float64), error])
        r = torch.linalg.lstsq(system, right[:, None]).solution[:, 0]
        bulk = 0.5 * (system @ r - right).square().sum()
        torch.testing.assert_close(found.bulk[k], bulk, rtol=1e-10, atol=0)
        torch.testing.assert_close(
            found.boundary[k], 0.5 * error.square().sum(), rtol=1e-12, atol=0
        )
    assert (found.bulk < found.boundary).all()


@pytest.mark.parametrize("method", ["linear", "logit"])
def test_a_resnet_is_measured(method: str) -> None:
    model = randomised(ResNet(Basic))
    network = Network.from_module(model, randn(2, 1, 8, 8))
    x, targets = randn(6, 1, 8, 8, seed=5), torch.arange(6) % 3
    found = bulk_boundary_loss(network, x, targets, F.cross_entropy, method=method)
    boundary = F.cross_entropy(model.eval()(x), targets, reduction="none").detach()
    torch.testing.assert_close(found.boundary, boundary, rtol=1e-10, atol=1e-10)
    assert found.converged.all()
    assert (found.bulk <= found.boundary).all()
    assert found.bulk_mean < found.boundary_mean


class Prepared(nn.Module):
    """A block with a skip from the input, which is prepared within the network."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 3), nn.Linear(3, 4), nn.Linear(4, 2)
        self.prepare = prepare

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        y: Tensor = self.head(torch.tanh(x + self.b(torch.tanh(self.a(x)))))
        return y


@pytest.mark.parametrize("prepare", [lambda x: x / 255, lambda x: (2 * x - 1).tanh()])
@pytest.mark.parametrize("method", ["linear", "logit", "exact"])
def test_a_prepared_input_is_not_bent(method: str, prepare: Callable[[Tensor], Tensor]) -> None:
    inside, outside = randomised(Prepared(prepare)), randomised(Prepared(lambda x: x))
    x, targets = 255 * randn(3, 4), randn(3, 2, seed=4)
    found, expected = (
        bulk_boundary_loss(
            Network.from_module(model, inputs), inputs, targets, F.mse_loss, method=method
        )
        for model, inputs in ((inside, x), (outside, prepare(x)))
    )
    torch.testing.assert_close(found.bulk, expected.bulk, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.boundary, expected.boundary, rtol=1e-9, atol=1e-9)
