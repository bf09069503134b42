"""Sampled paths against all alive paths of small networks, and the circuits of order 1 and 2."""

import itertools
import math

import pytest
import torch
from torch import nn

from tests.observables.circuits.alive import (
    alive_paths,
    deviations,
    drawn_case,
    path_keys,
    subsets,
)
from tests.observables.circuits.cases import NAMES, Residual, case, output_of
from torch_thermo.network import Network
from torch_thermo.observables.circuits import sample_circuits

GRAPHS = ["residual", "leaky_residual", "concatenation"]


def drawn(name, pruned=0.0, paths=None, **options):
    small = drawn_case(name, pruned)
    count = len(alive_paths(name, pruned))
    return sample_circuits(
        small.network,
        small.inputs,
        paths or max(2000, 8 * count),
        output=output_of(name),
        keep_paths=True,
        **options,
    )


@pytest.mark.parametrize(("name", "pruned"), list(itertools.product(NAMES, (0.0, 0.3))))
def test_every_alive_path_is_equally_likely(name, pruned):
    alive = alive_paths(name, pruned)
    # seed 0; four standard deviations, one law in 16,000
    assert abs(deviations(path_keys(drawn(name, pruned)), alive)) < 4


@pytest.mark.parametrize("name", ["biases", "batch_norm", "classes", "residual", "concatenation"])
def test_without_biases_those_from_inputs_are_equally_likely(name):
    from_inputs = {key for key, p in alive_paths(name).items() if p.start is not None}
    assert 0 < len(from_inputs) < len(alive_paths(name))
    sample = drawn(name, biases=False)
    assert (sample.paths.starts >= 0).all()
    assert abs(deviations(path_keys(sample), from_inputs)) < 4


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_of_a_path_is_so(name):
    alive = alive_paths(name)
    sample = drawn(name, paths=300)
    assert set(sample.layers) == {layer for p in alive.values() for layer in p.uses}
    assert sample.weights.shape == sample.paths.entries.shape == (300, len(sample.layers))
    inputs = drawn_case(name).inputs.flatten()
    for row, key in enumerate(path_keys(sample)):
        path = alive[key]
        assert sample.values()[row].item() == pytest.approx(path.psi, rel=1e-12)
        assert sample.inputs[row].item() == path.value
        if path.start is not None:
            assert inputs[sample.paths.starts[row]] == path.value
        entries = dict(zip(sample.layers, sample.paths.entries[row].tolist(), strict=True))
        weights = dict(zip(sample.layers, sample.weights[row].tolist(), strict=True))
        for layer in sample.layers:
            if layer not in path.uses:
                assert entries[layer] == -1
                assert math.isnan(weights[layer])
                continue
            entry, place = path.uses[layer]
            assert entries[layer] == entry
            assert weights[layer] == pytest.approx(path.factors[place], rel=1e-12)
    assert drawn(name, paths=3).paths.names == sample.paths.names


ORDERS = {
    **dict.fromkeys(["mlp", "strided", "batch_norm", "classes", "concatenation"], 0.0),
    **dict.fromkeys(["biases", "residual"], 0.3),  # or there are 46,000 pairs
}


@pytest.mark.parametrize(("name", "order"), list(itertools.product(ORDERS, (1, 2))))
def test_every_weight_of_every_alive_path_is_equally_likely_to_be_divided_out(name, order):
    pruned = ORDERS[name]
    alive = alive_paths(name, pruned)
    cells = subsets(alive.items(), order)
    before = drawn(name, pruned, paths=max(8000, 6 * len(cells)))
    circuits = before.order(order)
    passed = (circuits.paths.entries >= 0).sum(1)
    assert torch.equal(passed - order, (~circuits.weights.isnan()).sum(1))
    gone = (circuits.paths.entries >= 0) & circuits.weights.isnan()
    found = [
        (key, tuple(sorted(itertools.compress(circuits.layers, out))))
        for key, out in zip(path_keys(circuits), gone.tolist(), strict=True)
    ]
    assert len(found) > 3 * len(cells)
    assert abs(deviations(found, cells)) < 4
    values = circuits.values()
    for (key, chosen), value in list(zip(found, values.tolist(), strict=True))[:300]:
        assert value == pytest.approx(alive[key].without(*chosen), rel=1e-10)
    if name in ("mlp", "strided"):  # all paths have as many weights
        assert len(values) == len(before.sign)
    else:
        assert len(values) < len(before.sign)


def test_one_draw_serves_all_orders():
    small = case("residual", seed=10)
    sample = sample_circuits(small.network, small.inputs, 400, seed=5)
    for order in (0, 1, 2):
        own = sample_circuits(small.network, small.inputs, 400, order, seed=5)
        same = sample.order(order, 5)
        for name in ("sign", "log_abs", "inputs", "examples"):
            assert torch.equal(getattr(own, name), getattr(same, name))
    assert not torch.equal(sample.order(1, 5).log_abs[:50], sample.order(1, 6).log_abs[:50])
    assert sample.order(0) is sample
    for order in (-1, 3, True):
        with pytest.raises(ValueError, match=f"order must be 0, 1 or 2.*got {order}"):
            sample.order(order)


def test_chosen_layers_are_divided_out():
    sample = drawn("residual", paths=2000)
    column = sample.layers.index("3.body.0")
    passes = sample.paths.entries[:, column] >= 0
    assert 0 < passes.sum() < 2000
    part = sample.divided([column])
    torch.testing.assert_close(
        part.values() * sample.weights[passes, column], sample.values()[passes]
    )
    assert torch.equal(part.paths.units, sample.paths.units[passes])
    assert part.weights[:, column].isnan().all()
    last = len(sample.layers) - 1
    both = sample.divided([column, last])
    torch.testing.assert_close(
        both.values() * sample.weights[passes, column] * sample.weights[passes, last],
        sample.values()[passes],
    )
    assert both.sign.dtype == torch.int8
    for bad in ([0, 0], [last + 1], [-1]):
        with pytest.raises(ValueError, match=f"different numbers from 0 to {last}"):
            sample.divided(bad)


def test_order_one_of_all_paths_has_the_gradient_in_its_mean():
    small = drawn_case("residual")
    pairs = len(subsets(alive_paths("residual").items(), 1))
    circuits = sample_circuits(small.network, small.inputs, 60_000, order=1)
    sign, log_abs = circuits.weighted()
    terms = sign * log_abs.exp()
    expected = 0.0
    for module in small.model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            out = small.model(small.inputs).sum()
            expected += float(torch.autograd.grad(out, module.weight)[0].sum())
        if isinstance(module, nn.BatchNorm2d):
            # the weight of the layer is gamma / sqrt(var + eps); its shift stays
            scale = (module.running_var + module.eps).rsqrt()
            mean = module.running_mean.clone()
            gradient, shift = torch.autograd.grad(
                small.model(small.inputs).sum(), [module.weight, module.bias]
            )
            expected += float((gradient / scale + mean * shift).sum())
    stderr = float(terms.std()) / math.sqrt(len(terms))
    assert abs(float(terms.mean()) - expected / pairs) < 4 * stderr


def test_paths_that_go_around_every_weight_have_no_weight_to_divide_out():
    body = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(Residual(body), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        body.weight.zero_()
        model[1].weight.fill_(2.0)
    x = torch.ones(1, 2).double()
    sample = sample_circuits(Network.from_module(model, x), x, 400)
    # no path through the block is alive: one weight each, two at most
    assert sample.most == 2
    assert sample.weights[:, 0].isnan().all()
    assert 100 < len(sample.order(1).sign) < 300
    assert torch.equal(sample.order(1).values(), torch.ones_like(sample.order(1).values()))
    assert len(sample.order(2).sign) == 0
    assert sample.order(2).values().dtype == torch.float64


@pytest.mark.parametrize("name", GRAPHS)
def test_every_path_passes_the_output_and_one_argument_of_each_join(name):
    sample = drawn(name, paths=500)
    units = sample.paths.units
    assert (units[:, -1] == 0).all()
    for number, (_, takes) in enumerate(drawn_case(name).network.graph):
        here = units[:, number] >= 0
        behind = [sample.paths.starts >= 0 if k < 0 else units[:, k] >= 0 for k in takes]
        # a path at a unit has come from a unit before it, or from a bias there
        assert (torch.stack(behind).any(0) | (sample.paths.starts < 0))[here].all()


def test_terms_that_are_broadcast_or_there_twice_or_times_0():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 1, 1, bias=False)
            self.last = nn.Linear(2, 1, bias=False)

        def forward(self, x):
            x = self.first(x)
            around = torch.add(x, nn.functional.avg_pool2d(x, 2), alpha=-2.0)
            twice = torch.add(x + x, nn.functional.avg_pool2d(x, 2), alpha=0.0)
            pooled = nn.functional.avg_pool2d(torch.cat([around, twice], 1), 2)
            return self.last(pooled.flatten(1))

    model = Model().double()
    with torch.no_grad():
        model.first.weight.fill_(1.0)
        model.last.weight.copy_(torch.tensor([[1.0, 16.0]]))
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).double()
    network = Network.from_module(model, x)
    sample = sample_circuits(network, x, 28_000)
    psi, x_of = sample.values(), sample.inputs
    # to each input: 1 path by x, 4 by the mean (one a cell), 2 by the doubled one
    cells = {(1 / 4, 1): 1, (-2 / 16, 1): 4, (16 / 4, 1): 2}
    for (value, _), share in cells.items():
        for start in (1.0, 2.0, 3.0, 4.0):
            found = int(((psi - value).abs() < 1e-12)[x_of == start].sum())
            expected = 28_000 * share / 28
            assert abs(found - expected) < 4 * math.sqrt(expected)
    assert len(psi.mul(1e6).round().unique()) == 3
