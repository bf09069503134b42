from __future__ import annotations

import pytest
import torch

from torch_thermo.systems import TanhMLP


def test_the_default_is_the_papers_deep_network():
    network = TanhMLP()
    assert network.sizes == (784, 40, 20, 10)
    expected = 784 * 40 + 40 + 40 * 20 + 20 + 20 * 10 + 10
    assert sum(p.numel() for p in network.parameters()) == expected


def test_every_layer_is_a_tanh_of_an_affine_map():
    network = TanhMLP((6, 5, 4), seed=1).double()
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = (layer for layer in network.layers if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        for layer in (first, second):
            layer.bias.fill_(0.1)
        hidden = torch.tanh(x @ first.weight.T + 0.1)
        expected = torch.tanh(hidden @ second.weight.T + 0.1)
        torch.testing.assert_close(network(x), expected, atol=1e-15, rtol=1e-14)
        torch.testing.assert_close(network(x.reshape(3, 1, 2, 3)), expected)


def test_weights_are_glorot_uniform_and_biases_zero():
    network = TanhMLP(seed=2)
    for layer in network.layers:
        if not isinstance(layer, torch.nn.Linear):
            continue
        outputs, inputs = layer.weight.shape
        bound = (6 / (inputs + outputs)) ** 0.5
        assert layer.bias.eq(0).all()
        assert layer.weight.abs().max() <= bound
        # A uniform variable has deviation bound / sqrt(3).
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_the_seed_alone_decides_the_weights():
    before = torch.get_rng_state()
    first, again, other = (TanhMLP((5, 4, 3), seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("sizes", [(), (5,), (5, 0, 3)])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be at least two numbers of at least 1, got"):
        TanhMLP(sizes)
