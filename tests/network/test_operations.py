"""The primitive maps against brute force and against torch's own modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.network.support import randn, randomised, read
from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.network.operations import (
    AveragePool,
    Convolution,
    Elementwise,
    MaxPool,
    Operation,
    Scale,
    Weighted,
)

SPATIAL = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}


def operation(module: nn.Module, *shape: int) -> Operation:
    """What a module is read as, in front of a layer."""
    randomised(module)
    with torch.no_grad():
        features = module.eval()(randn(2, *shape)).flatten(1).shape[1]
    head = nn.Sequential(nn.Flatten(), nn.Linear(features, 1)).double()
    return read(nn.Sequential(module, head), 2, *shape).operations[0]


def convolutions() -> list[nn.Module]:
    return [
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        nn.Conv1d(4, 2, 4, padding="same"),
        nn.Conv1d(4, 2, 4, padding="valid", dilation=2),
        nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 2, (2, 4), padding="same"),
        nn.Conv3d(4, 2, 2, stride=(1, 2, 2), padding=(1, 0, 1)),
        nn.Conv3d(4, 2, (1, 2, 2), padding="same"),
    ]


def average_pools() -> list[nn.Module]:
    return [
        nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True),
        nn.AvgPool1d(4, count_include_pad=False, padding=2),
        nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d((2, 3), stride=(1, 2), padding=(1, 1), ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AvgPool3d(2, stride=2, padding=1, ceil_mode=True),
        nn.AvgPool3d((2, 1, 3), stride=1, divisor_override=5),
        nn.AdaptiveAvgPool1d(4),
        nn.AdaptiveAvgPool2d((3, None)),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool3d((2, 3, 4)),
    ]


def max_pools() -> list[nn.Module]:
    return [
        nn.MaxPool1d(3, stride=2, padding=1, dilation=2, ceil_mode=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.MaxPool2d((2, 3), stride=(2, 1), dilation=(2, 1), ceil_mode=True),
        nn.MaxPool3d(2, ceil_mode=True),
        nn.AdaptiveMaxPool1d(4),
        nn.AdaptiveMaxPool2d((3, None)),
        nn.AdaptiveMaxPool3d((2, 3, 1)),
    ]


def spatial(module: nn.Module) -> tuple[int, ...]:
    return SPATIAL[int(type(module).__name__[-2])]


def gathered(x: Tensor, windows: Tensor) -> Tensor:
    """The values under each tap, 0 on padding: (B, C, L, K)."""
    padded = F.pad(x.flatten(2), (0, 1))
    return padded[..., torch.where(windows < 0, padded.shape[2] - 1, windows)]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("module", convolutions(), ids=repr)
def test_windows_of_a_convolution(module: nn.Module) -> None:
    shape = (4, *spatial(module))
    layer = operation(module, *shape)
    assert isinstance(layer, Convolution)
    x, weight = randn(3, *shape), layer.weight
    taps = gathered(x, layer.windows(shape))  # (B, C, L, K)
    groups = taps.unflatten(1, (layer.groups, -1))
    kernels = weight.flatten(2).unflatten(0, (layer.groups, -1))  # (G, O, C/G, K)
    y = torch.einsum("bgclk,gock->bgol", groups, kernels).flatten(1, 2)
    if layer.bias is not None:
        y = y + layer.bias[:, None]
    expected = module(x)
    torch.testing.assert_close(y, expected.flatten(2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def brute_force_windows(module: nn.Module, x: Tensor) -> list[set[int]]:
    """Which inputs the averages depend on, and on nothing else: their derivatives."""
    flat = x.flatten().requires_grad_()
    y = module(flat.reshape(x.shape)).flatten()
    rows = [torch.autograd.grad(value, flat, retain_graph=True)[0] for value in y]
    return [set(row.nonzero().flatten().tolist()) for row in rows]


@pytest.mark.parametrize("module", average_pools(), ids=repr)
def test_average_pools_are_coefficients_of_sums_over_windows(module: nn.Module) -> None:
    shape = (4, *spatial(module))
    pool = operation(module, *shape)
    assert isinstance(pool, AveragePool)
    x = randn(3, *shape)
    expected = module(x)
    total, coefficient, windows = pool.total(x), pool.coefficient(shape), pool.windows(shape)
    torch.testing.assert_close(pool(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(coefficient * total, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        gathered(x, windows).sum(3), total.flatten(2), rtol=1e-13, atol=1e-13
    )
    assert coefficient.dtype == torch.float64
    assert coefficient.shape == expected.shape[2:]
    found = [{int(i) for i in row if i >= 0} for row in windows]
    assert found == brute_force_windows(module, x[:1, :1])


@pytest.mark.parametrize("module", max_pools(), ids=repr)
def test_max_pools_select_by_index(module: nn.Module) -> None:
    shape = (4, *spatial(module))
    pool = operation(module, *shape)
    assert isinstance(pool, MaxPool)
    x = randn(3, *shape)
    indices = pool.indices(x)
    expected = module(x)
    torch.testing.assert_close(pool(x), expected, rtol=0, atol=0)
    assert indices.dtype == torch.int64
    assert indices.shape == expected.shape
    torch.testing.assert_close(pool.select(x, indices), expected, rtol=0, atol=0)
    # what is selected of something else stands at the same place
    places = torch.arange(float(x[0, 0].numel())).reshape(shape[1:]).expand(x.shape)
    torch.testing.assert_close(pool.select(places, indices).long(), indices, rtol=0, atol=0)


HOMOGENEOUS = [
    nn.ReLU(),
    nn.LeakyReLU(0.3),
    nn.RReLU(0.1, 0.5),
    nn.Threshold(0, 0),
    nn.PReLU(),
    nn.PReLU(4),
]
BENT = [
    nn.Tanh(),
    nn.Threshold(0.5, 0),
    nn.Threshold(0, -1),
    nn.ReLU6(),
    nn.Softshrink(),
    nn.GELU(),
]


@pytest.mark.parametrize("module", HOMOGENEOUS, ids=repr)
def test_gates(module: nn.Module) -> None:
    f = operation(module, 4, 5)
    assert isinstance(f, Elementwise)
    y = randn(6, 4, 5)
    y[0, 0, 0] = 0
    assert f.homogeneous
    torch.testing.assert_close(f.gate(y) * y, module(y), rtol=1e-15, atol=0)
    torch.testing.assert_close(f(3 * y), 3 * f(y), rtol=1e-14, atol=0)
    assert f.gate(y.float()).dtype == torch.float32


@pytest.mark.parametrize("module", BENT, ids=repr)
def test_what_is_not_homogeneous_has_no_gate(module: nn.Module) -> None:
    network = read(nn.Sequential(nn.Linear(3, 2), module).double(), 2, 3)
    f = network.operations[1]
    assert isinstance(f, Elementwise)
    assert not f.homogeneous
    with pytest.raises(UnreadableNetworkError, match=rf"^1 \({type(module).__name__}\)"):
        f.gate(randn(2, 2))
    y = randn(50, 2)
    assert (f(3 * y) - 3 * f(y)).abs().max() > 0.01


def test_batch_norm_is_a_scale_by_its_running_statistics() -> None:
    module = nn.BatchNorm2d(3, eps=0.01)
    scale = operation(module, 3, 4, 4)
    assert isinstance(scale, Scale)
    gamma, beta = module.weight, module.bias
    weight = gamma / (module.running_var + 0.01).sqrt()
    torch.testing.assert_close(scale.weight, weight, rtol=1e-14, atol=0)
    assert scale.bias is not None
    torch.testing.assert_close(scale.bias, beta - module.running_mean * weight)


def test_a_float32_batch_norm_in_float64_rounds_as_float64() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    single = randomised(model, dtype=torch.float32)
    network = Network.from_module(single, randn(2, 3).float())
    x = randn(5, 3)
    in_float64 = network(x)
    torch.testing.assert_close(in_float64, model.double().eval()(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "module", [*convolutions(), nn.BatchNorm1d(4), nn.BatchNorm3d(4)], ids=repr
)
def test_apply_is_linear_in_the_weights(module: nn.Module) -> None:
    shape = (4, *spatial(module))
    layer = operation(module, *shape)
    assert isinstance(layer, Weighted)
    x = randn(2, *shape)
    one, other = torch.ones_like(layer.weight), randn(*layer.weight.shape)
    y = layer.apply(x, one + 2 * other, None)
    torch.testing.assert_close(y, layer.apply(x, one, None) + 2 * layer.apply(x, other, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_input_decides_the_dtype(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        *(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.PReLU(3), nn.AvgPool1d(2), nn.MaxPool1d(2)),
        *(nn.Flatten(), nn.Linear(3, 2)),
    )
    network = read(randomised(model), 2, 2, 6)
    y = network(randn(2, 2, 6).to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), network(randn(2, 2, 6)), rtol=0.1, atol=0.1)


def test_the_input_decides_the_device() -> None:
    model = nn.Sequential(
        *(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.PReLU(3), nn.AdaptiveAvgPool1d(3)),
        *(nn.Flatten(), nn.Linear(9, 2)),
    )
    network = read(randomised(model), 2, 2, 6)
    x = randn(2, 2, 6).to("meta")
    for operation in network.operations:
        if isinstance(operation, AveragePool):
            assert operation.total(x).device.type == "meta"
        x = operation(x)
        assert x.device.type == "meta"
    assert network.device.type == "cpu"


def test_twice_differentiable() -> None:
    model = randomised(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    network = read(model, 2, 3)
    x = randn(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    weight = network.parameters()[0]
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    (own,) = torch.autograd.grad(model.eval()(x).sum(), x, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(own.sum(), weight)[0])
