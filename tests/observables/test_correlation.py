import math

import pytest
import torch

from torch_thermo.observables import benjamini_hochberg, correlation_test
from torch_thermo.observables.correlation import LEVELS


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestBenjaminiHochberg:
    def test_the_largest_rank_that_passes_decides(self):
        # thresholds .02 .04 .06 .08 .1: .07 and .05 fail alone, .075 passes at rank 4
        p = torch.tensor([0.075, 0.2, 0.05, 0.07, 0.001])
        assert benjamini_hochberg(p, 0.1).tolist() == [True, False, True, True, True]

    def test_none(self):
        assert not benjamini_hochberg(torch.tensor([0.06, 0.5, 0.99]), 0.1).any()
        assert benjamini_hochberg(torch.zeros(0)).shape == (0,)

    def test_all_at_the_edge(self):
        assert benjamini_hochberg(torch.tensor([0.05, 0.05], dtype=torch.float64), 0.05).all()

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
            benjamini_hochberg(torch.tensor([0.1, math.nan]))
        with pytest.raises(ValueError, match=r"must have shape \(m,\), got \(1, 2\)"):
            benjamini_hochberg(torch.zeros(1, 2))


class TestMatrix:
    def test_is_pearsons(self):
        values = randn(40, 5) @ randn(5, 5, seed=1) + 3
        found = correlation_test(values, permutations=2)
        torch.testing.assert_close(found.matrix, torch.corrcoef(values.T), rtol=0, atol=1e-14)
        pairs = found.matrix[tuple(torch.triu_indices(5, 5, 1))].abs()
        assert found.mean_abs == pytest.approx(float(pairs.mean()))
        assert (found.samples, found.pairs) == (40, 10)

    def test_constant_columns_have_none(self):
        values = randn(40, 4)
        values[:, 2] = 0.1  # whose mean over 40 is not .1
        found = correlation_test(values, permutations=2)
        assert found.matrix[2].isnan().all()
        assert found.matrix[:, 2].isnan().all()
        assert found.pairs == 3
        assert math.isfinite(found.mean_abs)
        assert not found.significant[2].any()

    def test_deterministic(self):
        values = randn(30, 6)
        one, same, other = (correlation_test(values, 20, seed=s) for s in (1, 1, 2))
        assert torch.equal(one.null_quantiles, same.null_quantiles)
        assert not torch.equal(one.null_quantiles, other.null_quantiles)
        state = torch.get_rng_state()
        correlation_test(values, 5)
        assert torch.equal(torch.get_rng_state(), state)


class TestNull:
    def test_second_moment_is_exact(self):
        """Shuffling makes E r^2 = 1 / (n - 1), whatever the marginals: here heavy tails."""
        from torch_thermo.observables.correlation import _null, _standardised

        values = randn(50, 8) ** 5
        squares = _null(_standardised(values), 400, seed=0).square()
        # 11,200 values
        assert float(squares.mean()) == pytest.approx(1 / 49, rel=0.06)

    def test_quantiles_of_normal_samples(self):
        found = correlation_test(randn(400, 12), permutations=200)
        normal = [0.6745, 1.9600, 2.5758, 3.2905]
        assert len(LEVELS) == len(normal)
        torch.testing.assert_close(
            found.null_quantiles * math.sqrt(399),
            torch.tensor(normal, dtype=torch.float64),
            rtol=0.05,
            atol=0,
        )
        assert found.null_mean_abs == pytest.approx(math.sqrt(2 / math.pi / 399), rel=0.02)

    def test_a_sample_of_the_same_seed_is_shuffled_too(self):
        """A normal sample and a permutation from one generator would be in one order."""
        found = correlation_test(randn(4000, 8, seed=3), permutations=4, seed=3)
        assert found.null_quantiles[-1] < 4.5 / math.sqrt(4000)

    @pytest.mark.parametrize("tail", [1, 3], ids=["normal", "heavy"])
    def test_level_on_independent_columns(self, tail):
        """Samples without a correlation give a discovery in at most 5 % of the cases."""
        trials = 200
        found = sum(
            correlation_test(randn(60, 8, seed=s) ** tail, 50, seed=s).share > 0
            for s in range(trials)
        )
        # 5 % of 200 is 10 +- 3; none at all would be no test
        assert 1 <= found <= 20

    def test_power_on_planted_correlations(self):
        """Three pairs of r = .6 among 435: found, with few false ones."""
        values = randn(200, 30)
        planted = [(0, 7), (3, 21), (10, 11)]
        for a, b in planted:
            values[:, b] = 0.6 * values[:, a] + 0.8 * values[:, b]
        found = correlation_test(values, permutations=100)
        assert all(found.significant[a, b] and found.significant[b, a] for a, b in planted)
        assert 3 <= round(found.share * found.pairs) <= 4
        assert found.partners[[0, 7, 3, 21, 10, 11]].min() >= 1
        assert not found.significant.diagonal().any()
        assert found.mean_abs > found.null_mean_abs

    def test_few_false_discoveries_among_many(self):
        """Half of the columns share a factor: of what is found at most 5 % is false."""
        false = total = 0
        for seed in range(20):
            values = randn(80, 20, seed=seed)
            values[:, :10] += 0.7 * randn(80, 1, seed=seed + 100)
            significant = correlation_test(values, 50, rate=0.1, seed=seed).significant
            total += int(significant.sum())
            significant[:10, :10] = False
            false += int(significant.sum())
        assert total > 20 * 2 * 20
        assert 0 < false / total < 0.1

    def test_equal_columns(self):
        found = correlation_test(randn(20, 1).repeat(1, 3), permutations=100)
        assert found.significant.sum() == 6

    @pytest.mark.parametrize("tail", [1, 3], ids=["normal", "heavy"])
    def test_level_with_a_shared_scale(self, tail):
        """Columns that share a row's magnitude and are independent given it: 5 % of the cases."""
        trials, pairs = 200, 0
        found = 0
        for s in range(trials):
            scale = randn(60, 1, seed=s + 1000).exp()
            test = correlation_test(scale * randn(60, 8, seed=s) ** tail, 50, seed=s)
            found += test.share > 0
            pairs += int(test.significant.sum())
        assert 1 <= found <= 20
        assert pairs < 0.01 * trials * 8 * 7

    def test_level_where_rows_are_zero_together(self):
        """Inactive examples are 0 in all columns, and gates that columns share close together."""
        trials = 100
        found = 0
        for s in range(trials):
            generator = torch.Generator().manual_seed(s)
            gates = torch.rand(80, 3, generator=generator) < 0.3
            values = randn(80, 9, seed=s + 1000) * gates.repeat(1, 3)
            found += correlation_test(values, 30, seed=s).share > 0
        assert found <= 12

    def test_power_beneath_a_shared_scale(self):
        scale = randn(200, 1, seed=9).exp()
        values = randn(200, 30)
        values[:, 7] = 0.9 * values[:, 0] + 0.19**0.5 * values[:, 7]
        found = correlation_test(scale * values, permutations=100)
        assert found.significant[0, 7]
        assert found.significant.sum() <= 4

    def test_both_nulls_are_given(self):
        """Alike where nothing is shared, apart by the scale where one is: E s^4 / (E s^2)^2."""
        plain = correlation_test(randn(400, 12), permutations=100)
        torch.testing.assert_close(
            plain.sign_null_quantiles, plain.null_quantiles, rtol=0.08, atol=0
        )
        assert plain.sign_null_mean_abs == pytest.approx(plain.null_mean_abs, rel=0.03)
        scale = 1 + 2 * (torch.arange(400)[:, None] % 4 == 0).double()
        found = correlation_test(scale * randn(400, 12), permutations=100)
        ratio = math.sqrt(float(scale.pow(4).mean())) / float(scale.square().mean())
        assert found.sign_null_mean_abs / found.null_mean_abs == pytest.approx(ratio, rel=0.1)

    def test_signs_keep_magnitudes_and_zeros(self):
        """Two values each: with signs r is what the four cases give, never a shuffle's."""
        from torch_thermo.observables.correlation import _sign_null

        values = torch.zeros(5, 2, dtype=torch.float64)
        values[:2] = torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
        cases = []
        for bits in range(16):
            signs = torch.tensor([[bits & 1, bits & 2], [bits & 4, bits & 8]]).bool() * 2 - 1
            flipped = values.clone()
            flipped[:2] *= signs
            cases.append(float(torch.corrcoef(flipped.T)[0, 1].abs()))
        found = _sign_null(values, 400, seed=0)
        expected = torch.tensor(sorted({round(case, 9) for case in cases}), dtype=torch.float64)
        seen = torch.tensor(sorted({round(case, 9) for case in found.tolist()})).double()
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)

    def test_what_chance_often_gives_is_not_significant(self):
        """One nonzero row, in both columns the same: r = 1, and so with any signs."""
        values = torch.zeros(4, 2, dtype=torch.float64)
        values[1] = torch.tensor([0.3, 0.7], dtype=torch.float64)
        found = correlation_test(values, permutations=200, rate=0.2)
        assert float(found.matrix[0, 1]) == pytest.approx(1.0)
        assert not found.significant.any()
        assert not correlation_test(values, permutations=200, rate=0.9).significant[0, 1]


class TestUndefined:
    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            (randn(2, 4), "3 rows or more, got 2"),
            (randn(0, 4), "3 rows or more, got 0"),
            (randn(9, 1), "2 columns that vary, got 1 of 1"),
            (torch.ones(9, 4), "2 columns that vary, got 0 of 4"),
            (randn(9, 0), "2 columns that vary, got 0 of 0"),
        ],
    )
    def test_reason(self, values, reason):
        found = correlation_test(values)
        assert reason in found.reason
        assert math.isnan(found.share)
        assert math.isnan(found.mean_abs)
        assert math.isnan(found.null_mean_abs)
        assert math.isnan(found.sign_null_mean_abs)
        assert found.null_quantiles.isnan().all()
        assert found.sign_null_quantiles.isnan().all()
        assert found.matrix.shape == 2 * (values.shape[1],)
        assert found.matrix.isnan().all()

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"must have shape \(n, K\), got \(3,\)"):
            correlation_test(randn(3))
        with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
            correlation_test(randn(9, 3), 0)
        with pytest.raises(ValueError, match="rate must lie between 0 and 1, got 1"):
            correlation_test(randn(9, 3), rate=1)
        with pytest.raises(ValueError, match="values must be finite"):
            correlation_test(randn(9, 3) / 0)
