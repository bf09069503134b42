from __future__ import annotations

import pytest
import torch
from torch import nn

from torch_thermo.systems import VGG


def weight_layers(network: VGG) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def small_batch(channels: int = 1) -> torch.Tensor:
    return torch.randn(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("depth", "channels", "parameters"), [(10, 1, 160_712), (10, 3, 160_856), (12, 3, 9_664_704)]
)
def test_layers_and_parameters(depth, channels, parameters):
    network = VGG(depth, channels)
    assert len(weight_layers(network)) == depth
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_depth_12_is_vgg13_with_two_linear_layers():
    shapes = [tuple(layer.weight.shape) for layer in weight_layers(VGG(12, 3))]
    widths = [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]
    inputs = [3, *widths[:-1]]
    convolutions = [(o, i, 3, 3) for o, i in zip(widths, inputs, strict=True)]
    assert shapes == [*convolutions, (512, 512), (1, 512)]


def test_nothing_has_a_bias_and_the_output_is_one_number_an_example():
    network = VGG()
    assert all(layer.bias is None for layer in weight_layers(network))
    assert network(small_batch()).shape == (4,)
    assert network(small_batch()[:1]).shape == (1,)


def test_the_output_is_homogeneous_of_degree_10_in_the_weights():
    network = VGG(seed=1).double()
    x = small_batch().double()
    with torch.no_grad():
        before = network(x)
        for weight in network.parameters():
            weight.mul_(1.1)
        torch.testing.assert_close(network(x), before * 1.1**10, rtol=1e-12, atol=0)
        torch.testing.assert_close(network(2 * x), 2 * before * 1.1**10, rtol=1e-12, atol=0)


def test_initial_weights_keep_the_signal():
    network = VGG(seed=0)
    for layer in weight_layers(network)[:-1]:
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.2)
    with torch.no_grad():
        outputs = network(torch.cat([small_batch()] * 4))
    assert 1e-2 < outputs.abs().mean() < 1e2


def test_the_seed_alone_decides_the_weights():
    before = torch.get_rng_state()
    first, again, other = VGG(seed=0), VGG(seed=0), VGG(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"depth must be one of \[10, 12\], got 11"):
        VGG(11)
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        VGG(10, 0)
