"""Weights that a forward computes or takes apart follow the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.network.support import randn, randomised, read
from torch_thermo.network import UnreadableNetworkError


class Weights(nn.Module):
    """A layer, and weights that a given forward takes apart."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.pair = nn.Parameter(torch.zeros(8, 4))
        self.factor = nn.Parameter(torch.zeros(4))
        self.register_buffer("count", torch.zeros(()))
        self.own = forward

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.tanh(self.own(self, x)))


def unpacked(m: Weights, x: Tensor) -> Tensor:
    first, second = m.pair.chunk(2)
    return F.linear(x, first - second)


TAKEN_APART: dict[str, Callable[..., Any]] = {
    "chunk": lambda m, x: F.linear(x, m.pair.chunk(2)[1] * m.factor),
    "unpacked": unpacked,
    "unbind": lambda m, x: m.layer(x) * (m.pair.unbind(0)[3] * m.factor),
    "max": lambda m, x: m.layer(x) * (torch.max(m.pair, dim=0)[0] * m.factor),
    "max.values": lambda m, x: m.layer(x) * m.pair.max(0).values,
    "qr": lambda m, x: F.linear(x, torch.linalg.qr(m.pair[:4])[0] * m.factor),
    "shape": lambda m, x: m.layer(x) * m.factor / m.pair.shape[0] + m.pair.size(1) + len(m.pair),
}


@pytest.mark.parametrize("forward", TAKEN_APART.values(), ids=TAKEN_APART)
def test_weights_that_are_taken_apart_follow_the_training(forward: Callable[..., Any]) -> None:
    model = randomised(Weights(forward))
    network = read(model, 2, 4)
    x = randn(3, 4)
    for seed in range(2):
        randomised(model, seed)
        torch.testing.assert_close(network(x), model(x), rtol=1e-12, atol=1e-12)
        # outside of no_grad too, and with a gradient
        model.zero_grad()
        network(x).sum().backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        model(x).sum().backward()
        for name, p in model.named_parameters():
            assert (found[name] is None) == (p.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(found[name], p.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("forward", "part"),
    [
        (lambda m, x: m.layer(x) * m.count.item(), "item"),
        (lambda m, x: F.leaky_relu(m.layer(x), m.factor[0].item()), "item"),
        (lambda m, x: m.layer(x) * m.factor.tolist()[0], "tolist"),
        (lambda m, x: m.layer(x) * m.pair.chunk(2)[0][0, 0].item(), "item"),
        (lambda m, x: m.layer(x) + m.factor.detach().numpy()[0], "numpy"),
    ],
)
def test_a_number_out_of_a_weight_is_refused(forward: Callable[..., Any], part: str) -> None:
    message = rf"\({part}\) cannot be read: it takes a number out of a weight or buffer, which wou"
    with pytest.raises(UnreadableNetworkError, match=message):
        read(randomised(Weights(forward)), 2, 4)
