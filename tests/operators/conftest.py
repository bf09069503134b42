"""Small models with a loss and ragged batches, and the dense matrices they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_thermo import Risk


@dataclass
class Case:
    """What a risk is built from."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    batches: list[Any]
    params: list[str] | None = None

    def risk(self, **options: Any) -> Risk:
        return Risk(self.model, self.loss_fn, self.batches, params=self.params, **options)

    def opaque(self) -> Risk:
        def closure(model: nn.Module, batch: Any) -> Tensor:
            return self.loss_fn(model(batch[0]), batch[1]).mean()

        return Risk.from_closure(self.model, closure, self.batches, params=self.params)

    def vector(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        n = self.risk().numel
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(classes: int, *shape: int) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(1))


def ragged(inputs: Tensor, targets: Tensor, sizes: tuple[int, ...] = (4, 1, 3)) -> list[Any]:
    return list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))


def hinge(output: Tensor, target: Tensor) -> Tensor:
    return (0.5 - output * target).clamp(min=0).flatten(1).sum(1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)).mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 3, batch_first=True)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Partial(nn.Module):
    """One parameter is unused, one is frozen, one enters linearly, one has no entries."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
        self.body = nn.Linear(4, 5)
        self.frozen = nn.Linear(5, 5)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(5, 2)
        self.shift = nn.Parameter(torch.zeros(2))
        self.empty = nn.Parameter(torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.frozen(torch.tanh(self.body(x))))) + self.shift


def mlp(*widths: int, act: type[nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1], bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def normalised() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    net(randn(20, 4, seed=3))  # moves the running statistics
    return net


def _tanh_squared() -> Case:
    batches = ragged(randn(8, 4), randn(8, 2, seed=1))
    return Case(mlp(4, 5, 3, 2), lambda o, y: (o - y).square().mean(), batches)


def _cross_entropy() -> Case:
    batches = ragged(randn(8, 4), labels(3, 8))
    return Case(mlp(4, 5, 3), lambda o, y: F.cross_entropy(o, y, reduction="none"), batches)


def _conv_hinge() -> Case:
    net = nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False)),
    )
    return Case(net, hinge, ragged(randn(8, 1, 6, 6), randn(8, 1, seed=1).sign()))


def _batch_norm() -> Case:
    return Case(normalised(), hinge, ragged(randn(8, 4), randn(8, 1, seed=1).sign()))


def _attention() -> Case:
    batches = ragged(randn(8, 3, 4), labels(2, 8))
    return Case(Attention(), F.cross_entropy, batches)


def _transformer() -> Case:
    net = nn.TransformerEncoderLayer(4, 2, 3, batch_first=True)
    batches = ragged(randn(8, 3, 4), randn(8, 3, 4, seed=1))
    return Case(net, lambda o, y: (o * y).mean(), batches)


def _lstm() -> Case:
    return Case(Recurrent(), F.cross_entropy, ragged(randn(8, 4, 3), labels(2, 8)))


def _tied() -> Case:
    return Case(Tied(), F.mse_loss, ragged(randn(8, 4), randn(8, 4, seed=1)))


def _partial() -> Case:
    return Case(Partial(), F.mse_loss, ragged(randn(8, 4), randn(8, 2, seed=1)))


def _subset() -> Case:
    case = _partial()
    case.params = ["head.weight", "body.weight", "unused"]
    return case


CASES: dict[str, Callable[[], Case]] = {
    "tanh-squared-error": _tanh_squared,
    "tanh-cross-entropy": _cross_entropy,
    "conv-relu-hinge": _conv_hinge,
    "batch-norm-hinge": _batch_norm,
    "attention": _attention,
    "transformer-layer": _transformer,
    "lstm": _lstm,
    "tied": _tied,
    "unused-and-frozen": _partial,
    "subset": _subset,
}


def build(name: str) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case = CASES[name]()
        case.model.double().eval()
    return case


@pytest.fixture(autouse=True)
def _same_weights() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Every model in turn."""
    return build(request.param)


@pytest.fixture
def named() -> Callable[[str], Case]:
    """One model, by name."""
    return build


class Dense:
    """The exact matrices of a case, by torch.func on the flat parameters."""

    def __init__(self, case: Case) -> None:
        self.case = case
        risk = case.risk()
        self.point = torch.cat([p.detach().reshape(-1) for p in risk.parameters.values()])
        self._names = list(risk.parameters)
        self._shapes = [p.shape for p in risk.parameters.values()]
        self._blocks = list(risk.blocks.values())

    def output(self, flat: Tensor, inputs: Tensor) -> Tensor:
        tied = {"second.weight": "first.weight"}
        values = {
            name: flat[block].view(shape)
            for name, block, shape in zip(self._names, self._blocks, self._shapes, strict=True)
        }
        for alias, name in tied.items():
            if name in values and alias in dict(self.case.model.named_parameters()):
                values[alias] = values[name]
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(self.case.model, values, (inputs,), tie_weights=True)

    def _second(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        if any(isinstance(m, nn.LayerNorm) for m in self.case.model.modules()):
            # torch.func's second derivative in a LayerNorm's weight is wrong (not even symmetric)
            return torch.autograd.functional.hessian(function, self.point)
        return torch.func.hessian(function)(self.point)

    def mean(self, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The mean of term(inputs, targets) over the batches, weighted by their sizes."""
        total = sum(len(x) * term(x, y) for x, y in self.case.batches)
        return total / sum(len(x) for x, _ in self.case.batches)

    def hessian(self) -> Tensor:
        def at(x: Tensor, y: Tensor) -> Tensor:
            def loss(flat: Tensor) -> Tensor:
                return self.case.loss_fn(self.output(flat, x), y).mean()

            return self._second(loss)

        return self.mean(at)

    def gauss_newton(self) -> Tensor:
        def at(x: Tensor, y: Tensor) -> Tensor:
            output = self.output(self.point, x).detach()
            jacobian = torch.func.jacrev(self.output)(self.point, x).flatten(0, -2)
            curvature = torch.func.hessian(lambda o: self.case.loss_fn(o, y).mean())(output)
            return jacobian.T @ curvature.reshape(2 * [output.numel()]) @ jacobian

        return self.mean(at)

    def functional(self) -> Tensor:
        def at(x: Tensor, y: Tensor) -> Tensor:
            output = self.output(self.point, x).detach()
            slope = torch.func.grad(lambda o: self.case.loss_fn(o, y).mean())(output)
            return self._second(lambda flat: (slope * self.output(flat, x)).sum())

        return self.mean(at)


@pytest.fixture
def dense() -> type[Dense]:
    """`dense(case).hessian()` and so on."""
    return Dense
