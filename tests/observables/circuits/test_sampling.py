import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.observables.circuits.alive import alive_paths, drawn_case
from tests.observables.circuits.cases import NAMES, case, output_of
from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.network.operations import Weighted
from torch_thermo.observables.circuits import (
    circuit_sums,
    layers,
    sample_circuits,
    sampling,
    stream_circuits,
)
from torch_thermo.systems import VGG


class AlivePaths:
    """The enumerated alive paths of one example, by what a sample tells of them: x and psi.

    Paths that agree in both, which share the weights that they pass, are one cell.
    """

    def __init__(self, name, pruned):
        alive = alive_paths(name, pruned).values()
        x, psi = torch.tensor([(p.value, p.psi) for p in alive], dtype=torch.float64).unbind(1)
        key = self.key(x, psi.sign(), psi.abs().log()).sort().values
        first = key.diff(prepend=key.new_full((1,), -math.inf)) > 1e-9
        self.count, self.keys = len(alive), key[first]
        self.share = (first.cumsum(0) - 1).bincount().double() / len(alive)

    @staticmethod
    def key(x, sign, log_abs):
        return log_abs + math.e * x + 100 * sign

    def chi_square(self, sample):
        """In standard deviations about its mean; fails on anything that is no alive path."""
        key = self.key(sample.inputs, sample.sign, sample.log_abs)
        cell = torch.searchsorted(self.keys, key - 1e-10).clamp(max=len(self.keys) - 1)
        torch.testing.assert_close(self.keys[cell], key, rtol=0, atol=1e-10)
        drawn = cell.bincount(minlength=len(self.keys))
        assert (drawn > 0).all()
        expected = len(key) * self.share
        freedom = len(drawn) - 1
        statistic = ((drawn - expected) ** 2 / expected).sum()
        return float(statistic - freedom) / math.sqrt(2 * freedom)

    @property
    def enough(self):
        """Draws with which the chance to miss any one path is below e^-8."""
        return max(4000, int(self.count * (math.log(self.count) + 8)))


LAWS = [
    (name, pruned, redraws)
    for name in NAMES
    for pruned, redraws in ((0.0, None), (0.3, layers._REDRAWS), (0.3, 1), (0.3, 0))
]


@pytest.mark.parametrize(("name", "pruned", "redraws"), LAWS)
def test_all_alive_paths_and_no_others_are_drawn_equally_often(name, pruned, redraws, monkeypatch):
    if redraws is not None:
        monkeypatch.setattr(layers, "_REDRAWS", redraws)
    small, alive = drawn_case(name, pruned), AlivePaths(name, pruned)
    sample = sample_circuits(small.network, small.inputs, alive.enough, output=output_of(name))
    assert len(sample.sign) == alive.enough
    # seed 0; four standard deviations, one law in 16,000
    assert abs(alive.chi_square(sample)) < 4


def test_tables_of_many_units_are_built_in_parts(monkeypatch):
    small, alive = drawn_case("conv_max_pool", 0.3), AlivePaths("conv_max_pool", 0.3)
    monkeypatch.setattr(layers, "_REDRAWS", 0)
    monkeypatch.setattr(layers, "_TABLE_ENTRIES", 40)
    sample = sample_circuits(small.network, small.inputs, alive.enough)
    assert abs(alive.chi_square(sample)) < 4


@pytest.mark.parametrize("name", ["conv_max_pool", "biases", "classes"])
def test_the_mean_of_the_sample_is_that_of_the_exact_sums(name):
    small = case(name, examples=2)
    labels = torch.tensor([2, 0]) if name == "classes" else None
    sums = circuit_sums(small.network, small.inputs, targets=labels)
    sample = sample_circuits(small.network, small.inputs, 40_000, targets=labels)
    weighted = sample.inputs * sample.values()
    for example in range(2):
        own = sample.examples == example
        for values, exact in (
            (weighted[own], sums.output / sums.alive),
            (weighted[own].abs(), sums.absolute / sums.alive),
            (weighted[own].sign(), sums.sign_balance),
        ):
            stderr = values.std() / math.sqrt(len(values))
            assert abs(values.mean() - exact[example]) < 4 * stderr


def test_the_input_is_kept_apart():
    small = case("biases", examples=2)
    sample = sample_circuits(small.network, small.inputs, 500)
    assert sample.sign.dtype == torch.int8
    assert set(sample.sign.tolist()) == {-1, 1}
    assert sample.log_abs.dtype == sample.inputs.dtype == torch.float64
    assert sample.examples.dtype == torch.int64
    sign, log_abs = sample.weighted()
    assert sign.dtype == torch.int8
    torch.testing.assert_close(sign * log_abs.exp(), sample.inputs * sample.values())
    starts = sample.inputs == 1
    assert 0 < starts.sum() < 500
    for x, example in zip(sample.inputs[~starts], sample.examples[~starts], strict=True):
        assert (small.inputs[example] == x).any()


def test_paths_are_spread_evenly_over_the_examples():
    small = case("conv_max_pool", examples=3)
    sample = sample_circuits(small.network, small.inputs, 11)
    assert sample.examples.tolist() == [0] * 4 + [1] * 4 + [2] * 3
    assert sample.reason is None
    assert sample_circuits(small.network, small.inputs, 1).examples.tolist() == [0]


def test_dead_examples_give_none_and_say_so():
    small = case("mlp", examples=3)
    inputs = small.inputs.clone()
    inputs[1] = 0.0
    sample = sample_circuits(small.network, inputs, 30)
    assert sample.examples.tolist() == [0] * 10 + [2] * 10
    assert sample.reason == "1 of 3 examples: no path is alive"
    nothing = sample_circuits(small.network, 0 * inputs, 30)
    assert nothing.reason == "3 of 3 examples: no path is alive"
    for values in (nothing.sign, nothing.log_abs, nothing.inputs, nothing.examples):
        assert values.shape == (0,)
    assert nothing.sign.dtype == torch.int8
    assert nothing.values().dtype == torch.float64


def test_what_is_not_finite_or_not_countable_is_left_out_with_the_reason():
    small = case("mlp", examples=2)
    inputs = small.inputs.clone()
    inputs[0, 0] = math.inf
    sample = sample_circuits(small.network, inputs, 30)
    assert sample.examples.tolist() == [1] * 15
    assert sample.reason == "1 of 2 examples: the output is not finite"
    model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(310))).double()
    for layer in model:
        nn.init.constant_(layer.weight, 0.1)
    inputs = torch.ones(1, 10, dtype=torch.float64)
    sample = sample_circuits(Network.from_module(model, inputs), inputs, 30, output=0)
    assert sample.reason == "1 of 1 examples: more than 1e+290 paths are alive"
    sample = sample_circuits(Network.from_module(model[:280], inputs), inputs, 30, output=0)
    torch.testing.assert_close(sample.log_abs, torch.full((30,), 280 * math.log(0.1)).double())


def test_seeded_and_outside_the_global_generator():
    small = case("biases", examples=2, pruned=0.2)
    before = torch.get_rng_state()
    one, again, other = (
        sample_circuits(small.network, small.inputs, 200, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("sign", "log_abs", "inputs", "examples"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert not torch.equal(one.log_abs, other.log_abs)


def test_the_order_of_the_paths_tells_nothing():
    # paths from a bias end first: in a sample of identical laws they may not come first
    small = case("biases", examples=1)
    starts = sample_circuits(small.network, small.inputs, 4000).inputs == 1
    first, second = starts[:2000].double().mean(), starts[2000:].double().mean()
    assert abs(first - second) < 4 * math.sqrt(2 * 0.25 / 2000)
    assert 0.02 < starts.double().mean() < 0.98


def test_a_deep_vgg_has_products_far_below_float32():
    model = VGG(10)
    inputs = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    sample = sample_circuits(Network.from_module(model, inputs), inputs, 2000)
    assert len(sample.sign) == 2000
    assert -20 < sample.log_abs.median() / math.log(10) < -10
    # a product of many signed factors looks symmetric
    assert abs(sample.weighted()[0].double().mean()) < 4 / math.sqrt(2000)


def joined(parts):
    """The tensors of several samples, one behind the other."""
    names = ("sign", "log_abs", "inputs", "examples", "weights")
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}


def test_a_stream_is_the_sample_in_parts(monkeypatch):
    small = case("residual", examples=3, seed=10)
    graph = small.network.graph
    numbers = 5 + 2 * sum(isinstance(o, Weighted) for o, _ in graph) + len(graph)
    monkeypatch.setattr(sampling, "_NUMBERS_AT_ONCE", 40 * numbers + 1)
    inputs = small.inputs
    options = {"seed": 4, "biases": False, "keep_paths": True}
    whole = sample_circuits(small.network, inputs, 250, **options)
    stream = list(stream_circuits(small.network, inputs, 250, **options))
    assert [len(part.sign) for part in stream] == [40, 40, 4, 40, 40, 3, 40, 40, 3]
    assert [int(part.examples.unique()) for part in stream] == [0] * 3 + [1] * 3 + [2] * 3
    for name, values in joined(stream).items():
        torch.testing.assert_close(values, getattr(whole, name), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.cat([part.paths.units for part in stream]), whole.paths.units)
    again = list(stream_circuits(small.network, inputs, 250, **options, chunk=40))
    assert all(torch.equal(a.log_abs, b.log_abs) for a, b in zip(stream, again, strict=True))


def test_a_stream_of_many_parts_has_the_law_of_one_draw():
    alive = AlivePaths("conv_max_pool", 0.3)
    small = drawn_case("conv_max_pool", 0.3)
    parts = stream_circuits(small.network, small.inputs, 4000, chunk=100)
    assert iter(parts) is parts
    sample = sample_circuits(small.network, small.inputs, 1)
    assert abs(alive.chi_square(replace(sample, **joined(list(parts))))) < 4


def test_a_stream_says_which_examples_have_no_paths():
    small = case("mlp", examples=3)
    inputs = small.inputs.clone()
    inputs[1] = 0.0
    found = list(stream_circuits(small.network, inputs, 30))
    assert [len(part.sign) for part in found] == [10, 0, 10]
    assert [part.reason for part in found] == [None, "example 1: no path is alive", None]
    assert found[1].weights.shape == (0, 4)


def test_more_paths_than_memory_holds():
    small = case("mlp")
    message = r"paths must fit into memory, 64 bytes each, got 10{15}; stream_circuits gives"
    with pytest.raises(ValueError, match=message):
        sample_circuits(small.network, small.inputs, 10**15)
    first = next(stream_circuits(small.network, small.inputs, 10**15, chunk=50))
    assert len(first.sign) == 50


def test_bad_arguments():
    small = case("mlp")
    network, inputs = small.network, small.inputs
    with pytest.raises(ValueError, match="paths must be at least 1, got 0"):
        sample_circuits(network, inputs, 0)
    for paths in (10.0, True):
        with pytest.raises(TypeError, match=f"paths must be a whole number, got {paths}"):
            sample_circuits(network, inputs, paths)
    for chunk in (10.0, True):
        with pytest.raises(TypeError, match=f"chunk must be a whole number, got {chunk}"):
            stream_circuits(network, inputs, 10, chunk=chunk)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        stream_circuits(network, inputs, 10, chunk=0)
    with pytest.raises(ValueError, match="paths must be at least 1, got 0"):
        stream_circuits(network, inputs, 0)
    for order in (-1, 3, True, 1.5):
        with pytest.raises(ValueError, match=f"order must be 0, 1 or 2.*got {order}"):
            sample_circuits(network, inputs, 10, order=order)
    with pytest.raises(ValueError, match=r"inputs must have shape \(B, 5\)"):
        sample_circuits(network, inputs[:, :3], 10)
    with pytest.raises(ValueError, match="an index from 0 to 0, got 2"):
        sample_circuits(network, inputs, 10, output=2)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with pytest.raises(UnreadableNetworkError, match=r"1 \(Tanh\)"):
        sample_circuits(Network.from_module(model, inputs), inputs, 10)
