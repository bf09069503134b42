"""Propagator spectra of random architectures."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.network.support import randn
from tests.observables.propagators import chain, logs, mean_step
from torch_thermo.network import Network
from torch_thermo.observables import propagator_spectrum

ACTIVATIONS = st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.Identity])
SEEDS = st.integers(0, 2**31)


@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    gain=st.floats(0, 4),
    act=ACTIVATIONS,
    seed=SEEDS,
)
@settings(max_examples=60)
def test_chains(widths, gain, act, seed):
    network, x = chain(*widths, gain=gain, seed=seed, act=act), randn(3, widths[0], seed=seed)
    found = propagator_spectrum(network, x)
    torch.testing.assert_close(found.nodes[0], logs(mean_step(network, x)), rtol=0, atol=1e-9)
    assert abs(found.mu(1).value) < 1e-10
    assert found.dimension == sum(widths)
    if len(widths) == 2:
        assert abs(found.mu(3).value) < 1e-9


@given(
    size=st.integers(4, 14),
    inputs=st.integers(1, 2),
    density=st.floats(0.1, 1),
    gain=st.floats(0, 1.5),
    seed=SEEDS,
)
@settings(max_examples=60)
def test_graphs(size, inputs, density, gain, seed):
    generator = torch.Generator().manual_seed(seed)
    w = gain * torch.randn(size, size, generator=generator, dtype=torch.float64).tril(-1)
    w *= torch.rand(size, size, generator=generator) < density
    w[:inputs] = 0.0
    w[-1, -2] = 1.0
    network = Network.from_matrix(w, torch.zeros(size, dtype=w.dtype), torch.tanh, inputs, 1)
    x = randn(3, inputs, seed=seed)
    found = propagator_spectrum(network, x)
    torch.testing.assert_close(found.nodes[0], logs(mean_step(network, x)), rtol=0, atol=1e-9)
    assert abs(found.mu(1).value) < 1e-10


@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    gain=st.floats(0, 3),
    act=ACTIVATIONS,
    probes=st.integers(1, 5),
    steps=st.integers(1, 30),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_matrix_free(widths, gain, act, probes, steps, seed):
    network, x = chain(*widths, gain=gain, seed=seed, act=act), randn(3, widths[0], seed=seed)
    truth = propagator_spectrum(network, x)
    found = propagator_spectrum(network, x, exact=False, probes=probes, steps=steps, seed=seed)
    low, high = truth.extremes.min.value, truth.extremes.max.value
    assert low - 1e-6 <= found.extremes.min.value
    assert found.extremes.max.value <= high + 1e-6
    torch.testing.assert_close(
        found.weights.sum(1), torch.ones(probes, dtype=torch.float64), rtol=0, atol=1e-12
    )
    for n in (2, 3):
        assert found.mu(n).stderr >= 0
