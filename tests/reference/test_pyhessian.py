"""Eigenvalues, trace and density against pyhessian.

Its release 0.1 is of 2020: `density` calls torch.eig, which torch has removed. The test puts a
function of that name and form in its place. Nothing of pyhessian is copied here.
"""

import numpy as np
import pytest
import torch
from pyhessian import hessian
from torch import nn

from torch_thermo import HessianOperator, Risk, hessian_spectrum, trace

LOSS = nn.CrossEntropyLoss()

pytestmark = pytest.mark.filterwarnings("ignore:.*backward.. with create_graph=True.*:UserWarning")


@pytest.fixture
def problem():
    """A net, whole data, and the same data in two batches of one size (pyhessian needs that)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    return model, (x, y), [(x[:10], y[:10]), (x[10:], y[10:])]


def exact(model, data):
    return torch.linalg.eigvalsh(HessianOperator(Risk(model, LOSS, [data])).dense())


def test_largest_eigenvalues(problem):
    model, data, batches = problem
    risk = Risk(model, LOSS, batches)
    found = hessian_spectrum(risk, steps=risk.numel, probes=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer = hessian(model, LOSS, data=data, cuda=False)
        values, _ = peer.eigenvalues(maxIter=2000, tol=1e-13, top_n=2)
        cut = hessian(model, LOSS, dataloader=batches, cuda=False)
        (cut_value,), _ = cut.eigenvalues(maxIter=2000, tol=1e-13, top_n=1)
    # it divides by |v| + 1e-6
    assert found.extremes.max.value == pytest.approx(values[0], rel=3e-6)
    assert found.extremes.max.value == pytest.approx(cut_value, rel=3e-6)
    assert float(exact(model, data)[-2]) == pytest.approx(values[1], rel=1e-5)


def test_trace(problem):
    model, data, _ = problem
    ours = trace(HessianOperator(Risk(model, LOSS, [data])), probes=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = hessian(model, LOSS, data=data, cuda=False).trace(maxIter=128, tol=0)
    error = np.hypot(ours.stderr, np.std(theirs) / len(theirs) ** 0.5)
    assert ours.value == pytest.approx(np.mean(theirs), abs=4 * error)
    assert ours.value == pytest.approx(float(exact(model, data).sum()), abs=4 * ours.stderr)


def test_density(problem, monkeypatch):
    def removed(matrix, eigenvectors=True):
        values, vectors = torch.linalg.eig(matrix)
        return torch.view_as_real(values), vectors.real

    monkeypatch.setattr(torch, "eig", removed)
    model, data, _ = problem
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nodes, weights = hessian(model, LOSS, data=data, cuda=False).density(iter=12, n_v=16)
    nodes, weights = np.array(nodes, np.float64), np.array(weights, np.float64)
    found = hessian_spectrum(Risk(model, LOSS, [data]), steps=12, probes=16).measure
    values = exact(model, data)
    # 12 steps reach neither end to the last digit; the ends are found from random starts by both
    size = float(values.abs().max())
    assert found.extremes.max.value == pytest.approx(nodes.max(), abs=1e-3 * size)
    for p in (1, 2, 3):
        ours = found.moment(p)
        theirs = (weights * nodes**p).sum(1)
        error = np.hypot(ours.stderr, theirs.std() / 4)
        assert ours.value == pytest.approx(theirs.mean(), abs=4 * error)
        assert ours.value == pytest.approx(float((values**p).mean()), abs=4 * ours.stderr)
