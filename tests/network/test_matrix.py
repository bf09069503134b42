"""Networks from one matrix of weights: levels, blocks, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.network.support import randn, randomised
from torch_thermo.network import Network, StepDerivative
from torch_thermo.network.operations import Elementwise
from torch_thermo.systems import TanhMLP

CLOSE = {"rtol": 1e-14, "atol": 1e-14}


def whole_matrix(model: TanhMLP) -> tuple[Tensor, Tensor]:
    """The weights of a chain as one matrix, and its biases; noise in the rows of the input."""
    sizes = model.sizes
    w, b = torch.zeros(sum(sizes), sum(sizes)).double(), torch.zeros(sum(sizes)).double()
    w[: sizes[0]], b[: sizes[0]] = randn(sizes[0], sum(sizes), seed=3), randn(sizes[0], seed=4)
    row, column = sizes[0], 0
    for layer in model.layers:
        if isinstance(layer, nn.Linear):
            rows = slice(row, row + layer.out_features)
            w[rows, column:row], b[rows] = layer.weight.detach(), layer.bias.detach()
            column, row = row, rows.stop
    return w, b


@pytest.fixture
def mlp() -> TanhMLP:
    model = TanhMLP((5, 4, 3, 2))
    randomised(model)
    return model


def test_a_chain_is_read_as_its_module(mlp: TanhMLP) -> None:
    w, b = whole_matrix(mlp)
    x = randn(6, 5)
    ours = Network.from_matrix(w, b, torch.tanh, inputs=5, outputs=2)
    theirs = Network.from_module(mlp, x)
    assert ours.is_chain
    assert [s.name for s in ours.stages] == ["hidden 1", "hidden 2", "output"]
    assert (ours.sizes, ours.input_shape, ours.output_shape) == ((5, 4, 3, 2), (5,), (2,))
    assert ours.order.tolist() == list(range(14))
    residuals = [randn(6, 4, seed=8), randn(6, 3, seed=9)]
    for r in (None, residuals):
        states, logits = ours.states(x, r)
        expected, expected_logits = theirs.states(x, r)
        torch.testing.assert_close(states, expected, **CLOSE)
        torch.testing.assert_close(logits, expected_logits, **CLOSE)
    one = [s[:1] for s in states]
    derivatives = [StepDerivative(network, x[:1], one) for network in (ours, theirs)]
    v = randn(14, 3)
    for method in ("forward", "reverse", "solve", "solve_transposed"):
        a, c = (d.flatten(getattr(d, method)(d.unflatten(v))) for d in derivatives)
        torch.testing.assert_close(a, c, **CLOSE)


def test_permuted_neurons_and_indices_in_any_order(mlp: TanhMLP) -> None:
    w, b = whole_matrix(mlp)
    place = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    back = place.argsort()
    inputs, outputs = back[:5], back[12:].flip(0)
    network = Network.from_matrix(w[place][:, place], b[place], nn.Tanh(), inputs, outputs.tolist())
    assert network.sizes == (5, 4, 3, 2)
    assert network.order[:5].tolist() == inputs.tolist()
    assert network.order[12:].tolist() == outputs.tolist()
    assert sorted(network.order.tolist()) == list(range(14))
    x = randn(3, 5)
    with torch.no_grad():
        torch.testing.assert_close(network(x), mlp(x).flip(1), **CLOSE)


def test_skips_lead_to_stages_with_several_parents() -> None:
    # input 0 -> 1 -> 2 -> 3, with 0 -> 2, 0 -> 3 and 1 -> 3; 4 has its bias alone
    w = torch.zeros(5, 5).double()
    w[1, 0], w[2, 1], w[2, 0], w[3, 2], w[3, 0], w[3, 1], w[3, 4] = torch.arange(1.0, 8) / 3
    b = randn(5)
    network = Network.from_matrix(w, b, torch.tanh, [0], [3])
    assert [s.parents for s in network.stages] == [(-1,), (-1, 0), (-1, 0, 1)]
    assert network.order.tolist() == [0, 1, 4, 2, 3]
    assert not network.is_chain
    assert not network.is_recurrent
    x = randn(2, 1)
    one = torch.tanh(w[1, 0] * x + b[1])
    two = torch.tanh(w[2, 1] * one + w[2, 0] * x + b[2])
    four = torch.tanh(b[4])
    three = torch.tanh(w[3, 2] * two + w[3, 0] * x + w[3, 1] * one + w[3, 4] * four + b[3])
    torch.testing.assert_close(network(x), three, **CLOSE)


def test_no_hidden_neuron() -> None:
    w, b = torch.zeros(3, 3).double(), randn(3)
    w[2, :2] = randn(2)
    network = Network.from_matrix(w, b, torch.sigmoid, slice(0, 2), slice(2, None))
    assert len(network.stages) == 1
    x = randn(4, 2)
    expected = torch.sigmoid(x @ w[2:, :2].T + b[2])
    torch.testing.assert_close(network(x), expected, **CLOSE)


def test_weights_are_live() -> None:
    w = nn.Parameter(torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    b = nn.Parameter(torch.zeros(3))
    network = Network.from_matrix(w, b, torch.tanh, 1, 1)
    assert [id(p) for p in network.parameters()] == [id(w), id(b)]
    assert (network.dtype, network.device) == (torch.float32, w.device)
    x = torch.tensor([[1.0]])
    before = network(x)
    before.sum().backward()
    hidden = torch.tanh(torch.tensor(0.5))
    slope = 1 - before.item() ** 2
    assert w.grad[2, 1].item() == pytest.approx(slope * hidden.item())
    assert b.grad[2].item() == pytest.approx(slope)
    with torch.no_grad():
        w[2, 1] = -2
    torch.testing.assert_close(network(x), -before)


def test_what_makes_it_recurrent() -> None:
    chain = torch.zeros(4, 4)
    chain[1, 0] = chain[2, 1] = chain[3, 2] = 0.5

    def parents(*entries: tuple[int, int]) -> list[tuple[int, ...]]:
        w = chain.clone()
        for entry in entries:
            w[entry] = 0.25
        network = Network.from_matrix(w, torch.zeros(4), torch.tanh, 1, 1)
        assert network.is_recurrent == (len(network.stages) == 2)
        return [stage.parents for stage in network.stages]

    assert parents() == [(-1,), (0,), (1,)]
    assert parents((1, 2)) == [(-1, 0), (0,)]
    assert parents((1, 1)) == [(-1, 0), (0,)]
    # no cycle, and yet an output that is read by an output or by a hidden neuron
    w = chain.clone()
    network = Network.from_matrix(w, torch.zeros(4), torch.tanh, 1, [2, 3])
    assert [s.parents for s in network.stages] == [(-1,), (0, 1)]
    assert network.is_recurrent
    with pytest.raises(ValueError, match="recurrent network is no graph"):
        _ = network.graph
    network = Network.from_matrix(w, torch.zeros(4), torch.tanh, 1, [2])
    assert [s.parents for s in network.stages] == [(-1, 1), (0,)]
    # 1 is read by 2, and 2 by 3: one hidden stage, although there is a path of length 2
    network = Network.from_matrix(w, torch.zeros(4), torch.tanh, 1, [1])
    assert [s.name for s in network.stages] == ["hidden", "output"]
    assert [s.parents for s in network.stages] == [(0, 1), (-1,)]


def test_the_tables_gates_are_kept() -> None:
    w = torch.tensor([[0.0, 0.0], [2.0, 0.0]])

    def read(activation: Any) -> Elementwise:
        network = Network.from_matrix(w, torch.zeros(2), activation, 1, 1)
        (operation,) = network.stages[0].activation
        return operation

    for activation in (torch.relu, F.relu, nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2)):
        assert read(activation).homogeneous
    assert read(nn.LeakyReLU(0.2))(torch.tensor([-1.0])).item() == pytest.approx(-0.2)
    assert read(F.leaky_relu)(torch.tensor([-1.0])).item() == pytest.approx(-0.01)
    own = read(lambda x: x * torch.sigmoid(x))
    assert not own.homogeneous
    assert own.kind == "<lambda>"
    prelu = nn.PReLU()
    network = Network.from_matrix(w, torch.zeros(2), prelu, 1, 1)
    assert [id(p) for p in network.parameters()] == [id(prelu.weight)]
    identity = Network.from_matrix(w, torch.zeros(2), nn.Identity(), 1, 1)
    assert identity.stages[0].activation == ()


W = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1.0, 2.0, 0.0]])
B = torch.zeros(3)


def scaled(x: Tensor) -> Tensor:
    return x / x.abs().sum()


def by_place(x: Tensor) -> Tensor:
    return x * torch.arange(5)


def in_place(x: Tensor) -> Tensor:
    return x.mul_(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w": W[:2]}, r"w must be a square matrix \(N, N\), got \(2, 3\)"),
        ({"w": W.int()}, "w must be floating-point numbers, got torch.int32"),
        ({"w": W > 0}, "w must be floating-point numbers, got torch.bool"),
        ({"w": W[:1, :1], "b": B[:1]}, r"w must be of at least 2 neurons.*got \(1, 1\)"),
        ({"b": B.long()}, "b must be floating-point numbers, got torch.int64"),
        ({"b": B[:2]}, r"b must be of shape \(3,\), as w has rows, got \(2,\)"),
        ({"w": W / torch.tensor([1.0, 0.0, 1.0])}, r"w must be finite, got nan at \(0, 1\)"),
        ({"b": B + torch.inf}, r"b must be finite, got inf at \(0,\)"),
        ({"inputs": 3}, "inputs must be from 1 to 2 of 3 neurons, got 3"),
        ({"inputs": 0}, "inputs must be from 1 to 2"),
        ({"inputs": True}, "inputs must be neurons' numbers or how many, got True"),
        ({"inputs": []}, "inputs must be at least 1 neuron, got none"),
        ({"inputs": slice(2, 1)}, "inputs must be at least 1 neuron"),
        ({"inputs": [0, 3]}, "inputs must be whole numbers from 0 to 2, got 3"),
        ({"inputs": [-1]}, "inputs must be whole numbers from 0 to 2, got -1"),
        ({"inputs": [0.0]}, "inputs must be whole numbers from 0 to 2, got 0.0"),
        ({"inputs": [True]}, "inputs must be whole numbers from 0 to 2, got True"),
        ({"inputs": torch.tensor([True, False, False])}, "inputs must be whole numbers, got torch"),
        ({"inputs": torch.tensor([0.0])}, "inputs must be whole numbers, got torch.float32"),
        ({"outputs": torch.tensor(1)}, r"outputs must be whole numbers, got torch.int64 of shape"),
        ({"outputs": [2, 2]}, r"outputs must be different neurons, got \[2, 2\]"),
        ({"inputs": 2, "outputs": 2}, r"inputs and outputs must be different.* both have \[1\]"),
        ({"activation": nn.Softmax(1)}, "activation must be elementwise; Softmax"),
        ({"activation": scaled}, "activation must be elementwise; scaled"),
        ({"activation": by_place}, "activation must be elementwise; by_place"),
        ({"activation": nn.Dropout(0.5).forward}, "activation must be elementwise; forward"),
        ({"activation": torch.sum}, "activation must be elementwise; sum"),
        ({"activation": in_place}, "leave its input as it is; in_place works in place"),
        ({"activation": nn.Linear(5, 5)}, "activation must take each number.*Linear"),
        ({"activation": nn.Dropout(0.5).eval()}, "Dropout is no activation"),
        ({"activation": nn.Flatten()}, "Flatten is no activation"),
        ({"activation": nn.BatchNorm1d(5).eval()}, "BatchNorm1d is no activation"),
        ({"activation": nn.PReLU(3)}, "activation must take each number by itself; PReLU fails"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    given = {"w": W, "b": B, "activation": torch.tanh, "inputs": 1, "outputs": 1}
    with pytest.raises(ValueError, match=message):
        Network.from_matrix(**(given | arguments))


def test_numbers_of_numpy() -> None:
    w = randn(4, 4)
    expected = Network.from_matrix(w, randn(4), torch.tanh, [0, 1], [3]).order
    for inputs, outputs in (
        (np.array([0, 1]), np.array([3])),
        (list(np.array([0, 1])), [torch.tensor(3)]),
        (np.int64(2), np.int32(1)),
    ):
        found = Network.from_matrix(w, randn(4), torch.tanh, inputs, outputs).order
        assert found.tolist() == expected.tolist()
    with pytest.raises(ValueError, match="inputs must be whole numbers from 0 to 3, got"):
        Network.from_matrix(w, randn(4), torch.tanh, np.array([True, False]), [3])


def test_an_activation_that_draws_leaves_the_generators() -> None:
    before = torch.get_rng_state()
    Network.from_matrix(W, B, lambda x: torch.tanh(x) + 0 * torch.rand_like(x), 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_refuses_other_kinds() -> None:
    for name in ("inputs", "outputs"):
        given: dict[str, Any] = {"inputs": 1, "outputs": 1, name: None}
        with pytest.raises(TypeError, match=f"{name} must be .*how many, got NoneType"):
            Network.from_matrix(W, B, torch.tanh, **given)
    with pytest.raises(TypeError, match=r"activation must be no class: give Tanh\(\), an object"):
        Network.from_matrix(W, B, nn.Tanh, 1, 1)
    with pytest.raises(TypeError, match="w must be a tensor, got list"):
        Network.from_matrix([[0.0]], B, torch.tanh, 1, 1)
    with pytest.raises(TypeError, match="activation must be callable, got str"):
        Network.from_matrix(W, B, "tanh", 1, 1)
