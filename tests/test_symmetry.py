import math

import pytest
import torch

from torch_thermo.symmetry import SymmetryTest, _brownian_tail, sign_balance, symmetry_test


def sample(n=2000, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    # by size: 3+, 2-, 1+, 1+ (a tie), so the walk is 1, 0, 2 where |v| changes
    test = symmetry_test(torch.tensor([1.0, 3.0, -2.0, 1.0]))
    assert test.n == 4
    assert test.sign_balance == 0.5
    assert test.butler == 0.5
    assert test.odd_moment == pytest.approx((27 - 8 + 2) / (27 + 8 + 2))
    # sum |C_k| (a_k - a_{k+1}) = 1 * 1 + 0 * 1 + 2 * 1, sum of a = 7
    assert test.w_sym == pytest.approx(3 / 7)
    assert test.reason is None


def test_wilson_interval_by_hand():
    # 8 of 10 positive: the textbook interval of the share is (.4902, .9433)
    balance = sign_balance(torch.tensor([1.0] * 8 + [-1.0] * 2))
    assert balance.n == 10
    assert balance.value == pytest.approx(0.6)
    assert balance.interval[0] == pytest.approx(2 * 0.4902 - 1, abs=1e-4)
    assert balance.interval[1] == pytest.approx(2 * 0.9433 - 1, abs=1e-4)


def test_one_sided_interval_stays_inside():
    balance = sign_balance(torch.ones(5))
    z2 = 1.959963984540054**2
    assert balance.interval[0] == pytest.approx((1 - z2 / 5) / (1 + z2 / 5))
    assert balance.interval[1] == 1.0


@pytest.mark.parametrize(("critical", "level"), [(1.960, 0.10), (2.2414, 0.05), (2.8070, 0.01)])
def test_critical_values(critical, level):
    assert _brownian_tail(critical) == pytest.approx(level, rel=2e-4)


def test_the_two_series_of_the_law_agree():
    below, above = _brownian_tail(1.0 - 1e-12), _brownian_tail(1.0)
    assert below == pytest.approx(above, abs=1e-11)
    assert _brownian_tail(0.0) == 1.0
    assert _brownian_tail(0.2) == pytest.approx(1.0, abs=1e-9)
    assert 0.0 < _brownian_tail(8.0) < 1e-14


def test_null_levels():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 1000, generator=generator, dtype=torch.float64)
    p = torch.tensor([symmetry_test(row, flips=1).butler_p for row in draws])
    # four standard errors of 2000 draws about .102, .051, .0105
    assert 0.075 < (p < 0.10).double().mean() < 0.129
    assert 0.031 < (p < 0.05).double().mean() < 0.071
    assert 0.001 < (p < 0.01).double().mean() < 0.020


def test_null_interval_covers():
    covered = [
        low <= 0.0 <= high
        for low, high in (sign_balance(sample(200, seed)).interval for seed in range(500))
    ]
    assert 0.91 < sum(covered) / 500 < 0.985


@pytest.mark.parametrize(
    "values",
    [
        sample() + 0.3,
        sample().exp() - 1.0,  # as many negative as positive, but the tail is on one side
        torch.where(sample() > 0, sample().abs() * 3, -sample().abs()),
    ],
)
def test_asymmetric_samples_are_seen(values):
    test = symmetry_test(values)
    assert test.butler_p < 1e-3
    assert test.odd_moment > 0.3
    assert test.w_sym > 4 * test.w_sym_null


def test_tails_decide_where_signs_do_not():
    values = sample().exp() - 1.0
    values = values - values.median()
    test = symmetry_test(values)
    assert test.interval[0] < 0.0 < test.interval[1]
    assert test.butler_p < 1e-6


def test_symmetric_sample_lies_at_its_null():
    test = symmetry_test(sample())
    assert test.butler_p > 0.01
    assert test.w_sym < 3 * test.w_sym_null
    assert abs(test.odd_moment) < 0.15


def test_limits_of_w_sym():
    size = sample().abs()
    assert symmetry_test(torch.cat([size, -size])).w_sym == 0.0
    for sign in (1.0, -1.0):
        one_sided = symmetry_test(sign * size)
        assert one_sided.w_sym == pytest.approx(1.0)
        assert one_sided.butler == 1.0
        assert one_sided.odd_moment == pytest.approx(sign)
        assert one_sided.sign_balance == sign
        assert one_sided.w_sym_null < 0.1


@pytest.mark.parametrize(("n", "expected"), [(1_000, 0.29), (10_000, 0.145)])
def test_null_of_products_of_twelve_factors(n, expected):
    generator = torch.Generator().manual_seed(1)
    nulls = [
        symmetry_test(
            torch.randn(n, 12, generator=generator, dtype=torch.float64).prod(dim=1), flips=16
        ).w_sym_null
        for _ in range(12)
    ]
    assert sum(nulls) / 12 == pytest.approx(expected, rel=0.2)


def test_ties_favour_neither_side_in_any_order():
    values = torch.tensor([2.0] * 3 + [-2.0] * 3 + [1.0] * 2 + [-1.0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shuffled = values[torch.randperm(9, generator=generator)]
        assert symmetry_test(shuffled).butler == pytest.approx(1 / 9)
        assert symmetry_test(-shuffled).butler == pytest.approx(1 / 9)


def test_zeros_carry_no_sign():
    values = sample(100)
    padded = torch.cat([values, torch.zeros(900, dtype=torch.float64), -torch.zeros(3)])
    assert symmetry_test(padded) == symmetry_test(values)
    assert sign_balance(padded) == sign_balance(values)


@pytest.mark.parametrize("values", [torch.empty(0), torch.zeros(4), torch.zeros(2, 2)])
def test_nothing_to_test_is_nan_with_a_reason(values):
    test = symmetry_test(values)
    assert test.n == 0
    assert test.reason == f"no nonzero value among {values.numel()}"
    numbers = [
        test.sign_balance,
        *test.interval,
        test.butler,
        test.butler_p,
        test.odd_moment,
        test.w_sym,
        test.w_sym_null,
    ]
    assert all(math.isnan(number) for number in numbers)
    balance = sign_balance(values)
    assert balance.n == 0
    assert math.isnan(balance.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [symmetry_test, sign_balance])
def test_values_that_are_not_finite_are_refused(bad, function):
    with pytest.raises(ValueError, match="values must be finite, got 2 NaN or infinite of 3"):
        function(torch.tensor([1.0, bad, bad]))


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match="flips must be at least 1, got 0"):
        symmetry_test(torch.ones(3), flips=0)
    with pytest.raises(ValueError, match="values must be real"):
        sign_balance(torch.ones(3, dtype=torch.complex64))
    for function in (sign_balance, symmetry_test):
        with pytest.raises(TypeError, match="values must be a tensor, got list"):
            function([1.0, -1.0])


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e200, 1e308])
def test_any_scale(scale):
    test = symmetry_test(scale * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert test.odd_moment == pytest.approx(1 / 3)
    assert test.w_sym == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_any_real_dtype_and_shape(dtype):
    values = torch.tensor([[1, 3], [-2, 1]]).to(dtype)
    assert symmetry_test(values) == symmetry_test(values.reshape(-1).double())
    assert sign_balance(values).value == 0.5


def test_parameters_are_accepted():
    assert isinstance(symmetry_test(torch.nn.Parameter(sample(10))), SymmetryTest)


def test_seeded_and_outside_the_global_generator():
    before = torch.get_rng_state()
    assert symmetry_test(sample(50), seed=1) == symmetry_test(sample(50), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    other = symmetry_test(sample(50), seed=2)
    assert other.w_sym_null != symmetry_test(sample(50), seed=1).w_sym_null
    assert other.w_sym == symmetry_test(sample(50), seed=1).w_sym
