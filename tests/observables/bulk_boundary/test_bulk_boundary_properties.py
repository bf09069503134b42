"""Bulk and boundary loss of random architectures, losses and targets."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.observables.bulk_boundary.exact import relax
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss

BENDS = (nn.Tanh, nn.ReLU, nn.Sigmoid, nn.Identity)


def hinge(output, target):
    return (1 - target * output).clamp(min=0).sum(1)


LOSSES = {
    None: "signs",
    F.cross_entropy: "labels",
    hinge: "signs",
    nn.MSELoss(): "signs",
    nn.L1Loss(): "signs",
    nn.SmoothL1Loss(): "signs",
    nn.BCEWithLogitsLoss(): "shares",
}


@st.composite
def problems(draw):
    """A network, inputs, outputs and a generator."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    bends = [draw(st.sampled_from(BENDS)) for _ in sizes[1:]]
    scale = draw(st.sampled_from([0.3, 1.0, 4.0]))
    bias = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layers = []
    for inputs, units, bend in zip(sizes, sizes[1:], bends, strict=False):
        layer = nn.Linear(inputs, units, bias=bias).double()
        for parameter in layer.parameters():
            parameter.data = scale * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
        layers += [layer, bend()]
    model = nn.Sequential(*layers)
    inputs = torch.randn(4, sizes[0], generator=generator, dtype=torch.float64)
    return Network.from_module(model, inputs), inputs, model(inputs).detach(), generator


def targets_of(kind, outputs, generator):
    if kind == "labels":
        return torch.randint(0, outputs.shape[1], (len(outputs),), generator=generator)
    signs = torch.randint(0, 2, outputs.shape, generator=generator).double()
    return signs if kind == "shares" else 2 * signs - 1


@settings(max_examples=30)
@given(problems(), st.sampled_from(list(LOSSES)), st.sampled_from(["linear", "logit"]))
def test_bounds_and_order(problem, loss_fn, method):
    """0 <= bulk <= boundary, the boundary loss is the loss, and the order of examples is kept."""
    network, inputs, outputs, generator = problem
    targets = targets_of(LOSSES[loss_fn], outputs, generator)
    found = bulk_boundary_loss(network, inputs, targets, loss_fn, method)
    assert bool((found.bulk <= found.boundary).all())
    assert bool((found.bulk >= 0).all())
    for n in range(len(inputs)):
        if loss_fn is None:
            expected = 0.5 * (outputs[n] - targets[n]).square().sum()
        else:
            expected = loss_fn(outputs[n : n + 1], targets[n : n + 1]).sum()
        assert torch.allclose(found.boundary[n], expected, rtol=1e-12, atol=1e-14)
    turned = bulk_boundary_loss(network, inputs.flip(0), targets.flip(0), loss_fn, method)
    assert torch.allclose(found.bulk.flip(0), turned.bulk, rtol=1e-8, atol=1e-13)


@settings(max_examples=30)
@given(problems(), st.sampled_from([None, F.cross_entropy, hinge, nn.BCEWithLogitsLoss()]))
def test_a_convex_problem_is_solved(problem, loss_fn):
    """The linearised outputs leave a convex problem: it converges, and no other point is lower."""
    network, inputs, outputs, generator = problem
    targets = targets_of(LOSSES.get(loss_fn, "shares"), outputs, generator)
    found = bulk_boundary_loss(network, inputs, targets, loss_fn, "linear")
    assert bool(found.converged.all())
    residuals = [
        torch.zeros(len(inputs), *stage.shape, dtype=torch.float64) for stage in network.stages[:-1]
    ]
    for _ in range(5):
        directions = [
            torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in residuals
        ]
        if residuals:
            _, shift = torch.func.jvp(
                lambda *r: network.states(inputs, r)[0][-1], tuple(residuals), tuple(directions)
            )
        else:
            shift = torch.zeros_like(outputs)
        for length in (1e-3, 0.1, 1.0):
            spent = sum(0.5 * (length * d).square().sum(1) for d in directions)
            moved = outputs + length * shift
            for n in range(len(inputs)):
                if loss_fn is None:
                    rest = 0.5 * (moved[n] - targets[n]).square().sum()
                else:
                    rest = loss_fn(moved[n : n + 1], targets[n : n + 1]).sum()
                left = rest + (spent[n] if residuals else 0)
                assert found.bulk[n] <= left * (1 + 1e-9) + 1e-12


@settings(max_examples=15)
@given(problems(), st.sampled_from([None, F.cross_entropy, nn.BCEWithLogitsLoss()]))
def test_exact(problem, loss_fn):
    """At most the boundary loss and the value at any residuals near the end; any order."""
    network, inputs, outputs, generator = problem
    targets = targets_of(LOSSES.get(loss_fn, "shares"), outputs, generator)
    loss = ExampleLoss(loss_fn)
    found = relax(network, inputs, targets, loss, starts=3, iterations=30)
    boundary = bulk_boundary_loss(network, inputs, targets, loss_fn).boundary
    assert torch.allclose(found.boundary, boundary, rtol=1e-12)
    assert bool((found.values <= found.boundary).all())
    assert bool((found.values >= 0).all())

    def value(residuals):
        taken = targets.double() if targets.is_floating_point() else targets
        spent = sum((0.5 * r.square().sum(1) for r in residuals), torch.zeros(len(inputs)).double())
        return loss(network.states(inputs, residuals)[0][-1].detach(), taken) + spent

    assert torch.allclose(found.values, value(found.residuals), rtol=1e-10, atol=1e-13)
    for length in (1e-4, 1e-2):
        moved = [
            r + length * torch.randn(r.shape, generator=generator, dtype=torch.float64)
            for r in found.residuals
        ]
        sure = found.converged
        assert bool((value(moved)[sure] >= found.values[sure] * (1 - 1e-9) - 1e-9).all())
    turned = relax(network, inputs.flip(0), targets.flip(0), loss, starts=3, iterations=30)
    both = found.converged & turned.converged.flip(0)
    assert torch.allclose(found.values[both], turned.values.flip(0)[both], rtol=1e-6, atol=1e-10)


@settings(max_examples=25)
@given(problems(), st.floats(0.01, 2.0), st.booleans())
def test_local_objective(problem, m, labelled):
    """At least -m/2 (N_hidden + N_output), at most the value of a forward pass; or refused."""
    network, inputs, outputs, generator = problem
    targets = targets_of("signs", outputs, generator) if labelled else None
    free = network.stages[:-1] if labelled else network.stages
    kinds = [stage.activation[0].kind if stage.activation else "none" for stage in free]
    if not set(kinds) <= {"Tanh", "Sigmoid"}:
        with pytest.raises(ValueError, match=r"kept in \[-1, 1\]"):
            relax(network, inputs, targets, ExampleLoss(None), m=m)
        return
    found = relax(network, inputs, targets, ExampleLoss(None), starts=2, m=m, iterations=60)
    count = network.neurons - network.sizes[0]
    assert bool((found.values >= -0.5 * m * count - 1e-12).all())
    states, _ = network.states(inputs)
    free = states if targets is None else [*states[:-1], targets.double()]
    passed = -0.5 * m * sum(x.detach().square().sum(1) for x in free)
    if targets is not None:
        passed = passed + found.boundary
    assert bool((found.values <= passed + 1e-12).all())
