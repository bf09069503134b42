"""What the tests of operators share: a small net, data, losses."""

import torch
from torch import nn


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(n=9, seed=0):
    return randn(n, 3, seed=seed), randn(n, 1, seed=seed + 100).sign()


def parts(x, y, *sizes):
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def net(*extra):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *extra, nn.Linear(4, 1)).double()


def hinge(output, target):
    return (0.3 - output * target).clamp(min=0).mean()


def squared(output, target):
    return (output.tanh() - target).square().mean()


def closure_of(loss_fn):
    return lambda model, batch: loss_fn(model(batch[0]), batch[1])


def close(a, b, tolerance=1e-12):
    scale = b.detach().abs().max().clamp(min=1e-3)
    torch.testing.assert_close(a, b, rtol=0, atol=float(tolerance * scale))
