import math
from itertools import pairwise

import pytest
import torch

from torch_thermo.observables import CanonicalEnsemble, first_law, thermodynamic_course


def spectrum(spread, n=20, seed=0):
    logs = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return CanonicalEnsemble((spread * (logs - logs.mean())).exp())


class TestFirstLaw:
    @pytest.mark.parametrize("m", [0.0, 0.01])
    def test_heat_and_work_are_the_change_of_energy(self, m):
        before = CanonicalEnsemble(spectrum(0.5).log_eigenvalues.exp(), m)
        after = CanonicalEnsemble(spectrum(1.4, seed=1).log_eigenvalues.exp(), m)
        law = first_law(before, after, 0.8, 30.0)
        assert law.energy_change == pytest.approx(float(after.energy(30.0) - before.energy(0.8)))
        assert abs(law.residual) < 1e-12 * abs(law.energy_change)
        assert abs(law.heat) > 0.01
        assert abs(law.work) > 0.01

    def test_a_spectrum_at_rest_does_no_work(self):
        ensemble = spectrum(1.0)
        law = first_law(ensemble, ensemble, 0.5, 5.0)
        assert law.work == pytest.approx(0.0, abs=1e-13)
        assert law.heat == pytest.approx(float(ensemble.energy(5.0) - ensemble.energy(0.5)))

    def test_a_small_step_has_the_printed_differentials(self):
        """dU = T dS + 1/2 sum dlambda / (1 + beta lambda)."""
        beta, small = 1.3, 1e-5
        before = spectrum(1.0)
        lam = before.log_eigenvalues.exp()
        change = small * torch.linspace(-1, 2, 20, dtype=torch.float64)
        after = CanonicalEnsemble(lam + change)
        law = first_law(before, after, beta, beta + small)
        work = 0.5 * float((change / (1 + beta * lam)).sum())
        heat = float(after.entropy(beta + small) - before.entropy(beta)) / beta
        assert law.work == pytest.approx(work, rel=1e-4)
        assert law.heat == pytest.approx(heat, rel=1e-4)

    def test_many_small_steps_are_the_integral(self):
        """Second order: halving the steps brings work a quarter of the error nearer."""
        start, end = spectrum(0.3).log_eigenvalues, spectrum(1.5).log_eigenvalues

        def work(steps):
            times = [i / steps for i in range(steps + 1)]
            found = [CanonicalEnsemble((start + t * (end - start)).exp()) for t in times]
            betas = [0.5 * 8.0**t for t in times]
            laws = [first_law(*found[i : i + 2], *betas[i : i + 2]) for i in range(steps)]
            return sum(law.work for law in laws)

        fine = work(320)
        errors = [abs(work(steps) - fine) for steps in (5, 10, 20)]
        assert errors[0] < 0.02 * abs(fine)
        for one, half in pairwise(errors):
            assert half == pytest.approx(one / 4, rel=0.2)
        # by the trapezium rule, from the differential itself
        t = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None]
        lam = (start + t * (end - start)).exp()
        rate = 0.5 * (lam * (end - start) / (1 + 0.5 * 8.0**t * lam)).sum(1)
        assert fine == pytest.approx(float(torch.trapezoid(rate, t[:, 0])), rel=1e-4)

    def test_ensembles_of_one_kind(self):
        with pytest.raises(ValueError, match=r"same N and m, got \(20, 0.0\) and \(9, 0.0\)"):
            first_law(spectrum(1.0), spectrum(1.0, n=9), 1.0, 1.0)
        with pytest.raises(ValueError, match="beta must be above 0"):
            first_law(spectrum(1.0), spectrum(1.0), 1.0, 0.0)
        one, other = (CanonicalEnsemble(torch.tensor([x, 2.0]), m=1.0) for x in (0.5, 0.9))
        with pytest.raises(ValueError, match=r"beta must be below .* got beta = 5"):
            first_law(one, other, 1.0, 5.0)


class TestCourse:
    ensembles = tuple(spectrum(spread, seed=seed) for seed, spread in enumerate((0.3, 0.8, 1.2)))
    energies = (3.0, 0.4, 0.002)

    def test_the_exact_first_law_holds(self):
        course = thermodynamic_course(self.ensembles, self.energies, 1.5)
        assert course.energy_changes.tolist() == pytest.approx([-2.6, -0.398])
        assert float(course.residuals.abs().max()) < 1e-11
        for ensemble, beta, u in zip(self.ensembles, course.betas, self.energies, strict=True):
            assert float(ensemble.energy(beta)) == pytest.approx(u, rel=1e-10)

    def test_the_printed_heat_is_the_change_of_energy_whatever_the_spectra(self):
        course = thermodynamic_course(self.ensembles, self.energies, 1.5, count=6)
        others = thermodynamic_course(self.ensembles[::-1], self.energies, 1.5, count=11)
        for found in (course, others):
            torch.testing.assert_close(found.printed_heat, found.energy_changes)
        # so that what is left is T dC, which is not 0
        torch.testing.assert_close(course.printed_residuals, -course.printed_complexity)
        assert float(course.printed_complexity.abs().min()) > 1e-3

    def test_the_complexities_heat_of_a_small_step(self):
        u = (0.5, 0.5 + 1e-6)
        course = thermodynamic_course(self.ensembles[:2], u, 1.5, count=6)
        change = self.ensembles[1].complexity(6) - self.ensembles[0].complexity(6)
        assert float(course.printed_complexity) == pytest.approx(2 * 0.5 / 6 * change, rel=1e-5)
        assert course.complexities.tolist() == [e.complexity(6) for e in self.ensembles[:2]]

    def test_the_default_count_is_that_of_the_first_moment(self):
        course = thermodynamic_course(self.ensembles, self.energies, 1.5)
        printed = self.ensembles[0].printed(float(course.betas[0]))
        assert course.count == printed.count > 0

    def test_second_law(self):
        """Trivial at the beta of a falling U; at a fixed one it says what the spectrum does."""
        course = thermodynamic_course(self.ensembles, self.energies, 1.5)
        assert course.second_law == 1.0
        assert course.entropies_fixed[0] == self.ensembles[0].entropy(1.5)
        assert course.second_law_fixed == 1.0
        reversed_ = thermodynamic_course(self.ensembles[::-1], self.energies, 1.5)
        assert reversed_.second_law == 1.0
        assert reversed_.second_law_fixed == 0.0
        half = thermodynamic_course(self.ensembles, (0.4, 3.0, 0.002), 1.5)
        assert half.second_law == 0.5

    def test_energies_that_are_not_positive_have_no_printed_law(self):
        ensembles = [CanonicalEnsemble(torch.tensor([0.5, 2.0]), m=0.6)] * 2
        course = thermodynamic_course(ensembles, (0.1, -0.5), 1.0, count=1)
        assert abs(float(course.residuals)) < 1e-12
        assert math.isnan(course.printed_heat[0])

    def test_no_eigenvalue_counted(self):
        course = thermodynamic_course(self.ensembles, self.energies, 1.5, count=0)
        assert bool(course.printed_heat.isnan().all())

    def test_one_moment(self):
        course = thermodynamic_course(self.ensembles[:1], self.energies[:1], 1.5)
        assert course.heat.shape == course.printed_heat.shape == (0,)
        assert math.isnan(course.second_law)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="at least one, got 0 and 0"):
            thermodynamic_course([], [], 1.5)
        with pytest.raises(ValueError, match="got 3 and 2"):
            thermodynamic_course(self.ensembles, (1.0, 2.0), 1.5)
        with pytest.raises(
            ValueError, match=r"u must lie between .* energies of this ensemble, got -1\.0"
        ):
            thermodynamic_course(self.ensembles, (1.0, -1.0, 1.0), 1.5)
        with pytest.raises(ValueError, match="beta must be above 0 and finite, got 0"):
            thermodynamic_course(self.ensembles, self.energies, 0.0)
