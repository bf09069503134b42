import itertools
import math

import pytest
import torch

from torch_thermo.spectra import extended_lanczos, extended_memory, rademacher


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(logs, seed=0):
    """A matrix with these log eigenvalues, its inverse, and its eigenvectors."""
    q = torch.linalg.qr(randn(len(logs), len(logs), seed=seed)).Q
    return q @ torch.diag(logs.exp()) @ q.T, q @ torch.diag((-logs).exp()) @ q.T, q


LOGS = torch.linspace(-4, 3, 120, dtype=torch.float64)
A, INVERSE, VECTORS = positive(LOGS)


def integral(run, function, fewer=0):
    nodes, weights = run.quadrature(fewer)
    return (weights * function(nodes.nan_to_num(1.0))).sum(1)


def truth(function, probes=3):
    z = rademacher(120, probes, 0).double()
    return ((VECTORS.T @ z).square() * function(LOGS.exp())[:, None]).mean(0)


@pytest.mark.parametrize("steps", [2, 4, 8, 9, 20])
def test_exact_for_powers(steps):
    run = extended_lanczos(A, INVERSE, steps, probes=3)
    even = steps + steps % 2
    assert run.sizes.tolist() == [even] * 3
    assert run.products == 3 * even
    for p in range(-even, even):
        found = integral(run, lambda x, p=p: x**p)
        torch.testing.assert_close(found, truth(lambda x, p=p: x**p), rtol=1e-8, atol=0)


def test_projection_is_that_of_the_basis():
    # of the space span{q, A^-1 q, A q, ...}, orthonormalised in this order by QR
    q = randn(120, 1)
    run = extended_lanczos(A, INVERSE, 6, start=q)
    vectors = [
        q,
        INVERSE @ q,
        A @ q,
        INVERSE @ INVERSE @ q,
        A @ A @ q,
        INVERSE @ INVERSE @ INVERSE @ q,
    ]
    basis = torch.linalg.qr(torch.cat([v / v.norm() for v in vectors], 1)).Q
    expected = torch.linalg.eigvalsh(basis.T @ A @ basis)
    found = torch.linalg.eigvalsh(run.projections[0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run.projections, run.projections.mT, rtol=0, atol=1e-10)


def test_logarithms_converge():
    errors = []
    for steps in (4, 8, 12, 16):
        run = extended_lanczos(A, INVERSE, steps, probes=3)
        expected = truth(lambda x: x.log() ** 3)
        found = integral(run, lambda x: x.log() ** 3)
        errors.append(float((found - expected).abs().max()))
        change = float((found - integral(run, lambda x: x.log() ** 3, fewer=2)).abs().max())
        assert change > errors[-1]
    assert errors[-1] < 1e-4
    assert all(b < 0.3 * a for a, b in itertools.pairwise(errors))


def test_invariant_spaces_end_a_probe():
    logs = torch.tensor([-2.0] * 3 + [0.0] * 5 + [1.0] * 4, dtype=torch.float64)
    a, inverse, _ = positive(logs)
    run = extended_lanczos(a, inverse, 12, probes=3)
    assert run.sizes.tolist() == [3, 3, 3]
    nodes, weights = run.quadrature()
    expected = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64).exp().expand(3, 3)
    torch.testing.assert_close(nodes[:, :3], expected, rtol=1e-10, atol=0)
    assert bool(nodes[:, 3:].isnan().all())
    assert float(weights[:, 3:].abs().max()) == 0.0
    # nothing may be left out of what is exact
    torch.testing.assert_close(run.quadrature(2)[0], nodes, equal_nan=True)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_all_of_a_small_space(n):
    logs = torch.linspace(-1, 1, n, dtype=torch.float64)
    a, inverse, _ = positive(logs)
    run = extended_lanczos(a, inverse, 20, probes=2)
    assert run.sizes.tolist() == [n, n]
    torch.testing.assert_close(
        run.quadrature()[0][:, :n], logs.exp().expand(2, n), rtol=1e-9, atol=0
    )


def test_probes_end_apart():
    vector = VECTORS[:, :1]
    run = extended_lanczos(A, INVERSE, 6, probes=2, start=torch.cat([vector, randn(120, 1)], 1))
    assert run.sizes.tolist() == [1, 6]
    assert float(run.quadrature()[0][0, 0]) == pytest.approx(math.exp(-4.0))
    alone = extended_lanczos(A, INVERSE, 6, start=randn(120, 1))
    torch.testing.assert_close(run.projections[1], alone.projections[0], rtol=1e-9, atol=1e-9)


def test_long_runs_of_wide_spectra_stay_positive():
    logs = torch.cat([torch.linspace(-9, 4, 40), torch.zeros(60)]).double()
    a, inverse, _ = positive(logs)
    run = extended_lanczos(a, inverse, 90, probes=4)
    nodes, _ = run.quadrature()
    assert float(nodes.nan_to_num(1.0).min()) > 0.9 * math.exp(-9)


class TestUnitMasses:
    def test_share_of_an_eigenvalue_1(self):
        logs = torch.cat([torch.zeros(60), torch.linspace(1, 3, 30), torch.linspace(-3, -1, 30)])
        a, inverse, q = positive(logs.double())
        z = rademacher(120, 2, 0).double()
        share = (q[:, :60].T @ z).square().sum(0) / 120
        run = extended_lanczos(a, inverse, 24, start=z)
        assert bool((run.unit_masses[:, 0] == 1.0).all())
        assert bool((run.unit_masses.diff(dim=1) <= 0).all())
        torch.testing.assert_close(run.unit_masses[:, -1], share, rtol=1e-3, atol=0)
        assert bool((run.unit_masses >= share[:, None] - 1e-12).all())

    def test_no_eigenvalue_1(self):
        logs = torch.tensor([-1.0, 1.0, 2.0], dtype=torch.float64)
        a, inverse, _ = positive(logs)
        assert float(extended_lanczos(a, inverse, 6).unit_masses[0, -1]) < 0.5


def test_memory():
    assert extended_memory(1000, 10, 3) == 8 * 18 * 3 * 1000
    assert extended_memory(1000, 9) == extended_memory(1000, 10)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"probes": 0}, ValueError, "probes must be at least 1"),
        ({"op": torch.zeros(2, 3)}, ValueError, "square"),
        ({"start": torch.zeros(120)}, ValueError, "zero"),
        ({"inverse": torch.full((120, 120), math.nan).double()}, FloatingPointError, "finite"),
    ],
)
def test_refused(change, error, match):
    with pytest.raises(error, match=match):
        extended_lanczos(**({"op": A, "inverse": INVERSE, "steps": 4} | change))
