import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_thermo.observables import CanonicalEnsemble, first_law
from torch_thermo.observables.spectral_gaps import spectral_gaps
from torch_thermo.observables.two_level import beta_from_gap, unstable_log_eigenvalue

quick = settings(deadline=None, max_examples=60)
logs = st.lists(st.floats(-6, 6), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
masses = st.floats(0, 3)
shares = st.floats(0.001, 0.95)


def inside(ensemble, share):
    """A beta that the ensemble has: below its limit, or anything up to 1e4."""
    limit = ensemble.beta_limit if math.isfinite(ensemble.beta_limit) else 1e4
    return min(limit, 1e4) * share


@quick
@given(logs, masses, shares)
def test_identities(values, m, share):
    ensemble = CanonicalEnsemble(values.exp(), m)
    beta = inside(ensemble, share)
    b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    energy, log_z = float(ensemble.energy(beta)), float(ensemble.log_z(beta))
    (slope,) = torch.autograd.grad(ensemble.log_z(b), b)
    near = {"rel": 1e-9, "abs": 1e-9 * (1 + abs(energy))}
    assert energy == pytest.approx(-float(slope), **near)
    assert energy == pytest.approx(float(ensemble.n_effective(beta)) / (2 * beta), **near)
    assert float(ensemble.entropy(beta)) == pytest.approx(
        beta * energy + log_z, rel=1e-9, abs=1e-9 * (1 + abs(log_z))
    )
    assert float(ensemble.laplacian(beta)) < 0


@quick
@given(logs, masses, shares, shares)
def test_the_energy_falls_with_beta(values, m, one, other):
    ensemble = CanonicalEnsemble(values.exp(), m)
    low, high = (inside(ensemble, share) for share in sorted((one, other)))
    assert float(ensemble.energy(low)) >= float(ensemble.energy(high)) - 1e-9


@quick
@given(logs, masses, shares)
def test_beta_from_energy_inverts(values, m, share):
    ensemble = CanonicalEnsemble(values.exp(), m)
    u = float(ensemble.energy(inside(ensemble, share)))
    top = float((values.exp() - m).sum()) / 2
    # where U is flat in beta, next to U(0), beta is not to be had from it
    if u < top - 1e-9 * (1 + abs(top)) and (u > 0 or math.isfinite(ensemble.beta_limit)):
        found = float(ensemble.energy(ensemble.beta_from_energy(u)))
        assert found == pytest.approx(u, rel=1e-6, abs=1e-9)


@quick
@given(logs, st.integers(0, 2**31), masses, shares, shares)
def test_heat_and_work_are_the_energy(values, seed, m, one, other):
    noise = torch.randn(
        len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    ensembles = [CanonicalEnsemble(v.exp(), m) for v in (values, values + noise)]
    # neither may reach the other's limit
    betas = [min(inside(e, share) for e in ensembles) for share in (one, other)]
    law = first_law(*ensembles, *betas)
    size = abs(law.energy_change) + abs(law.heat) + abs(law.work)
    assert abs(law.residual) <= 1e-9 * size + 1e-9


@quick
@given(logs)
def test_gaps_lie_between_neighbours(values):
    for gap in spectral_gaps(values):
        assert gap.size == gap.above - gap.below > 0
        assert int((values <= gap.below).sum()) == gap.count_below
        assert not bool(((values > gap.below) & (values < gap.above)).any())


@quick
@given(st.floats(-12, 12), st.floats(0, 0.33))
def test_the_gap_and_its_beta(log_eigenvalue, gamma):
    beta = beta_from_gap(log_eigenvalue, gamma)
    found = unstable_log_eigenvalue(beta, gamma)
    assert beta_from_gap(found, gamma) == pytest.approx(beta, rel=1e-9)
