import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_thermo.spectra import SpectralMeasure, lanczos, spectral_measure

eigenvalues = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=12)
quick = settings(deadline=None, max_examples=40)


def symmetric(values, seed):
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(square).Q
    matrix = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
    return (matrix + matrix.T) / 2


@quick
@given(eigenvalues, st.integers(0, 1000), st.integers(1, 14), st.sampled_from(["full", "none"]))
def test_any_run_is_a_quadrature_inside_the_spectrum(values, seed, steps, basis):
    matrix = symmetric(values, seed)
    run = lanczos(matrix, steps, probes=2, basis=basis, seed=seed)
    span = max(abs(v) for v in values)
    for probe, size in enumerate(run.steps.tolist()):
        ritz = run.ritz[probe, :size]
        assert torch.isfinite(ritz).all()
        assert (ritz.diff() >= 0).all()
        assert ritz.min() >= min(values) - 1e-9 * (1 + span)
        assert ritz.max() <= max(values) + 1e-9 * (1 + span)
        assert run.ritz[probe, size:].isnan().all()
        assert (run.weights[probe, size:] == 0).all()
    torch.testing.assert_close(run.weights.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert run.products == int(run.steps.sum())


@quick
@given(eigenvalues, st.integers(0, 1000))
def test_full_runs_reach_both_ends_or_a_breakdown(values, seed):
    matrix = symmetric(values, seed)
    start = torch.linalg.eigh(matrix).eigenvectors.sum(dim=1)  # has a part along every eigenvector
    run = lanczos(matrix, len(values), start=start)
    span = max(abs(v) for v in values)
    size = int(run.steps[0])
    ends = torch.tensor([min(values), max(values)], dtype=torch.float64)
    torch.testing.assert_close(run.ritz[0, [0, size - 1]], ends, rtol=0, atol=1e-6 * (span + 1e-12))


@quick
@given(eigenvalues, st.integers(0, 1000), st.floats(0.01, 100))
def test_mirror_and_scale(values, seed, factor):
    matrix = symmetric(values, seed)
    one = spectral_measure(matrix, steps=4, seed=seed)
    other = spectral_measure(-factor * matrix, steps=4, seed=seed)
    span = max(abs(v) for v in values)
    close = 1e-7 * span * factor
    mirrored = [-factor * one.extremes.max.value, -factor * one.extremes.min.value]
    assert abs(other.extremes.min.value - mirrored[0]) <= close
    assert abs(other.extremes.max.value - mirrored[1]) <= close
    assert abs(other.moment(1).value + factor * one.moment(1).value) <= 1e-9 * factor * (span + 1)


@quick
@given(eigenvalues)
def test_asymmetries_of_exact_spectra(values):
    exact = SpectralMeasure.from_eigenvalues(torch.tensor(values, dtype=torch.float64))
    if not any(values):
        assert exact.w_sym != exact.w_sym
        return
    odd = exact.odd_moment(1).value
    # |sum| is W1 between v and -v at least: |E v - E(-v)| / 2 E|v| <= w_sym <= 1
    assert abs(odd) - 1e-12 <= exact.w_sym <= 1 + 1e-12
    mirrored = SpectralMeasure.from_eigenvalues(-exact.nodes[0])
    assert abs(mirrored.w_sym - exact.w_sym) < 1e-12
    assert abs(mirrored.odd_moment(3).value + exact.odd_moment(3).value) < 1e-12
