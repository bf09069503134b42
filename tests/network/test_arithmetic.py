"""Arithmetic in a forward pass: with numbers and weights of the model, and between branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.network.support import randn
from torch_thermo.network import Network
from torch_thermo.network.arithmetic import ARITHMETIC, ARITHMETIC_FUNCTIONS, ARITHMETIC_METHODS
from torch_thermo.network.joins import Concatenate, Sum
from torch_thermo.network.operations import Scale


class Forward(nn.Module):
    """Weights of all shapes that fit an example (3, 2, 4), and a forward that is given."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.number = nn.Parameter(randn(1)[0])
        self.single = nn.Parameter(randn(1, seed=2))
        self.channel = nn.Parameter(randn(3, 1, 1, seed=3))
        self.register_buffer("mean", randn(1, 3, 1, 1, seed=4))
        self.row = nn.Parameter(randn(4, seed=5))
        self.full = nn.Parameter(randn(3, 2, 4, seed=6).float())
        self.layer = nn.Conv2d(3, 3, 1).double()
        self.own = forward

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.own(self, x)
        return self.layer(y)


def read(forward: Callable[..., Any]) -> Network:
    """The network of a forward pass in front of a layer, compared with it before and after."""
    model = Forward(forward)
    network = Network.from_module(model, randn(2, 3, 2, 4))
    x = randn(5, 3, 2, 4, seed=8)
    for _ in range(2):
        torch.testing.assert_close(network(x), model(x), rtol=1e-13, atol=1e-13)
        # weights are live
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.mul_(1.5).add_(0.1)
    gradients = torch.autograd.grad(network(x).square().sum(), network.parameters())
    expected = torch.autograd.grad(model(x).square().sum(), network.parameters())
    for found, own in zip(gradients, expected, strict=True):
        tolerance = 1e-12 if found.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(found, own, rtol=tolerance, atol=tolerance)
    return network


# forwards, and the entries of the scales that they are read as
SCALES: list[tuple[Callable[..., Any], list[int]]] = [
    (lambda m, x: x / 255, [1]),
    (lambda m, x: (x - 0.5) / 0.5, [1, 1]),
    (lambda m, x: 0.1 * x, [1]),
    (lambda m, x: 1 - x, [1]),
    (lambda m, x: -x, [1]),
    (lambda m, x: x + 1, [1]),
    (lambda m, x: torch.add(x, 2, alpha=3), [1]),
    (lambda m, x: torch.sub(2, x, alpha=3), [1]),
    (lambda m, x: x.sub(m.mean, alpha=2), [3]),
    (lambda m, x: m.mean.sub(x, alpha=2), [3]),
    (lambda m, x: torch.add(input=m.channel, other=x, alpha=-2), [3]),
    (lambda m, x: (x - m.mean) / m.mean.exp(), [3, 3]),
    (lambda m, x: m.number * x + m.single, [1, 1]),
    (lambda m, x: x * m.channel, [3]),
    (lambda m, x: x * m.row, [24]),
    (lambda m, x: x * m.row.view(2, 2).sum(1).view(2, 1) - m.full, [24, 24]),
    (lambda m, x: torch.true_divide(x, m.full.exp()), [24]),
    (lambda m, x: x.mul(torch.tensor([1.0, 2, 3]).double().view(3, 1, 1)), [3]),
    (lambda m, x: x.flatten(1).mul(torch.arange(24)).view(x.shape), [24]),
    # nothing is left of these
    (lambda m, x: x + 0, []),
    (lambda m, x: sum([x]), []),
    (lambda m, x: torch.cat([x], 1), []),
]


@pytest.mark.parametrize(("forward", "entries"), SCALES)
def test_numbers_and_weights_are_scales(forward: Callable[..., Any], entries: list[int]) -> None:
    network = read(forward)
    assert network.is_chain
    scales = [o for o in network.operations if isinstance(o, Scale)]
    assert [len(o.weight) for o in scales] == entries
    assert all(o.bias is None or len(o.bias) == len(o.weight) for o in scales)


# forwards, and the coefficients of the sum
SUMS: list[tuple[Callable[..., Any], tuple[float, ...]]] = [
    (lambda m, x: x + x.relu(), (1, 1)),
    (lambda m, x: x - x.relu(), (1, -1)),
    (lambda m, x: torch.add(x.relu(), x, alpha=2), (1, 2)),
    (lambda m, x: torch.subtract(x, other=x.relu(), alpha=0.5), (1, -0.5)),
    (lambda m, x: torch.sub(other=x, input=x.relu()), (1, -1)),
    (lambda m, x: x.relu().add_(x), (1, 1)),
    (lambda m, x: sum((x, x.relu())), (1, 1)),
    # (3, 1, 1) to (3, 2, 4)
    (lambda m, x: x.mean((2, 3), keepdim=True) + x, (1, 1)),
]


@pytest.mark.parametrize(("forward", "coefficients"), SUMS)
def test_branches_are_summed(forward: Callable[..., Any], coefficients: tuple[float, ...]) -> None:
    network = read(forward)
    (found,) = [o for o in network.operations if isinstance(o, Sum)]
    assert found.coefficients == coefficients
    assert not network.is_chain


@pytest.mark.parametrize(
    ("forward", "axis"),
    [
        (lambda m, x: torch.cat((x, x.relu(), x), 3), 3),
        (lambda m, x: torch.concat([x.relu(), x], dim=-2), 2),
        (lambda m, x: torch.concatenate([x, x.relu()], axis=-1), 3),
    ],
)
def test_branches_are_concatenated(forward: Callable[..., Any], axis: int) -> None:
    network = read(forward)
    (found,) = [o for o in network.operations if isinstance(o, Concatenate)]
    assert found.axis == axis
    assert not network.is_chain


OPERANDS: dict[str, tuple[Any, ...]] = {"neg": (), "cat": ()}


@pytest.mark.parametrize("name", sorted(ARITHMETIC))
def test_each_spelling_is_read(name: str) -> None:
    functions = [f for f, (n, _) in ARITHMETIC_FUNCTIONS.items() if n == name]
    methods = [m for m, (n, _) in ARITHMETIC_METHODS.items() if n == name]
    assert functions
    assert methods or name == "cat"
    others = OPERANDS.get(name, (3.0,))
    for function in functions:
        if name == "cat":
            network = read(lambda m, x, f=function: f([x, x.relu()], 2))
        else:
            network = read(lambda m, x, f=function: f(x.relu(), *others))
        assert network.operations[-2].kind == name
    for method in methods:
        network = read(lambda m, x, f=method: getattr(x.relu(), f)(*others))
        assert network.operations[-2].kind == name


def test_a_weight_of_the_input_is_computed_in_its_dtype() -> None:
    model = Forward(lambda m, x: (x - 0.5) / 0.25 * m.channel)
    network = Network.from_module(model, randn(2, 3, 2, 4))
    for dtype in (torch.float32, torch.bfloat16):
        assert network(randn(2, 3, 2, 4).to(dtype)).dtype == dtype
    scale = network.operations[2]
    assert scale.name == "mul"
    x = randn(2, 3, 2, 4)
    torch.testing.assert_close(scale(x), x * model.channel, rtol=0, atol=0)
