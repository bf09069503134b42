"""Random chains: products with the derivative of the one-step map are those of its Jacobian."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.network.support import randn, randomised
from tests.network.test_chains_properties import chains
from tests.network.test_graphs_properties import SIDE, graphs
from tests.network.test_one_step import dense, formed, random_states
from torch_thermo.network import Network, StepDerivative


# even kernels that are padded alike on both sides copy their input
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=25, deadline=None)
@given(chain=chains(), seed=st.integers(0, 2**16))
def test_random_chains(chain: tuple[nn.Sequential, tuple[int, ...]], seed: int) -> None:
    model, shape = chain
    check(Network.from_module(randomised(model, seed), randn(2, *shape)), seed)


@settings(max_examples=25, deadline=None)
@given(model=graphs(), seed=st.integers(0, 2**16))
def test_random_graphs(model: nn.Module, seed: int) -> None:
    check(Network.from_module(randomised(model, seed), randn(2, 2, SIDE, SIDE)), seed)


def check(network: Network, seed: int) -> None:
    x, states = randn(1, *network.input_shape, seed=seed), random_states(network, seed=seed)
    derivative = StepDerivative(network, x, states)
    m = dense(network, x, states)
    torch.testing.assert_close(formed(derivative, "forward"), m, **close(m))
    torch.testing.assert_close(formed(derivative, "reverse"), m.T, **close(m))
    inverse = formed(derivative, "solve")
    torch.testing.assert_close(
        formed(derivative, "solve_transposed"), inverse.T, **close(inverse.abs() @ inverse.abs())
    )
    # (I - M)^-1 (I - M) = I, to the size of what cancels
    unit = torch.eye(len(m)).double()
    torch.testing.assert_close(inverse @ (unit - m), unit, **close(inverse.abs() @ m.abs()))


def close(of: Tensor) -> dict[str, float]:
    return {"rtol": 1e-11, "atol": 1e-11 * float(1 + of.abs().max())}
