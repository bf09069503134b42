"""What a forward does in place: taken so where it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from tests.network.test_graphs import Forward, read, same
from tests.network.test_stages import layout


def changed_in_place(m: Forward, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.b(F.relu_(y))
    # relu(y), not y
    out: Tensor = m.c(z + y)
    return out


def added_in_place(m: Forward, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.b(y.add_(1))
    out: Tensor = m.c(z - y)
    return out


def changed_by_another_name(m: Forward, x: Tensor) -> Tensor:
    y = m.a(x)
    # the same tensor twice, and a copy
    skip, kept = m.same(y), y.clone()
    out: Tensor = m.c(m.b(F.relu_(y)) + skip) - kept
    return out


@pytest.mark.parametrize("forward", [changed_in_place, added_in_place, changed_by_another_name])
def test_what_is_changed_in_place_is_taken_so(forward: Callable[..., Any]) -> None:
    read(forward)


def test_a_block_whose_activation_works_in_place() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activation = nn.ReLU(inplace=True)
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            # of the skip too
            y = self.first(self.activation(x))
            return x + self.second(self.activation(y))

    network = same(nn.Sequential(nn.Linear(4, 4), Block(), Block()), 4)
    assert layout(network)[0] == ("Linear", "ReLU")


def test_a_head_that_is_not_used_may_work_in_place() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        y = m.a(x).tanh()
        F.relu_(F.relu_(m.b(y)))
        z: Tensor = m.c(y)
        return z

    assert [stage.name for stage in read(forward).stages] == ["a", "c"]
