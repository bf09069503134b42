"""What Li's paper says of bias-free piecewise-linear nets, and which nets it does not hold for."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from torch_thermo import (
    FunctionalHessianOperator,
    GaussNewtonOperator,
    HessianOperator,
    Risk,
    hessian_spectrum,
    trace,
)


def hinge(output, target):
    return (1 - output * target).clamp(min=0).mean()


def squared(output, target):
    return (output - target).square().mean()


def logistic(output, target):
    return F.softplus(-output * target).mean()


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


def activation(slope):
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def dense_net(widths, slope, bias=False):
    layers = []
    for a, b in zip(widths, [*widths[1:], 1], strict=True):
        layers += [nn.Linear(a, b, bias=bias), activation(slope)]
    return nn.Sequential(*layers[:-1])


def conv_net(channels, slope, pool, grouped, stride):
    layers, last = [], 1
    for c in channels:
        groups = math.gcd(last, c) if grouped else 1
        layers += [
            nn.Conv2d(last, c, 3, stride, padding=1, groups=groups, bias=False),
            activation(slope),
        ]
        last, stride = c, 1
    return nn.Sequential(*layers, pool(), nn.Flatten(), nn.LazyLinear(1, bias=False))


POOLS = (
    lambda: nn.MaxPool2d(2),
    lambda: nn.AvgPool2d(2),
    lambda: nn.MaxPool2d(3, stride=2, padding=1),
    lambda: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    lambda: nn.AdaptiveAvgPool2d(2),
)


@st.composite
def problems(draw, depth=(2, 4), kinds=("dense", "conv")):
    """A net, its number of weight layers, and two unequal batches."""
    seed = draw(st.integers(0, 2**16))
    slope = draw(st.sampled_from([0.0, 0.1, 0.5, -0.3]))
    layers = draw(st.integers(*depth))
    kind = draw(st.sampled_from(kinds))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "dense":
            widths = draw(st.lists(st.integers(2, 6), min_size=layers, max_size=layers))
            net, x = dense_net(widths, slope), torch.randn(11, widths[0])
        else:
            channels = draw(st.lists(st.integers(1, 2), min_size=layers - 1, max_size=layers - 1))
            pool, stride = draw(st.sampled_from(POOLS)), draw(st.integers(1, 2))
            net = conv_net(channels, slope, pool, draw(st.booleans()), stride)
            x = torch.randn(11, 1, 5, 5)
            net(x)  # the last layer's size
        for p in net.parameters():  # He's scale, so that few nets are dead
            p.data.normal_(std=(2 / p[0].numel()) ** 0.5)
        y = torch.randn(11, 1).sign()
    net, x, y = net.double(), x.double(), y.double()
    assume(bool(net(x).any()))  # of a net whose units are all dead everything is 0
    return net, layers, [(x[:7], y[:7]), (x[7:], y[7:])]


def close(a, b, tolerance):
    scale = max(float(a.abs().max()), float(b.abs().max()))
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def flat(risk):
    return risk.flatten(risk.parameters.values())


def layer_forces(risk):
    """theta_l . grad_l R of each layer."""
    gradient, theta = risk.gradient(), flat(risk)
    return torch.stack([gradient[b] @ theta[b] for b in risk.blocks.values()])


def own_blocks(operator, matrix=None):
    matrix = operator.dense() if matrix is None else matrix
    return torch.stack([matrix[b, b].abs().max() for b in operator.blocks.values()])


few = settings(max_examples=25)


@few
@given(problems())
def test_own_blocks_and_trace_are_zero(problem):
    net, _, batches = problem
    operator = HessianOperator(Risk(net, hinge, batches))
    matrix = operator.dense()
    assert not own_blocks(operator, matrix).any()
    values = torch.linalg.eigvalsh(matrix)
    assert abs(float(values.sum())) <= 1e-12 * float(values.abs().sum())


@few
@given(problems())
def test_product_with_the_weights(problem):
    net, layers, batches = problem
    risk = Risk(net, hinge, batches)
    close(HessianOperator(risk) @ flat(risk), (layers - 1) * risk.gradient(), 1e-10)


@few
@given(problems())
def test_every_layer_has_the_same_force(problem):
    net, _, batches = problem
    forces = layer_forces(Risk(net, hinge, batches))
    expected = 0.0
    for x, y in batches:
        output = net(x).detach()
        expected += float(torch.where(output * y < 1, -y * output, 0.0).sum()) / 11
    close(forces, torch.full_like(forces, expected), 1e-10)


@few
@given(problems(depth=(2, 2)))
def test_two_layers_have_a_symmetric_spectrum(problem):
    net, _, batches = problem
    values = torch.linalg.eigvalsh(HessianOperator(Risk(net, hinge, batches)).dense())
    close(values, -values.flip(0), 1e-12)


@few
@given(problems(), st.sampled_from([squared, logistic]))
def test_any_twice_differentiable_loss(problem, loss_fn):
    net, _, batches = problem
    risk = Risk(net, loss_fn, batches)
    operator = FunctionalHessianOperator(risk)
    functional = operator.dense()
    assert not own_blocks(operator, functional).any()
    whole, gauss = HessianOperator(risk).dense(), GaussNewtonOperator(risk).dense()
    size = float(torch.linalg.eigvalsh(whole).abs().sum())
    assert float(whole.trace()) == pytest.approx(float(gauss.trace()), abs=1e-12 * size)
    close(whole, gauss + functional, 1e-13)


@few
@given(problems())
def test_inactive_examples_add_nothing(problem):
    net, _, batches = problem
    count = sum(p.numel() for p in net.parameters())
    v = torch.randn(count, generator=torch.Generator().manual_seed(0)).double()
    margin = float(torch.cat([net(x) * y for x, y in batches]).detach().median())

    def loss_fn(output, target):  # half of the examples is active
        return (margin - output * target).clamp(min=0).mean()

    def whole(model, batch):  # a closure, whose outputs are not known: no example is left out
        return loss_fn(model(batch[0]), batch[1])

    active = HessianOperator(Risk(net, loss_fn, batches)) @ v
    close(active, HessianOperator(Risk.from_closure(net, whole, batches)) @ v, 1e-14)
    net.float()
    batches = [(x.float(), y.float()) for x, y in batches]
    active = HessianOperator(Risk(net, loss_fn, batches)) @ v.float()
    close(active, HessianOperator(Risk.from_closure(net, whole, batches)) @ v.float(), 1e-6)


@few
@given(problems())
def test_float32(problem):
    net, layers, batches = problem
    risk = Risk(net.float(), hinge, [(x.float(), y.float()) for x, y in batches])
    operator = HessianOperator(risk)
    assert not own_blocks(operator).any()
    close(operator @ flat(risk), (layers - 1) * risk.gradient(), 1e-4)
    forces = layer_forces(risk)
    largest = float(risk.gradient().norm() * flat(risk).norm())
    torch.testing.assert_close(
        forces, forces.mean().expand_as(forces), rtol=1e-3, atol=1e-5 * largest
    )


@settings(max_examples=10)
@given(problems(depth=(3, 4)))
def test_hadamard_probes_find_no_trace(problem):
    net, layers, batches = problem
    operator = FunctionalHessianOperator(Risk(net, squared, batches))
    estimate = trace(operator, probes=4)
    size = float(torch.linalg.eigvalsh(operator.dense()).abs().sum())
    assert 2 < layers <= 4
    assert abs(estimate.value) <= 1e-12 * size
    assert estimate.stderr <= 1e-12 * size


@settings(max_examples=10)
@given(problems(kinds=("dense",)), st.integers(0, 100))
def test_extremes_lie_inside_and_within_their_bounds(problem, seed):
    net, _, batches = problem
    risk = Risk(net, squared, batches)
    values = torch.linalg.eigvalsh(HessianOperator(risk).dense())
    size = float(values.abs().max())
    result = hessian_spectrum(risk, steps=5, probes=2, seed=seed)
    for estimate, residual in zip(
        (result.extremes.min, result.extremes.max), result.residuals, strict=True
    ):
        assert values[0] - 1e-12 * size <= estimate.value <= values[-1] + 1e-12 * size
        assert (values - estimate.value).abs().min() <= residual + 1e-12 * size


# -- which nets it does not hold for -------------------------------------------------------------

SEEDS = range(4)


def data(seed, width=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(9, width, generator=generator).double()
    return [(x, torch.randn(9, 1, generator=generator).sign().double())]


def made(seed, build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double()


def normalised():
    net = dense_net([4, 5, 4], 0.1)
    net.insert(1, nn.BatchNorm1d(5))
    net(torch.randn(30, 4))  # moves the statistics
    nn.init.normal_(net[1].weight)
    nn.init.normal_(net[1].bias)
    return net


def residual():
    first, _, second, _, third = dense_net([4, 4, 4], 0.1)
    body = nn.Sequential(second, nn.LeakyReLU(0.1))
    return nn.Sequential(first, nn.LeakyReLU(0.1), Residual(body), third)


SOFTENED = {
    "biases": lambda: dense_net([4, 5, 4], 0.1, bias=True),
    "batch-norm": normalised,
    "residual": residual,
}


@st.composite
def softened(draw):
    """A net of dense blocks with biases, BatchNorm and residual sums, at least one of them."""
    soft = draw(st.sets(st.sampled_from(["bias", "norm", "residual"]), min_size=1))
    width, slope = draw(st.integers(2, 4)), draw(st.sampled_from([0.0, 0.1]))
    with torch.random.fork_rng(devices=[]):
        seed = draw(st.integers(0, 2**16))
        torch.manual_seed(seed)
        layers = [nn.Linear(4, width, bias="bias" in soft), activation(slope)]
        for _ in range(draw(st.integers(1, 2))):
            body = nn.Sequential(nn.Linear(width, width, bias="bias" in soft))
            if "norm" in soft:
                body.append(nn.BatchNorm1d(width))
            body.append(activation(slope))
            layers.append(Residual(body) if "residual" in soft else body)
        net = nn.Sequential(*layers, nn.Linear(width, 1, bias="bias" in soft))
        net(torch.randn(30, 4))  # moves the statistics
        for p in net.parameters():
            nn.init.normal_(p)
    return net.double().eval(), data(seed)


@few
@given(softened(), st.sampled_from([hinge, logistic, squared]))
def test_the_functional_part_keeps_its_trace(problem, loss_fn):
    net, batches = problem
    risk = Risk(net, loss_fn, batches)
    operator = FunctionalHessianOperator(risk)
    functional = operator.dense()
    assert not own_blocks(operator, functional).any()
    size = float(torch.linalg.eigvalsh(functional).abs().sum())
    assert abs(float(functional.trace())) <= 1e-12 * size
    whole, gauss = HessianOperator(risk).dense(), GaussNewtonOperator(risk).dense()
    size = float(torch.linalg.eigvalsh(whole).abs().sum())
    assert float(whole.trace()) == pytest.approx(float(gauss.trace()), abs=1e-12 * size)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SOFTENED)
def test_biases_norms_and_residual_sums(name, seed):
    """They keep tr H = 0 and break what follows from homogeneity."""
    risk = Risk(made(seed, SOFTENED[name]), hinge, data(seed))
    operator = HessianOperator(risk)
    values = torch.linalg.eigvalsh(operator.dense())
    assert abs(float(values.sum())) <= 1e-12 * float(values.abs().sum())
    size = float(risk.gradient().norm())
    layers = 3
    assert float((operator @ flat(risk) - (layers - 1) * risk.gradient()).norm()) > 1e-6 * size
    forces = torch.stack(
        [
            force
            for force, name in zip(layer_forces(risk), risk.blocks, strict=True)
            if risk.parameters[name].dim() == 2
        ]
    )
    assert float(forces.max() - forces.min()) > 1e-6 * size


class TiedNet(nn.Module):
    """One 4x4 weight is applied twice, then a last layer: three applications along a path."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False)

    def forward(self, x):
        for _ in range(2):
            x = F.leaky_relu(self.body(x), 0.1)
        return self.last(x)


@pytest.mark.parametrize("seed", SEEDS)
def test_tied_weights_break_the_blocks(seed):
    risk = Risk(made(seed, TiedNet), hinge, data(seed))
    operator = HessianOperator(risk)
    blocks = own_blocks(operator)
    assert blocks[0] > 1e-6
    assert blocks[1] == 0
    # sum over layers of L_l theta_l . d/dtheta: applications count, not parameters
    close(operator @ flat(risk), 2 * risk.gradient(), 1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("smooth", [nn.Tanh, nn.GELU])
def test_smooth_activations_break_all(smooth, seed):
    def build():
        first, _, second, _, third = dense_net([4, 5, 4], 0.0)
        return nn.Sequential(first, smooth(), second, smooth(), third)

    risk = Risk(made(seed, build), hinge, data(seed))
    operator = HessianOperator(risk)
    values = torch.linalg.eigvalsh(operator.dense())
    assert own_blocks(operator)[0] > 1e-6
    assert abs(float(values.sum())) > 1e-6 * float(values.abs().sum())
    size = float(risk.gradient().norm())
    assert float((operator @ flat(risk) - 2 * risk.gradient()).norm()) > 1e-6 * size
    forces = layer_forces(risk)
    assert float(forces.max() - forces.min()) > 1e-6 * size


@pytest.mark.parametrize("seed", SEEDS)
def test_squared_hinge_breaks_the_first_two(seed):
    def loss_fn(output, target):
        return (1 - output * target).clamp(min=0).square().mean()

    risk = Risk(made(seed, lambda: dense_net([4, 5, 4], 0.1)), loss_fn, data(seed))
    operator = HessianOperator(risk)
    values = torch.linalg.eigvalsh(operator.dense())
    assert own_blocks(operator).min() > 1e-6
    assert abs(float(values.sum())) > 1e-6 * float(values.abs().sum())
    size = float(risk.gradient().norm())
    assert float((operator @ flat(risk) - 2 * risk.gradient()).norm()) > 1e-6 * size
    forces = layer_forces(risk)
    close(forces, forces.mean().expand_as(forces), 1e-10)
