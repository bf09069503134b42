import math

import numpy as np
import pytest
import torch

from torch_thermo.observables import CanonicalEnsemble
from torch_thermo.observables.spectral_gaps import spectral_gaps
from torch_thermo.spectra import SpectralMeasure

QUANTITIES = ["log_z", "energy", "entropy", "free_energy", "laplacian", "n_effective"]


def eigenvalues(n=12, spread=1.5, seed=0):
    """Of a positive definite matrix of determinant 1."""
    logs = spread * torch.randn(
        n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return (logs - logs.mean()).exp()


def close(found, expected, tolerance=1e-12):
    assert float(found) == pytest.approx(float(expected), rel=tolerance, abs=tolerance)


class TestTheGaussianIntegral:
    """log Z against the integral itself, by the trapezium rule."""

    x = torch.linspace(-40, 40, 2001, dtype=torch.float64)

    @pytest.mark.parametrize("beta", [0.05, 1.0, 30.0])
    @pytest.mark.parametrize("m", [0.0, 0.01])
    def test_one_neuron(self, beta, m):
        lam = 0.7
        weight = torch.exp(-0.5 * (1 - beta * m + beta * lam) * self.x**2)
        z = torch.trapezoid(weight, self.x)
        # U is the mean of what beta multiplies
        u = torch.trapezoid(0.5 * (lam - m) * self.x**2 * weight, self.x) / z
        ensemble = CanonicalEnsemble(torch.tensor([lam]), m=m)
        close(ensemble.log_z(beta), z.log(), 1e-6)
        close(ensemble.energy(beta), u, 1e-6)

    @pytest.mark.parametrize("m", [0.0, 0.2])
    def test_two_neurons_of_a_matrix_that_is_not_diagonal(self, m):
        beta = 1.7
        w = torch.tensor([[1.0, 0.0], [-0.9, 1.0]], dtype=torch.float64)
        g = w.T @ w
        a, b = torch.meshgrid(self.x[::4], self.x[::4], indexing="ij")
        states = torch.stack([a, b], -1)
        form = ((states @ g) * states).sum(-1) - m * states.square().sum(-1)
        weight = torch.exp(-0.5 * beta * form - 0.5 * states.square().sum(-1))
        step = float(self.x[4] - self.x[0])
        z = weight.sum() * step**2
        ensemble = CanonicalEnsemble(torch.linalg.eigvalsh(g), m=m)
        close(ensemble.log_z(beta), z.log(), 1e-6)
        close(ensemble.energy(beta), (0.5 * form * weight).sum() * step**2 / z, 1e-6)
        # S is relative to the states' own weight at beta = 0: the mean of -log(p / exp(-x^2/2))
        surprise = 0.5 * beta * form + z.log()
        close(ensemble.entropy(beta), (surprise * weight).sum() * step**2 / z, 1e-6)


class TestDerivatives:
    @pytest.mark.parametrize("m", [0.0, 0.02])
    @pytest.mark.parametrize("beta", [1e-3, 0.5, 20.0])
    def test_energy_is_minus_the_derivative_of_log_z(self, m, beta):
        ensemble = CanonicalEnsemble(eigenvalues(), m=m)
        b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(ensemble.log_z(b), b)
        close(ensemble.energy(beta), -slope)

    @pytest.mark.parametrize("m", [0.0, 0.02])
    def test_entropy_is_minus_the_derivative_of_f_in_the_temperature(self, m):
        ensemble = CanonicalEnsemble(eigenvalues(), m=m)
        t = torch.tensor([0.1, 1.0, 40.0], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(ensemble.free_energy(1 / t).sum(), t)
        torch.testing.assert_close(ensemble.entropy(1 / t.detach()), -slope, rtol=1e-11, atol=0)
        # by differences, too
        h = 1e-4
        f = [float(ensemble.free_energy(1 / (1 + sign * h))) for sign in (1, -1)]
        close(ensemble.entropy(1.0), -(f[0] - f[1]) / (2 * h), 1e-6)

    @pytest.mark.parametrize("m", [0.0, 0.02])
    def test_laplacian_is_the_trace_of_the_hessian_of_f(self, m):
        values, beta = eigenvalues(6), 2.5

        def f(lam):
            return CanonicalEnsemble(lam, m=m).free_energy(beta)

        hessian = torch.autograd.functional.hessian(f, values)
        close(CanonicalEnsemble(values, m=m).laplacian(beta), hessian.diagonal().sum())

    def test_the_free_energy_is_u_minus_t_s(self):
        ensemble = CanonicalEnsemble(eigenvalues(), m=0.03)
        for beta in (0.1, 1.0, 10.0):
            expected = ensemble.energy(beta) - ensemble.entropy(beta) / beta
            close(ensemble.free_energy(beta), expected)


class TestClosedForms:
    def test_trivial_eigenvalues(self):
        """lambda = 1 throughout: a network without weights."""
        n, beta = 7, 1.5
        ensemble = CanonicalEnsemble(torch.ones(n))
        close(ensemble.log_z(beta), -n / 2 * math.log(2.5) + n / 2 * math.log(2 * math.pi))
        close(ensemble.energy(beta), n / 2 / 2.5)
        close(ensemble.n_effective(beta), n * 1.5 / 2.5)
        close(ensemble.laplacian(beta), -beta * n / 2 / 2.5**2)

    @pytest.mark.parametrize("m", [0.0, 0.05])
    def test_n_effective_counts_the_energy(self, m):
        ensemble = CanonicalEnsemble(eigenvalues(), m=m)
        for beta in (1e-6, 1.0, 15.0):
            close(ensemble.energy(beta), ensemble.n_effective(beta) / (2 * beta))

    def test_m_shifts_the_eigenvalues_about_which_nothing_else_knows(self):
        values = eigenvalues() + 0.5
        one, other = CanonicalEnsemble(values, m=0.5), CanonicalEnsemble(values - 0.5)
        for quantity in QUANTITIES:
            close(getattr(one, quantity)(3.0), getattr(other, quantity)(3.0))

    def test_small_beta(self):
        """log Z = N/2 log 2 pi - beta tr G / 2 + ..., in which beta is far below rounding of 1."""
        values = eigenvalues(5)
        ensemble = CanonicalEnsemble(values)
        offset = 2.5 * math.log(2 * math.pi)
        close(ensemble.energy(1e-18), values.sum() / 2)
        close(ensemble.n_effective(1e-18) * 1e18, values.sum())
        close(ensemble.log_z(1e-18), offset)

    def test_large_beta(self):
        values = eigenvalues(5)
        ensemble = CanonicalEnsemble(values)
        expected = -2.5 * math.log(1e200) + 2.5 * math.log(2 * math.pi)  # det G = 1
        close(ensemble.log_z(1e200), expected)
        close(ensemble.energy(1e200) * 1e200, 2.5)
        close(ensemble.n_effective(1e200), 5.0)

    def test_complexity(self):
        values = eigenvalues(9)
        ensemble = CanonicalEnsemble(values)
        offset = 4.5 * math.log(2 * math.pi)
        close(ensemble.complexity(0), offset)
        close(ensemble.complexity(9), offset)  # det G = 1
        descending = np.sort(values.numpy())[::-1]
        close(ensemble.complexity(4), -0.5 * np.log(descending[:4]).sum() + offset)
        assert ensemble.complexity(4) < offset < ensemble.complexity(9) + 1e-9

    def test_a_tensor_of_betas(self):
        ensemble = CanonicalEnsemble(eigenvalues(), m=0.01)
        betas = torch.tensor([[0.1, 1.0], [2.0, 9.0]])
        for quantity in QUANTITIES:
            found = getattr(ensemble, quantity)(betas)
            assert found.shape == (2, 2)
            assert found.dtype == torch.float64
            close(found[1, 0], getattr(ensemble, quantity)(2.0))

    def test_the_order_of_the_eigenvalues_does_not_matter(self):
        values = eigenvalues()
        one, other = CanonicalEnsemble(values), CanonicalEnsemble(values.flip(0))
        close(one.log_z(2.0), other.log_z(2.0))
        close(one.complexity(3), other.complexity(3))
        assert torch.equal(one.log_eigenvalues, values.sort(descending=True).values.log())


class TestPrinted:
    def test_hard_count(self):
        ensemble = CanonicalEnsemble(torch.tensor([4.0, 1.0, 1.0, 0.25]))
        printed = ensemble.printed(1.5)
        assert printed.count == 3
        close(printed.energy, 3 / 3.0)
        close(printed.entropy, -1.5 * math.log(1.5))
        assert ensemble.printed(0.5).count == 1

    def test_eq_7_1(self):
        ensemble = CanonicalEnsemble(eigenvalues())
        difference = ensemble.printed(2.0).entropy_7_1 - float(ensemble.entropy(2.0))
        log_z = float(ensemble.log_z(2.0))
        close(difference, math.exp(log_z) - log_z, 1e-9)

    @pytest.mark.parametrize(("n", "finite"), [(700, True), (854, False)])
    def test_z_beyond_float64(self, n, finite):
        assert math.isfinite(CanonicalEnsemble(torch.ones(n)).printed(0.01).entropy_7_1) == finite

    def test_the_paper_is_right_where_the_levels_are_far_from_the_temperature(self):
        """S = S_0 + C + N_> / 2 and U = N_> / (2 beta), for two well separated levels."""
        beta = 1e8
        values = torch.tensor([1.0] * 6 + [1e-20] * 4, dtype=torch.float64)
        ensemble = CanonicalEnsemble(values)
        printed = ensemble.printed(beta)
        assert printed.count == 6
        close(ensemble.energy(beta), printed.energy, 1e-7)
        expected = printed.entropy + ensemble.complexity(6) + 3.0
        close(ensemble.entropy(beta), expected, 1e-7)

    def test_it_fails_where_the_trivial_eigenvalues_are_at_the_temperature(self):
        """The deep net's 744 at 1, beta = 1.5: U = 744 / 5, where (10.1) gives 744 / 3."""
        ensemble = CanonicalEnsemble(torch.ones(744))
        close(ensemble.energy(1.5), 744 / 5)
        close(ensemble.printed(1.5).energy, 744 / 3)


class TestBetaFromEnergy:
    @pytest.mark.parametrize("m", [0.0, 0.01, 0.5])
    def test_it_is_the_inverse_of_the_energy(self, m):
        ensemble = CanonicalEnsemble(eigenvalues(), m=m)
        for share in (1e-4, 0.2, 0.999):
            beta = min(ensemble.beta_limit, 1e5) * share
            assert ensemble.beta_from_energy(float(ensemble.energy(beta))) == pytest.approx(
                beta, rel=1e-9
            )

    def test_late_in_training_it_is_n_over_two_u(self):
        ensemble = CanonicalEnsemble(eigenvalues(854, 0.5))
        for u in (0.0025, 0.14):
            assert ensemble.beta_from_energy(u) == pytest.approx(854 / (2 * u), rel=0.01)

    def test_a_local_objective_has_energies_without_bound(self):
        ensemble = CanonicalEnsemble(torch.tensor([0.5, 1.0, 2.0]), m=0.8)
        assert ensemble.beta_limit == pytest.approx(1 / 0.3)
        for u in (0.4, 0.0, -3.0, -1e6):
            close(ensemble.energy(ensemble.beta_from_energy(u)), u, 1e-8)

    @pytest.mark.parametrize("u", [0.0, -1.0, 1.75, 20.0, math.nan, math.inf])
    def test_out_of_range(self, u):
        with pytest.raises(ValueError, match=r"between 1\.5e-300 and U\(0\) .* = 1\.75"):
            CanonicalEnsemble(torch.tensor([0.5, 1.0, 2.0])).beta_from_energy(u)

    @pytest.mark.parametrize(("m", "u"), [(0.0, 1e-305), (0.8, -1e200)])
    def test_what_no_float_reaches_is_refused(self, m, u):
        """A beta at the end of the range has another energy."""
        ensemble = CanonicalEnsemble(torch.tensor([0.5, 1.0, 2.0]), m=m)
        with pytest.raises(ValueError, match="u must lie between"):
            ensemble.beta_from_energy(u)
        assert CanonicalEnsemble(torch.tensor([0.5, 1.0])).beta_from_energy(1e-290) == (
            pytest.approx(1e290, rel=1e-9)
        )


class TestMeasures:
    def test_an_exact_measure_is_its_eigenvalues(self):
        values = eigenvalues()
        one = CanonicalEnsemble(values, m=0.01)
        other = CanonicalEnsemble(SpectralMeasure.from_eigenvalues(values.log()), m=0.01)
        for quantity in QUANTITIES:
            close(getattr(one, quantity)(1.5), getattr(other, quantity)(1.5))
        close(one.complexity(5), other.complexity(5))
        close(one.beta_from_energy(0.5), other.beta_from_energy(0.5), 1e-10)
        assert one.estimate("entropy", 1.5).stderr == 0.0

    def test_rows_are_averaged(self):
        nodes = torch.tensor([[0.3, -0.4, 0.0], [1.0, -1.0, math.nan]], dtype=torch.float64)
        weights = torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.6, 0.0]], dtype=torch.float64)
        ensemble = CanonicalEnsemble(SpectralMeasure(nodes, weights, False, 40))
        rows = []
        for node, weight in zip(nodes, weights, strict=True):
            lam, w = node[weight > 0].exp(), weight[weight > 0]
            rows.append(40 * float((w * 0.5 * lam / (1 + 2.0 * lam)).sum()))
        found = ensemble.estimate("energy", 2.0)
        close(found.value, np.mean(rows))
        close(found.stderr, np.std(rows, ddof=1) / math.sqrt(2))
        close(ensemble.energy(2.0), found.value)
        close(ensemble.energy(ensemble.beta_from_energy(2.0)), 2.0, 1e-10)

    def test_a_row_a_sample(self):
        logs = torch.stack([eigenvalues(8, seed=seed).log() for seed in (0, 1)])
        ensemble = CanonicalEnsemble(SpectralMeasure(logs, torch.ones(2, 8), False, 8))
        each = [CanonicalEnsemble(row.exp()) for row in logs]
        close(ensemble.complexity(3), np.mean([one.complexity(3) for one in each]))
        close(ensemble.log_z(1.5), np.mean([float(one.log_z(1.5)) for one in each]))
        with pytest.raises(ValueError, match="one spectrum, got 2"):
            ensemble.gaps()

    def test_one_quadrature_has_no_error(self):
        measure = SpectralMeasure(torch.tensor([[0.1, -0.1]]), torch.tensor([[0.5, 0.5]]), False, 9)
        assert math.isnan(CanonicalEnsemble(measure).estimate("energy", 1.0).stderr)

    def test_a_quadrature_has_no_complexity(self):
        measure = SpectralMeasure(torch.tensor([[0.1, -0.1]]), torch.tensor([[0.5, 0.5]]), False, 9)
        with pytest.raises(ValueError, match="complexity needs all 9 eigenvalues, got a quad"):
            CanonicalEnsemble(measure).complexity(2)
        with pytest.raises(ValueError, match="log_eigenvalues needs all 9"):
            CanonicalEnsemble(measure).gaps()

    def test_eigenvalues_that_underflow_come_as_logarithms(self):
        ensemble = CanonicalEnsemble(
            SpectralMeasure.from_eigenvalues(torch.tensor([-800.0, 300.0, 500.0]))
        )
        close(ensemble.complexity(3), 1.5 * math.log(2 * math.pi))
        assert math.isfinite(float(ensemble.log_z(1.0)))


class TestGaps:
    def test_candidates_and_what_is_below(self):
        logs = torch.tensor([-5.0, -2.0, -1.9, 0.0, 0.0, 0.1, 2.6])
        gaps = spectral_gaps(logs)
        assert [(gap.count_below, round(gap.size, 6)) for gap in gaps] == [
            (1, 3.0),
            (6, 2.5),
            (3, 1.9),
        ]
        assert (gaps[0].below, gaps[0].above, gaps[0].middle) == (-5.0, -2.0, -3.5)
        assert len(spectral_gaps(logs, share=1.0)) == 1
        assert CanonicalEnsemble(logs.double().exp()).gaps(0.8)[1].count_below == 6

    def test_eigenvalues_that_agree_have_none(self):
        assert spectral_gaps(torch.zeros(5)) == []
        assert spectral_gaps(torch.tensor([0.0, 1e-16, 0.0], dtype=torch.float64)) == []
        assert spectral_gaps(torch.tensor([2.0])) == []

    @pytest.mark.parametrize(
        ("logs", "share", "message"),
        [
            (torch.zeros(0), 0.5, r"must be \(N,\) with N >= 1, got \(0,\)"),
            (torch.zeros(2, 2), 0.5, r"got \(2, 2\)"),
            (torch.tensor([0.0, math.nan]), 0.5, "finite"),
            (torch.zeros(3), 0.0, r"share must be in \(0, 1\], got 0"),
            (torch.zeros(3), 1.5, "got 1.5"),
        ],
    )
    def test_bad_input(self, logs, share, message):
        with pytest.raises(ValueError, match=message):
            spectral_gaps(logs, share)


class TestBadInput:
    @pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
    @pytest.mark.parametrize("quantity", QUANTITIES)
    def test_beta(self, quantity, beta):
        ensemble = CanonicalEnsemble(eigenvalues())
        with pytest.raises(ValueError, match="beta must be above 0 and finite, got"):
            getattr(ensemble, quantity)(beta)
        with pytest.raises(ValueError, match="beta must be above 0 and finite, got"):
            getattr(ensemble, quantity)(torch.tensor([1.0, beta]))

    def test_beta_beyond_the_limit_of_m(self):
        ensemble = CanonicalEnsemble(torch.tensor([0.5, 2.0]), m=1.5)
        assert ensemble.beta_limit == pytest.approx(1.0)
        ensemble.log_z(0.999)
        message = r"below 1/\(m - lambda_min\) = 1 for m = 1.5 and the smallest eigenvalue 0.5"
        for beta in (1.0, 1.2):
            with pytest.raises(ValueError, match=message):
                ensemble.log_z(beta)
        with pytest.raises(ValueError, match="got beta = 3"):
            ensemble.energy(torch.tensor([0.5, 3.0]))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (torch.zeros(0), r"must be \(N,\) with N >= 1, got \(0,\)"),
            (torch.ones(2, 2), r"got \(2, 2\)"),
            (torch.tensor([1.0, -0.1]), "must be finite and above 0, got -0.1"),
            (torch.tensor([1.0, 0.0]), "above 0, got 0"),
            (torch.tensor([math.nan, 1.0]), "above 0, got nan"),
            (torch.tensor([math.inf, 1.0]), "above 0, got inf"),
        ],
    )
    def test_eigenvalues(self, values, message):
        with pytest.raises(ValueError, match=message):
            CanonicalEnsemble(values)

    @pytest.mark.parametrize("m", [-0.1, math.nan, math.inf])
    def test_m(self, m):
        with pytest.raises(ValueError, match="m must be at least 0 and finite, got"):
            CanonicalEnsemble(torch.ones(2), m=m)

    @pytest.mark.parametrize("n", [-1, 13])
    def test_n(self, n):
        with pytest.raises(ValueError, match=f"n must be 0 to 12, the number of neurons, got {n}"):
            CanonicalEnsemble(eigenvalues()).complexity(n)

    @pytest.mark.parametrize("n", [1.0, True, "1"])
    def test_n_is_whole(self, n):
        with pytest.raises(TypeError, match="n must be a whole number, got"):
            CanonicalEnsemble(eigenvalues()).complexity(n)

    def test_quantity(self):
        with pytest.raises(ValueError, match=r"quantity must be of .*'energy'.* got 'heat'"):
            CanonicalEnsemble(eigenvalues()).estimate("heat", 1.0)
