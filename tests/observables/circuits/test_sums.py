import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.observables.circuits.cases import NAMES, case, output_of
from tests.observables.circuits.checks import close, close_sums
from tests.observables.circuits.oracle import enumerate_paths
from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.network.activations import ACTIVATIONS
from torch_thermo.network.table import support_table
from torch_thermo.observables.circuits import (
    circuit_asymmetry,
    circuit_sums,
    sample_circuits,
)
from torch_thermo.observables.circuits import paths as circuit_paths
from torch_thermo.systems import VGG

MOMENTS = (1, 2, 3, 4)


def test_sizes_of_the_networks_to_enumerate():
    for name, paths in {"mlp": 600, "conv_max_pool": 4800}.items():
        small = case(name, examples=1)
        assert len(enumerate_paths(small.model, small.inputs[0])) == paths


@pytest.mark.parametrize("pruned", [0.0, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_sums_equal_those_over_every_path(name, pruned):
    small, output = case(name, pruned=pruned), output_of(name)
    sums = circuit_sums(small.network, small.inputs, output=output, moments=MOMENTS)
    enumerated = [enumerate_paths(small.model, x, output or 0) for x in small.inputs]
    terms = [[p.value * p.psi for p in paths] for paths in enumerated]
    alive = [sum(p.alive for p in paths) for paths in enumerated]
    assert any(alive)
    assert sums.alive.tolist() == alive
    assert sums.signed.tolist() == [sum((t > 0) - (t < 0) for t in each) for each in terms]
    magnitudes = [math.fsum(map(abs, each)) for each in terms]
    close(sums.absolute, magnitudes, magnitudes)
    close_sums(sums.output, terms)
    for q, moment in sums.moments.items():
        close(
            moment,
            [math.fsum(t**q for t in each) for each in terms],
            [math.fsum(abs(t) ** q for t in each) for each in terms],
        )
    assert tuple(sums.moments) == MOMENTS
    expected = [(p - n) / (p + n) if p + n else math.nan for p, n in map(balance, terms)]
    torch.testing.assert_close(
        sums.sign_balance, torch.tensor(expected, dtype=torch.float64), equal_nan=True
    )


def balance(terms):
    return sum(t > 0 for t in terms), sum(t < 0 for t in terms)


def test_a_float32_model_is_measured_in_float64():
    small = case("biases")
    small.model.float()
    inputs = small.inputs.float()
    network = Network.from_module(small.model, inputs)
    sums = circuit_sums(network, inputs)
    small.model.double()
    assert torch.equal(sums.output, small.model(inputs.double())[:, 0])
    assert sums.absolute.dtype == torch.float64


def test_deep_vgg():
    model = VGG(10)
    inputs = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    result = circuit_asymmetry(Network.from_module(model, inputs), inputs)
    torch.testing.assert_close(result.output, model.double()(inputs.double()), rtol=1e-12, atol=0)
    # of all paths, those over padding included
    every = math.prod(weight[0].numel() for weight in model.parameters())
    assert ((result.alive > 1e-4 * every) & (result.alive < 1e-2 * every)).all()
    assert (result.sign_balance.abs() < 1e-3).all()
    assert (result.sign_balance != 0).all()
    assert not result.output.requires_grad
    assert result.reason is None


@pytest.mark.parametrize("at_once", [1, 30])
def test_examples_do_not_depend_on_how_many_are_taken_at_once(at_once, monkeypatch):
    small = case("classes", examples=5)
    network, targets = small.network, torch.tensor([2, 0, 1, 1, 0])
    whole = circuit_sums(network, small.inputs, targets=targets, order_one=True)
    monkeypatch.setattr(circuit_paths, "_STATES_AT_ONCE", at_once)
    parts = circuit_sums(network, small.inputs, targets=targets, order_one=True)
    for name in ("alive", "signed", "absolute", "output"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    torch.testing.assert_close(dict(parts.order_one), dict(whole.order_one))
    one = sample_circuits(network, small.inputs, 50, targets=targets)
    monkeypatch.undo()
    other = sample_circuits(network, small.inputs, 50, targets=targets)
    torch.testing.assert_close(one.log_abs, other.log_abs)
    assert torch.equal(one.examples, other.examples)


def test_one_output_and_its_labels():
    small = case("mlp", examples=4)
    network = small.network
    plain = circuit_asymmetry(network, small.inputs)
    sums = circuit_sums(network, small.inputs)
    torch.testing.assert_close(plain.mass_asymmetry, sums.output / sums.absolute, equal_nan=True)
    signs = torch.tensor([1, -1, -1, 1])
    expected = plain.mass_asymmetry * signs
    for targets in (signs, signs.float()[:, None], (signs > 0), (signs > 0).double()):
        labelled = circuit_asymmetry(network, small.inputs, targets)
        assert torch.equal(labelled.mass_asymmetry.nan_to_num(9), expected.nan_to_num(9))
        assert torch.equal(labelled.sign_balance.nan_to_num(9), plain.sign_balance.nan_to_num(9))
    assert (plain.mass_asymmetry.isfinite() & (plain.mass_asymmetry != 0)).sum() >= 2


def test_several_outputs():
    small = case("classes")
    network, inputs = small.network, small.inputs
    logits = small.model(inputs)
    labels = torch.tensor([2, 0, 1])
    own = logits[torch.arange(3), labels]
    one_hot = nn.functional.one_hot(labels, 3)
    for targets in (labels, labels.int(), one_hot, 2 * one_hot - 1.0):
        for output in (None, "target"):
            result = circuit_asymmetry(network, inputs, targets, output)
            assert torch.equal(result.output, own)
            assert torch.equal(result.mass_asymmetry.sign(), own.sign())
    for measure in (circuit_asymmetry, circuit_sums):
        assert torch.equal(measure(network, inputs, labels, None).output, own)
        assert torch.equal(measure(network, inputs, labels, np.int64(1)).output, logits[:, 1])
    fixed = circuit_asymmetry(network, inputs, labels, output=1)
    assert torch.equal(fixed.output, logits[:, 1])
    plain = circuit_asymmetry(network, inputs, output=1)
    y = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    assert torch.equal(fixed.mass_asymmetry, y * plain.mass_asymmetry)


def test_a_dead_example_is_nan_with_a_reason_and_the_others_stay():
    small = case("mlp", examples=3)
    inputs = small.inputs.clone()
    alone = circuit_asymmetry(small.network, inputs)
    inputs[1] = 0.0
    result = circuit_asymmetry(small.network, inputs)
    assert result.alive[1] == 0
    assert result.output[1] == 0
    assert result.sign_balance[1].isnan()
    assert result.mass_asymmetry[1].isnan()
    assert result.reason == "1 of 3 examples: no path is alive, so that S and T/A are undefined"
    for name in ("alive", "sign_balance", "mass_asymmetry", "output"):
        assert torch.equal(getattr(result, name)[[0, 2]], getattr(alone, name)[[0, 2]])
    assert alone.reason is None


def test_a_network_that_is_not_finite_is_nan_with_a_reason():
    small = case("mlp", examples=2)
    inputs = small.inputs.clone()
    inputs[0, 0] = math.inf
    sums = circuit_sums(small.network, inputs, order_one=True)
    for values in (sums.alive, sums.signed, sums.absolute, sums.output, sums.moments[2]):
        assert values.isnan().tolist() == [True, False]
    assert sums.reason == "1 of 2 examples: the output is not finite"


def test_more_paths_than_float64_counts_are_nan_with_a_reason():
    layers = [nn.Linear(10, 10, bias=False) for _ in range(310)]
    model = nn.Sequential(*layers).double()
    for layer in layers:
        nn.init.constant_(layer.weight, 0.1)
    inputs = torch.ones(1, 10, dtype=torch.float64)
    network = Network.from_module(model, inputs)
    sums = circuit_sums(network, inputs, output=0)
    assert sums.alive.isnan().all()
    assert sums.sign_balance.isnan().all()
    assert sums.mass_balance.item() == pytest.approx(1.0)
    assert sums.reason == "1 of 1 examples: a sum is out of float64's range"


def test_moments_that_vanish_are_nan_with_a_reason():
    small = case("mlp", examples=1)
    with torch.no_grad():
        for weight in small.model.parameters():
            weight.mul_(0.01)
    sums = circuit_sums(small.network, small.inputs.sign(), moments=(2, 300))
    assert sums.alive[0] > 0
    assert sums.moments[2] > 0
    assert sums.moments[300].isnan()
    assert sums.reason == "1 of 1 examples: a sum is out of float64's range"


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)], r"1 \(Tanh\)"),
        ([nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 1)], r"1 \(GELU\)"),
        ([nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1), nn.Sigmoid()], r"3 \(Sigmoid\)"),
    ],
)
def test_activations_that_are_no_gates_are_refused_by_name(layers, named):
    model, inputs = nn.Sequential(*layers), torch.randn(2, 3)
    network = Network.from_module(model, inputs)
    with pytest.raises(UnreadableNetworkError, match=f"{named} cannot be read.*ReLU"):
        circuit_asymmetry(network, inputs)


GIVEN = {nn.Threshold: (0.0, 0.0)}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_activations_are_read_as_docs_modules_says(activation):
    rows = (line.split("|") for line in support_table().splitlines())
    name = f"`nn.{activation.module.__name__}`"
    says = {row[3].strip() for row in rows if len(row) > 3 and name in row[1]}
    bend = activation.module(*GIVEN.get(activation.module, ()))
    model = nn.Sequential(nn.Linear(3, 3), bend, nn.Linear(3, 1)).double().eval()
    inputs = torch.ones(2, 3, dtype=torch.float64)
    network = Network.from_module(model, inputs)
    if says == {"no"}:
        with pytest.raises(UnreadableNetworkError, match=rf"1 \({activation.module.__name__}\)"):
            circuit_sums(network, inputs)
    else:
        assert says in ({"yes"}, {"where it is a ReLU"})
        close_sums(
            circuit_sums(network, inputs).output, [[v] for v in model(inputs)[:, 0].tolist()]
        )


@pytest.mark.parametrize(
    "measure", [circuit_asymmetry, circuit_sums, lambda *given: sample_circuits(*given, 10)]
)
def test_recurrent_networks_are_refused_by_name(measure):
    w = torch.ones(4, 4, dtype=torch.float64) / 8
    network = Network.from_matrix(w, torch.zeros(4).double(), torch.relu, 1, 1)
    assert network.is_recurrent
    with pytest.raises(UnreadableNetworkError) as caught:
        measure(network, torch.ones(2, 1))
    assert str(caught.value) == (
        "hidden (recurrent stage) cannot be read: it reads its own state or a later one, so that "
        "paths never end; for circuits feed-forward networks are read"
    )


def test_a_network_from_a_matrix():
    w, b = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    w[2, :2] = torch.tensor([2.0, -1.0])
    w[3, :3] = torch.tensor([0.0, 3.0, 0.5])
    w[4] = torch.tensor([1.0, 0.0, -4.0, 2.0, 0.0])
    b[3] = 1.0
    network = Network.from_matrix(w, b, torch.relu, 2, 1)
    inputs = torch.tensor([[1.0, 1.0]])
    # x2 = 2 - 1, x3 = 3 + .5 x2 + 1, x4 = x0 - 4 x2 + 2 x3
    sums = circuit_sums(network, inputs)
    assert (sums.alive.item(), sums.signed.item()) == (7, 3)
    assert (sums.output.item(), sums.absolute.item()) == (6.0, 24.0)
    assert circuit_sums(network, inputs, biases=False).output.item() == 4.0


def test_the_only_output_is_that_of_the_class():
    small = case("mlp")
    for targets in (None, torch.tensor([1, -1, 1])):
        plain = circuit_asymmetry(small.network, small.inputs, targets)
        named = circuit_asymmetry(small.network, small.inputs, targets, "target")
        assert torch.equal(named.output, plain.output)
        assert torch.equal(named.mass_asymmetry, plain.mass_asymmetry)
    drawn = [sample_circuits(small.network, small.inputs, 9, output=o) for o in (None, "target")]
    assert torch.equal(drawn[0].log_abs, drawn[1].log_abs)


def test_one_moment_is_as_good_as_a_tuple_of_one():
    small = case("mlp")
    one = circuit_sums(small.network, small.inputs, moments=3).moments
    assert list(one) == [3]
    assert torch.equal(one[3], circuit_sums(small.network, small.inputs, moments=(3,)).moments[3])


def test_bad_arguments_of_one_output():
    small = case("mlp")
    network, inputs = small.network, small.inputs
    with pytest.raises(TypeError, match="network must be a Network, got Sequential"):
        circuit_asymmetry(small.model, inputs)
    with pytest.raises(TypeError, match="inputs must be a tensor, got list"):
        circuit_asymmetry(network, inputs.tolist())
    for bad in (inputs[0], inputs[:, :4], inputs[:0], inputs[0, 0]):
        with pytest.raises(ValueError, match=r"inputs must have shape \(B, 5\)"):
            circuit_asymmetry(network, bad)
    for output in (1, -1, "all"):
        with pytest.raises(ValueError, match=r'None, "target" or an index from 0 to 0, got'):
            circuit_asymmetry(network, inputs, output=output)
    for output in (False, 0.0, torch.zeros(3)):
        with pytest.raises(TypeError, match=r'None, "target" or an index from 0 to 0, got a \w+'):
            circuit_asymmetry(network, inputs, output=output)
    with pytest.raises(ValueError, match=r"got values \[-1.0, 0.0, 1.0\]"):
        circuit_asymmetry(network, inputs, torch.tensor([-1, 0, 1]))
    with pytest.raises(ValueError, match=r"targets must have shape \(3,\).*got \(2,\)"):
        circuit_asymmetry(network, inputs, torch.ones(2))
    with pytest.raises(TypeError, match="targets must be a tensor, got list"):
        circuit_asymmetry(network, inputs, [1, -1, 1])
    with pytest.raises(ValueError, match="moments must be at least 1, got 0"):
        circuit_sums(network, inputs, moments=(2, 0))
    with pytest.raises(TypeError, match=r"moments must be whole numbers, got 1\.5"):
        circuit_sums(network, inputs, moments=(1.5,))
    with pytest.raises(TypeError, match="moments must be whole numbers, got True"):
        circuit_sums(network, inputs, moments=True)
    with pytest.raises(TypeError, match=r"moments must be whole numbers, got 2\.5"):
        circuit_sums(network, inputs, moments=2.5)
    with pytest.raises(TypeError, match="positional"):
        circuit_sums(network, inputs, None, None, (2,))


def test_bad_arguments_of_several_outputs():
    small = case("classes")
    network, inputs = small.network, small.inputs
    for output in (None, "target"):
        with pytest.raises(ValueError, match="the network has 3 outputs"):
            circuit_asymmetry(network, inputs, output=output)
    for output in (3, -1, "all"):
        with pytest.raises(ValueError, match=f"an index from 0 to 2, got {output!r}"):
            circuit_asymmetry(network, inputs, torch.tensor([0, 1, 2]), output)
    for output in (True, 1.0, torch.tensor([0, 1, 2])):
        for measure in (circuit_asymmetry, circuit_sums):
            with pytest.raises(TypeError, match="an index from 0 to 2, got a"):
                measure(network, inputs, torch.tensor([0, 1, 2]), output)
    soft = torch.tensor([[0.7, 0.2, 0.1]] * 3)
    for rows in (soft, torch.ones(3, 3), 1.0 - torch.eye(3), torch.eye(3) + soft.tril(-1)):
        with pytest.raises(ValueError, match="rows of targets must have a 1 for the class"):
            circuit_asymmetry(network, inputs, rows)
    with pytest.raises(ValueError, match="rows of targets"):
        circuit_asymmetry(network, inputs, torch.tensor([[2, 1, 1]] * 3))
    for targets in (torch.ones(3), torch.ones(3, 2), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="targets must be integer classes"):
            circuit_asymmetry(network, inputs, targets)
    with pytest.raises(ValueError, match="targets must be classes from 0 to 2, got -1 to 3"):
        circuit_asymmetry(network, inputs, torch.tensor([-1, 3, 0]))
