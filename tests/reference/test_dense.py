"""Spectra of risks against SciPy on the dense matrix, and products against finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import linalg, stats
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from torch_thermo import (
    FunctionalHessianOperator,
    GaussNewtonOperator,
    HessianOperator,
    Risk,
    hessian_spectrum,
)

OPERATORS = {
    "hessian": HessianOperator,
    "functional": FunctionalHessianOperator,
    "gauss_newton": GaussNewtonOperator,
}


def hinge(output, target):
    return (1 - output * (2 * F.one_hot(target, 3) - 1)).clamp(min=0).mean()


@pytest.fixture(params=[F.cross_entropy, hinge])
def risk(request):
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)]
    model = nn.Sequential(*layers).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (40,), generator=generator)
    return Risk(model, request.param, list(zip(x.split(17), y.split(17), strict=True)))


@pytest.mark.parametrize("name", OPERATORS)
def test_spectrum(risk, name):
    values = linalg.eigh(OPERATORS[name](risk).dense().numpy(), eigvals_only=True)
    size = np.abs(values).max()
    found = hessian_spectrum(risk, name, steps=60, probes=4)
    if size == 0:
        assert not found.measure.nodes.nan_to_num(0.0).any()
        return
    ends = (found.extremes.min.value, found.extremes.max.value)
    for end, value, residual in zip(ends, values[[0, -1]], found.residuals, strict=True):
        # the tail of small eigenvalues of a Gauss-Newton matrix is longer than 60 steps
        assert residual <= 1e-5 * size
        assert end == pytest.approx(value, abs=residual + 1e-10 * size)
    distance = stats.wasserstein_distance(
        values,
        found.measure.nodes.nan_to_num(0.0).flatten().numpy(),
        v_weights=found.measure.weights.flatten().numpy(),
    )
    assert distance / np.ptp(values) < 0.02


@pytest.mark.parametrize("name", OPERATORS)
def test_arpack_on_the_operator(risk, name):
    operator = OPERATORS[name](risk)
    peer = LinearOperator(
        operator.shape,
        matvec=lambda v: (operator @ torch.from_numpy(v.reshape(-1))).numpy(),
        dtype=np.float64,
    )
    values = linalg.eigh(operator.dense().numpy(), eigvals_only=True)
    size = np.abs(values).max()
    if size == 0:
        return
    high = eigsh(peer, k=1, which="LA", v0=np.ones(len(values)), return_eigenvectors=False)
    assert high[0] == pytest.approx(values[-1], abs=1e-10 * size)


def test_finite_differences(risk):
    direction = torch.randn(risk.numel, generator=torch.Generator().manual_seed(1)).double()
    parameters = list(risk.parameters.values())
    start = [p.detach().clone() for p in parameters]

    def gradient(step):
        with torch.no_grad():
            for p, s, d in zip(parameters, start, risk.unflatten(direction), strict=True):
                p.copy_(s + step * d)
        return risk.gradient()

    # Richardson: the error of the central difference falls as the fourth power
    h = 1e-4
    wide, narrow = ((gradient(s) - gradient(-s)) / (2 * s) for s in (h, h / 2))
    gradient(0.0)
    product = HessianOperator(risk) @ direction
    error = (product - (4 * narrow - wide) / 3).abs().max()
    assert error <= 1e-8 * product.abs().max()
