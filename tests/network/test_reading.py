"""What is read of a model's forward."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.network.support import LeNet, randn, randomised, read
from torch_thermo.network import Network
from torch_thermo.network.operations import Elementwise


class Forward(nn.Module):
    """Two layers whose forward is given."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4).double()
        self.second = nn.Linear(4, 2).double()
        self.weight = nn.Parameter(randn(2, 4))
        self.register_buffer("mask", torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0]]).double())
        self.constant = randn(2, 4, seed=3)
        self.own = forward

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.own(self, x)
        return result


def same(model: nn.Module, network: Network, *shape: int) -> None:
    for batch in (1, 2, 5):
        x = randn(batch, *shape, seed=6)
        expected = model.eval()(x)
        y = network(x)
        assert y.shape == expected.shape
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def features(x: Tensor) -> int:
    count = 1
    for size in x.size()[1:]:
        count *= size
    return count


FORWARDS: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, x: F.linear(F.relu(m.first(x.reshape(len(x), -1))), m.weight),
    lambda m, x: F.linear(m.first(x.view(x.size(0), -1)).tanh(), m.second.weight, m.second.bias),
    lambda m, x: m.second(torch.sigmoid(m.first(x.view(x.shape[0], -1)))),
    lambda m, x: m.second(F.leaky_relu_(m.first(x.view(-1, 6)), 0.1)),
    lambda m, x: m.second(F.threshold(m.first(x.flatten(start_dim=1)), threshold=0.1, value=2)),
    lambda m, x: F.linear(m.first(torch.flatten(x, 1)), weight=m.weight * m.mask),
    lambda m, x: F.linear(m.first(x.flatten(1)), m.constant),
    lambda m, x: F.linear(m.first(x.flatten(1)), m.weight / m.weight.norm() * m.weight.shape[0]),
    lambda m, x: F.linear(m.first(x.flatten(1)), (m.weight + 1).view(m.weight.size(0), -1)),
    lambda m, x: F.linear(m.first(x.flatten(1)), torch.ones(2, 4, dtype=torch.float64)),
    lambda m, x: m.second(F.dropout(m.first(x.flatten(1)), 0.5, m.training)),
    lambda m, x: m.second(F.dropout(m.first(x.flatten(1)), p=0.0)),
    lambda m, x: m.second(m.first(x.flatten(1)).unsqueeze(1).squeeze(1).contiguous()),
    lambda m, x: m.second(m.first(x.view(-1, features(x)))),
    lambda m, x: m.second(m.first(x.view(*x.shape[:1], -1) if x.dim() == 3 else x)),
    lambda m, x: m.second(m.first(x.view(x.size(0), x.size(-1) * x.shape[1])).clamp(min=0)),
    lambda m, x: m.second(m.first(x.view(len(x), 2 * x.size(dim=2) * (x.ndim - 2)))),
    lambda m, x: m.second(torch.clamp(m.first(x.reshape(*x.size()[:-2], 6)), -0.1, max=0.2)),
    lambda m, x: m.second(m.first(x.flatten(1)).clip_(0)),
    # the layer on the last axis of three, its means over the spatial one
    lambda m, x: m.second(m.first(x.reshape(x.size(0), 1, 6))).mean(dim=2, keepdim=True),
    lambda m, x: m.second(m.first(x.reshape(-1, 1, 1, 6))).mean((2, 3)),
    lambda m, x: m.second(m.first(x.reshape(-1, 1, 1, 6))).mean(-1).mean(-1),
]


@pytest.mark.parametrize("forward", FORWARDS)
def test_forwards(forward: Callable[[Any, Tensor], Tensor]) -> None:
    model = Forward(forward)
    same(model, Network.from_module(model, randn(2, 2, 3)), 2, 3)


def test_lenet() -> None:
    model = randomised(LeNet())
    same(model, read(model, 3, 1, 8, 8), 1, 8, 8)


def test_a_batch_of_one_is_an_example() -> None:
    model = randomised(LeNet())
    same(model, read(model, 1, 1, 8, 8), 1, 8, 8)


def test_a_single_layer_is_a_network() -> None:
    model = nn.Linear(3, 2).double()
    network = read(model, 2, 3)
    assert network.sizes == (3, 2)
    same(model, network, 3)


class Arguments(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Tensor, scale: float | None = None, **kwargs: Any) -> Tensor:
        y: Tensor = self.layer(*args, **kwargs)
        return y if scale is None else y * scale


def test_arguments_behind_the_input_have_their_defaults() -> None:
    model = Arguments(Arguments(nn.Linear(3, 2).double()))
    network = read(model, 2, 3)
    assert [stage.name for stage in network.stages] == ["layer.layer"]
    same(model, network, 3)


class Standardised(nn.Conv2d):
    """A subclass with its own forward is followed."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class Doubled(nn.Conv2d):
    """So is one that overrides what the parent's forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, 2 * weight, bias, self.stride, self.padding)


class Renamed(nn.Conv2d):
    """One that keeps it is the parent."""


@pytest.mark.parametrize("kind", [Standardised, Doubled, Renamed])
def test_subclasses(kind: type[nn.Conv2d]) -> None:
    model = nn.Sequential(kind(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
    randomised(model)
    network = read(model, 2, 2, 5, 5)
    assert network.stages[0].name == "0"
    same(model, network, 2, 5, 5)
    with torch.no_grad():
        model[0].weight.mul_(3)
    same(model, network, 2, 5, 5)


# --- live weights


def test_the_network_follows_the_training() -> None:
    model = randomised(LeNet())
    network = read(model, 2, 1, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        before = network(randn(4, 1, 8, 8))
        model.train()(randn(8, 1, 8, 8, seed=step)).square().mean().backward()
        optimizer.step()
        assert (network(randn(4, 1, 8, 8)) - before).abs().max() > 1e-3
        same(model, network, 1, 8, 8)
    assert {id(p) for p in network.parameters()} == {id(p) for p in model.parameters()}


def test_new_parameters_are_followed() -> None:
    model = randomised(LeNet())
    network = read(model, 2, 1, 8, 8)
    model.hidden.weight = nn.Parameter(randn(6, 16, seed=9))
    model.last.bias = nn.Parameter(randn(3, seed=10))
    model.norm.running_mean = randn(3, seed=11)
    same(model, network, 1, 8, 8)
    assert any(p is model.hidden.weight for p in network.parameters())


def test_parameters_are_those_that_are_read_each_once() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.PReLU(), shared).double()
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    network = read(model, 2, 3)
    assert [id(p) for p in network.parameters()] == [
        id(p) for p in (shared.weight, shared.bias, model[1].weight)
    ]
    assert network.dtype == torch.float64
    assert network.device == torch.device("cpu")
    assert len(network.stages) == 2
    same(model, network, 3)


def test_parametrizations_are_computed_anew() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(2, 3, 2)),
        nn.ReLU(),
        nn.Flatten(),
        parametrizations.spectral_norm(nn.Linear(12, 4)),
    ).double()
    network = read(model, 2, 2, 5)
    assert [o.kind for o in network.operations] == ["Conv1d", "ReLU", "Flatten", "Linear"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # in training mode a look at the weight would move the estimate of its norm
    network(randn(3, 2, 5))
    assert model[3].training
    assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
    same(model, network, 2, 5)
    gradients = torch.autograd.grad(network(randn(3, 2, 5)).sum(), list(model.parameters()))
    assert all(bool(g.abs().sum() > 0) for g in gradients[:4])


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_a_parametrised_weight_of_a_forward_of_its_own() -> None:
    model = Forward(lambda m, x: F.linear(m.first(x.flatten(1)).relu(), m.weight, m.second.bias))
    parametrize.register_parametrization(model, "weight", Halved())
    network = Network.from_module(model, randn(2, 2, 3))
    same(model, network, 2, 3)
    with torch.no_grad():
        model.parametrizations.weight.original.mul_(3)
    same(model, network, 2, 3)


def sizes_behind_a_layer(m: Any, x: Tensor) -> Tensor:
    y = m.first(x.flatten(1))
    z: Tensor = m.second(y.view(-1, y.shape[1]).relu())
    return z


def test_sizes_behind_a_parametrised_layer() -> None:
    model = Forward(sizes_behind_a_layer)
    parametrizations.weight_norm(model.first)
    same(model, Network.from_module(model, randn(2, 2, 3)), 2, 3)


def test_sizes_are_computed_without_hooks() -> None:
    model = Forward(sizes_behind_a_layer)
    seen: list[Any] = []
    model.first.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    Network.from_module(model, randn(2, 2, 3))
    # the two comparisons
    assert seen == [Tensor, Tensor]


def test_a_spectral_norm_of_a_forward_of_its_own_is_not_moved() -> None:
    model = Forward(lambda m, x: F.linear(m.first(x.flatten(1)).relu(), m.weight))
    parametrizations.spectral_norm(model, "weight")
    network = Network.from_module(model.train(), randn(2, 2, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network(randn(3, 2, 3))
    assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())
    same(model, network, 2, 3)


def test_what_is_computed_from_buffers_is_computed_anew() -> None:
    model = Forward(lambda m, x: F.linear(m.first(x.flatten(1)).relu(), 2 * m.mask))
    network = Network.from_module(model, randn(2, 2, 3))
    model.mask.add_(0.5)
    same(model, network, 2, 3)


def test_weights_that_are_buffers() -> None:
    model = Forward(lambda m, x: F.linear(x.flatten(1), m.buffer))
    model.register_buffer("buffer", randn(2, 6).float())
    network = Network.from_module(model, randn(2, 2, 3).float())
    assert network.parameters() == []
    assert (network.dtype, network.device) == (torch.float32, torch.device("cpu"))


def test_a_module_may_be_given_its_input_by_name() -> None:
    model = Forward(lambda m, x: m.second(input=F.relu(input=m.first(input=x.flatten(1)))))
    same(model, Network.from_module(model, randn(2, 2, 3)), 2, 3)


@pytest.mark.parametrize(
    "first",
    [nn.LeakyReLU(0.1, inplace=True), nn.Dropout(inplace=True), nn.ReLU6(inplace=True)],
)
def test_a_first_operation_in_place_leaves_inputs_alone(first: nn.Module) -> None:
    model = nn.Sequential(first, nn.Linear(6, 2)).double()
    for example in (randn(4, 6), torch.zeros(4, 6).double()):
        kept = example.clone()
        network = Network.from_module(model, example)
        assert torch.equal(example, kept)
    x = randn(5, 6)
    expected = model.eval()(x.clone())
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)
    network.states(x)
    assert torch.equal(x, randn(5, 6))


# --- wrappers


def compiled(model: nn.Module) -> nn.Module:
    """Compiled in place, as a part of a model."""
    copied = copy.deepcopy(model)
    copied.compile()
    return nn.Sequential(copied)


def test_wrapped_models_are_read() -> None:
    model = randomised(LeNet())
    x = randn(2, 1, 8, 8)
    expected = model.eval()(x)
    for wrapped in (
        torch.compile(model),
        nn.DataParallel(model),
        nn.Sequential(torch.compile(model), nn.Flatten()),
        nn.Sequential(nn.DataParallel(model)),
        compiled(model),
    ):
        network = Network.from_module(wrapped, x)
        torch.testing.assert_close(network(x), expected, rtol=1e-13, atol=1e-13)


def test_a_distributed_model_is_read() -> None:
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("torch without torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = randomised(LeNet())
        wrapped = nn.parallel.DistributedDataParallel(model)
        network = Network.from_module(wrapped, randn(2, 1, 8, 8))
    finally:
        distributed.destroy_process_group()
    same(model, network, 1, 8, 8)


def test_the_compiler_is_imported_for_compiled_models_alone(monkeypatch: Any) -> None:
    def stance(name: str) -> None:
        raise AssertionError("seconds of importing")

    monkeypatch.setattr(torch.compiler, "set_stance", stance)
    monkeypatch.setitem(sys.modules, "torch._dynamo", torch)
    with pytest.raises(AssertionError):
        read(nn.Linear(3, 2).double(), 2, 3)
    monkeypatch.delitem(sys.modules, "torch._dynamo")
    read(nn.Linear(3, 2).double(), 2, 3)


def test_tensors_a_forward_makes_stay_out_of_the_model() -> None:
    model = Forward(lambda m, x: F.linear(m.first(x.flatten(1)), torch.ones(2, 4).double()))
    before = set(vars(model))
    Network.from_module(model, randn(2, 2, 3))
    assert set(vars(model)) == before


def test_a_network_keeps_no_activations() -> None:
    model = nn.Sequential(nn.Linear(3, 1237), nn.Tanh(), nn.Linear(1237, 2)).double()
    network = read(model, 2, 3)
    gc.collect()
    held = [t.shape for t in gc.get_objects() if type(t) is Tensor and 1237 in t.shape]
    assert held == []
    same(model, network, 3)


def test_limits() -> None:
    for forward, homogeneous in (
        (lambda m, x: m.second(m.first(x.flatten(1)).clamp(min=0)), True),
        (lambda m, x: m.second(m.first(x.flatten(1)).clamp(0, 1)), False),
        (lambda m, x: m.second(m.first(x.flatten(1)).clamp(max=0)), False),
    ):
        network = Network.from_module(Forward(forward), randn(2, 2, 3))
        (activation,) = network.stages[0].activation
        assert isinstance(activation, Elementwise)
        assert activation.homogeneous is homogeneous
