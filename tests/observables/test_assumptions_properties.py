"""Properties of identities and phases over random architectures."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.observables.nets import LOSSES, batches, filled
from torch_thermo import Risk
from torch_thermo.observables.identities import LAWS, measure_identities
from torch_thermo.observables.phase import decide, phase

OF_H = {"own_blocks", "trace", "homogeneity", "mirror_spectrum"}


@st.composite
def bias_free(draw: st.DrawFn) -> nn.Module:
    """A bias-free piecewise-linear chain: convolutions with stride, padding, groups; pools."""
    channels, side = 1, 4
    layers: list[nn.Module] = []

    def activation() -> nn.Module:
        return draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(0.1)]))

    for _ in range(draw(st.integers(0, 2))):
        width = draw(st.sampled_from([2, 4]))
        groups = draw(st.sampled_from([1, 2])) if channels > 1 else 1
        stride = draw(st.sampled_from([1, 2])) if side > 1 else 1
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, groups=groups, bias=False),
            activation(),
        ]
        channels, side = width, (side - 1) // stride + 1
        if side > 1 and draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.MaxPool2d(2), nn.AvgPool2d(2)])))
            side //= 2
    layers.append(nn.Flatten())
    features = channels * side * side
    for _ in range(draw(st.integers(0, 2))):
        width = draw(st.integers(3, 6))
        layers += [nn.Linear(features, width, bias=False), activation()]
        features = width
    layers.append(nn.Linear(features, 1, bias=False))
    return filled(nn.Sequential(*layers), seed=draw(st.integers(0, 1000)))


@settings(max_examples=10, deadline=None)
@given(model=bias_free(), seed=st.integers(0, 100))
def test_all_hold_on_bias_free_piecewise_linear_chains(model, seed):
    risk = Risk(model, LOSSES["hinge"], batches(seed=seed))
    found, degree, active = measure_identities(risk, None, seed)
    assert set(found) == set(LAWS)
    assert not [row for row in found.values() if row.holds is False]
    if active and float(risk.gradient().norm()):
        assert degree == len(list(model.parameters()))
        assert found["homogeneity"].holds


@settings(max_examples=10, deadline=None)
@given(
    model=bias_free(),
    seed=st.integers(0, 100),
    loss=st.sampled_from(["squared hinge", "cross entropy"]),
)
def test_those_of_the_functional_part_hold_with_any_loss(model, seed, loss):
    found, _, _ = measure_identities(Risk(model, LOSSES[loss], batches(seed=seed)), None, seed)
    assert {name for name, row in found.items() if row.holds is False} <= OF_H


@settings(max_examples=10, deadline=None)
@given(model=bias_free(), seed=st.integers(0, 100), power=st.sampled_from([-20, -3, 4, 20]))
def test_a_phase_does_not_depend_on_the_unit_of_the_loss(model, seed, power):
    """A power of two times the loss scales every number without rounding."""
    loss = LOSSES["hinge"]
    one = phase(Risk(model, loss, batches(seed=seed)), steps=5, probes=2)
    other = phase(
        Risk(model, lambda o, t: loss(o, t) * 2.0**power, batches(seed=seed)), steps=5, probes=2
    )
    assert one.name == other.name


number = st.floats(-10, 10) | st.just(math.nan)
size = st.floats(0, 10) | st.just(math.nan)


@settings(max_examples=200, deadline=None)
@given(
    risk=st.floats(-1, 1),
    tolerance=st.floats(0, 1),
    order=st.floats(0, 10),
    stderr=size,
    unbiased=number,
    incoherent=st.floats(0, 10),
    low=number,
    bound=st.floats(0, 1),
    odd=st.floats(-1, 1) | st.just(math.nan),
    error=size,
)
def test_every_phase_is_what_it_says(
    risk, tolerance, order, stderr, unbiased, incoherent, low, bound, odd, error
):
    name, reason = decide(
        {
            "risk": risk,
            "tolerance": tolerance,
            "order_parameter": order,
            "order_parameter_stderr": stderr,
            "order_parameter_unbiased": unbiased,
            "order_parameter_incoherent": incoherent,
            "lambda_min": low,
            "lambda_min_residual": bound,
            "lambda_min_bound": bound,
            "lambda_max": abs(low),
            "odd_3": odd,
            "odd_3_stderr": error,
            "zero_output_share": 0.0,
            "dead_share": 0.0,
        },
        {},
    )
    assert reason
    assert (name == "solved") == (abs(risk) <= tolerance)
    zero = order == 0 or (order <= 3 * stderr and order <= 0.1 * incoherent)
    assert (name == "frustrated") == (risk > tolerance and zero)
    if name == "plastic":
        assert low < -bound
        assert abs(odd) + 2 * error < 0.25
        assert not zero


def test_the_strategy_makes_nets():
    """The nets above do run, and some have convolutions and pools."""
    kinds = set()

    @settings(max_examples=30, deadline=None, database=None, derandomize=True)
    @given(model=bias_free())
    def see(model):
        kinds.update(type(m) for m in model.modules())
        assert model(torch.zeros(2, 1, 4, 4).double()).shape == (2, 1)

    see()
    assert {nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.LeakyReLU, nn.ReLU} <= kinds
