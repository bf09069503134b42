import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.observables.circuits.alive import alive_paths, drawn_case
from tests.observables.circuits.cases import NAMES, case, output_of
from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.network.operations import Weighted
from torch_thermo.observables.circuits import (
    circuit_sums,
    layer_marginals,
    layers,
    sample_circuits,
    sampling,
    stream_circuits,
)
from torch_thermo.observables.circuits import paths as paths_module
from torch_thermo.observables.circuits.groups import Group
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
    message = r"memory, 192 bytes each while they are drawn, got 10{15}: .* stream_circuits gives"
    with pytest.raises(ValueError, match=message):
        sample_circuits(small.network, small.inputs, 10**15)
    first = next(stream_circuits(small.network, small.inputs, 10**15, chunk=50))
    assert len(first.sign) == 50


@pytest.mark.parametrize("order", [0, 2])
def test_memory_is_refused_by_what_is_free(monkeypatch, order):
    small = case("mlp")
    bytes_each = 8 * (4 + 4) * {0: 3, 2: 5}[order]  # four numbers and four weights, copied
    monkeypatch.setattr(sampling, "available_bytes", lambda device: 30 * bytes_each)
    sample_circuits(small.network, small.inputs, 30, order)
    with pytest.raises(ValueError, match=f"memory, {bytes_each} bytes each"):
        sample_circuits(small.network, small.inputs, 31, order)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_memory_counted_is_what_is_taken(order):
    layers = [nn.Linear(4, 4, bias=False) for _ in range(8)]
    model, inputs = nn.Sequential(*layers, nn.Linear(4, 1, bias=False)), torch.ones(1, 4)
    job = sampling._Job.checked(
        Network.from_module(model, inputs), inputs, 200_000, None, None, True, False
    )
    with Largest() as largest:
        parts = [part for part in job.run(0, job.at_once)]
        job.sample(parts).order(order)
    assert 0.5 * job.needs(order) < largest.bytes < 1.1 * job.needs(order)


class Largest(TorchDispatchMode):
    """The most bytes that tensors made in it hold at once."""

    def __init__(self):
        super().__init__()
        self.bytes, self._held = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                size, pointer = storage.nbytes(), storage.data_ptr()
                if pointer and pointer not in self._held:
                    self._held[pointer] = size
                    weakref.finalize(storage, self._held.pop, pointer, None)
        self.bytes = max(self.bytes, sum(self._held.values()))
        return found


@pytest.mark.parametrize("dead_end", ["before", "behind"])
def test_units_that_do_not_lead_to_the_output_have_no_say(dead_end):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.big = nn.Sequential(*(nn.Linear(50, 50, bias=False) for _ in range(190)))
            self.a, self.b = nn.Linear(50, 1, bias=False), nn.Linear(50, 1, bias=False)

        def forward(self, x):
            big, small = self.a(self.big(x)), self.b(x)
            return torch.cat([big, small] if dead_end == "before" else [small, big], 1)

    model, inputs = Branches().double(), torch.ones(1, 50, dtype=torch.float64)
    for layer in model.big:
        nn.init.constant_(layer.weight, 0.02)
    network, small = Network.from_module(model, inputs), int(dead_end == "before")
    sample = sample_circuits(network, inputs, 40, output=small)
    assert len(sample.sign) == 40
    assert sample.reason is None
    found = layer_marginals(network, inputs, output=small)
    assert found.reason is None
    assert found.alive.tolist() == [50.0]
    shares = {each.name: each.paths.total.item() for each in found.operations}
    assert (shares["b"], shares["a"], shares["big.7"]) == (1.0, 0.0, 0.0)
    sample = sample_circuits(network, inputs, 40, output=1 - small)
    assert "paths are alive" in sample.reason


def test_a_stream_is_of_the_weights_at_its_start(monkeypatch):
    small = case("residual", examples=2, seed=10)
    network, inputs = small.network, small.inputs
    expected = sample_circuits(network, inputs, 40)
    stream = stream_circuits(network, inputs, 40)
    parts = [next(stream)]
    saved = [p.detach().clone() for p in small.model.parameters()]
    with torch.no_grad():
        for parameter in small.model.parameters():
            parameter.mul_(-2)
    parts += stream
    assert torch.equal(torch.cat([part.log_abs for part in parts]), expected.log_abs)
    assert torch.equal(torch.cat([part.sign for part in parts]), expected.sign)
    with torch.no_grad():
        for parameter, value in zip(small.model.parameters(), saved, strict=True):
            parameter.copy_(value)
    # one example at a time: the second is read after the change
    monkeypatch.setattr(paths_module, "_STATES_AT_ONCE", 1)
    assert sum(len(part.sign) for part in stream_circuits(network, inputs, 40)) == 40
    stream = stream_circuits(network, inputs, 40)
    next(stream)
    with torch.no_grad():
        small.model[-1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed before example 1"):
        next(stream)


def test_groups_of_all_paths_have_no_other_beside_them():
    every, some = torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="no other beside it"):
        Group.together([Group(None, every), Group(some, some)])


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
    for seed, error in (
        (1.5, TypeError),
        (None, TypeError),
        (True, TypeError),
        (2**64, ValueError),
    ):
        for draw in (sample_circuits, stream_circuits):
            with pytest.raises(error, match="seed must be"):
                draw(network, inputs, 10, seed=seed)
        with pytest.raises(error, match="seed must be"):
            sample_circuits(network, inputs, 10).order(1, seed)
    with pytest.raises(ValueError, match=r"inputs must be real numbers, got torch\.complex128"):
        sample_circuits(network, inputs.to(torch.complex128), 10)
    assert len(sample_circuits(network, inputs, np.int64(10), output=np.int64(0)).sign) <= 10
    with pytest.raises(ValueError, match="order must be 0, 1 or 2"):
        sample_circuits(network, inputs, 10, order=torch.tensor(1))
    for order in (-1, 3, True, 1.5, 1.0):
        with pytest.raises(ValueError, match=f"order must be 0, 1 or 2.*got {order}"):
            sample_circuits(network, inputs, 10, order=order)
    with pytest.raises(ValueError, match=r"inputs must have shape \(B, 5\)"):
        sample_circuits(network, inputs[:, :3], 10)
    with pytest.raises(ValueError, match="an index from 0 to 0, got 2"):
        sample_circuits(network, inputs, 10, output=2)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with pytest.raises(UnreadableNetworkError, match=r"1 \(Tanh\)"):
        sample_circuits(Network.from_module(model, inputs), inputs, 10)
