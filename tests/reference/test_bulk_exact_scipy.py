"""The exact bulk loss against SciPy's L-BFGS over the states x themselves, not the residuals."""

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from tests.reference.test_bulk_boundary_scipy import (
    LINEAR,
    LOSSES,
    RELU,
    TANH,
    Definition,
    cross_entropy,
    squared_error,
    trained,
)
from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.observables.bulk_boundary.exact import relax
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss

OPTIONS = {"maxiter": 20_000, "maxfun": 40_000, "maxcor": 30, "ftol": 1e-17, "gtol": 1e-11}
CASES = {
    "tanh, squared error": (nn.Tanh, nn.Tanh, "squared error", TANH, TANH),
    "tanh, cross entropy": (nn.Tanh, None, "cross entropy", TANH, LINEAR),
}


def case(name, steps):
    hidden, output, loss, bend, last = CASES[name]
    model, inputs, targets = trained(hidden, output, 4, loss, steps)
    value = squared_error if loss == "squared error" else cross_entropy
    pairs = zip(inputs.double().numpy(), targets.numpy(), strict=True)
    losses = [(x, lambda o, t=t: value(o, t)) for x, t in pairs]
    loss_fn = None if loss == "squared error" else LOSSES[loss]
    return model, inputs, targets, loss_fn, Definition(model, bend, last), losses


def over_states(definition, start, x, loss):
    return optimize.minimize(
        definition.energy, start, (x, loss), jac=True, method="L-BFGS-B", options=OPTIONS
    )


@pytest.mark.parametrize("steps", [0, 20, 200])
@pytest.mark.parametrize("name", CASES)
def test_the_same_start_has_the_same_end(name, steps):
    """From the feed-forward states; late in training an end or two may be another minimum."""
    model, inputs, targets, loss_fn, definition, losses = case(name, steps)
    network = Network.from_module(model, inputs)
    found = relax(network, inputs, targets, ExampleLoss(loss_fn), starts=1)
    assert bool(found.converged.all())
    same = 0
    for n, (x, loss) in enumerate(losses):
        start = np.concatenate(definition.feed_forward(x)[:-1])
        expected = over_states(definition, start, x, loss)
        same += found.values[n].item() == pytest.approx(expected.fun, rel=1e-10, abs=1e-14)
        # both are minima: from ours SciPy goes nowhere
        mine = np.concatenate([state[n].numpy() for state in found.states[:-1]])
        again = over_states(definition, mine, x, loss)
        assert found.values[n].item() == pytest.approx(again.fun, rel=1e-10, abs=1e-14)
    assert same >= len(losses) - 1


@pytest.mark.parametrize("steps", [20, 200])
@pytest.mark.parametrize("name", CASES)
def test_six_starts_are_not_above_ten_by_scipy(name, steps):
    model, inputs, targets, loss_fn, definition, losses = case(name, steps)
    network = Network.from_module(model, inputs)
    found = bulk_boundary_loss(network, inputs, targets, loss_fn, "exact")
    assert bool((found.bulk <= found.boundary).all())
    generator = np.random.default_rng(0)
    for n, (x, loss) in enumerate(losses):
        start = np.concatenate(definition.feed_forward(x)[:-1])
        shifts = [0.0, *0.7 * generator.normal(size=(9, len(start)))]
        best = min(over_states(definition, start + shift, x, loss).fun for shift in shifts)
        assert found.bulk[n].item() <= best * (1 + 1e-8) + 1e-12


@pytest.mark.parametrize("steps", [0, 20])
def test_relu_units_come_near(steps):
    """Most minima sit at kinks of the response, and are not called minima: within 1 %."""
    model, inputs, targets = trained(nn.ReLU, None, 4, "squared error", steps)
    definition = Definition(model, RELU, LINEAR)
    found = bulk_boundary_loss(Network.from_module(model, inputs), inputs, targets, None, "exact")
    pairs = zip(inputs.double().numpy(), targets.numpy(), strict=True)
    best = [
        definition.minimum(x, lambda o, t=t: squared_error(o, t), n)
        for n, (x, t) in enumerate(pairs)
    ]
    assert found.bulk_mean < 1.01 * np.mean(best)
    assert np.mean(best) < 0.9 * found.boundary_mean


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("m", [0.05, 0.5, 1.5])
def test_local_objective_by_bounded_scipy(m, labelled):
    """H over the states in the box, from the same start and in the best of many."""
    model, inputs, targets = trained(nn.Tanh, nn.Tanh, 4, "squared error", 20)
    definition = Definition(model, TANH, TANH)
    network = Network.from_module(model, inputs)
    given = targets if labelled else None
    one = relax(network, inputs, given, ExampleLoss(None), starts=1, m=m)
    six = relax(network, inputs, given, ExampleLoss(None), m=m)
    for n, (x, t) in enumerate(zip(inputs.double().numpy(), targets.double().numpy(), strict=True)):

        def energy(flat, x=x, t=t):
            output = t if labelled else flat[26:]
            value, slope = definition.energy(flat[:26], x, lambda o: squared_error(o, output))
            value -= 0.5 * m * (np.square(flat[:26]).sum() + np.square(output).sum())
            slope = slope - m * flat[:26]
            if not labelled:
                before = flat[16:26]
                w, b = definition.layers[-1]
                slope = np.append(slope, output - np.tanh(w @ before + b) - m * output)
            return value, slope

        states = definition.feed_forward(x)
        start = np.concatenate(states[:-1] if labelled else states)
        assert optimize.check_grad(lambda v: energy(v)[0], lambda v: energy(v)[1], start) < 1e-5
        ends = [
            optimize.minimize(
                *(energy, np.clip(start + shift, -1, 1)),
                jac=True,
                method="L-BFGS-B",
                bounds=[(-1, 1)] * len(start),
                options=OPTIONS,
            ).fun
            for shift in [0.0, *np.random.default_rng(n).normal(size=(4, len(start)))]
        ]
        # beyond m = 1 each neuron alone has a wall to choose, and two methods may part
        if m < 1:
            assert one.values[n].item() == pytest.approx(ends[0], rel=1e-9)
        assert six.values[n].item() <= min(ends) + 0.01 * abs(min(ends))
    assert bool(one.converged.all())
    assert bool(six.converged.all())


@pytest.mark.parametrize("seed", range(3))
def test_recurrent_net(seed):
    generator = np.random.default_rng(seed)
    w = 0.3 * generator.normal(size=(10, 10))
    b = 0.1 * generator.normal(size=10)
    network = Network.from_matrix(torch.tensor(w), torch.tensor(b), torch.tanh, 3, 2)
    inputs, targets = generator.normal(size=(4, 3)), generator.choice([-1.0, 1.0], (4, 2))
    given = torch.tensor(inputs), torch.tensor(targets)
    found = bulk_boundary_loss(network, *given, None, "exact")
    assert bool(found.converged.all())
    for n in range(4):

        def energy(h, n=n):
            x = np.concatenate([inputs[n], h, targets[n]])
            f = np.tanh(w @ x + b)
            r = (x - f)[3:]
            slope = r[:5] - w[3:, 3:8].T @ (r * (1 - f[3:] ** 2))
            return 0.5 * r @ r, slope

        starts = [np.zeros(5), *generator.normal(size=(5, 5))]
        ends = [optimize.minimize(energy, start, jac=True, tol=1e-10).fun for start in starts]
        assert found.bulk[n].item() == pytest.approx(min(ends), rel=1e-9)
