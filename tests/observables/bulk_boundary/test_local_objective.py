"""The bulk loss with a local objective of the neurons, and of recurrent networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.observables.bulk_boundary.test_exact import exact, mlp, noise
from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.observables.bulk_boundary.exact import relax
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss
from torch_thermo.observables.bulk_boundary.lbfgs import lbfgs

SQUARED = ExampleLoss(None)


def problem(scale=1.0, count=8):
    model, inputs = mlp(5, 6, 4, 3, last=nn.Tanh(), scale=scale), noise(count, 5)
    return model, inputs, noise(count, 3, seed=9).sign()


def energy(network, inputs, states, m):
    """H by its definition (eq. 3.4)."""
    total = 0
    for x, f in zip(states, network.one_step(inputs, states), strict=True):
        total = total + 0.5 * (x - f).square().sum(1) - 0.5 * m * x.square().sum(1)
    return total


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("m", [1e-3, 0.1, 0.7, 1.0, 3.0])
def test_bounds_and_value_and_rest(m, labelled):
    """-m/2 (N_hidden + N_output) <= H <= H of the forward pass; H is that of the states given."""
    model, inputs, targets = problem()
    network = Network.from_module(model, inputs)
    given = targets if labelled else None
    found = relax(network, inputs, given, SQUARED, m=m)
    states, _ = network.states(inputs)
    passed = energy(network, inputs, [*states[:-1], targets if labelled else states[-1]], m)
    assert bool((found.values <= passed.detach()).all())
    assert bool((found.values >= -0.5 * m * 13 - 1e-12).all())
    assert bool(found.converged.all())
    assert all(float(x.abs().max()) <= 1 for x in found.states)
    value = energy(network, inputs, found.states, m).detach()
    assert torch.allclose(found.values, value, rtol=1e-12)
    if labelled:
        assert torch.equal(found.states[-1], targets)
    # no step down the gradient that stays in the box
    free = [x.detach().requires_grad_() for x in found.states[: 2 if labelled else 3]]
    rest = [targets] if labelled else []
    slopes = torch.autograd.grad(energy(network, inputs, [*free, *rest], m).sum(), free)
    for x, slope in zip(free, slopes, strict=True):
        assert float((x - (x - slope).clamp(-1, 1)).abs().max()) < 1e-6


def test_one_neuron_by_hand():
    """1/2 (x - f)^2 - m/2 x^2 in [-1, 1]: at x = f / (1 - m), or on the wall."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()).double()
    model[0].weight.data.fill_(1.0)
    network = Network.from_module(model, torch.ones(1, 1).double())
    f = torch.tensor([[0.3], [-0.3], [0.6]]).double()
    for m in (0.2, 0.5, 2.0):
        found = relax(network, torch.atanh(f), None, SQUARED, m=m)
        inside = f / (1 - m) if m < 1 else f.sign()
        x = torch.where(inside.abs() < 1, inside, f.sign())
        expected = 0.5 * (x - f).square() - 0.5 * m * x.square()
        assert torch.allclose(found.values, expected[:, 0], rtol=1e-12)
        assert torch.allclose(found.states[-1], x, rtol=1e-6)
        assert found.boundary.isnan().all()


def test_small_m_is_the_exact_bulk_loss_where_the_states_are_in_the_box():
    model, inputs, targets = problem(scale=0.7)
    inputs, targets = 0.3 * inputs, 0.3 * targets
    found = exact(model, inputs, targets)
    states = relax(Network.from_module(model, inputs), inputs, targets, SQUARED).states
    assert all(float(x.abs().max()) < 1 for x in states)
    for m, error in ((1e-2, 2e-1), (1e-4, 2e-3), (1e-9, 2e-8)):
        near = exact(model, inputs, targets, m=m)
        assert torch.allclose(near.bulk, found.bulk, rtol=0, atol=error)
        assert torch.allclose(near.boundary, found.boundary, rtol=1e-12)
        assert bool((near.bulk < found.bulk).all())
        assert bool((near.bulk <= near.boundary).all())


def test_the_objective_falls_with_m_and_free_outputs_are_lower():
    model, inputs, targets = problem()
    last = exact(model, inputs, targets, m=1e-3)
    for m in (0.05, 0.2, 0.6):
        found = exact(model, inputs, targets, m=m)
        assert bool((found.bulk < last.bulk).all())
        free = exact(model, inputs, None, m=m)
        assert bool((free.bulk <= found.bulk + 1e-9).all())
        assert free.boundary.isnan().all()
        assert "without targets there is no boundary loss" in free.reason
        assert math.isnan(free.summary()["boundary"])
        last = found


def test_without_targets_and_objective_the_bulk_loss_is_0():
    model, inputs, _ = problem()
    network = Network.from_module(model, inputs)
    found = relax(network, inputs, None, SQUARED)
    assert float(found.values.abs().max()) < 1e-28
    assert bool(found.converged.all())
    for x, y in zip(found.states, network.states(inputs)[0], strict=True):
        assert torch.allclose(x, y.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("labelled", [True, False])
def test_an_interaction_of_each_neuron_with_itself_shifts_m(labelled):
    """V = -k/2 |x|^2, as a function and as a matrix."""
    model, inputs, targets = problem()
    given = targets if labelled else None
    expected = exact(model, inputs, given, m=0.5)
    called = lambda states: -0.15 * sum(x.square().sum(1) for x in states)  # noqa: E731
    for interaction in (called, 0.3 * torch.eye(13)):
        found = exact(model, inputs, given, m=0.2, interaction=interaction)
        assert torch.allclose(found.bulk, expected.bulk, rtol=1e-6)
    alone = exact(model, inputs, given, interaction=0.5 * torch.eye(13))
    assert torch.allclose(alone.bulk, expected.bulk, rtol=1e-8)


def test_a_coupling_aligns():
    """Two free outputs without input: V = -J x1 x2 leads to a corner with x1 = x2, or x1 = -x2."""
    model = nn.Sequential(nn.Linear(1, 2), nn.Tanh()).double()
    for parameter in model.parameters():
        parameter.data.fill_(0.05)
    network = Network.from_module(model, torch.zeros(1, 1).double())
    for sign in (1.0, -1.0):
        coupling = sign * 3 * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        found = relax(network, torch.zeros(2, 1).double(), None, SQUARED, interaction=coupling)
        x = found.states[-1]
        assert torch.allclose(x[:, 0] * x[:, 1], torch.full((2,), sign).double())
        # 1/2 sum (x - f)^2 - J x1 x2
        f = math.tanh(0.05)
        corner = (1 - f) ** 2 if sign > 0 else 0.5 * ((1 - f) ** 2 + (1 + f) ** 2)
        assert found.values.tolist() == pytest.approx([corner - 3.0] * 2)


BOUNDED = (nn.Tanh, nn.Sigmoid, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid)
UNBOUNDED = (nn.ReLU, nn.GELU, nn.Identity, nn.Softplus, nn.ReLU6, nn.LeakyReLU)


class TestRefusals:
    def setup_method(self):
        self.model, self.inputs, self.targets = problem(count=2)

    @pytest.mark.parametrize("bend", UNBOUNDED)
    def test_unbounded_hidden_units(self, bend):
        model = mlp(5, 6, 3, hidden=bend, last=nn.Tanh())
        with pytest.raises(ValueError, match=r"kept in \[-1, 1\], and .*stage '0'"):
            exact(model, self.inputs, self.targets, m=0.1)
        assert exact(model, self.inputs, self.targets).bulk_mean > 0

    @pytest.mark.parametrize("bend", BOUNDED)
    def test_bounded_hidden_units(self, bend):
        model = mlp(5, 6, 3, hidden=bend, last=nn.Tanh())
        assert exact(model, self.inputs, self.targets, m=0.1).converged_share == 1

    def test_linear_outputs_are_bounded_where_they_are_clamped(self):
        model = mlp(5, 6, 3)
        assert exact(model, self.inputs, self.targets, m=0.1).converged_share == 1
        with pytest.raises(ValueError, match="stage '2' has no activation that bounds it"):
            exact(model, self.inputs, None, m=0.1)

    @pytest.mark.parametrize("m", [-0.1, math.nan, math.inf])
    def test_m(self, m):
        with pytest.raises(ValueError, match=f"m must be finite and at least 0, got {m}"):
            exact(self.model, self.inputs, self.targets, m=m)

    @pytest.mark.parametrize("method", ["linear", "logit"])
    def test_other_methods(self, method):
        network = Network.from_module(self.model, self.inputs)
        with pytest.raises(ValueError, match=r'targets=None, m > 0 and an .* need method="exact"'):
            bulk_boundary_loss(network, self.inputs, self.targets, None, method, m=0.1)
        with pytest.raises(ValueError, match=f'method="{method}" linearises'):
            bulk_boundary_loss(network, self.inputs, None, None, method)

    def test_other_losses(self):
        labels = torch.zeros(2, dtype=torch.long)
        with pytest.raises(ValueError, match="with a local objective the outputs are neurons"):
            exact(self.model, self.inputs, labels, F.cross_entropy, m=0.1)

    def test_interactions(self):
        with pytest.raises(ValueError, match=r"interaction must be \(13, 13\), .* got \(3, 3\)"):
            exact(self.model, self.inputs, self.targets, interaction=torch.eye(3))
        matrix = torch.zeros(13, 13)
        matrix[0, 1] = 1
        with pytest.raises(ValueError, match="interaction must be a symmetric matrix"):
            exact(self.model, self.inputs, self.targets, interaction=matrix)
        with pytest.raises(TypeError, match="interaction must be a matrix or callable, got str"):
            exact(self.model, self.inputs, self.targets, interaction="ising")
        with pytest.raises(ValueError, match=r"one number an example \(12,\), got \(\)"):
            exact(self.model, self.inputs, self.targets, interaction=lambda s: s[0].sum())


def recurrent(scale, activation=torch.tanh, seed=0):
    """3 inputs, 5 hidden, 2 outputs; every neuron reads every other, itself and the outputs too."""
    w = noise(10, 10, seed=seed, scale=scale / math.sqrt(10))
    return Network.from_matrix(w, noise(10, seed=1, scale=0.1), activation, 3, 2), w


def test_linear_recurrent_net_is_least_squares():
    network, w = recurrent(0.5, lambda y: 1.0 * y)
    b = noise(10, seed=1, scale=0.1)
    inputs, targets = noise(6, 3), noise(6, 2, seed=4)
    found = bulk_boundary_loss(network, inputs, targets, None, "exact")
    for n in range(6):

        def residual(h, n=n):
            x = torch.cat([inputs[n], h, targets[n]])
            return (x - w @ x - b)[3:]

        zero = torch.zeros(5, dtype=torch.float64)
        matrix, constant = torch.func.jacrev(residual)(zero), residual(zero)
        h = torch.linalg.lstsq(matrix, -constant[:, None]).solution[:, 0]
        assert found.bulk[n].item() == pytest.approx(0.5 * residual(h).square().sum().item())
    assert bool(found.converged.all())


def test_recurrent_net():
    """The gradient over the hidden states is 0, and with its own outputs as targets the loss is."""
    network, _ = recurrent(0.9)
    inputs, targets = noise(6, 3), noise(6, 2, seed=4).sign()
    found = relax(network, inputs, targets, SQUARED)
    assert bool(found.converged.all())
    hidden = found.states[0].detach().requires_grad_()
    value = energy(network, inputs, [hidden, targets], 0.0)
    assert torch.allclose(value.detach(), found.values, rtol=1e-12)
    assert float(torch.autograd.grad(value.sum(), hidden)[0].abs().max()) < 1e-7
    outputs = network.fixed_point(inputs).states[-1].detach()
    expected = 0.5 * (outputs - targets).square().sum(1)
    assert torch.allclose(found.boundary, expected, rtol=1e-9)
    own = relax(network, inputs, outputs, SQUARED)
    assert float(own.values.max()) < 1e-20
    with pytest.raises(ValueError, match='this network is recurrent: take method="exact"'):
        bulk_boundary_loss(network, inputs, targets)
    with pytest.raises(ValueError, match="in a recurrent network the outputs are neurons"):
        bulk_boundary_loss(network, inputs, targets, nn.MSELoss(), "exact")
    assert bulk_boundary_loss(network, inputs, None, None, "exact", m=0.2).converged_share == 1


def test_recurrent_net_without_fixed_point_has_no_boundary_loss():
    network, _ = recurrent(6.0, seed=3)
    inputs, targets = noise(12, 3), noise(12, 2, seed=4).sign()
    settled = network.fixed_point(inputs).converged
    assert not bool(settled.all())
    found = bulk_boundary_loss(network, inputs, targets, None, "exact")
    assert found.boundary.isnan().tolist() == (~settled).tolist()
    assert bool(found.bulk.isfinite().all())
    assert f"{int((~settled).sum())} of 12 examples have no fixed point" in found.reason


@pytest.mark.parametrize("box", [torch.inf, 1.0])
def test_quadratics(box):
    """In a box against enumeration of which variables are held; free: the linear solve."""
    root = noise(20, 4, 4)
    matrix, right = root @ root.mT + 0.1 * torch.eye(4), 3 * noise(20, 4, seed=1)

    def function(v, rows):
        slope = (matrix[rows] @ v[..., None])[..., 0] - right[rows]
        return 0.5 * (v * (slope - right[rows])).sum(1), slope

    found = lbfgs(function, torch.zeros(20, 4).double(), 500, box)
    assert bool(found.converged.all())
    free = torch.linalg.solve(matrix, right)
    if box == torch.inf:
        assert torch.allclose(found.points, free, rtol=1e-5)
    else:
        assert (free.abs() > 1).any(1).sum() > 5
        _, slope = function(found.points, torch.arange(20))
        held = found.points.abs() >= 1
        assert bool((slope[~held].abs() < 1e-6).all())
        assert bool(((slope * found.points)[held] <= 0).all())
        assert float(found.points.abs().max()) <= 1


def test_lbfgs_of_rosenbrock_and_of_too_few_steps():
    def function(v, rows):
        v = v.detach().requires_grad_()
        value = (1 - v[:, 0]).square() + 100 * (v[:, 1] - v[:, 0].square()).square()
        return value.detach(), torch.autograd.grad(value.sum(), v)[0]

    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [3.0, -2.0]]).double()
    found = lbfgs(function, start, 300)
    assert bool(found.converged.all())
    assert torch.allclose(found.points, torch.ones(3, 2).double(), atol=1e-6)
    short = lbfgs(function, start, 3)
    assert not short.converged.any()
    assert bool((short.values < function(start, None)[0]).all())
