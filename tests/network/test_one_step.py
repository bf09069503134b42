"""The derivative of the one-step map against the dense Jacobian, and its algebra."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.network.branched import Basic, Grown, ResNet
from tests.network.support import LeNet, randn, randomised, read
from torch_thermo.network import Network, Stage, StepDerivative, activation_slopes
from torch_thermo.network.base import Operation
from torch_thermo.network.joins import Concatenate, Sum
from torch_thermo.network.operations import Convolution, Dense, Elementwise, MaxPool, Reshape
from torch_thermo.systems import TanhMLP

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def random_states(network: Network, count: int = 1, seed: int = 7) -> list[Tensor]:
    """States that are no forward pass's."""
    return [randn(count, *s.shape, seed=seed + i) for i, s in enumerate(network.stages)]


def random_vectors(derivative: StepDerivative, count: int = 3, seed: int = 0) -> list[Tensor]:
    return derivative.unflatten(randn(derivative.neurons, count, seed=seed))


def dense(network: Network, inputs: Tensor, states: list[Tensor]) -> Tensor:
    """M by autograd of the one-step map, ``(N, N)``."""
    shapes = [x.shape for x in (inputs, *states)]

    def step(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        x = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return torch.cat([y.flatten() for y in network.one_step(x[0], x[1:])])

    flat = torch.cat([x.flatten() for x in (inputs, *states)])
    jacobian = torch.autograd.functional.jacobian(step, flat)
    return torch.cat([torch.zeros(inputs.numel(), len(flat), dtype=flat.dtype), jacobian])


def formed(derivative: StepDerivative, method: str) -> Tensor:
    """The matrix of one of the products."""
    unit = derivative.unflatten(torch.eye(derivative.neurons, dtype=torch.float64))
    return derivative.flatten(getattr(derivative, method)(unit))


def constant(*shape: int, seed: int) -> object:
    value = randn(*shape, seed=seed)
    return lambda: value


def graph() -> Network:
    """Two convolutions with a skip over the second, a max-pool, a concatenation with the input."""

    def convolution(inputs: int, seed: int) -> Operation:
        weight, bias = constant(2, inputs, 3, 3, seed=seed), constant(2, seed=seed + 1)
        return Convolution("conv", "Conv2d", weight, bias, (1, 1), (1, 1), (1, 1), 1)

    tanh = Elementwise("tanh", "tanh", torch.tanh)
    relu = Elementwise("relu", "relu", torch.relu)
    pool = MaxPool("pool", "max_pool2d", lambda x: F.max_pool2d(x, 2, return_indices=True))
    flat = Reshape("flat", "flatten", (8,))
    flat_input = Reshape("flat", "flatten", (16,))
    linear = Dense("linear", "Linear", constant(3, 24, seed=4), constant(3, seed=5))
    image = torch.Size((2, 4, 4))
    stages = [
        Stage("a", (-1,), (convolution(1, 0),), (tanh,), image),
        # c tanh(conv a) joins a before the activation, with weights 1 and -0.5
        Stage(
            *("b", (0,), (convolution(2, 2), Sum("add", "add", (1.0, -0.5)))),
            *((relu, tanh), image, ((0,), (~0, 0))),
        ),
        Stage(
            *("c", (1, -1), (pool, flat, flat_input, Concatenate("cat", "cat", 1), linear), ()),
            *(torch.Size((3,)), ((0,), (~0,), (1,), (~1, ~2), (~3,))),
        ),
        # reads the same stage twice, and has nothing before its activation but a sum
        Stage(
            "d", (2, 2), (Sum("twice", "add", (1.0, 2.0)),), (tanh,), torch.Size((3,)), ((0, 1),)
        ),
    ]
    return Network(stages, torch.Size((1, 4, 4)), lambda: [])


def networks() -> dict[str, Network]:
    pools = nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding="same", bias=False), nn.BatchNorm2d(2), nn.ReLU()),
        *(nn.AvgPool2d(2), nn.Conv2d(2, 4, 2, stride=2, groups=2), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(4, 3), nn.Softplus(), nn.ReLU(), nn.Unflatten(1, (3, 1))),
    )
    return {
        "dense": read(randomised(TanhMLP((6, 5, 4, 3))), 2, 2, 3),
        "one layer": read(randomised(nn.Linear(4, 3)), 2, 4),
        "scalar output": read(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double(), 2, 4),
        "pools": read(randomised(pools), 2, 1, 9, 9),
        "lenet": read(randomised(LeNet()), 2, 1, 8, 8),
        "graph": graph(),
        "residual": read(randomised(ResNet(Basic)), 2, 1, 6, 6),
        "concatenating": read(randomised(Grown()), 2, 1, 4, 4),
    }


NETWORKS = networks()


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


@pytest.fixture(params=["forward pass", "others"])
def point(request: pytest.FixtureRequest, network: Network) -> tuple[Tensor, list[Tensor]]:
    x = randn(1, *network.input_shape)
    if request.param == "others":
        return x, random_states(network)
    with torch.no_grad():
        return x, network.states(x)[0]


def test_products_are_those_of_the_jacobian(network: Network, point: tuple) -> None:
    derivative = StepDerivative(network, *point)
    m = dense(network, *point)
    assert m.shape == (network.neurons,) * 2
    torch.testing.assert_close(formed(derivative, "forward"), m, **CLOSE)
    torch.testing.assert_close(formed(derivative, "reverse"), m.T, **CLOSE)


def test_solves_invert(network: Network, point: tuple) -> None:
    derivative = StepDerivative(network, *point)
    v = random_vectors(derivative)
    for solve, product in (("solve", "forward"), ("solve_transposed", "reverse")):
        mv = getattr(derivative, product)(v)
        left = [a - b for a, b in zip(v, mv, strict=True)]
        back = getattr(derivative, solve)(left)
        torch.testing.assert_close(derivative.flatten(back), derivative.flatten(v), **CLOSE)


def test_adjoint(network: Network, point: tuple) -> None:
    derivative = StepDerivative(network, *point)
    u, v = random_vectors(derivative, seed=1), random_vectors(derivative, seed=2)
    for one, other in (("forward", "reverse"), ("solve", "solve_transposed")):
        left = derivative.flatten(u) * derivative.flatten(getattr(derivative, one)(v))
        right = derivative.flatten(getattr(derivative, other)(u)) * derivative.flatten(v)
        torch.testing.assert_close(left.sum(0), right.sum(0), **CLOSE)


def test_inverse_is_the_response_of_the_states_to_residuals(network: Network) -> None:
    x = randn(1, *network.input_shape)
    hidden = [torch.zeros(1, *s.shape, dtype=torch.float64) for s in network.stages[:-1]]
    derivative = StepDerivative(network, x, network.states(x)[0])
    v = random_vectors(derivative, 1)
    # the input and the output neurons have no residual in `states`
    v[0], v[-1] = torch.zeros_like(v[0]), torch.zeros_like(v[-1])

    def states(*residuals: Tensor) -> tuple[Tensor, ...]:
        return tuple(network.states(x, residuals)[0])

    if not hidden:
        assert all(not x.any() for x in derivative.solve(v))
        return
    # the derivative along v by the double-backward trick, which serves max-pools too
    response = torch.autograd.functional.jvp(states, tuple(hidden), tuple(v[1:-1]))[1]
    torch.testing.assert_close(derivative.solve(v)[1:], list(response), **CLOSE)


def test_solve_of_a_chain_is_unit_triangular() -> None:
    network = NETWORKS["dense"]
    x = randn(1, 2, 3)
    derivative = StepDerivative(network, x, network.states(x)[0])
    assert torch.linalg.det(formed(derivative, "solve")) == pytest.approx(1, abs=1e-12)


def test_slopes_of_examples_and_as_given() -> None:
    network = NETWORKS["graph"]
    x, states = randn(5, 1, 4, 4), random_states(network, 5)
    slopes = activation_slopes(network, x, states)
    y = network.pre_activations(x, states)
    torch.testing.assert_close(slopes[0], 1 - torch.tanh(y[0]) ** 2, **CLOSE)
    # two functions in a row: their product
    composed = (y[1] > 0) * (1 - torch.tanh(y[1].relu()) ** 2)
    torch.testing.assert_close(slopes[1], composed, **CLOSE)
    assert slopes[2] is None
    one = [s[3:4] for s in states]
    own = [None if s is None else s[3:4] for s in slopes]
    expected = formed(StepDerivative(network, x[3:4], one), "forward")
    given = StepDerivative(network, x[3:4], one, own)
    torch.testing.assert_close(formed(given, "forward"), expected, **CLOSE)
    averaged = [None if s is None else s.mean(0, keepdim=True) for s in slopes]
    m = formed(StepDerivative(network, x[3:4], one, averaged), "forward")
    # rows of stage b: those of the derivative, by the ratio of the slopes where f' is not 0
    rows = slice(16 + 32, 16 + 64)
    ratio = averaged[1].flatten() / own[1].flatten()
    alive = own[1].flatten() != 0
    torch.testing.assert_close(m[rows][alive], (ratio[:, None] * expected[rows])[alive], **CLOSE)
    assert m[rows][~alive].any()


def test_slope_of_saturated_neurons() -> None:
    network = Network.from_module(
        nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()), randn(1, 1).float()
    )
    with torch.no_grad():
        network.parameters()[0].fill_(1.0)
    x = torch.tensor([[15.0]], dtype=torch.float64)
    m = formed(StepDerivative(network, x, network.states(x)[0]), "forward")
    assert m[1, 0] == pytest.approx(torch.cosh(x).item() ** -2, rel=1e-3)
    assert m[1, 0] > 0


def test_dtype_and_modes() -> None:
    model = TanhMLP((4, 3, 2))
    network = Network.from_module(model, torch.zeros(1, 4))
    x = torch.rand(1, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        derivative = StepDerivative(network, x, network.states(x)[0])
        v = derivative.unflatten(torch.ones(9, 2))
        products = [derivative.forward(v), derivative.reverse(v), derivative.solve_transposed(v)]
    for product in products:
        assert {u.dtype for u in product} == {torch.float32}
        assert not any(u.requires_grad or u.is_inference() for u in product[1:])
    assert all(p.grad is None for p in model.parameters())
    # another number of vectors than before
    assert derivative.flatten(derivative.reverse(derivative.unflatten(torch.ones(9, 1)))).shape == (
        9,
        1,
    )


def test_a_training_step_does_not_move_it() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.PReLU(3), nn.Linear(3, 2)).double()
    network = read(randomised(model), 2, 4)
    x = randn(1, 4)
    slopes = [randn(1, 3), None]
    for given in (None, slopes):
        derivative = StepDerivative(network, x, network.states(x)[0], given)
        before = formed(derivative, "forward")
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        model(randn(5, 4)).sum().backward()
        optimizer.step()
        slopes[0].mul_(2)
        assert torch.equal(formed(derivative, "forward"), before)
        torch.testing.assert_close(formed(derivative, "reverse"), before.T, **CLOSE)
        assert not torch.equal(
            formed(StepDerivative(network, x, network.states(x)[0], given), "forward"), before
        )


def test_matrix(network: Network) -> None:
    x = randn(1, *network.input_shape)
    derivative = StepDerivative(network, x, random_states(network))
    assert torch.equal(derivative.matrix(), formed(derivative, "forward"))


def test_a_scale_of_the_input_moves_no_other_block() -> None:
    """x / 255 in a network with a skip is no neuron: M's columns of the input are scaled, so."""

    class Scaled(nn.Module):
        def __init__(self, divisor: float) -> None:
            super().__init__()
            self.a, self.b, self.divisor = nn.Linear(4, 3), nn.Linear(3, 4), divisor

        def forward(self, x: Tensor) -> Tensor:
            x = x if self.divisor == 1 else x / self.divisor
            y: Tensor = torch.tanh(self.b(torch.tanh(self.a(x))) + x)
            return y

    x = 255 * randn(1, 4)
    inside, outside = (read(randomised(Scaled(divisor)), 2, 4) for divisor in (255.0, 1.0))
    assert inside.sizes == outside.sizes == (4, 3, 4)
    ours = StepDerivative(inside, x, inside.states(x)[0]).matrix()
    expected = StepDerivative(outside, x / 255, outside.states(x / 255)[0]).matrix()
    expected[:, :4] /= 255
    torch.testing.assert_close(ours, expected, **CLOSE)


def test_refusals() -> None:
    network = NETWORKS["graph"]
    x, states = randn(1, 1, 4, 4), random_states(network)
    two = [s.repeat(2, *[1] * (s.dim() - 1)) for s in states]
    with pytest.raises(ValueError, match=r"the point must have tensors of shapes \[\(1, 1, 4, 4\)"):
        StepDerivative(network, x.repeat(2, 1, 1, 1), two)
    with pytest.raises(ValueError, match="the point must have tensors"):
        StepDerivative(network, x, states[:-1])
    with pytest.raises(ValueError, match="slopes must be one for each of the 4 stages, got 1"):
        StepDerivative(network, x, states, [None])
    wrong = [torch.ones(1, 2), None, None, None]
    with pytest.raises(ValueError, match=r"'a' must be of shape \(1, 2, 4, 4\), got \(1, 2\)"):
        StepDerivative(network, x, states, wrong)
    with pytest.raises(ValueError, match="stage 'c' need an activation of elementwise"):
        StepDerivative(network, x, states, [None, None, torch.ones(1, 3), None])
    derivative = StepDerivative(network, x, states)
    v = random_vectors(derivative)
    with pytest.raises(ValueError, match=r"vectors must have tensors .* got \[\(3, 1, 4, 4\)\]"):
        derivative.forward(v[:1])
    with pytest.raises(ValueError, match=r"columns must be of shape \(86, K\), got \(85, 2\)"):
        derivative.unflatten(torch.ones(85, 2))


def test_refuses_what_has_no_derivative() -> None:
    step = Elementwise("step", "step", lambda x: (x > 0).to(x))
    layer = Dense("layer", "Linear", constant(2, 3, seed=0), None)
    network = Network(
        [Stage("layer", (-1,), (layer,), (step,), torch.Size((2,)))], torch.Size((3,)), list
    )
    with pytest.raises(ValueError, match=r"step.*has no derivative"):
        StepDerivative(network, randn(1, 3), [randn(1, 2)])

    class Cube(Operation):
        def __call__(self, x: Tensor) -> Tensor:
            return x**3

    cube = Stage("cube", (-1,), (Cube("cube", "cube"),), (), torch.Size((3,)))
    with pytest.raises(TypeError, match=r"derivative of Cube\('cube', 'cube'\) is not known"):
        StepDerivative(Network([cube], torch.Size((3,)), list), randn(1, 3), [randn(1, 3)])
