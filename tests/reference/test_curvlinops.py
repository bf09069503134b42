"""Products and spectra against curvlinops, on its own kinds of losses and ragged batches."""

import numpy as np
import pytest
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from scipy.sparse.linalg import eigsh
from torch import nn

from torch_thermo import (
    FunctionalHessianOperator,
    GaussNewtonOperator,
    HessianOperator,
    Risk,
    hessian_spectrum,
)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), randn(11, 4)


def conv():
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(*layers), randn(11, 1, 6, 6)


PROBLEMS = {
    f"{net.__name__}-{type(loss).__name__}": (net, loss)
    for net in (mlp, conv)
    for loss in (nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss())
}


def problem(name):
    net, loss = PROBLEMS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = net()
    generator = torch.Generator().manual_seed(1)
    if isinstance(loss, nn.CrossEntropyLoss):
        y = torch.randint(0, 3, (11,), generator=generator)
    else:
        y = torch.randint(0, 2, (11, 3), generator=generator).double()
    return model.double().eval(), loss, list(zip(x.split(5), y.split(5), strict=True))


@pytest.mark.parametrize("name", PROBLEMS)
def test_products(name):
    model, loss, data = problem(name)
    risk = Risk(model, loss, data)
    params = list(model.parameters())
    columns = randn(risk.numel, 4, seed=2)
    theirs = {}
    for ours, peer in (
        (HessianOperator, HessianLinearOperator),
        (GaussNewtonOperator, GGNLinearOperator),
    ):
        theirs[ours] = peer(model, loss, params, data) @ columns
        torch.testing.assert_close(ours(risk) @ columns, theirs[ours], rtol=0, atol=1e-13)
        assert theirs[ours].abs().max() > 1e-2
    # F by their two operators
    functional = theirs[HessianOperator] - theirs[GaussNewtonOperator]
    product = FunctionalHessianOperator(risk) @ columns
    torch.testing.assert_close(product, functional, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", PROBLEMS)
def test_extremes(name):
    model, loss, data = problem(name)
    peer = HessianLinearOperator(model, loss, list(model.parameters()), data).to_scipy()
    start = np.ones(peer.shape[0])
    low, high = (
        eigsh(peer, k=1, which=which, v0=start, return_eigenvectors=False)[0]
        for which in ("SA", "LA")
    )
    found = hessian_spectrum(Risk(model, loss, data), steps=45, probes=1)
    size = max(abs(low), abs(high))
    assert found.extremes.min.value == pytest.approx(low, abs=1e-10 * size)
    assert found.extremes.max.value == pytest.approx(high, abs=1e-10 * size)
