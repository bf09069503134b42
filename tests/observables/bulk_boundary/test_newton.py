"""The small problems of the bulk loss: kinks, singular A, what is called a minimum."""

import pytest
import torch
import torch.nn.functional as F

from torch_thermo.observables.bulk_boundary import newton
from torch_thermo.observables.bulk_boundary.cutting_planes import GAP, cutting_planes
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss, Potential
from torch_thermo.observables.bulk_boundary.linearised import _closed_form
from torch_thermo.observables.bulk_boundary.newton import (
    TOLERANCE,
    factor_of,
    minimise,
    symmetric_factor,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(loss_fn, targets, logits, gram, activation=lambda y: y, bent=False):
    factor = symmetric_factor(gram)
    potential = Potential(ExampleLoss(loss_fn), targets, activation, True)
    return minimise(potential, logits, factor, bent)


@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_factor(rank):
    roots = normal(7, 5, rank)
    gram = roots @ roots.mT
    factor = symmetric_factor(gram)
    assert torch.allclose(factor @ factor.mT, gram, atol=1e-13)
    assert factor.shape == (7, 5, max(rank, 1))
    columns = factor.square().sum(1) > 0
    assert columns.sum(1).tolist() == [rank] * 7
    across = factor.mT @ factor
    assert torch.allclose(across, torch.diag_embed(across.diagonal(dim1=1, dim2=2)), atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3), (6, 6)])
def test_factor_of_a_jacobian_of_either_shape(shape):
    """Of ranks 2 and 1: what the hidden neurons can't move is no dimension of the problem."""
    jacobian = normal(2, shape[0], 2) @ normal(2, 2, shape[1], seed=1)
    jacobian[1] = normal(shape[0], 1, seed=2) @ normal(1, shape[1], seed=3)
    factor = factor_of(jacobian)
    assert factor.shape == (2, shape[0], 2)
    assert torch.allclose(factor @ factor.mT, jacobian @ jacobian.mT, atol=1e-12)
    assert (factor.square().sum(1) > 0).sum(1).tolist() == [2, 1]
    across = factor.mT @ factor
    assert torch.allclose(across, torch.diag_embed(across.diagonal(dim1=1, dim2=2)), atol=1e-12)


def test_many_outputs_moved_by_few_neurons_are_a_small_problem():
    """60 outputs in 2 dimensions: 2 products with the second derivative a step, not 60."""
    logits, jacobian = normal(3, 60, seed=1), normal(3, 60, 2)
    potential = Potential(ExampleLoss(F.cross_entropy), torch.arange(3), lambda y: y, True)
    widths = []
    curvatures = potential.curvatures

    def watched(logits, rows, factor):
        widths.append(factor.shape[2])
        return curvatures(logits, rows, factor)

    potential.curvatures = watched
    found = minimise(potential, logits, factor_of(jacobian), False)
    assert bool(found.converged.all())
    assert set(widths) == {2}
    whole = minimise(potential, logits, torch.cat([jacobian, normal(3, 60, 58) * 0], 2), False)
    assert torch.allclose(found.values, whole.values, rtol=1e-10)


@pytest.mark.parametrize("name", ["kinks", "no second derivative"])
def test_kinks_in_many_dimensions_are_refused_after_a_few_examples(name, monkeypatch):
    monkeypatch.setattr(newton, "MOST_KINKED", 3)
    logits, labels = normal(20, 4, seed=1), torch.arange(20) % 4
    gram = 100 * torch.eye(4).double().expand(20, 4, 4)
    case = {
        "kinks": (lambda o, t: (o - t).abs().sum(1), normal(20, 4, seed=2)),
        "no second derivative": (torch.nn.MultiMarginLoss(), labels),
    }[name]
    with pytest.raises(
        MemoryError, match=r"of 4 examples end .* at most 3 dim.* 4 outputs .* in 4"
    ):
        solve(*case, logits, gram)
    smooth = solve(F.cross_entropy, labels, logits, gram)
    monkeypatch.setattr(newton, "MOST_KINKED", 4)
    assert torch.allclose(
        smooth.values, solve(F.cross_entropy, labels, logits, gram).values, rtol=1e-9
    )
    assert bool(solve(*case, logits, gram).converged.any())


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12, 1e18])
def test_squared_error_in_closed_form_at_all_sizes_of_A(scale):
    """Also where rounding of A is larger than the 1 it is added to; A has rank 3 of 4."""
    roots, logits, targets = normal(20, 4, 3), normal(20, 4, seed=1), normal(20, 4, seed=2)
    roots = scale**0.5 * roots
    gram = roots @ roots.mT
    error = targets - logits
    loss = 0.5 * error.square().sum(1)
    found = solve(lambda o, t: 0.5 * (o - t).square().sum(1), targets, logits, gram)
    closed = _closed_form(logits, symmetric_factor(gram), targets, loss)
    system = torch.cat([torch.eye(3).double().expand(20, 3, 3), roots], 1)
    right = torch.cat([torch.zeros(20, 3).double(), error], 1)[..., None]
    residual = system @ torch.linalg.lstsq(system, right).solution - right
    expected = 0.5 * residual.square().sum((1, 2))
    assert torch.allclose(found.values, expected, rtol=1e-9)
    assert torch.allclose(closed, expected, rtol=1e-9)
    assert bool(found.converged.all())


def test_what_converges_is_a_minimum():
    """The relative residual is recomputed from the definition at the minimum's value."""
    logits, roots = 2 * normal(40, 3, seed=1), normal(40, 3, 4)
    targets = normal(40, 3, seed=2).sign()
    gram = roots @ roots.mT
    found = solve(None, targets, logits, gram, torch.tanh, bent=True)
    assert bool(found.converged.all())
    # descend from there by plain gradient steps in z: nothing is gained
    z = torch.zeros(40, 4, dtype=torch.float64, requires_grad=True)
    energy = lambda z: (  # noqa: E731
        0.5 * z.square().sum(1)
        + 0.5 * (targets - torch.tanh(logits + (roots @ z[..., None])[..., 0])).square().sum(1)
    )
    for _ in range(2000):
        (slope,) = torch.autograd.grad(energy(z).sum(), z)
        z = (z - 0.05 * slope).detach().requires_grad_()
    assert bool((found.values <= energy(z) + 1e-9).all())
    assert TOLERANCE <= 1e-8


def test_a_bent_output_with_kinks_is_not_called_a_minimum():
    """Behind tanh the lower bound of cutting planes is none: the flag stays down at a kink."""
    logits = torch.tensor([[0.5, -0.5]]).double()
    targets = torch.tensor([[0.2, -0.2]]).double()
    gram = 9 * torch.eye(2).double()[None]
    found = solve(lambda o, t: (o - t).abs().sum(1), targets, logits, gram, torch.tanh, bent=True)
    assert not found.converged.any()
    start = (torch.tanh(logits) - targets).abs().sum()
    assert found.values.item() < start.item()


def test_lower_bounds_count_for_nothing_behind_a_bent_output():
    """Planes below the multi-margin loss of tanh outputs need not be contradicted."""
    logits, roots = normal(30, 4, seed=1), normal(30, 4, 4)
    labels = torch.arange(30) % 4
    loss_fn = torch.nn.MultiMarginLoss()
    found = solve(loss_fn, labels, logits, roots @ roots.mT, torch.tanh, bent=True)
    assert not found.converged.any()
    plain = solve(loss_fn, labels, logits, roots @ roots.mT)
    assert bool(plain.converged.all())


def test_what_is_not_convex_is_not_called_a_minimum():
    """Planes taken on both sides of a peak contradict each other."""

    def slopes(z, rows):
        z = z.detach().requires_grad_()
        phi = 4 * torch.cos(3 * z[:, 0]) + (z[:, 1] - 1).abs()
        (slope,) = torch.autograd.grad(phi.sum(), z)
        return phi.detach(), slope

    start = torch.tensor([[0.2, 0.5], [0.1, 2.0]]).double()
    found, _, sure = cutting_planes(slopes, start, torch.ones(2).double())
    assert not sure.any()
    # not where a value lies below its "lower bound" either
    bowl = cutting_planes(
        lambda z, rows: (-z.square().sum(1) / 4, -z / 2), start[:1].clone(), torch.ones(1).double()
    )
    assert not bowl[2].any()
    assert bool((found <= slopes(start, torch.arange(2))[0] + 0.5 * start.square().sum(1)).all())


def test_nan_derivatives_are_not_called_a_minimum():
    """sqrt at 0 has no derivative."""
    for size in (1, 2):
        logits = torch.zeros(1, size).double()
        gram = torch.eye(size).double()[None]
        found = solve(lambda o, t: 1 + o.square().sum(1).sqrt(), torch.zeros(1), logits, gram)
        assert found.values.item() == 1.0
        assert not found.converged.any()


@pytest.mark.parametrize("size", [2, 5])
def test_cutting_planes_find_the_nearest_point_of_a_cone(size):
    """phi = c max_k |z_k - p_k|, c large: z = p, where no phi' is 0."""
    point = normal(6, size)

    def slopes(z, rows):
        z = z.detach().requires_grad_()
        phi = 30 * (z - point[rows]).abs().amax(1)
        (slope,) = torch.autograd.grad(phi.sum(), z)
        return phi.detach(), slope

    start = torch.zeros_like(point)
    scale = 30 * point.abs().amax(1)
    found, _, sure = cutting_planes(slopes, start, scale)
    assert bool(sure.all())
    assert torch.allclose(found, 0.5 * point.square().sum(1), atol=float((GAP * scale).max()))


def test_examples_that_need_different_ways_do_not_mix():
    """Kinks and smooth minima in one batch, as alone."""
    logits, roots = normal(30, 4, seed=1), normal(30, 4, 6)
    gram = roots @ roots.mT
    targets = normal(30, 4, seed=2).sign()
    loss_fn = lambda o, t: (1 - t * o).clamp(min=0).sum(1)  # noqa: E731
    whole = solve(loss_fn, targets, logits, gram)
    assert bool(whole.converged.all())
    for n in range(0, 30, 3):
        one = slice(n, n + 1)
        alone = solve(loss_fn, targets[one], logits[one], gram[one])
        assert alone.values.item() == pytest.approx(whole.values[n].item(), rel=1e-7, abs=1e-9)


def test_one_output_and_two_that_do_not_meet_agree():
    """A scalar problem goes by bisection, the same beside an idle output by Newton steps."""
    logits, gram = normal(20, 1, seed=1), normal(20, 1, 1).square()
    targets = normal(20, 1, seed=2).sign()
    one = solve(F.soft_margin_loss, targets, logits, gram)
    wide_gram = torch.zeros(20, 2, 2).double()
    wide_gram[:, :1, :1] = gram
    both = solve(
        lambda o, t: F.soft_margin_loss(o[:, :1], t[:, :1]),
        targets.repeat(1, 2),
        logits.repeat(1, 2),
        wide_gram,
    )
    assert torch.allclose(one.values, both.values, rtol=1e-12)
    assert bool(one.converged.all())
    assert bool(both.converged.all())


def test_steps_that_overshoot_are_damped():
    """sqrt(1 + y^2) far from its minimum: a full Newton step lands farther away."""
    logits, gram = 5 + normal(20, 3, seed=1), torch.diag_embed(100 + normal(20, 3).abs())
    zeros = torch.zeros(20, 3).double()

    def loss_fn(output, target):
        return 100 * (1 + (output - target).square()).sqrt().sum(1)

    found = solve(loss_fn, zeros, logits, gram)
    assert bool(found.converged.all())
    # three problems of one output each, which go by bisection
    parts = [
        solve(loss_fn, zeros[:, :1], logits[:, k : k + 1], gram[:, k : k + 1, k : k + 1]).values
        for k in range(3)
    ]
    assert torch.allclose(found.values, sum(parts), rtol=1e-10)


def test_cutting_planes_of_a_smooth_loss_agree_with_newton_steps():
    """No finite number of planes is enough: it is the bound that ends the rounds."""
    logits, labels = normal(10, 3, seed=1), torch.arange(10) % 3
    potential = Potential(ExampleLoss(F.cross_entropy), labels, lambda y: 3 * y, True)
    smooth = minimise(potential, logits, torch.eye(3).double().expand(10, 3, 3), False)
    scale = torch.ones(10).double()
    found, _, sure = cutting_planes(
        lambda z, rows: potential.slopes(logits[rows] + z, rows), torch.zeros_like(logits), scale
    )
    assert bool(sure.all())
    above = found - smooth.values
    assert bool((above > -1e-12).all())
    assert bool((above <= 1e-9).all())
