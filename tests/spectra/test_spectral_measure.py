import importlib
import math

import pytest
import torch

from torch_thermo.spectra import (
    SpectralMeasure,
    lanczos,
    rademacher,
    spectral_measure,
)
from torch_thermo.spectra.estimate import jackknife_ratio, mean_estimate


def symmetric(eigenvalues, seed=0):
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(square).Q
    return q @ torch.diag(values) @ q.T


def skewed(n=60):
    return torch.cat([torch.linspace(-1, 1, n - 4), torch.tensor([2.0, 2.5, 3.0, -1.5])]).double()


def two_rows(nodes=((-1.0, 3.0), (0.0, 1.0)), weights=((0.5, 0.5), (0.25, 0.75))):
    return SpectralMeasure(torch.tensor(nodes), torch.tensor(weights), False, 7)


def test_hand_computed_rows():
    measure = two_rows()
    first = measure.moment(1)
    assert first.value == pytest.approx((1.0 + 0.75) / 2)
    assert first.stderr == pytest.approx(0.125)
    assert measure.moment(0).value == 1.0
    assert measure.moment(2).value == pytest.approx((5.0 + 0.75) / 2)
    assert measure.extremes.min.value == -1.0
    assert measure.extremes.max.value == 3.0
    assert measure.extremes.max.stderr == pytest.approx(math.sqrt(2.0))
    assert measure.negative_mass.value == 0.25
    assert measure.negative_mass.stderr == pytest.approx(0.25)
    # means over rows: (13 + .75) / (14 + .75); without a row: .75 / .75 and 13 / 14
    odd = measure.odd_moment(3)
    assert odd.value == pytest.approx(13.75 / 14.75)
    assert odd.stderr == pytest.approx((1 - 13 / 14) / 2)


def test_weights_are_normalised_per_row_and_padding_is_ignored():
    plain = two_rows()
    padded = two_rows(
        ((-1.0, 3.0, math.nan), (0.0, 1.0, math.nan)), ((2.0, 2.0, 0.0), (0.1, 0.3, 0.0))
    )
    torch.testing.assert_close(padded.weights.sum(dim=1), torch.ones(2, dtype=torch.float64))
    grid = torch.linspace(-2, 4, 5)
    for one, other in [
        (plain.moment(2), padded.moment(2)),
        (plain.odd_moment(3), padded.odd_moment(3)),
        (plain.negative_mass, padded.negative_mass),
        (plain.extremes.min, padded.extremes.min),
        (plain.extremes.max, padded.extremes.max),
    ]:
        assert other.value == pytest.approx(one.value)
        assert other.stderr == pytest.approx(one.stderr)
    torch.testing.assert_close(plain.density(grid, 0.3), padded.density(grid, 0.3))


def test_one_row_has_no_standard_error():
    measure = spectral_measure(symmetric(skewed()), steps=10, probes=1)
    for estimate in (
        measure.moment(2),
        measure.odd_moment(3),
        measure.negative_mass,
        measure.extremes.min,
        measure.extremes.max,
    ):
        assert math.isfinite(estimate.value)
        assert math.isnan(estimate.stderr)
    assert measure.density(torch.zeros(3), 0.1)[1].isnan().all()


def test_an_exact_spectrum_has_no_error():
    eigenvalues = torch.tensor([3.0, -1.0, 0.0, -2.0])
    measure = SpectralMeasure.from_eigenvalues(eigenvalues)
    assert measure.exact
    assert measure.dimension == 4
    assert measure.nodes.tolist() == [[-2.0, -1.0, 0.0, 3.0]]
    assert measure.weights.tolist() == [[0.25] * 4]
    assert measure.extremes.min.value == -2.0
    assert measure.negative_mass.value == 0.5
    assert measure.moment(3).value == pytest.approx((27 - 1 - 8) / 4)
    assert measure.odd_moment(3).value == pytest.approx((27 - 1 - 8) / (27 + 1 + 8))
    assert {
        measure.extremes.max.stderr,
        measure.negative_mass.stderr,
        measure.moment(3).stderr,
        measure.odd_moment(3).stderr,
    } == {0.0}
    assert measure.density(torch.zeros(3), 0.1)[1].tolist() == [0.0] * 3


def test_quadrature_is_exact_for_low_moments_of_its_start():
    matrix = symmetric(skewed())
    z = rademacher(60, 3, seed=9).double()
    measure = spectral_measure(matrix, steps=4, probes=3, seed=9)
    power = z
    for p in range(1, 8):  # m = 4 nodes integrate up to degree 7
        power = matrix @ power
        expected = (z * power).sum(dim=0) / 60
        assert measure.moment(p).value == pytest.approx(expected.mean().item(), abs=1e-12)
        stderr = expected.std().item() / math.sqrt(3)
        assert measure.moment(p).stderr == pytest.approx(stderr, abs=1e-12)


def test_moments_and_odd_moments_are_unbiased_with_honest_errors():
    eigenvalues = skewed()
    measure = spectral_measure(symmetric(eigenvalues), steps=6, probes=400, seed=1)
    exact = SpectralMeasure.from_eigenvalues(eigenvalues)
    for p in (1, 2, 3):
        estimate, true = measure.moment(p), exact.moment(p).value
        assert 0.0 < estimate.stderr < 0.1
        assert abs(estimate.value - true) < 4 * estimate.stderr
    for p in (1, 3, 5):
        estimate, true = measure.odd_moment(p), exact.odd_moment(p).value
        assert 0.0 < estimate.stderr < 0.05
        assert abs(estimate.value - true) < 4 * estimate.stderr
    rows = [
        SpectralMeasure(measure.nodes[i : i + 8], measure.weights[i : i + 8], False, 60)
        for i in range(0, 400, 8)
    ]
    errors = [m.odd_moment(3).value - exact.odd_moment(3).value for m in rows]
    claimed = [m.odd_moment(3).stderr ** 2 for m in rows]
    ratio = math.sqrt(sum(e * e for e in errors) / sum(claimed))
    assert 0.75 < ratio < 1.3  # 50 draws: their scatter is within 10 %


def test_symmetric_and_semidefinite_limits():
    half = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    even = SpectralMeasure.from_eigenvalues(torch.cat([half, -half]))
    assert even.w_sym == pytest.approx(0.0, abs=1e-15)
    assert even.odd_moment(3).value == pytest.approx(0.0, abs=1e-15)
    for sign in (1.0, -1.0):
        one_sided = SpectralMeasure.from_eigenvalues(sign * half)
        assert one_sided.w_sym == pytest.approx(1.0)
        assert one_sided.odd_moment(5).value == pytest.approx(sign)
        assert one_sided.negative_mass.value == (0.0 if sign > 0 else 1.0)


def test_w_sym_by_hand_and_only_for_exact_spectra():
    # sorted -2, 1, 3 against -3, -1, 2: distances 1, 2, 1; mass 6
    measure = SpectralMeasure.from_eigenvalues(torch.tensor([3.0, -2.0, 1.0]))
    assert measure.w_sym == pytest.approx(4 / 12)
    with pytest.raises(ValueError, match="w_sym needs an exact spectrum"):
        _ = two_rows().w_sym


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_ratios_do_not_depend_on_the_scale(scale):
    eigenvalues = skewed()
    one = SpectralMeasure.from_eigenvalues(eigenvalues)
    other = SpectralMeasure.from_eigenvalues(eigenvalues * scale)
    assert other.odd_moment(5).value == pytest.approx(one.odd_moment(5).value)
    assert other.w_sym == pytest.approx(one.w_sym)


def test_zero_operator_is_undefined_not_symmetric():
    for measure in (
        spectral_measure(torch.zeros(5, 5), steps=4),
        SpectralMeasure.from_eigenvalues(torch.zeros(5)),
    ):
        assert math.isnan(measure.odd_moment(3).value)
        assert measure.moment(2).value == 0.0
        assert measure.negative_mass.value == 0.0
    assert math.isnan(SpectralMeasure.from_eigenvalues(torch.zeros(5)).w_sym)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_eigenvalues_of_a_semidefinite_operator_are_not_negative(dtype):
    factor = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    measure = spectral_measure(factor @ factor.T, steps=20, probes=4)
    assert measure.negative_mass.value == 0.0
    eigenvalues = torch.linalg.eigvalsh(factor @ factor.T)
    assert SpectralMeasure.from_eigenvalues(eigenvalues).negative_mass.value == 0.0
    small = SpectralMeasure.from_eigenvalues(torch.tensor([-1e-9, 1.0], dtype=torch.float64))
    assert small.negative_mass.value == 0.5


def test_density_is_the_mixture_and_integrates_to_one():
    measure = spectral_measure(symmetric(skewed()), steps=12, probes=4)
    grid = torch.linspace(-4, 6, 2001, dtype=torch.float64)
    values, stderr = measure.density(grid, 0.2)
    assert torch.trapezoid(values, grid).item() == pytest.approx(1.0, abs=1e-6)
    mean = torch.trapezoid(values * grid, grid).item()
    assert mean == pytest.approx(measure.moment(1).value, abs=1e-6)
    assert (stderr >= 0).all()
    exact, _ = SpectralMeasure.from_eigenvalues(skewed()).density(grid, 0.2)
    assert torch.trapezoid((values - exact).abs(), grid).item() < 0.3


def test_density_of_one_node():
    measure = SpectralMeasure.from_eigenvalues(torch.tensor([1.0]))
    values, _ = measure.density(torch.tensor([1.0, 1.5]), 0.5)
    peak = 1 / (0.5 * math.sqrt(2 * math.pi))
    expected = torch.tensor([peak, peak * math.exp(-0.5)], dtype=torch.float64)
    torch.testing.assert_close(values, expected)


def test_density_of_two_rows():
    # far apart on the scale of sigma: at 0 the rows have heights 0 and 1 times the peak
    measure = two_rows(((9.0,), (0.0,)), ((1.0,), (1.0,)))
    values, stderr = measure.density(torch.zeros(1), 0.1)
    peak = 1 / (0.1 * math.sqrt(2 * math.pi))
    assert values.item() == pytest.approx(peak / 2)
    assert stderr.item() == pytest.approx(peak / 2)  # std of (0, peak) is peak / sqrt(2)


def test_density_does_not_depend_on_how_the_grid_is_cut(monkeypatch):
    measure = spectral_measure(symmetric(skewed()), steps=12, probes=2)
    grid = torch.linspace(-4, 6, 101)
    whole = measure.density(grid, 0.2)
    module = importlib.import_module("torch_thermo.spectra.spectral_measure")
    monkeypatch.setattr(module, "_TABLE", 100)
    torch.testing.assert_close(measure.density(grid, 0.2), whole, rtol=1e-12, atol=0)


def test_is_the_lanczos_run_with_the_same_seed():
    matrix = symmetric(skewed())
    measure = spectral_measure(matrix, steps=8, probes=2, seed=4)
    run = lanczos(matrix, 8, probes=2, seed=4)
    assert torch.equal(measure.nodes, run.ritz)
    torch.testing.assert_close(measure.weights, run.weights)
    assert measure.dimension == 60
    assert not measure.exact


@pytest.mark.parametrize(
    ("nodes", "weights", "exact", "dimension", "message"),
    [
        ([[1.0, 2.0]], [[1.0]], False, 2, r"must both be \(k, m\)"),
        ([1.0], [1.0], False, 2, r"must both be \(k, m\)"),
        ([[1.0]], [[1.0]], False, 0, "dimension must be at least 1, got 0"),
        ([[1.0]], [[-1.0]], False, 1, "weights must be at least 0"),
        ([[1.0], [2.0]], [[1.0], [0.0]], False, 1, "not all 0 in a row"),
        ([[1.0]], [[math.nan]], False, 1, "weights must be at least 0"),
        ([[math.nan]], [[1.0]], False, 1, "must be finite"),
        ([[1.0], [2.0]], [[1.0], [1.0]], True, 1, "one row of equal weights"),
        ([[1.0, 2.0]], [[1.0, 2.0]], True, 2, "one row of equal weights"),
    ],
)
def test_measures_are_checked(nodes, weights, exact, dimension, message):
    with pytest.raises(ValueError, match=message):
        SpectralMeasure(torch.tensor(nodes), torch.tensor(weights), exact, dimension)


@pytest.mark.parametrize("bad", [torch.empty(0), torch.ones(2, 2), torch.tensor([1.0, math.inf])])
def test_eigenvalues_are_checked(bad):
    with pytest.raises(ValueError, match="must be"):
        SpectralMeasure.from_eigenvalues(bad)


def test_arguments_are_checked():
    measure = two_rows()
    with pytest.raises(ValueError, match="p must be at least 0, got -1"):
        measure.moment(-1)
    for p in (0, 2, -1):
        with pytest.raises(ValueError, match=f"p must be odd and at least 1, got {p}"):
            measure.odd_moment(p)
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma must be above 0 and finite"):
            measure.density(torch.zeros(2), sigma)
    with pytest.raises(ValueError, match=r"grid must be \(g,\), got \(2, 2\)"):
        measure.density(torch.zeros(2, 2), 1.0)


def test_estimates():
    estimate = mean_estimate(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    assert estimate.value == 3.0
    assert estimate.stderr == pytest.approx(math.sqrt(7.0 / 3.0))
    assert math.isnan(mean_estimate(torch.ones(1)).stderr)
    # with constant denominators the jackknife is the ordinary standard error
    ratio = jackknife_ratio(torch.tensor([1.0, 2.0, 6.0]).double(), torch.full((3,), 2.0).double())
    assert ratio.value == pytest.approx(1.5)
    assert ratio.stderr == pytest.approx(math.sqrt(7.0 / 3.0) / 2)
    assert math.isnan(jackknife_ratio(torch.zeros(2), torch.zeros(2)).value)
