"""The gradient of the bulk loss of random architectures."""

from itertools import pairwise

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from torch_thermo.observables.bulk_loss import BulkLoss


@st.composite
def problems(draw):
    """A smooth network, inputs, targets and a direction in the weights."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    scale = draw(st.sampled_from([0.3, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = []
    for inputs, units in pairwise(sizes):
        layer = nn.Linear(inputs, units, bias=draw(st.booleans())).double()
        for parameter in layer.parameters():
            parameter.data = scale * normal(*parameter.shape)
        layers += [layer, draw(st.sampled_from([nn.Tanh, nn.Sigmoid, nn.Identity]))()]
    model = nn.Sequential(*layers)
    targets = torch.where(normal(3, sizes[-1]) > 0, 1.0, -1.0).double()
    direction = [normal(*parameter.shape) for parameter in model.parameters()]
    return model, normal(3, sizes[0]), targets, direction


def changes(model, direction, by, function):
    """What a function changes by, from one side to the other along the direction."""
    found = []
    for step in (by, -2 * by, by):
        found.append(function())
        for parameter, part in zip(model.parameters(), direction, strict=True):
            parameter.data += step * part
    return found


@settings(max_examples=25)
@given(problems())
def test_the_gradient_is_the_slope_of_the_minimum(problem):
    """Along a random direction; and the second derivative that of the gradient."""
    model, inputs, targets, direction = problem
    loss = BulkLoss(model)
    weights = list(model.parameters())

    def slope(**how):
        slopes = torch.autograd.grad(loss(inputs, targets), weights, **how)
        return sum((s * d).sum() for s, d in zip(slopes, direction, strict=True))

    here = slope(create_graph=True)
    assume(bool(loss.last.converged.all()))
    bend = torch.autograd.grad(here, weights, materialize_grads=True)
    bend = float(sum((b * d).sum() for b, d in zip(bend, direction, strict=True)))
    by = 1e-4
    _, up, down = changes(model, direction, by, lambda: float(loss(inputs, targets).detach()))
    assert abs((up - down) / (2 * by) - float(here.detach())) < 1e-6 * (1 + abs(bend))
    _, up, down = changes(model, direction, by, lambda: float(slope().detach()))
    assert abs((up - down) / (2 * by) - bend) < 1e-5 * (1 + abs(bend))
