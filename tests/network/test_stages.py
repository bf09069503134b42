"""How operations are split into stages, and the stages' states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.network.support import LeNet, randn, randomised, read
from torch_thermo.network import Network
from torch_thermo.systems import VGG, TanhMLP


def layout(network: Network) -> list[tuple[str, str]]:
    """The kinds of operations before and behind each pre-activation."""
    return [
        (" ".join(o.kind for o in stage.linear), " ".join(o.kind for o in stage.activation))
        for stage in network.stages
    ]


def test_tanh_mlp() -> None:
    network = Network.from_module(TanhMLP((12, 5, 4, 3)), torch.zeros(2, 3, 4))
    assert [stage.name for stage in network.stages] == ["layers.0", "layers.2", "layers.4"]
    assert [stage.parents for stage in network.stages] == [(-1,), (0,), (1,)]
    assert network.is_chain
    assert network.sizes == (12, 5, 4, 3)
    assert network.neurons == 24
    assert network.input_shape == (3, 4)
    assert network.output_shape == (3,)
    assert layout(network) == [("flatten Linear", "Tanh"), ("Linear", "Tanh"), ("Linear", "Tanh")]
    assert repr(network) == "Network(12 - 5 - 4 - 3)"


def test_vgg_folds_pools_into_the_next_stage() -> None:
    network = Network.from_module(VGG(), torch.zeros(2, 1, 32, 32))
    assert len(network.stages) == 10
    assert layout(network)[:3] == [
        ("Conv2d", "ReLU"),
        ("MaxPool2d Conv2d", "ReLU"),
        ("MaxPool2d Conv2d", "ReLU"),
    ]
    assert layout(network)[-2:] == [("MaxPool2d flatten Linear", "ReLU"), ("Linear squeeze", "")]
    assert network.output_shape == ()
    assert network.sizes[0] == 1024
    assert network.sizes[-1] == 1


def test_functions_and_batch_norm() -> None:
    network = read(LeNet().double(), 2, 1, 8, 8)
    assert [stage.name for stage in network.stages] == ["first", "second", "hidden", "last"]
    assert layout(network) == [
        ("Conv2d BatchNorm2d", "relu"),
        ("max_pool2d Conv2d", "tanh"),
        ("avg_pool2d view Linear", "relu"),
        ("linear", ""),
    ]


CASES: list[tuple[list[nn.Module], list[tuple[str, str]]]] = [
    # two layers without an activation between; the normalisation stays with its layer
    (
        [nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.AvgPool1d(2), nn.Conv1d(3, 2, 1)],
        [("Conv1d BatchNorm1d", ""), ("AvgPool1d Conv1d", "")],
    ),
    # a normalisation behind an activation goes to the next stage
    (
        [nn.Conv1d(2, 3, 1), nn.ReLU(), nn.BatchNorm1d(3), nn.Conv1d(3, 2, 1), nn.ReLU()],
        [("Conv1d", "ReLU"), ("BatchNorm1d Conv1d", "ReLU")],
    ),
    # between two activations it can't: the pre-activation is the layer's
    (
        [nn.Conv1d(2, 3, 1), nn.ReLU(), nn.BatchNorm1d(3), nn.Tanh(), nn.Conv1d(3, 2, 1)],
        [("Conv1d", "ReLU BatchNorm1d Tanh"), ("Conv1d", "")],
    ),
    # a pool before the activation is a part of the pre-activation
    (
        [nn.Conv1d(2, 3, 1), nn.MaxPool1d(2), nn.ReLU(), nn.Conv1d(3, 2, 1)],
        [("Conv1d MaxPool1d", "ReLU"), ("Conv1d", "")],
    ),
    # what precedes the first layer, and what trails the last
    (
        [nn.Tanh(), nn.AvgPool1d(2), nn.Conv1d(2, 3, 1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten()],
        [("Tanh AvgPool1d Conv1d", "ReLU AvgPool1d Flatten")],
    ),
    (
        [nn.Conv1d(2, 3, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten()],
        [("Conv1d AdaptiveAvgPool1d Flatten", "")],
    ),
]


@pytest.mark.parametrize(("modules", "expected"), CASES)
def test_splits(modules: list[nn.Module], expected: list[tuple[str, str]]) -> None:
    model = randomised(nn.Sequential(*modules))
    network = read(model, 2, 2, 8)
    assert layout(network) == expected
    x = randn(3, 2, 8, seed=4)
    y = model.eval()(x)
    assert network.output_shape == y.shape[1:]
    torch.testing.assert_close(network(x), y, rtol=1e-13, atol=1e-13)
    assert [operation.kind for operation in network.operations] == [
        type(module).__name__ for module in modules
    ]
    states, logits = network.states(x)
    assert [s.shape[1:] for s in states] == [stage.shape for stage in network.stages]
    torch.testing.assert_close(network.output_activation(logits), states[-1], rtol=0, atol=0)


def hooked(model: nn.Module, names: list[str], x: Tensor) -> list[Tensor]:
    """What the modules of these names give."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.update({name: output})
        )
        for name in names
    ]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def test_states_are_what_hooks_see() -> None:
    model = randomised(VGG())
    network = Network.from_module(model, randn(2, 1, 32, 32))
    x = 1e-2 * randn(2, 1, 32, 32, seed=3)
    states, logits = network.states(x)
    relus = [o.name for stage in network.stages for o in stage.activation]
    expected = hooked(model, [*relus, "classifier.2"], x)
    for state, seen in zip(states[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(state, seen, rtol=1e-13, atol=0)
    torch.testing.assert_close(logits, expected[-1].squeeze(1), rtol=1e-13, atol=0)
    zeros = [torch.zeros_like(state) for state in states[:-1]]
    for state, same in zip(network.states(x, zeros)[0], states, strict=True):
        torch.testing.assert_close(state, same, rtol=0, atol=0)


def test_residuals_are_added_to_the_hidden_states() -> None:
    """x_l = f(W x_{l-1} + b) + r_l, by hand."""
    model = randomised(TanhMLP((3, 4, 5, 2)))
    network = Network.from_module(model, randn(2, 3))
    x, residuals = randn(6, 3), [randn(6, 4, seed=8), randn(6, 5, seed=9)]
    states, logits = network.states(x, residuals)
    layers = [model.layers[i] for i in (0, 2, 4)]
    first = layers[0](x).tanh() + residuals[0]
    second = layers[1](first).tanh() + residuals[1]
    for state, expected in zip(states, [first, second, layers[2](second).tanh()], strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(logits, layers[2](second), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_residuals_as_hidden_stages(count: int) -> None:
    network = Network.from_module(TanhMLP((3, 4, 5, 2)), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=f"each of the 2 hidden stages, got {count}"):
        network.states(torch.zeros(1, 3), [torch.zeros(1, 4)] * count)
