import numpy as np
import pytest
import torch
from scipy import integrate, linalg, special, stats
from scipy.sparse.linalg import LinearOperator, eigsh

from torch_thermo.spectra import SpectralMeasure, lanczos, spectral_measure
from torch_thermo.symmetry import _brownian_tail, _mean_walk, sign_balance, symmetry_test


def hessian_like(n=300, seed=0):
    """A bulk, a few outliers and many near-zero eigenvalues."""
    rng = np.random.default_rng(seed)
    wide = rng.standard_normal((n, n // 3))
    noise = rng.standard_normal((n, n))
    return wide @ np.diag(np.geomspace(1e-3, 2, n // 3)) @ wide.T / n + (noise + noise.T) * 1e-2


def samples():
    rng = np.random.default_rng(1)
    return {
        "normal": rng.standard_normal(500),
        "shifted": rng.standard_normal(500) + 0.2,
        "products": rng.standard_normal((500, 6)).prod(axis=1),
        "ties": rng.integers(-3, 4, 200).astype(float),
        "small": np.array([1.0, -2.0, 3.0]),
    }


@pytest.mark.parametrize("basis", ["full", "none"])
def test_extremes_against_arpack(basis):
    matrix = hessian_like()
    operator = LinearOperator(matrix.shape, matvec=lambda v: matrix @ v, dtype=np.float64)
    start = np.ones(300)
    low = eigsh(operator, k=1, which="SA", return_eigenvectors=False, v0=start)[0]
    high = eigsh(operator, k=1, which="LA", return_eigenvectors=False, v0=start)[0]
    run = lanczos(torch.from_numpy(matrix), steps=120, basis=basis, tol=1e-9)
    ends = run.ritz[0, [0, int(run.steps[0]) - 1]]
    np.testing.assert_allclose(ends, [low, high], rtol=0, atol=1e-10 * high)


def test_tridiagonal_solution():
    run = lanczos(torch.from_numpy(hessian_like()), steps=25, probes=2)
    for probe in range(2):
        ritz, vectors = linalg.eigh_tridiagonal(run.alphas[probe].numpy(), run.betas[probe].numpy())
        np.testing.assert_allclose(run.ritz[probe], ritz, rtol=0, atol=1e-12 * abs(ritz).max())
        np.testing.assert_allclose(run.weights[probe], vectors[0] ** 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_full_spectrum_against_eigh(dtype, tolerance):
    matrix = hessian_like(n=60)
    run = lanczos(torch.from_numpy(matrix).to(dtype), steps=60)
    eigenvalues = linalg.eigh(matrix, eigvals_only=True)
    size = abs(eigenvalues).max()
    np.testing.assert_allclose(run.ritz[0, [0, -1]], eigenvalues[[0, -1]], atol=tolerance * size)
    np.testing.assert_allclose(run.ritz[0], eigenvalues, rtol=0, atol=5 * tolerance * size)


def test_measure_is_near_the_exact_one():
    matrix = hessian_like()
    eigenvalues = linalg.eigh(matrix, eigvals_only=True)
    measure = spectral_measure(torch.from_numpy(matrix), steps=20, probes=8)
    distance = stats.wasserstein_distance(
        eigenvalues,
        measure.nodes.flatten().numpy(),
        v_weights=measure.weights.flatten().numpy(),
    )
    assert distance / np.ptp(eigenvalues) < 0.013


def test_density_against_scipy():
    eigenvalues = np.array([-1.0, 0.5, 0.5, 2.0])
    grid = np.linspace(-3, 4, 50)
    values, _ = SpectralMeasure.from_eigenvalues(torch.from_numpy(eigenvalues)).density(
        torch.from_numpy(grid), 0.3
    )
    expected = stats.norm.pdf(grid[:, None], eigenvalues, 0.3).mean(axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("name", samples())
def test_w_sym_against_scipy(name):
    values = samples()[name]
    expected = stats.wasserstein_distance(values, -values) / (2 * np.abs(values).mean())
    assert symmetry_test(torch.from_numpy(values)).w_sym == pytest.approx(expected, abs=1e-12)
    exact = SpectralMeasure.from_eigenvalues(torch.from_numpy(values))
    assert exact.w_sym == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", samples())
def test_sign_balance_against_scipy(name):
    values = samples()[name]
    balance = sign_balance(torch.from_numpy(values))
    share = stats.binomtest(int((values > 0).sum()), int((values != 0).sum()))
    interval = share.proportion_ci(0.95, method="wilson")
    assert balance.value == pytest.approx(2 * share.statistic - 1)
    assert balance.interval == pytest.approx((2 * interval.low - 1, 2 * interval.high - 1))


@pytest.mark.parametrize("name", samples())
def test_butler_against_distribution_functions(name):
    values = samples()[name]
    values = values[values != 0]
    # D = sup over t > 0 of |P(v >= t) - P(v <= -t)|
    expected = max(abs((values >= t).mean() - (values <= -t).mean()) for t in np.abs(values))
    assert symmetry_test(torch.from_numpy(values)).butler == pytest.approx(expected)


def test_mean_of_the_walk_against_scipy():
    mean = _mean_walk(5001)
    for k in (1, 2, 3, 10, 999, 5000, 5001):
        expected = stats.binom(k, 0.5).expect(lambda j, k=k: abs(k - 2 * j), lb=0, ub=k)
        assert float(mean[k - 1]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("x", [0.3, 0.7, 0.99, 1.0, 1.5, 2.5, 5.0])
def test_law_of_the_supremum(x):
    # P(no exit from (-x, x) by time 1): the reflected density, integrated over where W ends
    shifts = np.arange(-40, 41)

    def density(w):
        return ((-1.0) ** shifts * stats.norm.pdf(w + 2 * x * shifts)).sum()

    stay, _ = integrate.quad(density, -x, x, epsabs=1e-13)
    assert _brownian_tail(x) == pytest.approx(1 - stay, abs=1e-11)
    if x >= 1.5:  # relative accuracy of a small p-value: the first reflections dominate
        leading = 2 * (special.erfc(x / np.sqrt(2)) - special.erfc(3 * x / np.sqrt(2)))
        assert _brownian_tail(x) == pytest.approx(leading, rel=1e-9)
