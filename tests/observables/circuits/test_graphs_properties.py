"""Random networks with branches: sums and shares are those over every path."""

import math

import torch
from hypothesis import HealthCheck, given, settings

from tests.observables.circuits.architectures import cases
from tests.observables.circuits.checks import close, close_sums
from tests.observables.circuits.oracle import enumerate_paths
from torch_thermo.observables.circuits import circuit_sums, layer_marginals

few = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


def paths_of(small, biases):
    enumerated = (enumerate_paths(small.model, x) for x in small.inputs)
    return [[p for p in paths if biases or p.start is not None] for paths in enumerated]


@few
@given(cases())
def test_sums_are_those_over_every_path(small):
    for biases in (True, False):
        paths = paths_of(small, biases)
        terms = [[p.value * p.psi for p in each] for each in paths]
        sums = circuit_sums(
            small.network, small.inputs, moments=(3,), order_one=True, order_two=True, biases=biases
        )
        assert sums.alive.tolist() == [sum(p.alive for p in each) for each in paths]
        assert sums.signed.tolist() == [sum((t > 0) - (t < 0) for t in each) for each in terms]
        close_sums(sums.output, terms)
        close_sums(sums.absolute, [[abs(t) for t in each] for each in terms])
        close_sums(sums.moments[3], [[t**3 for t in each] for each in terms])
        for divided, total in {**sums.order_one, **sums.order_two}.items():
            names = (divided,) if isinstance(divided, str) else divided
            terms = [
                [p.value * p.without(*names) for p in each if set(names) <= p.uses.keys()]
                for each in paths
            ]
            close_sums(total, terms)


@few
@given(cases())
def test_output_and_linear_part_are_autograd_s(small):
    inputs = small.inputs.clone().requires_grad_()
    output = small.model(inputs)[:, 0]
    (slope,) = torch.autograd.grad(output.sum(), inputs)
    sums = circuit_sums(small.network, small.inputs)
    close(sums.output, output.tolist(), sums.absolute.tolist())
    free = circuit_sums(small.network, small.inputs, biases=False)
    linear = (inputs * slope).flatten(1).sum(1)
    close(free.output, linear.tolist(), free.absolute.tolist())


@few
@given(cases())
def test_shares_are_those_of_every_path(small):
    paths = [[p for p in each if p.alive] for each in paths_of(small, True)]
    found = layer_marginals(small.network, small.inputs)
    for what, weight in (
        ("paths", lambda path: 1.0),
        ("mass", lambda path: abs(path.value * path.psi)),
    ):
        for operation in found.operations:
            shares = getattr(operation, what)
            for example, each in enumerate(paths):
                passing = [p for p in each if operation.name in dict(p.visits)]
                if operation.name == "input":
                    passing = [p for p in each if p.start is not None]
                if not each:
                    assert shares.total[example].isnan()
                    continue
                expected = sum(map(weight, passing)) / sum(map(weight, each))
                assert math.isclose(shares.total[example], expected, rel_tol=1e-9, abs_tol=1e-12)
                if operation.name != "input":
                    arriving = shares.started[example] + shares.branches[example].sum()
                    assert math.isclose(arriving, expected, rel_tol=1e-9, abs_tol=1e-12)


@few
@given(cases())
def test_a_cut_through_the_network_carries_all(small):
    """Each path that starts above the last layer's bias passes the last layer's weights."""
    found = layer_marginals(small.network, small.inputs)
    alive = found.alive > 0
    for what in ("paths", "mass"):
        shares = [getattr(operation, what) for operation in found.operations]
        last = shares[-1]
        assert torch.allclose(last.total[alive], torch.ones(int(alive.sum())).double())
        started = torch.stack([each.started for each in shares]).sum(0) + shares[0].total
        assert torch.allclose(started[alive], torch.ones(int(alive.sum())).double())
        for each in shares:
            assert (each.units[alive] >= 0).all()
            assert (each.total[alive] <= 1 + 1e-12).all()
