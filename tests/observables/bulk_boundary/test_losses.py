"""Bulk and boundary loss: closed forms, dense oracles, invariances, and what is refused."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.observables.bulk_boundary.support import fill, least_squares, noise
from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import (
    BulkBoundary,
    arguments,
    bulk_boundary_loss,
    linearised,
)
from torch_thermo.systems import VGG, TanhMLP

METHODS = ("linear", "logit")


def mlp(*sizes, last=None, hidden=nn.Tanh):
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), hidden()]
    return fill(nn.Sequential(*layers[:-1], *([last] if last else [])), scale=1.5)


def conv():
    return fill(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 2, groups=2),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.AvgPool2d(2, stride=1),
            nn.Flatten(),
            nn.Linear(6, 3),
            nn.Tanh(),
        ),
        scale=1.5,
    )


def fully_convolutional():
    """The output is a mean over positions: more pre-activations than outputs."""
    return fill(
        nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.Tanh(),
            nn.Conv2d(4, 3, 3),
            nn.Sigmoid(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        scale=1.5,
    )


NETS = {
    "tanh mlp": (lambda: mlp(5, 7, 6, 3, last=nn.Tanh()), (5,)),
    "relu mlp": (lambda: mlp(5, 7, 6, 3, hidden=nn.ReLU), (5,)),
    "narrow": (lambda: mlp(5, 7, 2, 4, last=nn.Tanh()), (5,)),
    "conv": (conv, (2, 12, 12)),
    "fully convolutional": (fully_convolutional, (2, 7, 7)),
    "no hidden layer": (lambda: mlp(5, 3, last=nn.Tanh()), (5,)),
}


def measure(model, inputs, targets, **options):
    return bulk_boundary_loss(Network.from_module(model, inputs), inputs, targets, **options)


def jacobian(model, x, weights=None):
    """Dense d(output)/d(residual), the residuals added behind each activation by hooks.

    Written on the module itself, without the Network: residuals come in by replacing the output of
    each hidden activation.
    """
    layers = list(model)
    last = max(i for i, m in enumerate(layers) if isinstance(m, nn.Linear | nn.Conv2d))
    marks = [i for i, m in enumerate(layers[:last]) if isinstance(m, nn.Tanh | nn.ReLU)]
    shapes, value = [], x[None]
    for i, layer in enumerate(layers):
        value = layer(value)
        if i in marks:
            shapes.append(value.shape)

    def response(flat):
        value, parts = x[None], list(flat.split([s.numel() for s in shapes]))
        for i, layer in enumerate(layers):
            value = layer(value)
            if i in marks:
                value = value + parts.pop(0).reshape(value.shape)
        return value.flatten()

    zero = x.new_zeros(sum(s.numel() for s in shapes))
    return response(zero).detach(), torch.func.jacrev(response)(zero)


@pytest.mark.parametrize("name", NETS)
def test_linear_is_dense_least_squares(name):
    make, shape = NETS[name]
    model, inputs = make(), noise(6, *shape)
    targets = noise(6, *model(inputs).shape[1:], seed=9).sign()
    found = measure(model, inputs, targets, method="linear")
    for n in range(6):
        outputs, dense = jacobian(model, inputs[n])
        error = targets[n].flatten() - outputs
        # min_r |r|^2 + |error - J r|^2 as one system
        system = torch.cat([torch.eye(dense.shape[1], dtype=torch.float64), dense])
        right = torch.cat([error.new_zeros(dense.shape[1]), error])
        r = torch.linalg.lstsq(system, right[:, None]).solution[:, 0]
        expected = 0.5 * (system @ r - right).square().sum()
        assert found.bulk[n].item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-14)
        boundary = 0.5 * error.square().sum()
        assert found.boundary[n].item() == pytest.approx(boundary.item(), rel=1e-12)
    assert bool(found.converged.all())


def test_one_hidden_linear_layer_by_hand():
    """x -> a x -> b h: o + b r, so 1/2 r^2 + 1/2 (e - b r)^2 is at least e^2 / 2 (1 + b^2)."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data.fill_(2.0)
    model[1].weight.data.fill_(3.0)
    inputs = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    targets = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    for method in METHODS:
        found = measure(model, inputs, targets, method=method)
        assert found.boundary.tolist() == pytest.approx([12.5, 8.0])
        assert found.bulk.tolist() == pytest.approx([1.25, 0.8], rel=1e-12)
        assert found.ratio == pytest.approx(0.1)


def test_two_hidden_layers_by_hand():
    """o = c (b (a x + r1) + r2): J = (c b, c), A = c^2 (1 + b^2)."""
    layers = [nn.Linear(1, 1, bias=False) for _ in range(3)]
    model = nn.Sequential(*layers).double()
    for layer, weight in zip(layers, (1.0, 2.0, 0.5), strict=True):
        layer.weight.data.fill_(weight)
    found = measure(model, torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    assert found.bulk.item() == pytest.approx(0.5 / (1 + 0.25 * 5), rel=1e-12)


@pytest.mark.parametrize("shape", [(5, 8, 3), (5, 2, 4), (4, 6, 6, 5)])
def test_linear_net_methods_agree_with_each_other_and_with_the_exact_minimum(shape):
    model = fill(nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(shape)]))
    inputs, targets = noise(7, shape[0]), noise(7, shape[-1], seed=5)
    linear = measure(model, inputs, targets, method="linear")
    logit = measure(model, inputs, targets, method="logit")
    assert torch.allclose(linear.bulk, logit.bulk, rtol=1e-12, atol=0)
    for n in range(7):
        expected = least_squares(model, inputs[n], targets[n])
        assert logit.bulk[n].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_loss_fn_of_the_squared_error_agrees_with_the_closed_form(method):
    """The same loss through a loss_fn takes the general way: Newton steps."""
    model, inputs = mlp(5, 7, 6, 3, last=nn.Tanh()), noise(20, 5)
    targets = noise(20, 3, seed=9).sign()
    plain = measure(model, inputs, targets, method=method)
    given = measure(
        model, inputs, targets, loss_fn=lambda o, t: 0.5 * F.mse_loss(o, t) * 3, method=method
    )
    assert torch.allclose(plain.bulk, given.bulk, rtol=1e-12, atol=1e-15)
    assert torch.allclose(plain.boundary, given.boundary, rtol=1e-12)
    assert bool(given.converged.all())


def hinge(output, target):
    return (1 - target * output).clamp(min=0).mean()


@pytest.mark.parametrize("method", METHODS)
def test_hinge_of_a_scalar_output_in_closed_form(method):
    """min 1/2 s^2/a + max(0, m - s), m = 1 - t o: m^2 / 2a where m <= a, else m - a/2; 0 if m < 0.

    For m <= a the minimum sits at the kink.
    """
    model = nn.Sequential(mlp(5, 7, 1, hidden=nn.ReLU), nn.Flatten(0))
    inputs, targets = noise(200, 5), noise(200, seed=3).sign()
    found = measure(model, inputs, targets, loss_fn=hinge, method=method)
    kinks = 0
    for n in range(200):
        output, dense = jacobian(model[0], inputs[n])
        a, m = dense.square().sum().item(), 1 - (targets[n] * output).item()
        expected = 0.0 if m < 0 else m * m / (2 * a) if m <= a else m - a / 2
        kinks += 0 <= m <= a
        assert found.bulk[n].item() == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert bool(found.converged.all())
    assert 20 < kinks < 180


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_bulk_is_between_0_and_the_boundary_loss(name, method):
    make, shape = NETS[name]
    model, inputs = make(), noise(40, *shape, scale=3.0)
    outputs = model(inputs).detach()
    labels = torch.arange(40) % outputs.shape[1]
    signs = noise(*outputs.shape, seed=4).sign()
    cases = {None: signs, F.cross_entropy: labels, hinge: signs, nn.L1Loss(): signs}
    for loss_fn, targets in cases.items():
        found = measure(model, inputs, targets, loss_fn=loss_fn, method=method)
        assert bool((found.bulk <= found.boundary).all())
        assert bool((found.bulk >= 0).all())
        assert found.reason == ""
        assert 0 < found.bulk_mean <= found.boundary_mean
        assert found.converged_share > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_no_hidden_layer(method):
    model, inputs = mlp(5, 3, last=nn.Tanh()), noise(9, 5)
    for loss_fn, targets in ((None, noise(9, 3)), (F.cross_entropy, torch.arange(9) % 3)):
        found = measure(model, inputs, targets, loss_fn=loss_fn, method=method)
        assert torch.equal(found.bulk, found.boundary)
        assert bool(found.converged.all())
        assert found.bulk_mean > 0
    scalar = nn.Sequential(mlp(5, 1), nn.Flatten(0))
    found = measure(scalar, inputs, noise(9, seed=2).sign(), loss_fn=hinge, method=method)
    assert torch.equal(found.bulk, found.boundary)
    assert bool(found.converged.all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_boundary_0_is_bulk_0(name, method):
    make, shape = NETS[name]
    model, inputs = make(), noise(5, *shape)
    targets = model(inputs).detach()
    found = measure(model, inputs, targets, method=method)
    assert found.boundary_mean < 1e-28
    assert found.bulk_mean <= found.boundary_mean
    assert bool(found.converged.all())


@pytest.mark.parametrize("loss_fn", [None, F.cross_entropy])
@pytest.mark.parametrize("name", ["tanh mlp", "conv", "fully convolutional"])
def test_an_example_does_not_depend_on_the_others(name, loss_fn):
    make, shape = NETS[name]
    model, inputs = make(), noise(12, *shape, scale=2.0)
    signs = noise(12, 3, seed=4).sign()
    targets = signs if loss_fn is None else torch.arange(12) % 3
    whole = measure(model, inputs, targets, loss_fn=loss_fn)
    for n in (0, 5, 11):
        alone = measure(model, inputs[n : n + 1], targets[n : n + 1], loss_fn=loss_fn)
        assert alone.bulk.item() == pytest.approx(whole.bulk[n].item(), rel=1e-12)


def test_chunks_leave_the_result_as_it_is(monkeypatch):
    model, inputs = mlp(5, 7, 6, 3, last=nn.Tanh()), noise(50, 5)
    targets = noise(50, 3, seed=4).sign()
    whole = measure(model, inputs, targets)
    sizes = []
    solved = linearised._solved

    def counted(response, inputs, targets, loss):
        sizes.append(len(inputs))
        return solved(response, inputs, targets, loss)

    monkeypatch.setattr(linearised, "_solved", counted)
    monkeypatch.setattr(arguments, "_CHUNK_BYTES", 20_000)
    parts = measure(model, inputs, targets)
    assert len(sizes) > 3
    assert sum(sizes) == 50
    assert torch.allclose(parts.bulk, whole.bulk, rtol=1e-13, atol=0)


def test_logit_crosses_a_saturated_output():
    """An output far on the wrong side has no slope there; the other side is cheap to reach."""
    model = mlp(4, 6, 1, last=nn.Tanh())
    wide = nn.Sequential(*model[:-2], nn.Linear(6, 2).double(), nn.Tanh())
    wide[-2].weight.data = noise(2, 6, scale=20.0)
    wide[-2].bias.data = torch.tensor([-8.0, 8.0], dtype=torch.float64)
    inputs = noise(30, 4, scale=0.1)
    targets = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(30, 2)
    far = (wide[:-1](inputs).detach() * targets).max(1).values < -5
    found = measure(wide, inputs, targets)
    assert far.sum() >= 5
    assert bool((found.boundary[far] > 3.9).all())
    assert bool((found.bulk[far] < 1.0).all())
    assert bool(found.converged.all())


def test_one_example_of_two_batches_has_the_mean_and_error_of_statistics():
    bulk, boundary = torch.tensor([1.0, 2.0, 6.0]).double(), torch.tensor([2.0, 4.0, 6.0]).double()
    found = BulkBoundary(bulk, boundary, torch.tensor([True, True, False]), "logit")
    assert found.bulk_mean == pytest.approx(3.0)
    assert found.boundary_mean == pytest.approx(4.0)
    assert found.ratio == pytest.approx(0.75)
    assert found.bulk_median == pytest.approx(2.0)
    assert found.boundary_median == pytest.approx(4.0)
    assert found.bulk_stderr == pytest.approx(math.sqrt(7 / 3))
    assert found.boundary_stderr == pytest.approx(math.sqrt(4 / 3))
    assert found.converged_share == pytest.approx(2 / 3)
    one = BulkBoundary(bulk[:1], 0 * boundary[:1], torch.tensor([True]), "logit")
    assert math.isnan(one.bulk_stderr)
    assert math.isnan(one.ratio)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss_fn", [None, F.cross_entropy, hinge])
def test_what_is_not_finite_is_nan_and_leaves_the_rest(method, loss_fn):
    model, inputs = mlp(5, 7, 3), noise(6, 5)
    targets = torch.arange(6) % 3 if loss_fn is F.cross_entropy else noise(6, 3, seed=2).sign()
    clean = measure(model, inputs, targets, loss_fn=loss_fn, method=method)
    network = Network.from_module(model, inputs)
    spoiled = inputs.clone()
    spoiled[2, 0], spoiled[4, 1] = math.nan, math.inf
    found = bulk_boundary_loss(network, spoiled, targets, loss_fn, method)
    rest = torch.tensor([0, 1, 3, 5])
    assert torch.allclose(found.bulk[rest], clean.bulk[rest], rtol=1e-12, atol=1e-300)
    assert bool(found.bulk[[2, 4]].isnan().all())
    assert bool(found.boundary[[2, 4]].isnan().all())
    assert found.converged.tolist() == [True, True, False, True, False, True]
    assert found.reason.startswith("2 of 6 examples")
    assert "example 2" in found.reason
    assert math.isnan(found.bulk_mean)


def test_float32_models_are_measured_in_float64():
    """float32 has no slope left at an output of tanh(9.5)."""
    double = mlp(3, 5, 2, last=nn.Tanh())
    double[-2].bias.data.fill_(9.5)
    single = mlp(3, 5, 2, last=nn.Tanh())
    single.load_state_dict({k: v.float().double() for k, v in double.state_dict().items()})
    double.load_state_dict(single.state_dict())
    single.float()
    inputs = noise(4, 3, scale=0.1).float()
    targets = torch.ones(4, 2)
    expected = measure(double, inputs.double(), targets.double(), method="linear")
    found = measure(single, inputs, targets, method="linear")
    assert found.bulk.dtype == torch.float64
    assert torch.allclose(found.bulk, expected.bulk, rtol=1e-12, atol=0)
    assert bool((found.bulk > 0).all())


def test_the_vgg_with_its_hinge_loss():
    model = VGG(depth=10, in_channels=1)
    inputs = noise(3, 1, 32, 32).float()
    targets = -model(inputs).detach().sign()
    found = measure(model, inputs, targets, loss_fn=hinge)
    assert bool(found.converged.all())
    assert bool((found.bulk < found.boundary).all())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_leaves_no_trace(mode):
    model = TanhMLP((5, 6, 3)).double()
    inputs = noise(7, 5)
    targets = torch.ones(7, 3).double()
    network = Network.from_module(model, inputs)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    state = torch.get_rng_state()

    def random_loss(output, target):
        return F.mse_loss(output, target) + 0 * torch.rand(())

    plain = bulk_boundary_loss(network, inputs, targets)
    with mode():
        found = bulk_boundary_loss(network, inputs.clone(), targets.clone())
        bulk_boundary_loss(network, inputs, targets, random_loss)
    assert torch.equal(found.bulk, plain.bulk)
    assert not found.bulk.requires_grad
    assert not found.bulk.is_inference()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(bool((p.grad == 3).all()) for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bulk_boundary_loss(network, inputs, targets).bulk, plain.bulk)


def test_it_follows_the_training():
    model, inputs = mlp(4, 5, 2), noise(3, 4)
    network = Network.from_module(model, inputs)
    targets = noise(3, 2)
    before = bulk_boundary_loss(network, inputs, targets)
    model[0].weight.data *= 2
    after = bulk_boundary_loss(network, inputs, targets)
    assert not torch.allclose(before.bulk, after.bulk)
