"""Shares of the paths and of their mass, against every path."""

import math

import pytest
import torch
from torch import nn

from tests.network.branched import Basic, ResNet
from tests.network.support import randn, randomised
from tests.observables.circuits.cases import NAMES, case, output_of
from tests.observables.circuits.oracle import enumerate_paths
from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.observables.circuits import circuit_sums, layer_marginals, sample_circuits
from torch_thermo.observables.circuits import paths as circuit_paths


def close(values, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12, equal_nan=True)


def before(path, step):
    """The name of what a path passes before a step: None where it starts there."""
    if step:
        return path.visits[step - 1][0]
    return None if path.start is None else "input"


def expected_shares(paths, name, shape, sources, weight):
    """Shares through an operation by unit, those that start there, and by source, of one example.

    Args:
        paths: all alive ones.
        name: of the operation.
        shape: of an example of its result.
        sources: names of what it takes.
        weight: of a path.
    """
    units = torch.zeros(math.prod(shape), dtype=torch.float64)
    started, by_source = 0.0, dict.fromkeys(sources, 0.0)
    for path in paths:
        visits = {each: (step, unit) for step, (each, unit) in enumerate(path.visits)}
        if name == "input" and path.start is not None:
            units[path.start] += weight(path)
        if name not in visits:
            continue
        step, unit = visits[name]
        units[unit] += weight(path)
        source = before(path, step)
        if source is None:
            started += weight(path)
        else:
            by_source[source] += weight(path)
    total = math.fsum(map(weight, paths))
    return (
        units.reshape(shape) / total,
        started / total,
        [share / total for share in by_source.values()],
    )


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_shares_are_those_of_every_path(name, biases):
    small, output = case(name, 2, pruned=0.05), output_of(name)
    given = {"output": output, "biases": biases}
    by_unit = layer_marginals(small.network, small.inputs, **given, units=True)
    by_channel = layer_marginals(small.network, small.inputs, **given)
    assert len(by_unit.operations) == len(small.network.graph) + 1
    sums = circuit_sums(small.network, small.inputs, **given)
    assert torch.equal(by_unit.alive, sums.alive)
    close(by_unit.absolute, sums.absolute)
    found = 0
    for example, x in enumerate(small.inputs):
        paths = [
            path
            for path in enumerate_paths(small.model, x, output or 0)
            if path.alive and (biases or path.start is not None)
        ]
        for units, channels in zip(by_unit.operations, by_channel.operations, strict=True):
            assert (units.name, units.kind) == (channels.name, channels.kind)
            for what, weight in (
                ("paths", lambda path: 1.0),
                ("mass", lambda path: abs(path.value * path.psi)),
            ):
                ours, coarse = getattr(units, what), getattr(channels, what)
                if not paths:
                    assert ours.units[example].isnan().all()
                    continue
                shape = ours.units.shape[1:]
                each, started, by_source = expected_shares(
                    paths, units.name, shape, units.sources, weight
                )
                found += 1
                close(ours.units[example], each)
                close(coarse.units[example], each.flatten(1).sum(1) if each.dim() > 1 else each)
                close(ours.total[example], each.sum())
                close(ours.started[example], started)
                close(ours.branches[example], by_source)
                close(coarse.branches[example], by_source)
    assert found


@pytest.mark.parametrize("name", ["mlp", "conv_max_pool", "strided", "average_pool"])
def test_in_a_chain_without_biases_all_pass_all(name):
    small = case(name)
    for operation in layer_marginals(small.network, small.inputs).operations:
        for shares in (operation.paths, operation.mass):
            close(shares.total, torch.ones(3))
            close(shares.started, torch.zeros(3))
            close(shares.branches.sum(1), torch.full((3,), float(operation.name != "input")))


def test_drawn_paths_pass_units_as_often():
    small = case("residual", examples=2, seed=10)
    exact = layer_marginals(small.network, small.inputs, units=True).operations[1:]
    sample = sample_circuits(small.network, small.inputs, 20_000, keep_paths=True)
    for example in range(2):
        units = sample.paths.units[sample.examples == example]
        for number, operation in enumerate(exact):
            shares = operation.paths.units[example].flatten()
            here = units[:, number][units[:, number] >= 0]
            counted = here.bincount(minlength=len(shares)) / len(units)
            assert (counted - shares).abs().max() < 4 * 0.5 / math.sqrt(10_000)


class Doubled(nn.Module):
    """`x + x - 3 |x|`, where one value is taken three times."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 1, bias=False)
        self.last = nn.Linear(1, 1, bias=False)

    def forward(self, x):
        x = self.first(x)
        x = torch.add(x + x, nn.functional.leaky_relu(x, -1.0), alpha=-3)
        return self.last(x)


def test_a_value_that_is_taken_twice():
    model = Doubled().double()
    nn.init.ones_(model.first.weight)
    nn.init.ones_(model.last.weight)
    inputs = torch.tensor([[1.0, 2.0], [-1.0, 0.0]], dtype=torch.float64)
    found = layer_marginals(Network.from_module(model, inputs), inputs)
    assert found.alive.tolist() == [6, 3]
    assert found.absolute.tolist() == [15, 5]
    shares = {operation.name: operation for operation in found.operations}
    close(shares["add"].paths.branches, [[1 / 3, 1 / 3]] * 2)
    close(shares["add"].mass.branches, [[0.2, 0.2]] * 2)
    close(shares["add_1"].paths.branches, [[2 / 3, 1 / 3]] * 2)
    close(shares["add_1"].mass.branches, [[0.4, 0.6]] * 2)
    close(shares["first"].mass.total, [1.0, 1.0])
    close(shares["input"].mass.units, [[1 / 3, 2 / 3], [1.0, 0.0]])


def test_an_operation_that_several_stages_share_is_there_once():
    model = randomised(ResNet(Basic)).eval()
    inputs = randn(2, 1, 8, 8)
    network = Network.from_module(model, inputs)
    found = layer_marginals(network, inputs, output=0)
    names = [operation.name for operation in found.operations]
    assert [node.operation.name for node in network.graph].count("maxpool") == 2
    assert names.count("maxpool") == 1
    pool = names.index("maxpool")
    for what in ("paths", "mass"):
        after, up_to = (getattr(found.operations[k], what) for k in (pool, pool - 1))
        close(after.total, up_to.total)
        close(after.units, up_to.units)
        assert ((after.total > 0) & (after.total < 1)).all()


@pytest.mark.parametrize("at_once", [1, 60])
def test_examples_do_not_depend_on_how_many_are_taken_at_once(at_once, monkeypatch):
    small = case("residual", 4)
    whole = layer_marginals(small.network, small.inputs)
    monkeypatch.setattr(circuit_paths, "_STATES_AT_ONCE", at_once)
    parts = layer_marginals(small.network, small.inputs)
    for one, other in zip(whole.operations, parts.operations, strict=True):
        for what in ("paths", "mass"):
            for field in ("total", "started", "units", "branches"):
                close(getattr(getattr(one, what), field), getattr(getattr(other, what), field))


def test_a_dead_example_is_nan_with_a_reason():
    small = case("mlp")
    inputs = small.inputs.clone()
    inputs[1] = 0.0
    found = layer_marginals(small.network, inputs)
    assert found.alive[1] == 0
    for operation in found.operations:
        for shares in (operation.paths, operation.mass):
            for values in (shares.total, shares.started, shares.units):
                assert values[1].isnan().all()
                assert values[[0, 2]].isfinite().all()
    assert found.reason == "1 of 3 examples: no path is alive, so that shares are undefined"
    inputs[1] = math.nan
    found = layer_marginals(small.network, inputs)
    assert found.operations[-1].mass.total.isnan().tolist() == [False, True, False]
    assert found.reason == "1 of 3 examples: the output is not finite"


def deep(layers, width=10):
    """Layers of so many units, all of whose weights are .1."""
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))).double()
    for layer in model:
        nn.init.constant_(layer.weight, 0.1)
    return model


def test_more_paths_than_float64_counts_are_nan_with_a_reason():
    inputs = torch.ones(1, 10, dtype=torch.float64)
    found = layer_marginals(Network.from_module(deep(310), inputs), inputs, output=0)
    assert found.reason == "1 of 1 examples: a sum is out of float64's range"
    for operation in found.operations:
        assert operation.paths.total.isnan().all()
        close(operation.mass.total, [1.0])


def test_more_ways_on_from_a_dead_unit_than_float64_counts_are_nan_with_a_reason():
    # two inputs, the second is 0: the first goes on alone, the second to 10 units, each to each
    model = nn.Sequential(
        nn.Linear(2, 11, bias=False), *deep(310, 11)[:-1], nn.Linear(11, 1, False)
    )
    model.double()
    with torch.no_grad():
        for layer in model[1:-1]:
            layer.weight[0] = layer.weight[:, 0] = 0.0
            layer.weight[0, 0] = 1.0
        model[0].weight[0, 1] = 0.0
        model[0].weight[1:, 0] = 0.0
    inputs = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    network = Network.from_module(model, inputs)
    assert circuit_sums(network, inputs).alive.item() == 1
    found = layer_marginals(network, inputs)
    assert found.operations[0].paths.total.isnan().all()
    close(found.operations[0].mass.total, [1.0])
    assert found.reason == "1 of 1 examples: a sum is out of float64's range"


def test_the_model_and_its_gradients_stay_as_they_are():
    small = case("residual")
    small.model.requires_grad_(True)
    small.inputs.requires_grad_()
    found = layer_marginals(small.network, small.inputs)
    assert all(parameter.grad is None for parameter in small.model.parameters())
    assert small.inputs.grad is None
    assert not found.operations[3].mass.units.requires_grad
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            again = layer_marginals(small.network, small.inputs.clone())
        assert torch.equal(again.operations[3].mass.units, found.operations[3].mass.units)


def test_bad_input():
    small = case("classes")
    with pytest.raises(ValueError, match="the network has 3 outputs"):
        layer_marginals(small.network, small.inputs)
    with pytest.raises(ValueError, match=r"inputs must have shape \(B, 4\)"):
        layer_marginals(small.network, small.inputs[:, :2], output=0)
    with pytest.raises(TypeError, match="network must be a Network"):
        layer_marginals(small.model, small.inputs, output=0)
    w = torch.ones(4, 4, dtype=torch.float64) / 8
    network = Network.from_matrix(w, torch.zeros(4).double(), torch.relu, 1, 1)
    with pytest.raises(UnreadableNetworkError, match=r"hidden \(recurrent stage\)"):
        layer_marginals(network, torch.ones(2, 1))
