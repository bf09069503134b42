"""Reading a model leaves no trace in it."""

from __future__ import annotations

import collections
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.network.support import LeNet, randn, randomised, read


class Eventful(nn.Module):
    """Keeps, counts, draws and overrides what it can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.norm = nn.BatchNorm1d(2).double()
        self.frozen = nn.BatchNorm1d(2).double().eval()
        self.register_buffer("calls", torch.zeros(1))
        self.seen: list[Any] = []
        self.last: Any = None
        self.switched: list[bool] = []
        self.count = 0

    def train(self, mode: bool = True) -> Eventful:
        if hasattr(self, "switched"):
            self.switched.append(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls.add_(1)
        self.norm.num_batches_tracked.add_(1)
        y: Tensor = self.frozen(self.norm(self.layer(x)))
        self.seen.append(y)
        self.last = y
        self.extra = y
        torch.randn(3)
        return y


def test_reading_leaves_no_trace() -> None:
    model = Eventful()
    model.layer.weight.grad = torch.ones_like(model.layer.weight)
    outer = nn.Sequential(model, nn.ReLU())
    flags = [module.training for module in outer.modules()]
    state = {name: value.clone() for name, value in outer.state_dict().items()}
    buffer, attributes = model.calls, set(vars(model))
    version = model.frozen.running_mean._version
    generator = torch.get_rng_state()
    read(outer, 4, 3)
    assert [module.training for module in outer.modules()] == flags
    assert flags.count(False) == 1
    assert set(vars(model)) == attributes
    assert model.calls is buffer
    assert model.frozen.running_mean._version == version
    assert (model.count, model.seen, model.last, model.switched) == (0, [], None, [])
    assert all(torch.equal(state[n], value) for n, value in outer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert bool((model.layer.weight.grad == 1).all())


class Defaults(collections.defaultdict[str, list[Any]]):
    """A dict of its own kind."""


class Meter:
    def __init__(self) -> None:
        self.total: Any = 0
        self.values: list[Any] = []


class Keeping(nn.Module):
    """Keeps what it saw in containers of containers, buffers and an object."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("total", torch.zeros(1).double())
        self.average: Any = None
        self.log: dict[str, Any] = {"h": [], "more": ([],)}
        self.recent: Any = collections.deque([1, 2], maxlen=2)
        self.by_name = Defaults(list)
        self.ordered = collections.OrderedDict(b=1, a=2)
        self.meter = Meter()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.calls += 1
        self.total = self.total + x.sum()
        self.average = y.mean() if self.average is None else 0.9 * self.average + 0.1 * y.mean()
        self.log["h"].append(y)
        self.log["more"][0].append(y)
        self.recent.append(y)
        self.by_name["new"].append(y)
        self.ordered["c"] = y
        self.ordered.move_to_end("b")
        self.meter.total = self.meter.total + y.sum()
        self.meter.values.append(y)
        return torch.relu(y)


def test_a_forward_that_keeps_what_it_saw_is_read_and_keeps_nothing() -> None:
    model = Keeping()
    calls, total, by_name = model.calls, model.total, model.by_name
    for _ in range(2):
        network = read(nn.Sequential(model, nn.Linear(2, 1).double()), 4, 3)
    assert network.sizes == (3, 2, 1)
    assert model.calls is calls
    assert model.total is total
    assert model.by_name is by_name
    assert not calls.any()
    assert not total.any()
    assert model.average is None
    assert model.log == {"h": [], "more": ([],)}
    assert list(model.recent) == [1, 2]
    assert model.recent.maxlen == 2
    assert dict(by_name) == {}
    assert by_name["missing"] == []
    assert list(model.ordered.items()) == [("b", 1), ("a", 2)]
    assert (model.meter.total, model.meter.values) == (0, [])


def test_a_reference_to_what_is_gone_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).double()
    meter = Meter()
    model.held = [weakref.proxy(meter)]
    del meter
    assert read(model, 2, 3).sizes == (3, 2)


def test_a_failed_reading_leaves_no_trace() -> None:
    model = nn.Sequential(Eventful(), nn.Softmax(1), nn.Dropout().eval())
    flags = [module.training for module in model.modules()]
    attributes = set(vars(model[0]))
    with pytest.raises(TypeError, match=r"^1 \(Softmax\)"):
        read(model, 4, 3)
    assert [module.training for module in model.modules()] == flags
    assert set(vars(model[0])) == attributes


def test_hooks_that_only_look_are_called_with_tensors() -> None:
    model = randomised(LeNet())
    seen: list[Any] = []
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: seen.append(output))
    network = read(model, 2, 1, 8, 8)
    assert [type(value) for value in seen] == [
        Tensor
    ] * 10  # for the example and for random numbers
    seen.clear()
    network(randn(2, 1, 8, 8))
    assert seen == []
