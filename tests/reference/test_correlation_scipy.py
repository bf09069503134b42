import numpy as np
import pytest
import torch
from scipy import stats

from torch_thermo.observables import benjamini_hochberg, correlation_test


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_false_discoveries(rate, seed):
    rng = np.random.default_rng(seed)
    p = np.concatenate([rng.random(40), 0.02 * rng.random(10), [0.0, 1.0]])
    expected = stats.false_discovery_control(p) <= rate
    assert 0 < expected.sum() < len(p)
    assert benjamini_hochberg(torch.from_numpy(p), rate).tolist() == expected.tolist()


def test_correlation_and_its_sign_null():
    """r, and the p-value of one pair, whose pooled null is its own."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(25)
    y = 0.3 * x + rng.standard_normal(25)
    found = correlation_test(torch.from_numpy(np.stack([x, y], 1)), permutations=4000)
    assert float(found.matrix[0, 1]) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-14)
    signs = rng.choice([-1.0, 1.0], (2, 4000, 25))
    flipped = np.abs(stats.pearsonr(signs[0] * x, signs[1] * y, axis=1).statistic)
    p = (flipped >= abs(stats.pearsonr(x, y).statistic)).mean()
    assert 0.01 < p < 0.5
    # significant at a rate above p and not at one below: 4000 resamples give it to a hundredth
    values = torch.from_numpy(np.stack([x, y], 1))
    assert correlation_test(values, 4000, rate=p + 0.04).significant[0, 1]
    assert not correlation_test(values, 4000, rate=max(p - 0.04, p / 2)).significant[0, 1]
