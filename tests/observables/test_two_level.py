import math

import pytest
import torch

from torch_thermo.observables import CanonicalEnsemble
from torch_thermo.observables.two_level import (
    TwoLevelFreeEnergy,
    beta_from_gap,
    unstable_log_eigenvalue,
)


class TestTheGapsTemperature:
    @pytest.mark.parametrize(
        ("log_eigenvalue", "beta"), [(-2.3, 1.4698), (-2.5, 1.6039), (-3.0, 1.9872)]
    )
    def test_eq_9_4(self, log_eigenvalue, beta):
        found = beta_from_gap(log_eigenvalue)
        assert found == pytest.approx(beta, abs=5e-5)
        printed = 3 * math.log(-0.5 + math.sqrt(0.25 + 1 / found))
        assert printed == pytest.approx(log_eigenvalue, abs=1e-12)
        assert unstable_log_eigenvalue(found) == pytest.approx(log_eigenvalue, abs=1e-12)

    @pytest.mark.parametrize("beta", [1.37, 1.40, 1.47])
    def test_the_papers_betas_do_not_belong_to_its_gaps(self, beta):
        gap = {1.37: -2.3, 1.40: -2.5, 1.47: -3.0}[beta]
        assert abs(unstable_log_eigenvalue(beta) - gap) > 0.15

    @pytest.mark.parametrize("gamma", [0.0, 0.05, 0.2, 1 / 3, 0.6, 0.95])
    @pytest.mark.parametrize("log_eigenvalue", [-3.0, -0.4, 0.9, 2.0])
    def test_the_free_energy_is_stationary_at_the_gap(self, gamma, log_eigenvalue):
        beta = beta_from_gap(log_eigenvalue, gamma)
        x = torch.tensor(log_eigenvalue, dtype=torch.float64, requires_grad=True)
        value = TwoLevelFreeEnergy(beta, gamma, 10)(x)
        (slope,) = torch.autograd.grad(value, x)
        assert abs(float(slope)) < 1e-13 * max(1.0, float(value.detach()))

    def test_it_is_not_stationary_elsewhere(self):
        x = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(TwoLevelFreeEnergy(beta_from_gap(-3.0, 0.1), 0.1)(x), x)
        assert abs(float(slope)) > 1e-4

    @pytest.mark.parametrize("beta", [0.05, 0.3, 0.9])
    def test_a_third(self, beta):
        expected = 2 * math.log(1 / beta - 1)
        assert unstable_log_eigenvalue(beta, 1 / 3) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("beta", [1.0, 1.5])
    def test_a_third_has_none_from_1_on(self, beta):
        with pytest.raises(ValueError, match=f"beta must be below 1 .* got {beta}: there is no"):
            unstable_log_eigenvalue(beta, 1 / 3)

    @pytest.mark.parametrize("beta", [1e-300, 1e-3, 1e300])
    def test_far_out(self, beta):
        found = unstable_log_eigenvalue(beta)
        # one of p and p^2 is all there is
        expected = -(1.5 if beta < 1 else 3.0) * math.log(beta)
        assert found == pytest.approx(expected, rel=0.01 if beta == 1e-3 else 1e-9)

    def test_half_is_where_the_two_extrema_meet(self):
        assert unstable_log_eigenvalue(0.5) == pytest.approx(0.0, abs=1e-12)


class TestEq93:
    @pytest.mark.parametrize("gamma", [0.1, 1 / 3, 0.5, 0.8])
    @pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
    def test_plateaus(self, beta, gamma):
        curve = TwoLevelFreeEnergy(beta, gamma, 854)
        assert float(curve(-2000.0)) == pytest.approx(854 * beta * gamma / 2)
        assert float(curve(2000.0)) == pytest.approx(854 * beta * (1 - gamma) / 2)
        assert float(curve(0.0)) == pytest.approx(854 * beta / 2 / (1 + beta) ** 2)
        values = (curve.low, curve.one, curve.high)
        expected = [float(curve(x)) for x in (-2000.0, 0.0, 2000.0)]
        assert values == pytest.approx(expected)

    def test_it_is_the_laplacian_of_that_spectrum(self):
        """3 of 10 eigenvalues at lambda, the others at lambda^r: eq. 8.10 of a det of 1."""
        beta, gamma, log_eigenvalue = 1.7, 0.3, -1.2
        r = gamma / (gamma - 1)
        levels = torch.tensor([log_eigenvalue] * 3 + [r * log_eigenvalue] * 7, dtype=torch.float64)
        assert abs(float(levels.sum())) < 1e-12
        expected = -CanonicalEnsemble(levels.exp()).laplacian(beta)
        found = TwoLevelFreeEnergy(beta, gamma, 10)(log_eigenvalue)
        assert float(found) == pytest.approx(float(expected), rel=1e-12)

    def test_the_two_levels_change_places(self):
        """A fraction gamma at lambda is a fraction 1 - gamma at lambda^r."""
        x = torch.linspace(-5, 5, 11, dtype=torch.float64)
        one, other = TwoLevelFreeEnergy(2.0, 0.25), TwoLevelFreeEnergy(2.0, 0.75)
        torch.testing.assert_close(one(x), other(-x / 3))
        assert one(x).shape == (11,)

    def test_no_level_at_all(self):
        curve = TwoLevelFreeEnergy(2.0, 0.0)
        assert float(curve(-30.0)) == pytest.approx(curve.one)
        assert curve.low == curve.high == curve.one


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_beta_is_positive(beta):
    for call in (lambda: TwoLevelFreeEnergy(beta, 0.1), lambda: unstable_log_eigenvalue(beta)):
        with pytest.raises(ValueError, match="beta must be above 0 and finite, got"):
            call()


@pytest.mark.parametrize("gamma", [-0.1, 1.0, math.nan])
def test_gamma_is_a_fraction(gamma):
    for call in (lambda: TwoLevelFreeEnergy(1.0, gamma), lambda: beta_from_gap(-2.0, gamma)):
        with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\), got"):
            call()


def test_other_arguments():
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1/3\], got 0.5"):
        unstable_log_eigenvalue(1.0, 0.5)
    with pytest.raises(ValueError, match="log_eigenvalue must be finite, got nan"):
        beta_from_gap(math.nan)
    with pytest.raises(ValueError, match="neurons must be at least 1, got 0"):
        TwoLevelFreeEnergy(1.0, 0.1, 0)
