import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.observables.circuits.cases import NAMES, case
from torch_thermo.network import Network
from torch_thermo.observables.circuits import circuit_asymmetry, circuit_sums, sample_circuits

quick = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 10_000)
shares = st.sampled_from([0.0, 0.2, 0.6])
# chains; where branches meet, a scaled layer is not a scaled network
bias_free = st.sampled_from(["mlp", "conv_max_pool", "strided", "average_pool"])
last_without_bias = st.sampled_from(["conv_max_pool", "leaky_residual", "concatenation"])


def nets(names):
    return st.builds(
        lambda name, pruned, seed: (case(name, 3, pruned, seed), output_of(name)),
        names,
        shares,
        seeds,
    )


def output_of(name):
    return 2 if name == "classes" else None


def same(one, other, **tolerance):
    torch.testing.assert_close(one, other, equal_nan=True, **tolerance)


@quick
@given(nets(st.sampled_from(NAMES)))
def test_what_holds_for_every_network(net):
    small, output = net
    sums = circuit_sums(small.network, small.inputs, output=output, moments=(1, 2, 3))
    model = small.model(small.inputs)[:, output or 0]
    same(sums.output, model, rtol=1e-10, atol=1e-12)
    same(sums.moments[1], sums.output, rtol=1e-10, atol=1e-12)
    slack = 1 + 1e-12
    assert (sums.output.abs() <= slack * sums.absolute).all()
    assert (sums.signed.abs() <= sums.alive).all()
    assert torch.equal(sums.alive, sums.alive.round())
    # N+ + N- and N+ - N- are even together
    assert ((sums.alive - sums.signed) % 2 == 0).all()
    # Cauchy-Schwarz, and the largest term bounds the cubes
    assert (sums.absolute**2 <= slack * sums.alive * sums.moments[2]).all()
    assert (sums.moments[2] <= slack * sums.absolute**2).all()
    dead = sums.alive == 0
    assert torch.equal(dead, sums.absolute == 0)
    assert torch.equal(dead, sums.sign_balance.isnan())
    assert torch.equal(dead, sums.mass_balance.isnan())
    assert (sums.reason is None) == (not dead.any())


@quick
@given(nets(bias_free), st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_layers_scaled_by_positive_numbers_keep_their_asymmetry(net, scales):
    small, _ = net
    before = circuit_sums(small.network, small.inputs)
    factor = 1.0
    with torch.no_grad():
        layers = [m for m in small.model if isinstance(m, nn.Linear | nn.Conv2d)]
        for layer, scale in zip(layers, scales, strict=False):
            layer.weight.mul_(scale)
            factor *= scale
    after = circuit_sums(small.network, small.inputs)
    same(after.sign_balance, before.sign_balance)
    same(after.mass_balance, before.mass_balance, rtol=1e-9, atol=1e-12)
    same(after.absolute, factor * before.absolute, rtol=1e-9, atol=0)


@quick
@given(nets(last_without_bias))
def test_mirrored_last_weights_mirror_everything(net):
    small, _ = net
    before = circuit_asymmetry(small.network, small.inputs)
    with torch.no_grad():
        small.model[-1].weight.neg_()
    after = circuit_asymmetry(small.network, small.inputs)
    same(after.alive, before.alive, rtol=0, atol=0)
    same(after.sign_balance, -before.sign_balance, rtol=0, atol=0)
    same(after.mass_asymmetry, -before.mass_asymmetry)


@quick
@given(nets(st.sampled_from(NAMES)), st.permutations(range(3)))
def test_examples_do_not_see_each_other(net, order):
    small, output = net
    network = small.network
    whole = circuit_asymmetry(network, small.inputs, output=output)
    turned = circuit_asymmetry(network, small.inputs[order], output=output)
    for name in ("alive", "sign_balance", "mass_asymmetry", "output"):
        same(getattr(turned, name), getattr(whole, name)[order])


@quick
@given(st.integers(1, 3), seeds)
def test_padding_that_no_unit_reads_changes_nothing(width, seed):
    # what zeros around the picture give is what taps on padding give: nothing
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten()]
    tail = nn.Linear(2 * (3 + 2 * width) ** 2, 1, bias=False)
    plain = nn.Sequential(*layers, tail).double()
    padded = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=width, bias=False), *layers[1:], tail
    ).double()
    with torch.no_grad():
        for weight in plain.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        padded[0].weight.copy_(plain[0].weight)
    x = torch.randn(2, 1, 5, 5, generator=generator, dtype=torch.float64)
    framed = nn.functional.pad(x, (width,) * 4)
    by_zeros = circuit_sums(Network.from_module(plain, framed), framed)
    by_padding = circuit_sums(Network.from_module(padded, x), x)
    for name in ("alive", "signed", "absolute", "output"):
        same(getattr(by_padding, name), getattr(by_zeros, name))


@quick
@given(nets(st.sampled_from(NAMES)), seeds)
def test_what_is_drawn_is_alive(net, seed):
    small, output = net
    sums = circuit_sums(small.network, small.inputs, output=output)
    sample = sample_circuits(small.network, small.inputs, 30, output=output, seed=seed)
    assert sample.examples.bincount(minlength=3).tolist() == [
        10 if alive else 0 for alive in sums.alive
    ]
    assert (sample.inputs != 0).all()
    assert sample.log_abs.isfinite().all()
    assert (sample.sign.abs() == 1).all()
    sign, log_abs = sample.weighted()
    terms = log_abs.exp()
    # no term exceeds the sum of all, and where all terms have one sign, each has it
    assert (terms <= sums.absolute[sample.examples] * (1 + 1e-9)).all()
    one_sided = sums.sign_balance.abs()[sample.examples] == 1
    assert torch.equal(sign[one_sided].double(), sums.sign_balance[sample.examples][one_sided])
