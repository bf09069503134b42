"""What is a weight of a circuit, and what it is called: names, constants, sums out of range."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_thermo.network import Network
from torch_thermo.observables.circuits import (
    circuit_asymmetry,
    circuit_sums,
    layer_marginals,
    sample_circuits,
)


class Forward(nn.Module):
    """A forward of the test's own, of two layers and a few parameters."""

    def __init__(self, forward, name="a"):
        super().__init__()
        self.called = forward
        self.add_module(name, nn.Linear(3, 3, bias=False))
        self.b = nn.Linear(3, 1, bias=False)
        self.g = nn.Parameter(torch.tensor([0.5, -2.0, 3.0]))
        self.w = nn.Parameter(torch.tensor([[0.5, -1.0, 2.0]] * 3))
        self.register_buffer("h", torch.ones(3))

    def forward(self, x):
        return self.called(self, x)


def read(forward, name="a"):
    torch.manual_seed(4)
    model = Forward(forward, name).double()
    inputs = torch.rand(2, 3, dtype=torch.float64) + 0.1
    return model, Network.from_module(model, inputs), inputs


def gradients(model, inputs, weight):
    return torch.stack([torch.autograd.grad(model(x[None]).sum(), weight)[0].sum() for x in inputs])


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("mul", lambda m, x: m.b(F.leaky_relu(m.mul(x) * 2, 0.1))),
        ("mul", lambda m, x: m.b(F.leaky_relu(m.mul(x * m.g), 0.1))),
        ("add", lambda m, x: m.b(F.leaky_relu(m.add(x) + 0.5, 0.1))),
        ("linear", lambda m, x: m.b(F.leaky_relu(F.linear(m.linear(x), m.w), 0.1))),
    ],
)
def test_a_function_and_a_module_of_one_name_are_kept_apart(name, forward):
    model, network, inputs = read(forward, name)
    sums = circuit_sums(network, inputs, order_one=True, order_two=True)
    expected = gradients(model, inputs, getattr(model, name).weight)
    torch.testing.assert_close(sums.order_one[name], expected)
    for _, parameter in model.named_parameters():
        if parameter is model.w and name == "linear":
            torch.testing.assert_close(
                sums.order_one["linear_1"], gradients(model, inputs, parameter)
            )
        if parameter is model.g and len(sums.order_one) == 3 and name == "mul":
            torch.testing.assert_close(sums.order_one["mul_1"], gradients(model, inputs, parameter))
    assert all(one != other for one, other in sums.order_two)
    names = [each.name for each in layer_marginals(network, inputs).operations]
    assert len(set(names)) == len(names)
    layers = sample_circuits(network, inputs, 2).layers
    assert set(layers) == set(sums.order_one)
    assert len(set(layers)) == len(layers)


def test_weights_of_one_module_are_kept_apart_and_one_used_twice_is_one():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))

        def forward(self, x):
            return F.linear(F.leaky_relu(F.linear(x, self.one), 0.2), self.two)

    torch.manual_seed(0)
    block = Block()
    model = nn.Sequential(block, nn.LeakyReLU(0.1), block, nn.Linear(3, 1)).double()
    inputs = torch.rand(2, 3, dtype=torch.float64)
    network = Network.from_module(model, inputs)
    sums = circuit_sums(network, inputs, order_one=True, order_two=True)
    assert list(sums.order_one) == ["0", "0_1", "3"]
    for name, weight in (("0", block.one), ("0_1", block.two)):
        torch.testing.assert_close(sums.order_one[name], gradients(model, inputs, weight))
    assert sample_circuits(network, inputs, 2).layers == ("0", "0_1", "0", "0_1", "3")


def test_blocks_of_a_matrix_are_kept_apart():
    weights = torch.rand(5, 5, generator=torch.Generator().manual_seed(1)).double().tril(-1)
    weights.requires_grad_()
    network = Network.from_matrix(weights, torch.rand(5).double(), torch.relu, 2, 1)
    inputs = torch.rand(2, 2).double()
    sums = circuit_sums(network, inputs, order_one=True, order_two=True)
    assert "output from input" in sums.order_one
    assert len(sums.order_one) == 6
    assert all(one != other for one, other in sums.order_two)
    slope = torch.autograd.grad(network(inputs[:1]).sum(), weights)[0]
    # the inputs' own rows are not read
    torch.testing.assert_close(
        torch.stack([*sums.order_one.values()])[:, 0].sum(), slope.tril(-1)[2:].sum()
    )
    marginals = layer_marginals(network, inputs)
    shares = {each.name: each.paths.total for each in marginals.operations}
    assert len(shares) == len(marginals.operations)
    assert all((share <= 1).all() for share in shares.values())


def test_numbers_in_the_forward_pass_are_no_weights():
    def forward(m, x):
        return -m.b(F.leaky_relu((m.a(x / 255) + 3) * 2 * torch.tensor(2.0), 0.1))

    model, network, inputs = read(forward)
    sums = circuit_sums(network, inputs, order_one=True, order_two=True)
    assert list(sums.order_one) == ["a", "b"]
    assert list(sums.order_two) == [("a", "b")]
    for name in ("a", "b"):
        expected = gradients(model, inputs, getattr(model, name).weight)
        torch.testing.assert_close(sums.order_one[name], expected)
    torch.testing.assert_close(sums.output, model(inputs)[:, 0].detach())
    sample = sample_circuits(network, inputs, 200, keep_paths=True)
    assert sample.layers == ("a", "b")
    assert sample.weights.shape == sample.paths.entries.shape == (200, 2)
    assert sample.most == 2
    # all other factors are numbers: -1, 2, 2 and the slope; 1/255, or the 3 where a path starts
    rest = sample.order(2)
    whole = sample.divided([0, 1])
    assert len(whole.sign) > 0
    assert (sample.inputs == 1).sum() == 200 - len(whole.sign)
    slope = torch.where(whole.values().abs() > 0.01, 1.0, 0.1).double()
    torch.testing.assert_close(whole.values(), -4 / 255 * slope)
    assert set(rest.values().tolist()) <= set(whole.values().tolist())
    assert circuit_sums(network, inputs, order_one=True, biases=False).output.isfinite().all()


def test_multiples_and_quotients_by_tensors_of_the_model_are_weights():
    model, network, inputs = read(lambda m, x: m.b(F.leaky_relu((x * m.g + m.h) / m.g, 0.1)))
    sums = circuit_sums(network, inputs, order_one=True)
    assert list(sums.order_one) == ["mul", "truediv", "b"]
    sample = sample_circuits(network, inputs, 200)
    found = {round(v, 9) for v in sample.weights[:, 1].tolist()}
    assert found == {round(1 / v, 9) for v in model.g.tolist()}
    assert (sample.inputs == 1).any()


def test_sums_of_terms_that_all_vanish_are_undefined():
    def chain(size):
        model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(4))).double()
        for layer in model:
            nn.init.constant_(layer.weight, size)
        inputs = torch.ones(1, 1, dtype=torch.float64)
        network = Network.from_module(model, inputs)
        return circuit_sums(network, inputs, moments=(1, 2, 3), order_one=True, order_two=True)

    sums = chain(1e-100)
    assert sums.alive.tolist() == [1.0]
    lost = [sums.absolute, sums.output, sums.mass_balance, *sums.moments.values()]
    assert all(each.isnan().all() for each in lost)
    # judged by themselves
    assert [each.item() for each in sums.order_one.values()] == pytest.approx([1e-300] * 4)
    assert "out of float64's range" in sums.reason
    sums = chain(1e-120)
    assert all(each.isnan().all() for each in sums.order_one.values())
    assert [each.item() for each in sums.order_two.values()] == pytest.approx([1e-240] * 6)
    sums = chain(1e-50)
    assert sums.output.item() == pytest.approx(1e-200)
    assert [math.isnan(each) for each in sums.moments.values()] == [False, True, True]


def test_terms_that_cancel_sum_to_zero():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    inputs = torch.ones(1, 2, dtype=torch.float64)
    sums = circuit_sums(Network.from_module(model, inputs), inputs, moments=(1, 3))
    assert (sums.output.item(), sums.moments[1].item(), sums.moments[3].item()) == (0, 0, 0)
    assert sums.reason is None


def test_an_output_of_several_axes_has_no_classes():
    model, inputs = nn.Conv2d(1, 3, 2).double(), torch.rand(2, 1, 3, 3).double()
    network = Network.from_module(model, inputs)
    for targets in (torch.tensor([0, 2]), torch.eye(12)[:2]):
        with pytest.raises(ValueError, match=r"an output of shape \(3, 2, 2\) has no one axis"):
            circuit_asymmetry(network, inputs, targets)
    assert circuit_sums(network, inputs, output=5).output.isfinite().all()
    pooled = nn.Sequential(nn.Conv2d(1, 3, 3)).double()
    found = circuit_asymmetry(Network.from_module(pooled, inputs), inputs, torch.tensor([0, 2]))
    torch.testing.assert_close(found.output, pooled(inputs).flatten(1)[[0, 1], [0, 2]].detach())


@pytest.mark.parametrize("order", [1, 2])
def test_the_weights_divided_out_are_drawn_apart_from_the_paths(order):
    torch.manual_seed(1)
    layers = [nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)]
    model, inputs = nn.Sequential(*layers).double(), torch.ones(1, 2, dtype=torch.float64)
    network = Network.from_module(model, inputs)
    sample = sample_circuits(network, inputs, 6000, keep_paths=True, seed=7)
    chosen = sample.order(order, seed=7).weights.isnan()
    # the first number drawn chooses where the first path goes: of one stream, number 3 i + k would
    # choose both path 3 i + k's way and whether weight k of path i is divided out
    assert len(chosen) == 6000
    ways = sample.paths.units[:, 1].bool()[:6000].reshape(-1, 3)
    for column in range(3):
        for one in (ways[:, column], ways[:, 0]):
            here, there = chosen[:2000, column][one].double(), chosen[:2000, column][~one].double()
            assert 800 < len(here) < 1200
            assert abs(here.mean() - there.mean()) < 4 * math.sqrt(2 * 0.25 / 800)


def test_no_circuit_of_an_order_has_a_reason():
    model, inputs = nn.Linear(3, 1, bias=False).double(), torch.ones(1, 3, dtype=torch.float64)
    sample = sample_circuits(Network.from_module(model, inputs), inputs, 20, order=2)
    assert len(sample.sign) == 0
    assert sample.reason == "no path was drawn from which 2 of its weights can be divided out"
    assert sample_circuits(Network.from_module(model, inputs), inputs, 20, order=1).reason is None
