"""Matrix-free spectra of the propagator against exact ones."""

import math

import pytest
import torch
from torch import nn

from tests.network.support import randn
from tests.observables.propagators import Convolutional, Residual, chain, images, logs, mean_step
from torch_thermo.network import Network
from torch_thermo.observables import propagator_spectrum
from torch_thermo.observables.propagator import matrix_free


@pytest.fixture(
    scope="module", params=[(Convolutional, 1.0), (Residual, 1.5)], ids=["conv", "skip"]
)
def net(request):
    model, gain = request.param
    network, x = images(model(), gain)
    return network, x, propagator_spectrum(network, x, exact=True)


def free(network, x, **options):
    return propagator_spectrum(network, x, exact=False, **options)


def close(measure, truth, **relative):
    for name, tolerance in relative.items():
        n = int(name[-1])
        assert measure.mu(n).value == pytest.approx(truth.mu(n).value, rel=tolerance)


class TestAgainstExact:
    def test_64_probes_of_30_steps(self, net):
        network, x, truth = net
        assert network.neurons > 1500
        found = free(network, x, probes=64, steps=30)
        close(found, truth, mu2=0.002, mu3=0.01)
        for n in (1, 2, 3):
            estimate = found.mu(n)
            assert abs(estimate.value - truth.mu(n).value) < 4 * estimate.stderr
        assert found.mu(3).stderr < 0.01 * abs(truth.mu(3).value)
        assert found.skewness == pytest.approx(truth.skewness, rel=0.015)
        assert found.extremes.min.value == pytest.approx(truth.extremes.min.value, abs=1e-3)
        assert found.extremes.max.value == pytest.approx(truth.extremes.max.value, abs=1e-3)

    @pytest.mark.parametrize(("probes", "steps"), [(3, 16), (1, 12)])
    def test_stated_errors_cover(self, net, probes, steps):
        network, x, truth = net
        for n in (1, 2, 3):
            seeds = range(12)
            found = [free(network, x, probes=probes, steps=steps, seed=s).mu(n) for s in seeds]
            z = [(e.value - truth.mu(n).value) / e.stderr for e in found]
            # 12 normal deviates: beyond 1.6 in 1 of 10,000 cases; too large errors would be below
            assert 0.4 < math.sqrt(sum(v * v for v in z) / len(z)) < 1.6

    def test_counts_are_lower_bounds(self, net):
        network, x, truth = net
        found = free(network, x, probes=8, steps=24)
        for threshold in (1e-6, 0.03, 0.1, 1.0):
            estimate, exact = found.count(threshold), truth.count(threshold).value
            assert abs(estimate.value - exact) < 2 * estimate.stderr
        assert 0.85 < found.count(0.03).value / truth.count(0.03).value < 1.02
        for n in (2, 3):
            estimate, exact = found.mean(n, 0.03), truth.mean(n, 0.03).value
            assert abs(estimate.value - exact) < 3 * estimate.stderr
            assert estimate.value == pytest.approx(exact, rel=0.25)
        assert math.isnan(found.mean(2, 50.0).value)

    def test_summary(self, net):
        network, x, truth = net
        found = free(network, x, probes=2, steps=8).summary()
        assert found.keys() == truth.summary().keys()
        assert all(math.isfinite(v) for v in found.values())

    def test_plain_probes(self, net):
        # too few for exact traces; the noise of their means is in the stated error
        network, x, truth = net
        found = free(network, x, probes=8, steps=24)
        assert found._quadratures.plain == 96
        exact = free(network, x, probes=27, steps=32)
        assert exact._quadratures.plain == math.inf
        assert found.mu(3).stderr > 3 * exact.mu(3).stderr
        assert abs(found.mu(3).value - truth.mu(3).value) < 3 * found.mu(3).stderr


def test_too_few_steps_are_stated():
    # so many probes that the quadrature's own error is what is left
    network, x = chain(60, 40, 30, 10, gain=2.5), randn(5, 60)
    truth = propagator_spectrum(network, x)
    found, better = (free(network, x, probes=200, steps=steps) for steps in (6, 24))
    for n in (2, 3):
        errors = [abs(f.mu(n).value - truth.mu(n).value) for f in (found, better)]
        assert errors[0] > 5 * better.mu(n).stderr
        assert errors[0] < 2 * found.mu(n).stderr
        assert errors[1] < 3 * better.mu(n).stderr


def wide(gain):
    """A net of 426 neurons with all parameters times gain."""
    layers = (nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Conv2d(4, 6, 3, padding=1), *layers),
        *(nn.Flatten(), nn.Linear(24, 10)),
    )
    for i, parameter in enumerate(model.parameters()):
        scale = gain / (3 * parameter[0].numel()) ** 0.5
        parameter.data = scale * randn(*parameter.shape, seed=i).clamp(-2, 2)
    x = randn(6, 1, 8, 8, seed=9).abs()
    return Network.from_module(model, x), x


@pytest.mark.parametrize(("probes", "steps"), [(2, 16), (8, 24)])
@pytest.mark.parametrize("gain", [12.0, 25.0, 50.0])
def test_wide_eigenvalues_are_stated(gain, probes, steps):
    # the quadratures' own error is 5 times what two steps change, and of one sign
    network, x = wide(gain)
    truth = propagator_spectrum(network, x)
    assert truth.extremes.min.value < -10
    found = [free(network, x, probes=probes, steps=steps, seed=s) for s in range(8)]
    for n in (1, 2, 3):
        z = [(f.mu(n).value - truth.mu(n).value) / f.mu(n).stderr for f in found]
        assert math.sqrt(sum(v * v for v in z) / len(z)) < 1.6


def test_wide_eigenvalues_are_stated_of_recurrent_networks():
    # two stages that amplify, with a weak way back: det G is not 1
    w = torch.zeros(100, 100, dtype=torch.float64)
    w[20:60, :20], w[60:, 20:60] = randn(40, 20), randn(40, 40, seed=1)
    w[20:60, 60:] = 0.01 * randn(40, 40, seed=2)
    network = Network.from_matrix(w, torch.zeros(100, dtype=w.dtype), nn.Identity(), 20, 10)
    x = 1e-3 * randn(4, 20)
    truth = propagator_spectrum(network, x, damping=0.5)
    found = [free(network, x, probes=4, steps=12, seed=s, damping=0.5) for s in range(8)]
    for n in (1, 2, 3):
        z = [(f.mu(n).value - truth.mu(n).value) / f.mu(n).stderr for f in found]
        assert math.sqrt(sum(v * v for v in z) / len(z)) < 1.6


def test_tiny_weights_are_stated():
    network, x = chain(30, 40, 20, 10, gain=1e-11), randn(4, 30)
    for n in (1, 2, 3):
        true = propagator_spectrum(network, x).mu(n).value
        estimate = free(network, x, probes=2, steps=16).mu(n)
        assert abs(estimate.value - true) < 3 * estimate.stderr


def test_vague_counts_are_not_stored(net):
    network, x, _ = net
    found = free(network, x, probes=2, steps=4)
    number, stored = found.count(0.1), found.summary()["count_above_0.1"]
    assert number.stderr > number.value / 2
    assert math.isnan(stored)
    assert free(network, x, probes=2, steps=16).summary()["count_above_0.1"] > 500


class TestControlVariates:
    def test_traces_of_powers(self):
        network, x = chain(20, 12, 9, 3, gain=1.5), randn(5, 20)
        g = mean_step(network, x).T @ mean_step(network, x)
        found = free(network, x, probes=4, steps=12)._quadratures
        assert found.plain == math.inf
        for p in (1, 2, -1, -2):
            expected = torch.linalg.matrix_power(g, p).trace()
            assert found.powers[p] == pytest.approx(float(expected), rel=1e-10)

    def test_means_of_plain_probes(self):
        network, x = chain(300, 200, 100, 10), randn(5, 300)
        exact = free(network, x, probes=40, steps=8)._quadratures.powers
        found = free(network, x, probes=25, steps=8)._quadratures
        assert found.plain == 100
        for p, power in exact.items():
            assert found.powers[p] == pytest.approx(power, rel=0.05)
            assert found.powers[p] != power

    def test_they_pay(self, net):
        network, x, truth = net
        mu = truth.mu(3).value
        found = [free(network, x, probes=53, steps=16, seed=s) for s in range(3)]
        plain = [f.dimension * float((f.weights * f.nodes**3).sum(1).mean()) for f in found]
        error = math.sqrt(sum((p - mu) ** 2 for p in plain) / 3)
        assert all(abs(f.mu(3).value - mu) < 0.05 * error for f in found)

    def test_a_net_that_the_quadrature_knows_whole(self):
        network, x = chain(6, 4, 3, gain=1.5), randn(5, 6)
        truth = propagator_spectrum(network, x, exact=True)
        found = free(network, x, probes=2, steps=40)
        assert found.extremes.min.value == pytest.approx(truth.extremes.min.value, abs=1e-9)
        for n in (1, 2, 3):
            estimate = found.mu(n)
            assert abs(estimate.value - truth.mu(n).value) < 3 * estimate.stderr

    def test_no_weights(self):
        found = free(chain(5, 4, 3, gain=0.0), randn(2, 5), probes=2, steps=8)
        for n in (1, 2, 3):
            assert found.mu(n).value == pytest.approx(0.0, abs=1e-12)
        assert found.count(1e-6).value == pytest.approx(0.0, abs=1e-9)
        assert math.isnan(found.skewness)

    def test_recurrent_networks_have_another_determinant(self):
        w = 0.15 * randn(40, 40, seed=3)
        network = Network.from_matrix(w, 0.1 * randn(40), torch.tanh, 4, 2)
        x = randn(6, 4)
        values = logs(mean_step(network, x))
        found = free(network, x, probes=40, steps=16)
        assert not found._quadratures.unimodular
        assert abs(float(values.sum())) > 10 * found.mu(1).stderr
        for n in (1, 2, 3):
            estimate = found.mu(n)
            assert abs(estimate.value - float(values.pow(n).sum())) < 3 * estimate.stderr
        centred = values - values.mean()
        skewness = centred.pow(3).mean() / centred.square().mean() ** 1.5
        assert found.skewness == pytest.approx(float(skewness), abs=0.1)


class TestOptions:
    def test_seeds_and_chunks(self, monkeypatch):
        network, x = images(Convolutional(), count=2)
        found, again, other = (free(network, x, probes=3, steps=8, seed=s) for s in (0, 0, 1))
        assert torch.equal(found.nodes, again.nodes)
        # torch 2.8: the least squares of equal nodes differ in the last digit
        assert again.mu(3).value == pytest.approx(found.mu(3).value, rel=1e-14)
        assert not torch.allclose(found.nodes, other.nodes, 1e-6, 1e-6)
        monkeypatch.setattr(matrix_free, "_BASIS_BYTES", 1)
        monkeypatch.setattr(matrix_free, "_VECTOR_BYTES", 1)
        parts = free(network, x, probes=3, steps=8)
        torch.testing.assert_close(parts.nodes, found.nodes, rtol=1e-9, atol=1e-9)
        assert parts.mu(3).value == pytest.approx(found.mu(3).value, rel=1e-9)

    def test_size_decides(self):
        network, x = images(Convolutional(), count=2)
        assert propagator_spectrum(network, x).exact
        wide = chain(3, 2100, 2)
        assert not propagator_spectrum(wide, randn(2, 3), probes=1, steps=4).exact
        # 2,100 inputs act through 3 neurons
        assert propagator_spectrum(chain(2100, 3, 2), randn(2, 2100)).exact

    def test_per_sample(self):
        network, x = chain(60, 40, 30, 10), randn(24, 60)
        found = propagator_spectrum(network, x, "per_sample", steps=12, exact=False)
        assert found.nodes.shape == (24, 12)
        truth = propagator_spectrum(network, x, "per_sample")
        assert abs(found.mu(2).value - truth.mu(2).value) < 4 * found.mu(2).stderr
        assert found.mu(2).stderr < 0.1 * truth.mu(2).value

    def test_averaged(self):
        network, x = chain(60, 40, 30, 10), randn(6, 60)
        truth = propagator_spectrum(network, x, "averaged")
        found = free(network, x, derivative="averaged", probes=40, steps=20)
        close(found, truth, mu2=0.005, mu3=0.02)

    def test_no_eigenvalues(self):
        network, x = chain(5, 4, 3), randn(2, 5)
        found = free(network, x, probes=1, steps=3)
        for wanted in ("log_eigenvalues", "gaps"):
            with pytest.raises(ValueError, match="log_eigenvalues needs the exact spectrum"):
                getattr(found, wanted)() if wanted == "gaps" else getattr(found, wanted)
