from __future__ import annotations

import pytest
import torch
from torch import nn

from torch_thermo.systems import ResNet


def images(channels: int = 3, count: int = 4) -> torch.Tensor:
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def weight_layers(network: ResNet) -> dict[str, nn.Module]:
    kinds = nn.Conv2d | nn.Linear
    return {name: m for name, m in network.named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize(("depth", "blocks"), [(8, 3), (14, 6), (20, 9)])
def test_layers_on_the_longest_path(depth, blocks):
    layers = weight_layers(ResNet(depth, width=4))
    shortcuts = [name for name in layers if name.endswith("shortcut")]
    assert len(shortcuts) == 2
    assert len(layers) - len(shortcuts) == depth == 2 * blocks + 2


def test_widths_sizes_and_parameters():
    network = ResNet(8, in_channels=1, outputs=5, width=4)
    shapes = {name: tuple(layer.weight.shape) for name, layer in weight_layers(network).items()}
    assert shapes["features.0"] == (4, 1, 3, 3)
    assert shapes["features.5.shortcut"] == (16, 8, 1, 1)
    assert shapes["features.5.branch.3"] == (16, 16, 3, 3)
    assert shapes["classifier"] == (5, 16)
    # 3 x 3: 4 + 16 + 16, 32 + 64, 128 + 256 pairs; 1 x 1 with biases: 8 x 4 + 8, 16 x 8 + 16;
    # scale and shift of 3 x 4, 2 x 8, 2 x 16 channels; the linear layer
    expected = 9 * (36 + 96 + 384) + 40 + 144 + 2 * (12 + 16 + 32) + 85
    assert sum(p.numel() for p in network.parameters()) == expected
    assert network.features(images(1)).shape == (4, 16, 8, 8)


def test_one_output_is_one_number_an_example():
    assert ResNet(width=2)(images()).shape == (4,)
    assert ResNet(width=2)(images(count=1)).shape == (1,)
    assert ResNet(width=2, outputs=3)(images()).shape == (4, 3)


def test_a_block_adds_its_input():
    network = ResNet(8, width=4, seed=2).double().eval()
    plain, widening = network.features[3], network.features[4]
    x = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        widening.shortcut.bias.fill_(0.25)
        for block in (plain, widening):
            block.branch[4].weight.zero_()  # nothing comes through the branch
        torch.testing.assert_close(plain(x), x, rtol=0, atol=0)
        taken = x[:, :, ::2, ::2]
        expected = torch.einsum("oi,bihw->bohw", widening.shortcut.weight[:, :, 0, 0], taken) + 0.25
        torch.testing.assert_close(widening(x), expected.clamp(min=0), rtol=0, atol=1e-12)


def test_it_has_biases_and_is_not_homogeneous():
    network = ResNet(8, width=4).double().eval()
    assert all(layer.bias is not None for layer in (network.classifier, network.features[5]
               .shortcut))  # fmt: skip
    x = images().double()
    with torch.no_grad():
        network.classifier.bias.fill_(1.0)
        before = network(x)
        for parameter in network.parameters():
            parameter.mul_(1.1)
        ratio = network(x) / before
    assert ratio.std() > 1e-3


def test_initial_weights_keep_the_signal():
    network = ResNet(20, width=16, seed=0)
    for name, layer in weight_layers(network).items():
        fan_in = layer.weight[0].numel()
        gain = 1 if name == "classifier" else 2
        wanted = (gain / fan_in) ** 0.5
        assert layer.weight.std().item() == pytest.approx(wanted, rel=0.3)
        assert layer.bias is None or not layer.bias.any()
    with torch.no_grad():
        assert 1e-2 < network(images(count=16)).abs().mean() < 1e2


def test_the_seed_alone_decides_the_weights():
    before = torch.get_rng_state()
    first, again, other = ResNet(width=4), ResNet(width=4), ResNet(width=4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("depth", [2, 7, 10, -4])
def test_a_depth_of_no_stages_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth must be 8, 14, 20, .*, got {depth}"):
        ResNet(depth)


@pytest.mark.parametrize("name", ["in_channels", "outputs", "width"])
def test_numbers_below_1_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ResNet(**{name: 0})
