import pytest
import torch

from tests.network.branched import Basic
from tests.network.support import LeNet, randn, randomised, read
from torch_thermo.network import Network, StepDerivative
from torch_thermo.operators import (
    PropagatorInverseOperator,
    PropagatorOperator,
    SymmetricOperator,
)
from torch_thermo.spectra import lanczos, trace

CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def build(name):
    if name == "convolutions":
        return read(randomised(LeNet()), 2, 1, 8, 8), randn(1, 1, 8, 8)
    if name == "skip":
        return read(randomised(Basic(2, 2)), 2, 2, 3, 3), randn(1, 2, 3, 3)
    w = 0.2 * randn(9, 9)
    return Network.from_matrix(w, randn(9), torch.tanh, 3, 2), randn(1, 3)


@pytest.fixture(params=["convolutions", "skip", "recurrent"])
def derivative(request):
    network, x = build(request.param)
    return StepDerivative(network, x, [s.detach() for s in network.states(x)[0]])


def step(derivative):
    eye = torch.eye(derivative.neurons, dtype=torch.float64)
    return eye - derivative.flatten(derivative.forward(derivative.unflatten(eye)))


def test_products(derivative):
    g, u = PropagatorOperator(derivative), step(derivative)
    assert isinstance(g, SymmetricOperator)
    assert (g.shape, g.dtype) == (u.shape, torch.float64)
    torch.testing.assert_close(g.dense(), u.T @ u, **CLOSE)
    v = randn(len(u))
    torch.testing.assert_close(g @ v, u.T @ (u @ v), **CLOSE)


def test_inverse(derivative):
    g, inverse = PropagatorOperator(derivative), PropagatorInverseOperator(derivative)
    v = randn(g.shape[0], 3)
    scale = float(inverse.dense().norm())
    torch.testing.assert_close(inverse @ (g @ v), v, rtol=0, atol=1e-12 * scale)
    symmetric = inverse.dense()
    torch.testing.assert_close(symmetric, symmetric.T, rtol=0, atol=1e-12 * scale)


def test_blocks_are_the_input_and_the_stages(derivative):
    g = PropagatorOperator(derivative)
    assert list(g.blocks)[:2] == ["input", "stage 0"]
    sizes = [s.stop - s.start for s in g.blocks.values()]
    assert sizes == [shape.numel() for shape in derivative.shapes]
    assert sum(sizes) == g.shape[0]


def test_spectra_take_it(derivative):
    g = PropagatorOperator(derivative)
    values = torch.linalg.eigvalsh(g.dense())
    ritz = lanczos(g, steps=g.shape[0]).ritz
    assert float(ritz.nan_to_num(-1).max()) == pytest.approx(float(values[-1]), rel=1e-9)
    estimate = trace(g, probes=400)
    assert abs(estimate.value - float(values.sum())) < 4 * estimate.stderr
