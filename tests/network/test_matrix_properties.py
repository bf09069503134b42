"""Random matrices of weights: without a cycle against plain recursion, with one by their defect."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.network.support import randn
from torch_thermo.network import Network, StepDerivative


@st.composite
def acyclic(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """w, b, inputs and outputs, the neurons in any order; edges from earlier to later ones."""
    inputs, hidden, outputs = (draw(st.integers(a, 4)) for a in (1, 0, 1))
    count = inputs + hidden + outputs
    density = draw(st.sampled_from([0.2, 0.5, 1.0]))
    seed = draw(st.integers(0, 2**16))
    chance = torch.rand(count, count, generator=torch.Generator().manual_seed(seed))
    w = randn(count, count, seed=seed + 1).tril(-1) * (chance < density)
    # the outputs don't read each other; what the input's rows have is not read
    w[inputs + hidden :, inputs + hidden :] = 0
    w[:inputs] = randn(inputs, count, seed=seed + 2)
    place = torch.tensor(draw(st.permutations(range(count))))
    back = place.argsort().tolist()
    return (
        w[place][:, place],
        randn(count, seed=seed + 3),
        back[:inputs],
        back[inputs + hidden :],
    )


def value(neuron: int, w: list[list[float]], b: list[float], clamped: dict[int, float]) -> float:
    """The neuron's state by recursion over those it reads."""
    if neuron in clamped:
        return clamped[neuron]
    total = b[neuron]
    for other, weight in enumerate(w[neuron]):
        if weight:
            total += weight * value(other, w, b, clamped)
    return math.tanh(total)


@settings(max_examples=60, deadline=None)
@given(net=acyclic(), batch=st.integers(1, 3))
def test_without_cycles(net: tuple[Tensor, Tensor, list[int], list[int]], batch: int) -> None:
    w, b, inputs, outputs = net
    network = Network.from_matrix(w, b, torch.tanh, inputs, outputs)
    assert not network.is_recurrent
    assert network.neurons == len(w)
    assert network.output_shape == (len(outputs),)
    x = randn(batch, len(inputs))
    states, _ = network.states(x)
    whole = torch.cat([x, *states], 1)
    for row, clamped in zip(whole, x.tolist(), strict=True):
        given = dict(zip(inputs, clamped, strict=True))
        expected = [value(i, w.tolist(), b.tolist(), given) for i in network.order.tolist()]
        torch.testing.assert_close(row, row.new_tensor(expected), rtol=1e-12, atol=1e-12)
    # M has the entries f'(y_i) w_ij
    derivative = StepDerivative(network, x[:1], [s[:1] for s in states])
    unit = derivative.unflatten(torch.eye(len(w)).double())
    m = derivative.flatten(derivative.forward(unit))
    slope = 1 - whole[0] ** 2
    slope[: len(inputs)] = 0
    expected = slope[:, None] * w[network.order][:, network.order]
    torch.testing.assert_close(m, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(3, 12),
    seed=st.integers(0, 2**16),
    norm=st.floats(0.1, 0.8),
    damping=st.sampled_from([0.0, 0.3]),
    batch=st.integers(1, 3),
)
def test_contractions(size: int, seed: int, norm: float, damping: float, batch: int) -> None:
    w = randn(size, size, seed=seed)
    w = norm * w / torch.linalg.matrix_norm(w, 2)
    network = Network.from_matrix(w, randn(size, seed=seed + 1), torch.tanh, 1, 1)
    x = randn(batch, 1, seed=seed + 2)
    found = network.fixed_point(x, damping=damping, tol=1e-14)
    assert found.converged.all()
    for a, b in zip(network.one_step(x, found.states), found.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
