"""Random graphs of layers: what is read computes what the model computes, in stages that fit."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.network.support import randn, randomised
from torch_thermo.network import Network
from torch_thermo.network.operations import Convolution, Dense, Elementwise, MaxPool, Scale

SIDE = 3
BENDS = {"relu": F.relu, "tanh": torch.tanh, "softplus": F.softplus}
KINDS = ["layer", "layer", "norm", "scale", "number", "pool", "bend", "bend", "sum", "sum", "cat"]

Instruction = tuple[str, tuple[int, ...], Any]


class Graph(nn.Module):
    """Steps that take values by their numbers, 0 the input; what is not taken is averaged over
    space, concatenated and given to a head.

    Args:
        instructions: kind, values taken, argument.
        channels: of each value.
        bent: whether there is an activation behind the head.
    """

    def __init__(
        self, instructions: list[Instruction], channels: list[int], bent: bool = False
    ) -> None:
        super().__init__()
        self.instructions = instructions
        self.steps = nn.ModuleDict()
        for number, (kind, taken, argument) in enumerate(instructions):
            width = channels[taken[0]]
            if kind == "layer":
                self.steps[str(number)] = nn.Conv2d(
                    width, argument, 1 + 2 * (number % 2), padding=number % 2
                )
            elif kind == "norm":
                self.steps[str(number)] = nn.BatchNorm2d(width)
            elif kind == "scale":
                self.register_parameter(f"scale{number}", nn.Parameter(torch.zeros(width, 1, 1)))
        used = {t for _, taken, _ in instructions for t in taken}
        self.ends = [k for k in range(len(channels)) if k not in used]
        self.head = nn.Linear(sum(channels[k] for k in self.ends), 2)
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for number, (kind, taken, argument) in enumerate(self.instructions):
            first, *others = (values[k] for k in taken)
            if kind in ("layer", "norm"):
                y = self.steps[str(number)](first)
            elif kind == "scale":
                y = first * getattr(self, f"scale{number}")
            elif kind == "number":
                y = argument - first
            elif kind == "pool":
                y = F.max_pool2d(first, 3, 1, 1)
            elif kind == "bend":
                y = BENDS[argument](first)
            elif kind == "sum":
                y = torch.add(first, others[0], alpha=argument)
            else:
                y = torch.cat([first, *others], 1)
            values.append(y)
        y = torch.cat([values[k].mean((2, 3)) for k in self.ends], 1)
        y = self.head(y)
        return torch.tanh(y) if self.bent else y


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    channels = [2]
    instructions: list[Instruction] = []
    for _ in range(draw(st.integers(1, 10))):
        # the last ones are taken more often, so that there are rows
        value = st.integers(max(0, len(channels) - 3), len(channels) - 1)
        kind, taken = draw(st.sampled_from(KINDS)), (draw(value),)
        width, argument = channels[taken[0]], None
        if kind == "layer":
            argument = width = draw(st.integers(2, 3))
        elif kind == "number":
            argument = draw(st.sampled_from([0, 1, 0.5, -2.0]))
        elif kind == "bend":
            argument = draw(st.sampled_from(sorted(BENDS)))
        elif kind == "sum":
            alike = [k for k, c in enumerate(channels) if c == width]
            taken, argument = (*taken, draw(st.sampled_from(alike))), draw(st.sampled_from([1, -2]))
        elif kind == "cat":
            if width > 4:
                continue
            taken = (*taken, draw(st.sampled_from([k for k, c in enumerate(channels) if c < 5])))
            width += channels[taken[1]]
        instructions.append((kind, taken, argument))
        channels.append(width)
    return Graph(instructions, channels, draw(st.booleans()))


@settings(max_examples=60)
@given(graphs(), st.integers(0, 10))
def test_a_network_is_its_module(model: Graph, seed: int) -> None:
    randomised(model, seed)
    network = Network.from_module(model, randn(2, 2, SIDE, SIDE))
    x = randn(3, 2, SIDE, SIDE, seed=seed + 1)
    expected = model.eval()(x)
    tolerance = {"rtol": 1e-11, "atol": 1e-11 * float(expected.detach().abs().max())}
    torch.testing.assert_close(network(x), expected, **tolerance)
    states, _ = network.states(x)
    zeros = [torch.zeros_like(state) for state in states[:-1]]
    for state, again, stepped in zip(
        states, network.states(x, zeros)[0], network.one_step(x, states), strict=True
    ):
        assert torch.equal(state, again)
        assert torch.equal(state, stepped)
    # x_l = f(y_l) + r_l
    residuals = [randn(*state.shape, seed=seed) for state in states[:-1]]
    moved, _ = network.states(x, residuals)
    for state, stepped, r in zip(
        moved, network.one_step(x, moved), [*residuals, torch.zeros(1)], strict=True
    ):
        assert torch.equal(state, stepped + r)


@settings(max_examples=60)
@given(graphs(), st.integers(0, 10))
def test_stages(model: Graph, seed: int) -> None:
    randomised(model, seed)
    network = Network.from_module(model, randn(2, 2, SIDE, SIDE))
    # each layer is in exactly one stage; a normalisation that several stages take is in each
    found = [o for o in network.operations if isinstance(o, Dense | Convolution)]
    assert len({id(o) for o in found}) == len(found)
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    assert len(found) == layers
    scales = {o.name for o in network.operations if o.kind == "BatchNorm2d"}
    assert len(scales) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    taken = {parent for stage in network.stages for parent in stage.parents}
    assert {*range(len(network.stages) - 1)} <= taken
    generator = torch.Generator().manual_seed(seed)
    for number, stage in enumerate(network.stages):
        # a multiple of a state or of the input is no neuron
        scaled = stage.linear and all(isinstance(o, Scale) for o in stage.linear)
        assert not scaled or stage.activation or stage is network.stages[-1]
        assert list(stage.parents) == sorted(set(stage.parents))
        assert -1 <= stage.parents[0] <= stage.parents[-1] < number
        if stage is not network.stages[-1] and stage.activation:
            assert isinstance(stage.activation[0], Elementwise)
            assert isinstance(stage.activation[-1], Elementwise)
        if any(isinstance(operation, MaxPool) for operation in stage.linear):
            continue
        # y is affine in the states
        points = []
        for _ in range(2):
            points.append(
                [
                    torch.randn(
                        1,
                        *(network.stages[p].shape if p >= 0 else network.input_shape),
                        generator=generator,
                        dtype=torch.float64,
                    )
                    for p in stage.parents
                ]
            )
        one, other = points
        if stage.parents[0] == -1:
            other[0] = one[0]
        middle = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
        y = (stage.pre_activation(*one) + stage.pre_activation(*other)) / 2
        torch.testing.assert_close(stage.pre_activation(*middle), y, rtol=1e-10, atol=1e-10)
