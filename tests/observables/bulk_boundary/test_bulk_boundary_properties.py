"""Bulk and boundary loss of random architectures, losses and targets."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss

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
