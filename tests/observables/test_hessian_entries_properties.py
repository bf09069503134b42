"""Entries of random nets against the dense matrix, and what holds of their means."""

import math

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_thermo import FunctionalHessianOperator, Risk
from torch_thermo.observables import hessian_entries


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


def stage(draw, a, b, bias):
    activation = draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh()]))
    layer = nn.Sequential(nn.Linear(a, b, bias=bias), activation)
    if draw(st.booleans()):
        layer.append(Residual(nn.Linear(b, b, bias=bias)))
    if draw(st.booleans()):
        norm = nn.BatchNorm1d(b)
        norm.running_mean.normal_()
        layer.append(norm)
    return layer


@st.composite
def problems(draw):
    widths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    bias, classes = draw(st.booleans()), draw(st.sampled_from([1, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 2**16)))
        stages = [
            stage(draw, a, b, bias) for a, b in zip(widths, [*widths[1:], classes], strict=True)
        ]
    net = nn.Sequential(*stages[:-1], stages[-1][0]).double()
    x = torch.randn(9, widths[0], generator=generator, dtype=torch.float64)
    if classes == 1:
        y = torch.randn(9, 1, generator=generator).sign().double()
        return net, (lambda o, y: (1 - o * y).clamp(min=0).mean()), [(x[:4], y[:4]), (x[4:], y[4:])]
    y = torch.randint(classes, (9,), generator=generator)
    return net, F.cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])]


@settings(max_examples=30)
@given(problems(), st.integers(0, 100))
def test_means_are_those_of_the_operator(problem, seed):
    net, loss_fn, batches = problem
    risk = Risk(net, loss_fn, batches)
    matrix = FunctionalHessianOperator(risk).dense()
    found = hessian_entries(risk, min(5, risk.numel), min(7, risk.numel), seed=seed)
    expected = matrix[found.columns][:, found.rows]
    scale = max(float(found.entries.abs().max()) if len(found.entries) else 0.0, 1e-12)
    torch.testing.assert_close(found.means(), expected, rtol=0, atol=1e-12 * scale)
    assert not found.entries[:, found.structural].any()
    assert not expected[found.structural].any()


@settings(max_examples=30)
@given(problems())
def test_normalised_means(problem):
    net, loss_fn, batches = problem
    risk = Risk(net, loss_fn, batches)
    every = range(risk.numel)
    found = hessian_entries(risk, every, every)
    z, given_active = found.normalised_means(), found.normalised_means(given_active=True)
    p = found.active_share
    assert torch.equal(z.isnan(), found.silent)
    defined = ~given_active.isnan()
    expected = (p / (1 / given_active**2 + 1 - p)).sqrt() * given_active.sign()
    torch.testing.assert_close(z[defined], expected[defined], rtol=1e-6, atol=1e-9)
    assert not bool((z.abs() > found.bound * (1 + 1e-9)).any())
    share = found.share_below(structural=False)
    assert math.isnan(share) == bool(z.isnan().all())
    if bool((~z.isnan()).any()):
        assert found.share_below() >= share
