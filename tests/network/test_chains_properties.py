"""Random chains: what is read computes what the model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.network.support import randn, randomised
from torch_thermo.network import Network
from torch_thermo.network.operations import AveragePool, Convolution, MaxPool

ACTIVATIONS = [
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.GELU, nn.Identity, nn.Softplus),
    lambda: nn.Dropout(0.5),
]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAXIMA = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGES = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
TO_MAXIMA = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
TO_AVERAGES = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


@st.composite
def spatial_modules(draw: st.DrawFn, n: int, channels: int, sizes: tuple[int, ...]) -> nn.Module:
    """One module that fits an input of these channels and sizes."""
    axis = st.integers(1, min(sizes))
    kind = draw(st.sampled_from(["convolution", "same", "norm", "max", "average", "adaptive"]))
    if kind == "norm":
        return NORMS[n](channels, affine=draw(st.booleans()))
    if kind == "adaptive":
        output = draw(st.integers(1, 3))
        return draw(st.sampled_from([TO_MAXIMA, TO_AVERAGES]))[n](output)
    kernel = draw(axis)
    stride = draw(st.integers(1, 3))
    if kind == "max":
        padding = draw(st.integers(0, kernel // 2))
        return MAXIMA[n](kernel, stride, padding, ceil_mode=draw(st.booleans()))
    if kind == "average":
        padding = draw(st.integers(0, kernel // 2))
        return AVERAGES[n](kernel, stride, padding, draw(st.booleans()), draw(st.booleans()))
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0]))
    arguments: dict[str, Any] = {"groups": groups, "bias": draw(st.booleans())}
    outputs = groups * draw(st.integers(1, 2))
    if kind == "same":
        dilation = draw(st.integers(1, 2))
        return CONVOLUTIONS[n](
            channels, outputs, kernel, padding="same", dilation=dilation, **arguments
        )
    return CONVOLUTIONS[n](channels, outputs, kernel, stride, draw(st.integers(0, 2)), **arguments)


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...]]:
    n = draw(st.integers(1, 3))
    shape = (draw(st.sampled_from([1, 2, 4])), *draw(st.tuples(*[st.integers(3, 6)] * n)))
    modules: list[nn.Module] = []
    x = torch.zeros(1, *shape)
    for _ in range(draw(st.integers(1, 4))):
        if min(x.shape[2:]) < 2:
            break
        module = draw(spatial_modules(n, x.shape[1], tuple(x.shape[2:])))
        modules += [module, draw(st.sampled_from(ACTIVATIONS))()]
        with torch.no_grad():
            x = module.eval()(x)
    modules.append(nn.Flatten())
    width = x[0].numel()
    for _ in range(draw(st.integers(1, 2))):
        outputs = draw(st.integers(1, 3))
        modules += [nn.Linear(width, outputs), draw(st.sampled_from(ACTIVATIONS))()]
        width = outputs
    return nn.Sequential(*modules), shape


# even kernels that are padded alike on both sides copy their input
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=60)
@given(chains(), st.integers(0, 10))
def test_a_network_is_its_module(chain: tuple[nn.Sequential, tuple[int, ...]], seed: int) -> None:
    model, shape = chain
    randomised(model, seed)
    network = Network.from_module(model.train(), randn(2, *shape))
    assert all(module.training for module in model.modules())
    x = randn(4, *shape, seed=seed + 1)
    expected = model.eval()(x)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12 * scale)
    assert network.neurons == sum(network.sizes)
    assert network.is_chain
    layers = [m for m in model if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    assert [stage.name for stage in network.stages] == [
        str(i) for i, module in enumerate(model) if module in layers
    ]
    for operation in network.operations:
        y = operation(x)
        spatial = x.shape[1:]
        if isinstance(operation, Convolution | AveragePool):
            windows = operation.windows(spatial)
            assert windows.shape[0] == y[0, 0].numel()
            assert -1 <= int(windows.min()) <= int(windows.max()) < x[0, 0].numel()
        if isinstance(operation, AveragePool):
            product = operation.coefficient(spatial) * operation.total(x)
            torch.testing.assert_close(product, y, rtol=1e-12, atol=1e-12)
        if isinstance(operation, MaxPool):
            assert torch.equal(operation.select(x, operation.indices(x)), y)
        x = y
