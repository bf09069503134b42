"""The odd moment against exact spectra, and what its standard error covers."""

import math

import pytest
import torch
from torch import Tensor

from torch_thermo.observables import odd_moment as module
from torch_thermo.observables.odd_moment import odd_moment
from torch_thermo.operators.base import SymmetricOperator
from torch_thermo.spectra import LanczosRun, lanczos


class Spectrum(SymmetricOperator):
    """A matrix of given eigenvalues and random eigenvectors."""

    def __init__(self, values: Tensor, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(len(values), dtype, torch.device("cpu"), {})
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
        basis = torch.linalg.qr(normal)[0]
        self.matrix = ((basis * values) @ basis.T).to(dtype)

    def _products(self, columns):
        return list((self.matrix @ torch.stack(columns, 1)).unbind(1))


def spectrum(n: int, *large: float) -> Tensor:
    """Some large eigenvalues in a bulk of many small ones."""
    generator = torch.Generator().manual_seed(3)
    small = 0.1 * torch.randn(n - len(large), dtype=torch.float64, generator=generator)
    return torch.cat([torch.tensor(large, dtype=torch.float64), small])


def exact(values: Tensor) -> float:
    return float(values.pow(3).sum() / values.abs().pow(3).sum())


def estimates(values: Tensor, probes: int, seeds: int, dtype=torch.float64):
    """Errors and standard errors of several seeds."""
    operator = Spectrum(values, dtype)
    found = [
        odd_moment(lanczos(operator, 20, probes=probes, seed=seed), len(values))
        for seed in range(seeds)
    ]
    errors = torch.tensor([estimate.value for estimate in found]) - exact(values)
    return errors, torch.tensor([estimate.stderr for estimate in found])


TEN = spectrum(200, *[1.0] * 10, -1.5)
BULK = spectrum(100)


@pytest.mark.parametrize(
    ("values", "probes", "dtype", "rms", "covered"),
    [
        (spectrum(200, 1.0, -1.0), 4, torch.float64, 0.01, 0.7),
        (TEN, 4, torch.float64, 0.12, 0.75),
        (TEN, 8, torch.float64, 0.12, 0.85),
        (TEN, 8, torch.float32, 0.12, 0.75),
        (-TEN, 8, torch.float64, 0.12, 0.85),
        (torch.cat([BULK, -BULK]), 8, torch.float64, 0.12, 0.85),
        (spectrum(1000, 4.0, -3.5, 3.0, -2.7, 2.0), 4, torch.float64, 1e-3, 0.5),
    ],
)
def test_the_error_covers(values, probes, dtype, rms, covered):
    """Within 2 standard errors; of k probes they follow Student's t, 86 % at k = 4."""
    errors, stderrs = estimates(values, probes, 10 if len(values) > 500 else 30, dtype)
    assert errors.square().mean().sqrt() < rms
    assert (errors.abs() <= 2 * stderrs).double().mean() >= covered


def test_an_eigenvalue_that_occurs_ten_times_does_not_count_once():
    """Counted once it would read (1 - 1.5^3) / (1 + 1.5^3)."""
    assert exact(TEN) == pytest.approx(0.48, abs=0.01)
    errors, stderrs = estimates(TEN, 8, 10)
    once = (1 - 1.5**3) / (1 + 1.5**3) - exact(TEN)
    assert once < -1
    assert errors.abs().max() < 0.25
    assert stderrs.min() > 0.01


def test_all_that_occur_twice_are_seen_together():
    values = spectrum(300, *[v for v in (3.0, 2.8, 2.6, 2.4, 2.2, 2.0, 1.8, 1.6) for _ in (0, 1)])
    run = lanczos(Spectrum(values), 20, probes=8)
    found = (run.residuals <= 0.05 * run.ritz.abs()) & (run.ritz > 1.5)
    simple = module._simple(run.ritz[found] / 3, run.weights[found] * 300)
    assert not simple.any()
    single = spectrum(300, 3.0, 2.8, 2.6, 2.4, 2.2, 2.0, 1.8, 1.6)
    run = lanczos(Spectrum(single), 20, probes=8)
    found = (run.residuals <= 0.05 * run.ritz.abs()) & (run.ritz > 1.5)
    assert module._simple(run.ritz[found] / 3, run.weights[found] * 300).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("times", [1, 12])
def test_one_sided(sign, times):
    values = sign * spectrum(200, *[2.0] * times, 1.6, 1.2).abs()
    for seed in range(5):
        found = odd_moment(lanczos(Spectrum(values), 15, probes=3, seed=seed), 200)
        assert found.value == pytest.approx(sign)
        assert found.stderr == pytest.approx(0, abs=1e-9)


def run_of(ritz, residuals, weights) -> LanczosRun:
    rows = [torch.tensor(rows, dtype=torch.float64) for rows in (ritz, residuals, weights)]
    none = torch.zeros(len(rows[0]), 0, dtype=torch.float64)
    return LanczosRun(rows[0], none, *rows, torch.tensor([len(ritz[0])] * len(ritz)), 0)


@pytest.mark.parametrize(("share", "counts"), [(0.04, True), (0.06, False)])
def test_what_counts_as_found(share, counts):
    """A residual bound of a twentieth of the value, where n = 10 and the weights are not 1/n."""
    run = run_of([[-1.0, 2.0]] * 2, [[1e-9, 2.0 * share]] * 2, [[0.2, 0.05], [0.1, 0.15]])
    found = odd_moment(run, 10)
    if counts:
        assert found.value == pytest.approx(7 / 9)
        assert found.stderr == pytest.approx(0, abs=1e-12)
    else:
        a, b = torch.tensor([-0.1 + 0.4, -0.1 + 1.2]), torch.tensor([0.1 + 0.4, 0.1 + 1.2])
        assert found.value == pytest.approx(float(a.sum() / b.sum()))
        assert found.stderr > 0.01


@pytest.mark.parametrize(("mass", "counts"), [(6.8, True), (7.0, False)])
def test_what_counts_as_simple(mass, counts):
    """13.8 is the 99.9 % quantile of a chi-square with 2 degrees of freedom: 2 probes."""
    assert -2 * math.log(0.001) == pytest.approx(13.8, abs=0.02)
    weight = mass / 100
    run = run_of([[-1.0, 1.0]] * 2, [[0.0, 0.0]] * 2, [[0.01, weight]] * 2)
    expected = 0.0 if counts else (weight - 0.01) / (weight + 0.01)
    assert odd_moment(run, 100).value == pytest.approx(expected, abs=1e-12)


def test_values_next_to_each_other_are_two():
    """Two simple eigenvalues 2 % apart, each with a weight that is too large for one."""
    run = run_of([[-1.0, 0.98, 1.0]] * 2, [[0.0] * 3] * 2, [[0.01, 0.01, 0.08]] * 2)
    cubes = 0.98**3
    expected = (0.01 * (cubes - 1) + 0.08) / (0.01 * (cubes + 1) + 0.08)
    assert odd_moment(run, 100).value == pytest.approx(expected)


def test_the_zero_operator():
    found = odd_moment(lanczos(Spectrum(torch.zeros(20).double()), 5, probes=3), 20)
    assert math.isnan(found.value)
    one = odd_moment(lanczos(Spectrum(TEN), 5), 200)
    assert -1 <= one.value <= 1
    assert math.isnan(one.stderr)
