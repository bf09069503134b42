"""States of recurrent networks by iteration, and the solves with their derivative."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.network.support import randn, randomised
from tests.network.test_one_step import dense, formed
from torch_thermo.network import Network, StepDerivative
from torch_thermo.network.gmres import gmres
from torch_thermo.systems import TanhMLP

CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def contraction(
    size: int = 30, norm: float = 0.5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    w = randn(size, size, seed=5)
    w = norm * w / torch.linalg.matrix_norm(w, 2)
    return w.to(dtype), randn(size, seed=6).to(dtype)


def oscillator(slope: float = -2.0) -> Network:
    """Neuron 1 has ``x = tanh(slope x + input)``; neuron 2 reads it."""
    w = torch.zeros(3, 3).double()
    w[1, 0], w[1, 1], w[2, 1] = 1.0, slope, 0.7
    return Network.from_matrix(w, torch.zeros(3).double(), torch.tanh, 1, 1)


def defect(network: Network, inputs: Tensor, states: list[Tensor]) -> float:
    step = network.one_step(inputs, states)
    return max(float((a - b).abs().max()) for a, b in zip(step, states, strict=True))


@pytest.mark.parametrize("batch", [1, 7])
def test_contraction(batch: int) -> None:
    w, b = contraction()
    network = Network.from_matrix(w, b, torch.tanh, inputs=[3, 0, 8], outputs=[1, 29])
    assert [s.name for s in network.stages] == ["hidden", "output"]
    assert [s.parents for s in network.stages] == [(-1, 0, 1)] * 2
    x = randn(batch, 3)
    found = network.fixed_point(x)
    assert found.converged.tolist() == [True] * batch
    assert not found.diverged.any()
    assert found.iterations.shape == (batch,)
    assert 5 < found.iterations.min() <= found.iterations.max() < 60
    assert defect(network, x, found.states) < 1e-12
    # the same by the definition: all neurons at once, the input's clamped
    whole = torch.zeros(batch, 30).double()
    for _ in range(100):
        whole[:, [3, 0, 8]] = x
        whole = torch.tanh(whole @ w.T + b)
    whole[:, [3, 0, 8]] = x
    ours = torch.cat([x, *found.states], 1)
    torch.testing.assert_close(ours, whole[:, network.order], **CLOSE)
    torch.testing.assert_close(torch.tanh(found.logits), found.states[-1], **CLOSE)
    states, logits = network.states(x)
    torch.testing.assert_close([*states, logits], [*found.states, found.logits], rtol=0, atol=0)
    torch.testing.assert_close(network(x), whole[:, [1, 29]], **CLOSE)


def test_float32() -> None:
    w, b = contraction(dtype=torch.float32)
    network = Network.from_matrix(w, b, nn.Tanh(), 3, 2)
    x = randn(4, 3).float()
    found = network.fixed_point(x)
    assert found.converged.all()
    assert found.states[0].dtype == torch.float32
    assert defect(network, x, found.states) < 1e-5
    # the weights are cast to the inputs' dtype
    assert network.fixed_point(x.double()).states[0].dtype == torch.float64


def test_one_sample_does_not_change_another() -> None:
    network = oscillator()
    # large inputs saturate the neuron, and the iteration converges at once
    x = torch.tensor([[0.25], [9.0], [0.0], [-9.0]]).double()
    found = network.fixed_point(x, steps=50)
    assert found.converged.tolist() == [False, True, True, True]
    assert found.iterations[0] == 50
    assert found.iterations[2] == 1
    assert found.iterations[1] < 20
    for i in range(4):
        alone = network.fixed_point(x[i : i + 1], steps=50)
        for a, b in zip(alone.states, found.states, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=0, atol=0)
    # the last iterate is kept: of a cycle of length 2, no fixed point
    assert found.states[0][0].isfinite().all()
    assert defect(network, x[:1], [s[:1] for s in found.states]) > 0.1


def test_damping_finds_the_fixed_point_of_an_oscillation() -> None:
    network = oscillator()
    x = torch.tensor([[0.25]]).double()
    damped = network.fixed_point(x, damping=0.5)
    assert damped.converged.all()
    assert defect(network, x, damped.states) < 1e-12
    # by bisection of x - tanh(0.25 - 2 x)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        above = middle - math.tanh(0.25 - 2 * middle) > 0
        low, high = (low, middle) if above else (middle, high)
    assert damped.states[0].item() == pytest.approx(low, abs=1e-12)


def test_states_of_samples_without_a_fixed_point_are_nan() -> None:
    network = oscillator()
    x = torch.tensor([[0.25], [9.0]]).double()
    with pytest.warns(UserWarning, match="1 of 2 samples have no fixed point"):
        states, logits = network.states(x)
    for value in (*states, logits):
        assert value[0].isnan().all()
        assert value[1].isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.states(x[1:])


def test_divergence_is_flagged() -> None:
    w = torch.tensor([[0.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.0, 1.0, 0.0]]).double()
    network = Network.from_matrix(w, torch.zeros(3).double(), lambda x: x**3, 1, 1)
    x = torch.tensor([[1.0], [0.1], [torch.nan]]).double()
    found = network.fixed_point(x)
    assert found.converged.tolist() == [False, True, False]
    assert found.diverged.tolist() == [True, False, True]
    assert found.iterations[0] < 20
    assert all(s.isfinite().all() for s in found.states)


def test_residuals_move_the_fixed_point() -> None:
    w, b = contraction()
    network = Network.from_matrix(w, b, torch.tanh, 3, 2)
    x, r = randn(2, 3), randn(2, 25)
    found = network.fixed_point(x, [r])
    step = network.one_step(x, found.states)
    torch.testing.assert_close(found.states[0], step[0] + r, **CLOSE)
    torch.testing.assert_close(found.states[1], step[1], **CLOSE)
    torch.testing.assert_close(network.states(x, [r])[0], found.states, **CLOSE)


def test_feed_forward_in_one_pass() -> None:
    model = randomised(TanhMLP((4, 3, 2)))
    network = Network.from_module(model, randn(1, 4))
    x = randn(3, 4)
    x[1, 0] = torch.nan
    found = network.fixed_point(x, damping=0.5, steps=1)
    assert found.converged.tolist() == [True, False, True]
    assert found.diverged.tolist() == [False, True, False]
    assert found.iterations.tolist() == [1, 1, 1]
    expected = network.states(x)
    torch.testing.assert_close(
        (found.states, found.logits), expected, rtol=0, atol=0, equal_nan=True
    )


def recurrent_point(norm: float) -> tuple[Network, Tensor, list[Tensor]]:
    w, b = contraction(norm=norm)
    network = Network.from_matrix(w, b, torch.tanh, 3, 2)
    x = randn(1, 3)
    return network, x, network.fixed_point(x, damping=0.5).states


# 4: eigenvalues of M outside of the unit circle, where no series for the inverse converges
@pytest.mark.parametrize("norm", [0.5, 4.0])
def test_recurrent_derivative(norm: float) -> None:
    point = recurrent_point(norm)
    derivative = StepDerivative(*point)
    m = dense(*point)
    if norm > 1:
        assert torch.linalg.eigvals(m).abs().max() > 1
    inverse = torch.linalg.inv(torch.eye(30).double() - m)
    expected = {
        "forward": m,
        "reverse": m.T,
        "solve": inverse,
        "solve_transposed": inverse.T,
    }
    for method, matrix in expected.items():
        torch.testing.assert_close(formed(derivative, method), matrix, rtol=1e-10, atol=1e-10)


def test_recurrent_inverse_is_the_response_to_residuals() -> None:
    network, x, states = recurrent_point(0.5)
    derivative = StepDerivative(network, x, states)
    v = [torch.zeros(1, 3).double(), randn(1, 25), torch.zeros(1, 2).double()]

    def response(r: Tensor) -> tuple[Tensor, ...]:
        return tuple(network.states(x, [r])[0])

    zeros = torch.zeros(1, 25).double()
    by_autograd = torch.autograd.functional.jvp(response, zeros, v[1])[1]
    torch.testing.assert_close(derivative.solve(v)[1:], list(by_autograd), **CLOSE)


@pytest.mark.parametrize("factored", [True, False])
def test_a_strongly_coupled_network_is_solved(
    factored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GMRES(100) does not get through eigenvalues on both sides of 0; LU does."""
    n = 300
    w = 1.5 * randn(n, n) / n**0.5
    network = Network.from_matrix(w, torch.zeros(n).double(), torch.tanh, 10, 10)
    # at x = 0 f' is 1, so that M is w without the input's rows
    zeros = [torch.zeros(1, *stage.shape).double() for stage in network.stages]
    derivative = StepDerivative(network, torch.zeros(1, 10).double(), zeros)
    w[:10] = 0
    left, v = torch.eye(n).double() - w, randn(n, 3, seed=2)
    assert torch.linalg.cond(left) < 1e4
    if not factored:
        monkeypatch.setattr("torch_thermo.network.one_step._FACTORED", 100)
        with pytest.raises(torch.linalg.LinAlgError, match="GMRES needs more products"):
            derivative.solve(derivative.unflatten(v))
        return
    for solve, matrix in ((derivative.solve, left), (derivative.solve_transposed, left.T)):
        found = derivative.flatten(solve(derivative.unflatten(v)))
        torch.testing.assert_close(found, torch.linalg.solve(matrix, v), rtol=1e-9, atol=1e-9)


def test_a_singular_solve_is_an_error() -> None:
    # x_1 = x_1 + input: I - M has no inverse
    w = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).double()
    network = Network.from_matrix(w, torch.zeros(3).double(), nn.Identity(), 1, 1)
    x = torch.zeros(1, 1).double()
    derivative = StepDerivative(network, x, network.states(x)[0])
    v = derivative.unflatten(torch.tensor([[0.0, 1.0, 0.0]]).T.double())
    for solve in (derivative.solve, derivative.solve_transposed):
        with pytest.raises(torch.linalg.LinAlgError, match="I - M is singular or nearly so"):
            solve(v)
    assert derivative.solve(derivative.unflatten(torch.zeros(3, 2).double()))[1].tolist() == [
        [0.0],
        [0.0],
    ]


def test_a_solve_at_states_that_are_no_numbers_is_an_error() -> None:
    network = oscillator()
    derivative = StepDerivative(network, randn(1, 1), [torch.full((1, 1), torch.nan).double()] * 2)
    with pytest.raises(torch.linalg.LinAlgError, match="a residual of nan"):
        derivative.solve(derivative.unflatten(randn(3, 2)))


def test_gmres_stops_where_the_space_ends() -> None:
    u, right = randn(12, seed=1), randn(3, 12, seed=2)
    count = 0

    def product(rows: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return rows + (rows @ u)[:, None] * u

    x, _ = gmres(product, right, 1e-12)
    # r and u span the space; the third product is the check
    assert count == 3
    torch.testing.assert_close(product(x), right, **CLOSE)


@pytest.mark.parametrize("restart", [5, 20, 100])
def test_gmres(restart: int) -> None:
    a = torch.eye(40).double() + 0.15 * randn(40, 40)
    right = randn(4, 40, seed=2)
    right[1] = 0
    count = 0

    def product(rows: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return rows @ a.T

    x, error = gmres(product, right, 1e-12, restart)
    assert error.max() <= 1e-12
    torch.testing.assert_close(x, torch.linalg.solve(a, right.T).T, rtol=1e-9, atol=1e-9)
    assert not x[1].any()
    if restart == 100:
        assert count <= 42
    _, error = gmres(product, right, 1e-12, restart, products=4)
    assert error[0] > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"damping": 1.0}, "damping must be at least 0 and less than 1, got 1.0"),
        ({"damping": -0.1}, "damping must be at least 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"tol": 0.0}, "tol must be greater than 0, got 0.0"),
        ({"residuals": []}, "residuals must be one for each of the 1 hidden stages, got 0"),
        ({"inputs": torch.zeros(2, 2)}, r"inputs must be of shape \(B, 1\), got \(2, 2\)"),
        ({"inputs": torch.zeros(2, 1).int()}, "inputs must be floating-point numbers, got torch"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oscillator().fixed_point(**({"inputs": randn(2, 1)} | arguments))
