"""The compiled loop against torch's SGD, one sample at a time."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.papers.vanchurin.support import by_torch, parameters, patterns
from torch_thermo.papers.vanchurin import online
from torch_thermo.papers.vanchurin.online import OnlineTrainer
from torch_thermo.systems import TanhMLP

pytest.importorskip("numba", reason="numba compiles the loop")


def trainer(network: TanhMLP, digits, rate: float = 0.05) -> OnlineTrainer:
    tensors = list(parameters(network).values())
    return OnlineTrainer(tensors[::2], tensors[1::2], digits.inputs, digits.targets, rate)


@pytest.mark.parametrize("hidden", [(6, 5), (9,), (), (3, 4, 5)])
def test_steps_are_those_of_torch(hidden):
    digits = patterns(samples=150)
    network = TanhMLP((30, *hidden, 4), seed=1).double()
    fused = trainer(network, digits)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        order = torch.randperm(150, generator=generator)
        by_torch(network, digits, order, batch=1, rate=0.05)
        fused.epoch(order)
    expected = list(parameters(network).values())
    for found, wanted in zip(fused.weights, expected[::2], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for found, wanted in zip(fused.biases, expected[1::2], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    # a training that stands still would agree too
    assert (
        expected[0] - TanhMLP((30, *hidden, 4), seed=1).double().layers[0].weight
    ).abs().max() > 0.01


def test_the_net_that_is_given_stays_as_it_was():
    digits = patterns()
    network = TanhMLP((30, 6, 4)).double()
    before = parameters(network)
    fused = trainer(network, digits)
    kept = fused.weights
    fused.epoch(torch.arange(10))
    assert all(before[name].equal(weight) for name, weight in parameters(network).items())
    assert not kept[0].equal(fused.weights[0])


def test_black_pictures_and_empty_epochs():
    digits = patterns(samples=3)
    digits.inputs[1:] = 0
    network = TanhMLP((30, 6, 4)).double()
    fused = trainer(network, digits)
    fused.epoch(torch.tensor([], dtype=torch.int64))
    assert fused.weights[0].equal(network.layers[0].weight)
    order = torch.tensor([1, 0, 2, 1])
    by_torch(network, digits, order, batch=1, rate=0.05)
    fused.epoch(order)
    torch.testing.assert_close(
        fused.weights[0], network.layers[0].weight.detach(), atol=1e-14, rtol=0
    )


def test_what_does_not_fit_is_refused():
    digits = patterns()
    tensors = list(parameters(TanhMLP((30, 6, 4)).double()).values())
    with pytest.raises(ValueError, match=r"targets must have shape \(37, 4\), got \(37, 3\)"):
        OnlineTrainer(tensors[::2], tensors[1::2], digits.inputs, digits.targets[:, :3], 0.1)
    with pytest.raises(ValueError, match=r"weights must have shapes \[\(6, 29\), \(4, 6\)\]"):
        OnlineTrainer(tensors[::2], tensors[1::2], digits.inputs[:, 1:], digits.targets, 0.1)
    fused = trainer(TanhMLP((30, 6, 4)).double(), digits)
    for wrong in (37, -1):
        with pytest.raises(ValueError, match=r"order must lie in 0 \.\. 36"):
            fused.epoch(torch.tensor([0, wrong]))


def test_without_numba_the_pip_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    online._compiled.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r'pip install "torch-thermo\[papers\]"'):
        trainer(TanhMLP((30, 6, 4)).double(), patterns())
    online._compiled.cache_clear()
