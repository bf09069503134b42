"""Sums of order 1 and 2, and those without biases, against every path and against autograd."""

import itertools

import pytest
import torch
from torch import nn

from tests.observables.circuits.cases import NAMES, Concatenated, case, drawn, output_of
from tests.observables.circuits.checks import close_sums
from tests.observables.circuits.oracle import enumerate_paths
from torch_thermo.network import Network
from torch_thermo.observables.circuits import circuit_asymmetry, circuit_sums


def paths_of(small, output):
    return [enumerate_paths(small.model, x, output or 0) for x in small.inputs]


@pytest.mark.parametrize("pruned", [0.0, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_order_one_totals_equal_those_over_every_path(name, pruned):
    small, output = case(name, 2, pruned), output_of(name)
    sums = circuit_sums(small.network, small.inputs, output=output, moments=(), order_one=True)
    layers = len(sums.order_one)
    modules = small.model.modules()
    assert layers == sum(not isinstance(p, nn.PReLU) and has_weight(p) for p in modules)
    for layer, total in sums.order_one.items():
        terms = [
            [p.value * p.without(layer) for p in paths if layer in p.uses]
            for paths in paths_of(small, output)
        ]
        close_sums(total, terms)


@pytest.mark.parametrize("name", NAMES)
def test_order_two_totals_equal_those_over_every_path(name):
    small, output = case(name, 2, pruned=0.2), output_of(name)
    sums = circuit_sums(small.network, small.inputs, output=output, moments=(), order_two=True)
    paths = paths_of(small, output)
    layers = len({layer for each in paths for path in each for layer in path.uses})
    assert len(sums.order_two) == layers * (layers - 1) // 2
    for (one, other), total in sums.order_two.items():
        terms = [
            [p.value * p.without(one, other) for p in each if {one, other} <= p.uses.keys()]
            for each in paths
        ]
        close_sums(total, terms)


@pytest.mark.parametrize("pruned", [0.0, 0.15])
@pytest.mark.parametrize("name", ["biases", "batch_norm", "residual", "concatenation"])
def test_without_biases_no_path_starts_at_one(name, pruned):
    small = case(name, 2, pruned)
    sums = circuit_sums(small.network, small.inputs, order_one=True, order_two=True, biases=False)
    paths = [
        [p for p in enumerate_paths(small.model, x) if p.start is not None] for x in small.inputs
    ]
    terms = [[p.value * p.psi for p in each] for each in paths]
    alive = [sum(p.alive for p in each) for each in paths]
    assert sums.alive.tolist() == alive
    assert 0 < sum(alive) < circuit_sums(small.network, small.inputs).alive.sum()
    assert sums.signed.tolist() == [sum((t > 0) - (t < 0) for t in each) for each in terms]
    close_sums(sums.output, terms)
    close_sums(sums.absolute, [[abs(t) for t in each] for each in terms])
    for divided, total in {**sums.order_one, **sums.order_two}.items():
        names = (divided,) if isinstance(divided, str) else divided
        terms = [
            [p.value * p.without(*names) for p in each if set(names) <= p.uses.keys()]
            for each in paths
        ]
        close_sums(total, terms)


@pytest.mark.parametrize("name", NAMES)
def test_without_biases_the_sum_is_what_is_linear_in_the_inputs(name):
    small, output = case(name), output_of(name) or 0
    inputs = small.inputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(small.model(inputs)[:, output].sum(), inputs)
    linear = (inputs * slope).detach().flatten(1).sum(1)
    found = circuit_asymmetry(small.network, small.inputs, output=output, biases=False)
    sums = circuit_sums(small.network, small.inputs, output=output, biases=False)
    scale = sums.absolute
    assert ((found.output - linear).abs() <= 1e-12 * scale).all()
    assert torch.equal(found.output, sums.output)
    torch.testing.assert_close(found.mass_asymmetry, linear / scale, rtol=1e-10, atol=1e-12)


def has_weight(module):
    return getattr(module, "weight", None) is not None


WEIGHTED = [n for n in NAMES if n not in ("batch_norm", "classes")]


def weights_of(model):
    """By name. A path through BatchNorm has gamma / sqrt(var + eps) as its weight, not gamma."""
    layers = model.named_modules()
    return {n: m.weight for n, m in layers if isinstance(m, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("name", WEIGHTED)
def test_order_one_sums_are_the_entries_of_the_gradient(name):
    small = case(name, examples=1, pruned=0.2)
    weights = weights_of(small.model)
    gradients = torch.autograd.grad(small.model(small.inputs).sum(), list(weights.values()))
    totals = circuit_sums(small.network, small.inputs, order_one=True).order_one
    paths = enumerate_paths(small.model, small.inputs[0])
    for layer, gradient in zip(weights, gradients, strict=True):
        entries = torch.zeros(gradient.numel(), dtype=torch.float64)
        for path in paths:
            if layer in path.uses:
                entries[path.uses[layer][0]] += path.value * path.without(layer)
        torch.testing.assert_close(entries, gradient.flatten(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(totals[layer], gradient.sum()[None], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTED)
def test_order_two_sums_are_the_entries_of_the_hessian(name):
    small = case(name, examples=1, pruned=0.2)
    weights = weights_of(small.model)
    totals = circuit_sums(small.network, small.inputs, order_two=True).order_two
    paths = enumerate_paths(small.model, small.inputs[0])
    output, kept = small.model(small.inputs).sum(), list(weights.values())
    gradients = torch.autograd.grad(output, kept, create_graph=True)
    for (one, first), (other, second) in itertools.combinations(
        zip(weights, gradients, strict=True), 2
    ):
        rows = [
            torch.autograd.grad(entry, weights[other], retain_graph=True, allow_unused=True)[0]
            for entry in first.flatten()
        ]
        block = torch.stack([torch.zeros_like(second) if r is None else r for r in rows]).flatten(1)
        found = torch.zeros_like(block)
        for path in paths:
            if {one, other} <= path.uses.keys():
                entry = path.uses[one][0], path.uses[other][0]
                found[entry] += path.value * path.without(one, other)
        torch.testing.assert_close(found, block.detach(), rtol=1e-10, atol=1e-12)
        total = totals.get((one, other), totals.get((other, one)))
        scale = float(block.detach().abs().sum())
        assert abs(float(total) - float(block.detach().sum())) <= 1e-10 * scale


def test_a_layer_that_is_used_twice_gives_the_whole_gradient_and_hessian():
    shared = nn.Linear(4, 4, bias=False).double()
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 1).double())
    with torch.no_grad():
        shared.weight.copy_(torch.arange(16.0).reshape(4, 4) / 10 - 0.4)
    inputs = torch.ones(2, 4, dtype=torch.float64)
    network = Network.from_module(model, inputs)
    sums = circuit_sums(network, inputs, order_one=True, order_two=True)
    weights = shared.weight, model[4].weight
    gradients = torch.autograd.grad(model(inputs)[0].sum(), weights, create_graph=True)
    first, last = sums.order_one
    for name, gradient in zip((first, last), gradients, strict=True):
        assert gradient.sum() != 0
        torch.testing.assert_close(sums.order_one[name][0], gradient.sum().detach())
    own, other = torch.autograd.grad(gradients[0].sum(), weights)
    assert list(sums.order_two) == [(first, first), (first, last)]
    # both uses may be the first of the two that are derived
    torch.testing.assert_close(2 * sums.order_two[first, first][0], own.sum())
    torch.testing.assert_close(sums.order_two[first, last][0], other.sum())


def test_a_normalisation_that_several_stages_share():
    branches = [nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.LeakyReLU()) for _ in range(2)]
    layers = [nn.Conv2d(1, 2, 2, bias=False), nn.ReLU(), nn.BatchNorm2d(2)]
    tail = [nn.Flatten(), nn.Linear(8, 1, bias=False)]
    small = drawn(nn.Sequential(*layers, Concatenated(*branches), *tail), (2, 1, 3, 3), 0.0, 1)
    assert [node.operation.name for node in small.network.graph].count("2") == 2
    sums = circuit_sums(small.network, small.inputs, order_one=True, order_two=True)
    paths = paths_of(small, None)
    # branches are at no path together
    assert len(sums.order_two) == 5 * 4 // 2
    for divided, total in {**sums.order_one, **sums.order_two}.items():
        names = (divided,) if isinstance(divided, str) else divided
        terms = [
            [p.value * p.without(*names) for p in each if set(names) <= p.uses.keys()]
            for each in paths
        ]
        assert any(any(each) for each in terms) != (names == ("3.branches.0.0", "3.branches.1.0"))
        close_sums(total, terms)
