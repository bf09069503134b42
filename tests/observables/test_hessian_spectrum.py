import importlib
import math
import re
import statistics

import pytest
import torch
from torch import nn

from torch_thermo import (
    FunctionalHessianOperator,
    HessianOperator,
    Risk,
    hessian_spectrum,
)
from torch_thermo.spectra import lanczos_memory


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared(output, target):
    return (output - target).square().mean()


def least_squares(n=12, width=6):
    """R = |X theta - y|^2 / n, so that H = 2 X^T X / n, whatever theta and y are."""
    x, y = randn(n, width), randn(n, 1, seed=1)
    model = nn.Linear(width, 1, bias=False).double()
    cut = zip(x.split([5, 1, n - 6]), y.split([5, 1, n - 6]), strict=True)
    return Risk(model, squared, list(cut)), torch.linalg.eigvalsh(2 * x.T @ x / n)


def relu_net(widths=(5, 6, 4), loss=squared, dtype=torch.float64, seed=0):
    layers = []
    for i, (a, b) in enumerate(zip(widths, [*widths[1:], 1], strict=True)):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
        layers[-2].weight.data = randn(b, a, seed=10 * seed + i)
    x, y = randn(20, widths[0], seed=100), randn(20, 1, seed=101).sign()
    cut = zip(x.to(dtype).split(12), y.to(dtype).split(12), strict=True)
    return Risk(nn.Sequential(*layers[:-1]).to(dtype), loss, list(cut))


def quadratic(values):
    """A risk whose Hessian has these eigenvalues, in directions of no axis."""
    axes = torch.linalg.qr(randn(len(values), len(values), seed=5)).Q
    matrix = axes @ values.diag() @ axes.T
    model = nn.ParameterList([torch.ones(len(values), dtype=torch.float64)])
    batches = [torch.zeros(1)]
    return Risk.from_closure(model, lambda m, _: 0.5 * m[0] @ matrix @ m[0], batches)


def hinge(output, target):
    return (1 - output * target).clamp(min=0).mean()


def close(a, b, tolerance):
    assert abs(a - b) <= tolerance


class TestQuadratic:
    def test_all_eigenvalues(self):
        risk, values = least_squares()
        found = hessian_spectrum(risk, steps=10, probes=1)
        torch.testing.assert_close(found.measure.nodes[0], values, rtol=1e-10, atol=1e-12)
        close(found.extremes.min.value, float(values[0]), 1e-12)
        close(found.extremes.max.value, float(values[-1]), 1e-12)
        assert max(found.residuals) < 1e-10
        assert found.products == 6

    def test_trace_and_odd_moments(self):
        risk, values = least_squares()
        found = hessian_spectrum(risk, steps=6, probes=40)
        assert found.trace.stderr > 0
        close(found.trace.value, float(values.sum()), 4 * found.trace.stderr)
        spread = math.sqrt(2 * float(values.square().sum()) / 40)
        assert found.trace.stderr == pytest.approx(spread, rel=0.3)
        # of a positive definite matrix the odd moments are 1 in every probe
        for p in (1, 3, 5):
            assert found.odd_moments[p].value == pytest.approx(1.0, abs=1e-12)
            assert found.odd_moments[p].stderr == pytest.approx(0.0, abs=1e-12)

    @pytest.mark.parametrize("steps", [2, 4])
    def test_residual_bounds_hold(self, steps):
        risk, values = least_squares(30, 12)
        for seed in range(10):
            found = hessian_spectrum(risk, steps=steps, probes=2, seed=seed)
            low, high = found.extremes.min.value, found.extremes.max.value
            assert float((values - low).abs().min()) <= found.residuals[0] + 1e-12
            assert float((values - high).abs().min()) <= found.residuals[1] + 1e-12
            assert values[0] - 1e-12 <= low <= high <= values[-1] + 1e-12
        assert max(found.residuals) > 1e-3

    def test_residuals_are_those_of_the_extremes(self):
        risk, _ = least_squares(30, 12)
        found = hessian_spectrum(risk, steps=4, probes=3)
        ritz, bounds = found.run.ritz, found.run.residuals
        assert ritz.shape == (3, 4)
        for end, bound in zip(("min", "max"), found.residuals, strict=True):
            at = ritz == getattr(found.extremes, end).value
            assert bounds[at].tolist() == [bound]

    def test_zero(self):
        model = nn.Linear(3, 1).double()
        risk = Risk(model, lambda o, y: (o * y).mean(), [(randn(4, 3), randn(4, 1))])
        found = hessian_spectrum(risk)
        assert found.extremes.min.value == found.extremes.max.value == found.trace.value == 0.0
        assert math.isnan(found.odd_moments[3].value)


class TestNet:
    @pytest.mark.parametrize("operator", ["hessian", "functional", "gauss_newton"])
    def test_extremes_and_moments(self, operator):
        risk = relu_net()
        found = hessian_spectrum(risk, operator, steps=30, probes=8)
        exact = {
            "hessian": HessianOperator(risk).dense(),
            "functional": FunctionalHessianOperator(risk).dense(),
        }
        exact["gauss_newton"] = exact["hessian"] - exact["functional"]
        values = torch.linalg.eigvalsh(exact[operator])
        size = float(values.abs().max())
        close(found.extremes.min.value, float(values[0]), 1e-9 * size)
        close(found.extremes.max.value, float(values[-1]), 1e-9 * size)
        n = len(values)
        for p in (1, 2, 3):
            moment = found.measure.moment(p)
            close(moment.value, float((values**p).sum()) / n, 5 * moment.stderr + 1e-12 * size**p)
        for p, estimate in found.odd_moments.items():
            truth = float((values**p).sum() / values.abs().pow(p).sum())
            close(estimate.value, truth, 5 * estimate.stderr + 1e-12)
        close(found.trace.value, float(values.sum()), 4 * found.trace.stderr)

    def test_two_layers_are_symmetric(self):
        risk = relu_net((5, 6), loss=hinge)
        found = hessian_spectrum(risk, steps=40, probes=1)
        size = found.extremes.max.value
        assert size > 0.1
        close(found.extremes.min.value, -size, 1e-10 * size)

    def test_float32(self):
        wide = hessian_spectrum(relu_net(), steps=20, probes=1)
        narrow = hessian_spectrum(relu_net(dtype=torch.float32), steps=20, probes=1)
        size = max(abs(wide.extremes.min.value), wide.extremes.max.value)
        close(narrow.extremes.min.value, wide.extremes.min.value, 1e-5 * size)
        close(narrow.extremes.max.value, wide.extremes.max.value, 1e-5 * size)
        assert narrow.measure.nodes.dtype == torch.float64

    def test_opaque(self):
        risk = relu_net()
        closure = Risk.from_closure(
            risk.model, lambda m, b: squared(m(b[0]), b[1]), list(risk.batches())
        )
        found, expected = (hessian_spectrum(r, steps=12) for r in (closure, risk))
        torch.testing.assert_close(found.measure.nodes, expected.measure.nodes)
        with pytest.raises(TypeError, match="built from a closure"):
            hessian_spectrum(closure, "functional")

    def test_seeds(self):
        risk = relu_net()
        state = torch.get_rng_state()
        first, again = (hessian_spectrum(risk, steps=5, seed=4) for _ in range(2))
        other = hessian_spectrum(risk, steps=5, seed=5)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first.measure.nodes, again.measure.nodes)
        assert not torch.equal(first.measure.nodes, other.measure.nodes)

    def test_an_operator_of_ones_own(self):
        risk = relu_net()
        operator = HessianOperator(risk, keep_graph=False)
        found, expected = hessian_spectrum(risk, operator, steps=8), hessian_spectrum(risk, steps=8)
        torch.testing.assert_close(found.measure.nodes, expected.measure.nodes)

    def test_without_a_basis(self):
        risk = relu_net()
        found = hessian_spectrum(risk, steps=20, basis="none")
        expected = hessian_spectrum(risk, steps=20)
        assert found.extremes.max.value == pytest.approx(expected.extremes.max.value, rel=1e-9)


class TestStart:
    def test_warm(self):
        risk = relu_net()
        cold = hessian_spectrum(risk, steps=30, probes=1, tol=1e-6)
        vectors = cold.run.extreme_vectors.sum(1)
        with torch.no_grad():
            for p in risk.parameters.values():
                p.mul_(1.001)
        warm = hessian_spectrum(risk, steps=30, start=vectors, tol=1e-6)
        again = hessian_spectrum(risk, steps=30, probes=1, tol=1e-6)
        size = again.extremes.max.value
        close(warm.extremes.max.value, size, 1e-5 * size)
        assert warm.products < again.products
        assert math.isnan(warm.trace.value)

    def test_columns(self):
        risk = relu_net()
        start = randn(risk.numel, 3)
        found = hessian_spectrum(risk, steps=4, start=start)
        assert found.measure.nodes.shape == (3, 4)
        assert found.products == 12

    def test_wrong_shape(self):
        with pytest.raises(ValueError, match="start must be"):
            hessian_spectrum(relu_net(), start=randn(3))


class TestErrors:
    def test_arguments(self):
        risk = relu_net()
        with pytest.raises(ValueError, match=r"operator must be one of .* got 'hesian'"):
            hessian_spectrum(risk, "hesian")
        for steps in (0, -1):
            with pytest.raises(ValueError, match=f"steps must be at least 1, got {steps}"):
                hessian_spectrum(risk, steps=steps)
        with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
            hessian_spectrum(risk, probes=0)
        for value in (2.5, True, "3"):
            with pytest.raises(TypeError, match=f"steps must be a whole number, got {value!r}"):
                hessian_spectrum(risk, steps=value)
        with pytest.raises(TypeError, match="risk must be a Risk, got Sequential"):
            hessian_spectrum(risk.model)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_weights_that_are_not_finite(self, bad):
        for operator in ("hessian", "functional", "gauss_newton"):
            risk = relu_net()
            risk.model[0].weight.data[0, 0] = bad
            with pytest.raises(FloatingPointError, match="not finite"):
                hessian_spectrum(risk, operator)


class TestMemory:
    """What is refused names settings that are then accepted."""

    def free(self, monkeypatch, count):
        # not by name: the package shows the function of that name in place of the module
        module = importlib.import_module("torch_thermo.observables.hessian_spectrum")
        monkeypatch.setattr(module, "available_bytes", lambda device: count)

    def needs(self, n, steps, probes, basis="full"):
        return 2 * lanczos_memory(n, steps, probes, basis, torch.float64)

    @pytest.mark.parametrize(
        ("steps", "probes", "fit_steps", "fit_probes"),
        [(30, 8, 30, 3), (30, 8, 30, 1), (30, 2, 12, 1), (40, 1, 10, 1)],
    )
    def test_settings_that_fit(self, monkeypatch, steps, probes, fit_steps, fit_probes):
        risk = relu_net((5, 20, 10))
        self.free(monkeypatch, self.needs(risk.numel, fit_steps, fit_probes))
        with pytest.raises(MemoryError, match=f"steps={steps}, probes={probes}") as refused:
            hessian_spectrum(risk, steps=steps, probes=probes)
        message = str(refused.value)
        assert f"{steps * probes} products" in message
        proposal = message.partition(": ")[2]
        named = {k: int(v) for k, v in re.findall(r"(steps|probes)=(\d+)", proposal)}
        assert named == {"probes": fit_probes} | ({"steps": fit_steps} if fit_steps < steps else {})
        hessian_spectrum(risk, **({"steps": steps, "probes": probes} | named))

    def test_just_fits(self, monkeypatch):
        risk = relu_net()
        self.free(monkeypatch, self.needs(risk.numel, 20, 2))
        hessian_spectrum(risk, steps=20, probes=2)
        with pytest.raises(MemoryError):
            hessian_spectrum(risk, steps=21, probes=2)

    def test_without_a_basis(self, monkeypatch):
        risk = relu_net()
        self.free(monkeypatch, self.needs(risk.numel, 30, 2, "none"))
        with pytest.raises(MemoryError, match='basis="none"'):
            hessian_spectrum(risk)
        hessian_spectrum(risk, basis="none")

    def test_nothing_fits(self, monkeypatch):
        self.free(monkeypatch, 100)
        for basis in ("full", "none"):
            with pytest.raises(MemoryError, match="measure fewer parameters") as refused:
                hessian_spectrum(relu_net(), basis=basis)
            assert 'basis="none"' not in str(refused.value)

    def test_of_start_vectors(self, monkeypatch):
        risk = relu_net()
        self.free(monkeypatch, self.needs(risk.numel, 30, 1))
        hessian_spectrum(risk, start=randn(risk.numel))
        with pytest.raises(MemoryError, match="probes=2"):
            hessian_spectrum(risk, start=randn(risk.numel, 2))


class TestOddMoments:
    def test_few_large_eigenvalues_carry_them(self):
        # four eigenvalues of 200 hold all of the cubes: the weights of random starts are off by
        # their own size, the eigenvalues are found to all digits
        values = 1e-3 * randn(200)
        values[:4] = torch.tensor([1.0, -0.95, 0.5, -0.6])
        exact = float(values.pow(3).sum() / values.abs().pow(3).sum())
        errors = {"found": [], "quadrature": []}
        for seed in range(10):
            found = hessian_spectrum(quadratic(values), steps=12, probes=2, seed=seed)
            errors["found"].append(abs(found.odd_moments[3].value - exact))
            errors["quadrature"].append(abs(found.measure.odd_moment(3).value - exact))
        assert max(errors["found"]) < 1e-3
        assert statistics.median(errors["quadrature"]) > 0.1

    @pytest.mark.parametrize("options", [{"basis": "none"}, {"start": torch.ones(200).double()}])
    def test_without_random_starts_and_a_basis_they_are_the_quadratures(self, options):
        values = 1e-3 * randn(200)
        values[:4] = torch.tensor([1.0, -0.95, 0.5, -0.6])
        found = hessian_spectrum(quadratic(values), steps=12, **options)
        for p in (3, 5):
            assert found.odd_moments[p].value == found.measure.odd_moment(p).value
