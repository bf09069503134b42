"""Random small networks, chains and with branches, whose every path can be enumerated."""

from __future__ import annotations

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

from tests.observables.circuits.cases import Case, Concatenated, Residual, drawn
from tests.observables.circuits.oracle import Reading

BENDS = (nn.ReLU, lambda: nn.LeakyReLU(0.2), lambda: nn.LeakyReLU(-0.5), lambda: nn.PReLU(init=0.3))
POOLS = (
    lambda: nn.MaxPool2d(2, 1),
    lambda: nn.MaxPool2d(3, 2, 1),
    lambda: nn.AvgPool2d(2, 1),
    lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
)


@st.composite
def same_size(draw: st.DrawFn, inputs: int, outputs: int, biases: bool) -> nn.Sequential:
    """One to three modules that keep the size of the image."""
    kernel = draw(st.sampled_from([1, 3]))
    groups = draw(st.sampled_from([1, inputs])) if outputs % inputs == 0 else 1
    bias = biases and draw(st.booleans())
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
    ]
    if biases and draw(st.booleans()):
        layers.append(nn.BatchNorm2d(outputs))
    if draw(st.booleans()):
        layers.append(draw(st.sampled_from(BENDS))())
    return nn.Sequential(*layers)


@st.composite
def block(draw: st.DrawFn, inputs: int, biases: bool) -> tuple[nn.Module, int]:
    """A module and the number of channels behind it."""
    kind = draw(st.sampled_from(["plain", "strided", "pool", "bend", "residual", "branches"]))
    outputs = draw(st.integers(1, 2))
    if kind == "pool":
        return draw(st.sampled_from(POOLS))(), inputs
    if kind == "bend":
        return draw(st.sampled_from(BENDS))(), inputs
    if kind == "strided":
        stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
        bias = biases and draw(st.booleans())
        return nn.Conv2d(inputs, outputs, 2, stride, padding, bias=bias), outputs
    if kind == "plain":
        return draw(same_size(inputs, outputs, biases)), outputs
    if kind == "branches":
        other = draw(st.sampled_from([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)]))
        return Concatenated(draw(same_size(inputs, outputs, biases)), other), outputs + inputs
    shortcut = None
    if outputs != inputs or draw(st.booleans()):
        shortcut = nn.Conv2d(inputs, outputs, 1, bias=biases and draw(st.booleans()))
    coefficient = draw(st.sampled_from([1.0, 1.0, -0.5, 0.0]))
    return Residual(draw(same_size(inputs, outputs, biases)), shortcut, coefficient), outputs


@st.composite
def cases(draw: st.DrawFn, most: int = 2000) -> Case:
    """A network of at most so many paths, and two examples."""
    biases = draw(st.booleans())
    layers: list[nn.Module] = []
    channels = 1
    for _ in range(draw(st.integers(1, 4))):
        layer, channels = draw(block(channels, biases))
        layers.append(layer)
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(1, bias=biases))
    size = draw(st.integers(3, 4))
    try:
        model.eval()(torch.zeros(1, 1, size, size))
    except RuntimeError:  # an image smaller than a window
        assume(False)
    pruned = draw(st.sampled_from([0.0, 0.0, 0.2]))
    case = drawn(model, (2, 1, size, size), pruned, draw(st.integers(0, 10_000)))
    assume(Reading(case.model, case.inputs[0]).number_of_paths() <= most)
    return case
