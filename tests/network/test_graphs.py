"""Networks with skip connections: what is read, and which stages they have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.network.branched import Basic, Bottleneck, Grown, PreActivation, ResNet, UNet
from tests.network.support import randn, randomised
from tests.network.test_stages import layout
from torch_thermo.network import Network
from torch_thermo.network.operations import Convolution, Dense


class Forward(nn.Module):
    """Layers whose forward is given."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.BatchNorm1d(4)
        self.wide = nn.Linear(8, 4)
        self.same = nn.Identity()
        self.own = forward

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.own(self, x)
        return y


def same(model: nn.Module, *shape: int) -> Network:
    """The network of a model, compared with it; its states are the one-step map's fixed point."""
    randomised(model)
    network = Network.from_module(model, randn(2, *shape))
    for batch in (1, 4):
        x = randn(batch, *shape, seed=6)
        expected = model.eval()(x.clone())
        tolerance = 1e-12 * float(expected.detach().abs().max())
        torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=tolerance)
    states, _ = network.states(x)
    for found, state in zip(network.one_step(x, states), states, strict=True):
        torch.testing.assert_close(found, state, rtol=0, atol=0)
    zeros = [torch.zeros_like(state) for state in states[:-1]]
    for found, state in zip(network.states(x, zeros)[0], states, strict=True):
        torch.testing.assert_close(found, state, rtol=0, atol=0)
    assert [s.shape[1:] for s in states] == [stage.shape for stage in network.stages]
    torch.testing.assert_close(along_the_graph(network, x), expected, rtol=1e-12, atol=tolerance)
    layers = [o for o in network.operations if isinstance(o, Dense | Convolution)]
    assert len({id(o) for o in layers}) == len(layers)
    return network


def along_the_graph(network: Network, x: Tensor) -> Tensor:
    """The output, each node computed from the values that `Network.graph` says it takes."""
    values = [x]
    for number, (operation, takes) in enumerate(network.graph):
        assert all(taken < number for taken in takes)
        values.append(operation(*(values[taken + 1] for taken in takes)))
    assert [node.operation for node in network.graph] == list(network.operations)
    return values[-1]


def read(forward: Callable[..., Any]) -> Network:
    return same(Forward(forward), 4)


def names(network: Network) -> list[tuple[str, tuple[int, ...]]]:
    return [(stage.name, stage.parents) for stage in network.stages]


# --- architectures


def test_a_block_of_a_resnet_is_two_stages() -> None:
    network = same(ResNet(Basic), 1, 8, 8)
    assert names(network) == [
        ("conv1", (-1,)),
        ("layer1.conv1", (0,)),
        ("layer1.conv2", (0, 1)),
        ("layer2.conv1", (2,)),
        ("layer2.conv2", (2, 3)),
        ("fc", (4,)),
    ]
    assert layout(network)[2] == ("MaxPool2d Conv2d BatchNorm2d add", "ReLU")
    # the shortcut's convolution is in the stage of the sum
    linear, activation = layout(network)[4]
    assert linear == "Conv2d BatchNorm2d Conv2d BatchNorm2d add"
    assert activation == "ReLU relu"
    assert layout(network)[5] == ("AdaptiveAvgPool2d flatten Linear", "")
    assert not network.is_chain
    assert not network.is_recurrent
    assert network.sizes == (64, 256, 64, 64, 24, 24, 3)


def test_a_bottleneck_is_three_stages() -> None:
    network = same(ResNet(Bottleneck), 1, 8, 8)
    assert names(network)[1:7] == [
        ("layer1.conv1", (0,)),
        ("layer1.conv2", (1,)),
        ("layer1.conv3", (0, 2)),
        ("layer2.conv1", (3,)),
        ("layer2.conv2", (4,)),
        ("layer2.conv3", (3, 5)),
    ]


def test_a_residual_stream_is_of_neurons_without_activation() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 2, 3, padding=1)
            self.blocks = nn.Sequential(PreActivation(2, 2), PreActivation(2, 2))
            self.head = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
            return y

    network = same(Stream(), 1, 5, 5)
    assert names(network) == [
        ("stem", (-1,)),
        ("blocks.0.bn1", (0,)),
        ("blocks.0.conv1", (1,)),
        ("blocks.0.conv2", (0, 2)),
        ("blocks.1.bn1", (3,)),
        ("blocks.1.conv1", (4,)),
        ("blocks.1.conv2", (3, 5)),
        ("head", (6,)),
    ]
    assert layout(network)[:5] == [
        ("Conv2d", ""),
        ("BatchNorm2d", "relu"),
        ("Conv2d BatchNorm2d", "relu"),
        ("Conv2d add", ""),
        ("BatchNorm2d", "relu"),
    ]


def test_concatenated_features_are_there_once() -> None:
    network = same(Grown(), 1, 6, 6)
    assert names(network) == [
        ("stem", (-1,)),
        ("norms.0", (0,)),
        ("layers.0", (1,)),
        ("norms.1", (0, 2)),
        ("layers.1", (3,)),
        ("norms.2", (0, 2, 4)),
        ("layers.2", (5,)),
        ("transition", (0, 2, 4, 6)),
        ("head", (7,)),
    ]
    assert [stage.shape[0] for stage in network.stages] == [2, 2, 3, 5, 3, 8, 3, 2, 3]


def test_an_encoder_and_decoder() -> None:
    network = same(UNet(), 1, 5, 5)
    assert [stage.parents for stage in network.stages] == [(-1,), (0,), (1,), (1, 2), (0, 3), (4,)]
    # concat([first, y]) and cat((y, second)) keep their orders
    assert [stage.wiring for stage in network.stages[3:5]] == [((1, 0), (-1,)), ((0, 1), (-1,))]


# --- where a stage ends


CASES: list[tuple[Callable[..., Any], list[tuple[int, ...]], list[tuple[str, str]]]] = [
    # skips over an activation, from the input to the output, over everything
    (
        lambda m, x: m.b(x + F.relu(m.a(x))),
        [(-1,), (-1, 0)],
        [("Linear", "relu"), ("add Linear", "")],
    ),
    (
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))) + x,
        [(-1,), (0,), (-1, 1)],
        [("Linear", "relu"), ("Linear", "relu"), ("Linear add", "")],
    ),
    (lambda m, x: torch.tanh(m.a(x) + x), [(-1,)], [("Linear add", "tanh")]),
    # the activation of what the sum takes is a stage's: the sum alone is the output
    (lambda m, x: x + F.relu(m.a(x)), [(-1,), (-1, 0)], [("Linear", "relu"), ("add", "")]),
    # nothing elementwise before the first layer is a stage
    (lambda m, x: m.a(x + F.relu(x)), [(-1,)], [("relu add Linear", "")]),
    (
        lambda m, x: m.a(F.relu(m.norm(x)) - x.tanh()),
        [(-1,)],
        [("BatchNorm1d relu tanh sub Linear", "")],
    ),
    # nor a normalisation there whose output is used twice, or a multiple of the input
    (
        lambda m, x: m.a(y := m.norm(x.tanh()).relu()) - m.b(y.sigmoid()),
        [(-1,)],
        [("tanh BatchNorm1d relu Linear sigmoid Linear sub", "")],
    ),
    (
        lambda m, x: m.a(y := m.norm(x.tanh())) - m.b(y.sigmoid()),
        [(-1,)],
        [("tanh BatchNorm1d Linear sigmoid Linear sub", "")],
    ),
    (
        lambda m, x: m.b(m.a(y := x / 255).tanh()) + y,
        [(-1,), (-1, 0)],
        [("div Linear", "tanh"), ("div Linear add", "")],
    ),
    (
        lambda m, x: m.b(m.a(y := (2 * x - 1).tanh()).tanh()) + y,
        [(-1,), (-1, 0)],
        [("mul sub tanh Linear", "tanh"), ("mul sub tanh Linear add", "")],
    ),
    (
        lambda m, x: m.b(m.a(y := x + x.tanh() / 2).tanh()) + y,
        [(-1,), (-1, 0)],
        [("tanh div add Linear", "tanh"), ("tanh div add Linear add", "")],
    ),
    # a layer whose output is used twice is a stage without an activation
    (
        lambda m, x: m.b(F.relu(y := m.a(x)) + y),
        [(-1,), (0,), (0, 1)],
        [("Linear", ""), ("", "relu"), ("add Linear", "")],
    ),
    # a normalisation behind an activation, used twice, and a reshape, are parts of the takers
    (
        lambda m, x: m.b(y := m.norm(m.a(x).relu())) + m.c(y).tanh(),
        [(-1,), (0,), (0, 1)],
        [("Linear", "relu"), ("BatchNorm1d Linear", "tanh"), ("BatchNorm1d Linear add", "")],
    ),
    # a sum of states, used twice, is a state, whether its terms are scaled or not
    (
        lambda m, x: m.c((y := x + m.a(x).tanh()) + m.b(y).tanh()),
        [(-1,), (-1, 0), (1,), (1, 2)],
        [("Linear", "tanh"), ("add", ""), ("Linear", "tanh"), ("add Linear", "")],
    ),
    (
        lambda m, x: m.c((y := x + m.a(x).tanh() / 2) + m.b(y).tanh()),
        [(-1,), (-1, 0), (1,), (1, 2)],
        [("Linear", "tanh"), ("div add", ""), ("Linear", "tanh"), ("add Linear", "")],
    ),
    (
        lambda m, x: (
            torch.tanh(m.b(y := m.a(x).relu().view(-1, 2, 2).flatten(1))) + m.c(y).sigmoid()
        ),
        [(-1,), (0,), (0,), (1, 2)],
        [
            ("Linear", "relu"),
            ("view flatten Linear", "tanh"),
            ("view flatten Linear", "sigmoid"),
            ("add", ""),
        ],
    ),
    # a sum without an activation before the next layer ends a stage, with its normalisation
    (
        lambda m, x: m.c(m.norm(m.a(x) + m.b(x))),
        [(-1,), (0,)],
        [("Linear Linear add BatchNorm1d", ""), ("Linear", "")],
    ),
    # two layers in a row on a branch
    (
        lambda m, x: F.relu(m.b(m.norm(m.a(x))) + x) - x,
        [(-1,), (-1, 0), (-1, 1)],
        [("Linear BatchNorm1d", ""), ("Linear add", "relu"), ("sub", "")],
    ),
    # what is concatenated and then meets a layer, or is used twice, becomes states
    (
        lambda m, x: m.wide(torch.cat([m.a(x), m.b(x)], 1)),
        [(-1,), (-1,), (0, 1)],
        [("Linear", ""), ("Linear", ""), ("cat Linear", "")],
    ),
    (
        lambda m, x: torch.cat([m.wide(y := torch.cat([m.a(x), x], 1)), y], 1),
        [(-1,), (-1, 0)],
        [("Linear", ""), ("cat Linear cat", "")],
    ),
    (
        lambda m, x: m.wide((y := torch.cat([m.a(x), x], 1)) - y.view(-1, 2, 4).flatten(1)),
        [(-1,), (-1, 0)],
        [("Linear", ""), ("cat view flatten sub Linear", "")],
    ),
    (
        lambda m, x: (
            m.wide(y := torch.cat([m.a(x), x], 1))
            + m.wide(z := y.view(-1, 2, 4).flatten(1))
            + m.wide(z.tanh())
        ),
        [(-1,), (-1, 0), (-1, 0, 1)],
        [
            ("Linear", ""),
            ("cat view flatten", "tanh"),
            ("cat Linear view flatten Linear add Linear add", ""),
        ],
    ),
    # a concatenation in front of an activation does not
    (
        lambda m, x: m.wide(torch.cat([m.a(x), m.b(x)], 1).relu()),
        [(-1,), (0,)],
        [("Linear Linear cat", "relu"), ("Linear", "")],
    ),
    # the activation at the end is the output's
    (
        lambda m, x: F.relu(m.a(x) + m.b(x).tanh()).view(-1, 2, 2).sigmoid(),
        [(-1,), (-1, 0)],
        [("Linear", "tanh"), ("Linear add", "relu view sigmoid")],
    ),
    # a layer that is called twice
    (
        lambda m, x: m.a(m.a(x).relu()).relu() + x,
        [(-1,), (0,), (-1, 1)],
        [("Linear", "relu"), ("Linear", "relu"), ("add", "")],
    ),
    # a value with itself
    (lambda m, x: m.b((y := m.a(x)) + y), [(-1,), (0,)], [("Linear add", ""), ("Linear", "")]),
    (lambda m, x: sum([m.a(x), m.b(x), x]), [(-1,)], [("Linear Linear add add", "")]),
]


@pytest.mark.parametrize(("forward", "parents", "expected"), CASES)
def test_splits(
    forward: Callable[..., Any],
    parents: list[tuple[int, ...]],
    expected: list[tuple[str, str]],
) -> None:
    network = read(forward)
    assert layout(network) == expected
    assert [stage.parents for stage in network.stages] == parents


def test_what_is_not_used_is_left_out() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        y: Tensor = m.a(x)
        unused = m.b(x).relu() + m.c(x)
        return y.view(unused.size(0), -1)

    network = read(forward)
    assert [o.kind for o in network.operations] == ["Linear"]
    assert network.is_chain


def test_names_are_those_of_the_main_path() -> None:
    network = read(lambda m, x: F.relu(m.c(y := m.a(x).tanh()) + m.b(m.norm(y).relu())))
    assert names(network) == [("a", (-1,)), ("norm", (0,)), ("b", (0, 1))]
    network = read(lambda m, x: F.relu(m.b(F.relu(m.norm(y := m.a(x).tanh()))) + m.c(y)))
    assert names(network) == [("a", (-1,)), ("norm", (0,)), ("b", (0, 1))]
    network = read(lambda m, x: m.b(F.relu(F.relu(m.a(x)).view(-1, 2, 2).flatten(1) + x)))
    assert names(network) == [("a", (-1,)), ("add", (-1, 0)), ("b", (1,))]


# --- residuals


def test_residuals_are_added_to_each_state() -> None:
    """x_l = f(y_l(x)) + r_l, by hand, for a skip over two layers."""
    model = randomised(Forward(lambda m, x: m.c(F.relu(m.b(y := m.a(x).tanh()) + y)) + x))
    network = Network.from_module(model, randn(2, 4))
    x, residuals = randn(5, 4), [randn(5, 4, seed=8), randn(5, 4, seed=9)]
    states, logits = network.states(x, residuals)
    first = model.a(x).tanh() + residuals[0]
    second = F.relu(model.b(first) + first) + residuals[1]
    for found, expected in zip(states, [first, second, model.c(second) + x], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert logits is states[-1]
    pre_activations = network.pre_activations(x, [2 * state for state in states])
    torch.testing.assert_close(
        pre_activations[1], model.b(2 * first) + 2 * first, rtol=1e-14, atol=1e-14
    )


@pytest.mark.parametrize("wrong", [(1, 4), (4,), (5, 1), (2, 5, 4)])
def test_shapes_are_not_broadcast(wrong: tuple[int, ...]) -> None:
    network = read(lambda m, x: m.b(m.a(x).relu()) + x)
    x, right = randn(5, 4), randn(5, 4)
    shapes = rf"of stage 'a' must be of shape \(5, 4\), got {re.escape(str(wrong))}"
    with pytest.raises(ValueError, match=f"residuals {shapes}"):
        network.states(x, [randn(*wrong)])
    with pytest.raises(ValueError, match=f"residuals {shapes}"):
        network.fixed_point(x, [randn(*wrong)])
    for function in (network.one_step, network.pre_activations):
        with pytest.raises(ValueError, match=f"states {shapes}"):
            function(x, [randn(*wrong), right])


@pytest.mark.parametrize("count", [1, 3])
def test_there_is_a_state_for_each_stage(count: int) -> None:
    network = read(lambda m, x: m.b(m.a(x).relu()) + x)
    for function in (network.one_step, network.pre_activations):
        with pytest.raises(
            ValueError, match=f"states must be one for each .* 2 stages, got {count}"
        ):
            function(randn(5, 4), [randn(5, 4)] * count)


# --- chains stay chains


def test_a_chain_has_no_wiring() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    network = same(model, 4)
    assert [stage.wiring for stage in network.stages] == [None, None]
    assert network.is_chain


def test_a_sum_within_one_stage_is_no_chain() -> None:
    network = read(lambda m, x: m.a(x) + x)
    assert network.stages[0].parents == (-1,)
    assert network.stages[0].wiring == ((0,), (-1, 0))
    assert not network.is_chain
