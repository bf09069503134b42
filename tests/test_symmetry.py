import math
from itertools import product
from statistics import NormalDist

import pytest
import torch

from torch_thermo.symmetry import (
    SymmetryTest,
    _brownian_tail,
    _mean_walk,
    _spread,
    sign_balance,
    symmetry_test,
)

CRITICAL = {0.10: 1.960, 0.05: 2.2414, 0.01: 2.8070}
PHI = NormalDist().cdf


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


@pytest.mark.parametrize(("level", "critical"), CRITICAL.items())
def test_critical_values(critical, level):
    assert _brownian_tail(critical) == pytest.approx(level, rel=2e-4)


def test_the_two_series_of_the_law_agree():
    below, above = _brownian_tail(1.0 - 1e-12), _brownian_tail(1.0)
    assert below == pytest.approx(above, abs=1e-11)
    assert _brownian_tail(0.0) == 1.0
    assert _brownian_tail(0.2) == pytest.approx(1.0, abs=1e-9)
    assert 0.0 < _brownian_tail(8.0) < 1e-14


def reaching(n: int, height: int) -> float:
    """P(max |S_k| >= height) of a simple random walk of n steps, exactly."""
    inside = torch.zeros(2 * height - 1, dtype=torch.float64)
    inside[height - 1] = 1.0
    for _ in range(n):
        moved = torch.zeros_like(inside)
        moved[1:] += inside[:-1] / 2
        moved[:-1] += inside[1:] / 2
        inside = moved
    return 1.0 - float(inside.sum())


def size(n: int, level: float) -> float:
    """How often a sample of n is rejected at a level under symmetry: D n is a whole number."""
    return reaching(n, next(h for h in range(1, n + 1) if _brownian_tail(h / n**0.5) <= level))


def test_null_levels():
    """At n = 1000 the exact sizes are .1000, .0494 and .0097."""
    generator = torch.Generator().manual_seed(0)
    tests = [
        symmetry_test(row)
        for row in torch.randn(4000, 1000, generator=generator, dtype=torch.float64)
    ]
    for (level, critical), exact in zip(CRITICAL.items(), (0.1, 0.0494, 0.0097), strict=True):
        assert size(1000, level) == pytest.approx(exact, abs=6e-5)
        error = math.sqrt(exact * (1 - exact) / len(tests))
        rejected = sum(math.sqrt(1000) * test.butler >= critical for test in tests)
        assert rejected / len(tests) == pytest.approx(exact, abs=4 * error)
        assert rejected == sum(test.butler_p <= level for test in tests)


@pytest.mark.parametrize("n", [5, 10, 20, 50, 100, 400])
def test_small_samples_are_rejected_rather_too_seldom(n):
    """The asymptotic law: conservative but for a few n, where it rejects a twentieth too often."""
    for level in CRITICAL:
        if _brownian_tail(math.sqrt(n)) <= level:  # else nothing is rejected
            assert size(n, level) <= 1.06 * level
            assert size(n, level) >= 0.25 * level


@pytest.mark.parametrize("n", [7, 12])
def test_the_law_of_butlers_statistic_is_that_of_the_walk(n):
    """Exactly, over all sign patterns."""
    sizes = torch.arange(n, 0, -1, dtype=torch.float64)
    found = [
        symmetry_test(torch.tensor(signs, dtype=torch.float64) * sizes).butler
        for signs in product((1.0, -1.0), repeat=n)
    ]
    for height in range(1, n + 1):
        share = sum(butler * n > height - 0.5 for butler in found) / len(found)
        assert share == pytest.approx(reaching(n, height), abs=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize("n", [20, 200])
def test_coverage_of_the_interval(n, share):
    """Exactly, over the binomial law: near 95 % for any share, where a plain one falls to 0."""
    coverage = 0.0
    for positive in range(n + 1):
        values = torch.ones(n)
        values[positive:] = -1.0
        low, high = sign_balance(values).interval
        if low <= 2 * share - 1 <= high:
            coverage += math.comb(n, positive) * share**positive * (1 - share) ** (n - positive)
    assert 0.92 < coverage < 0.99


def test_null_interval_covers():
    covered = [
        low <= 0.0 <= high
        for low, high in (sign_balance(sample(200, seed)).interval for seed in range(500))
    ]
    assert 0.91 < sum(covered) / 500 < 0.985


@pytest.mark.parametrize("shift", [0.05, 0.3, -1.0, 3.0])
def test_shifted_gaussian(shift):
    """All four numbers of N(shift, 1) are known."""
    n = 40_000
    test = symmetry_test(sample(n) + shift)
    bell = math.sqrt(2 / math.pi) * math.exp(-(shift**2) / 2)
    balance = 2 * PHI(shift) - 1
    size = bell + shift * balance  # E|v|
    cubes = (shift**2 + 2) * bell + (shift**3 + 3 * shift) * balance  # E|v|^3
    error = 4 / math.sqrt(n)
    assert test.sign_balance == pytest.approx(balance, abs=error)
    assert test.butler == pytest.approx(abs(balance), abs=error)
    # -v is v moved by 2 shift: so far W1 takes it
    assert test.w_sym == pytest.approx(abs(shift) / size, abs=2 * error)
    assert test.odd_moment == pytest.approx((shift**3 + 3 * shift) / cubes, abs=4 * error)
    assert test.butler_p < 1e-6


@pytest.mark.parametrize("share", [0.5, 0.55, 0.8, 0.1])
def test_mixture_of_signs(share):
    """|v| of any law, a sign of its own: every measure is 2 share - 1."""
    n = 40_000
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randn(n, 2, generator=generator, dtype=torch.float64).prod(dim=1).abs()
    draws = torch.rand(n, generator=generator, dtype=torch.float64)
    test = symmetry_test(torch.where(draws < share, sizes, -sizes))
    balance = 2 * share - 1
    assert test.sign_balance == pytest.approx(balance, abs=4 / math.sqrt(n))
    assert test.butler == pytest.approx(abs(balance), abs=4 / math.sqrt(n))
    assert test.odd_moment == pytest.approx(balance, abs=0.25)  # few of heavy tails decide
    assert test.w_sym == pytest.approx(abs(balance), abs=4 * test.w_sym_null)
    assert test.w_sym_null < 0.02


@pytest.mark.parametrize(("large", "small"), [(3.0, 1.0), (1.0, 1.0), (5.0, 0.25)])
@pytest.mark.parametrize("many", [1, 4, 5, 9])
def test_two_points(large, small, many):
    """`many` of ten at +large, the others at -small."""
    test = symmetry_test(torch.tensor([large] * many + [-small] * (10 - many)))
    p, q = many / 10, 1 - many / 10
    distance = p * (large - small) + abs(p - q) * small
    assert test.w_sym == pytest.approx(distance / (p * large + q * small))
    assert test.sign_balance == pytest.approx(p - q)
    assert test.butler == pytest.approx(max(p if large > small else 0.0, abs(p - q)))
    cubes = p * large**3, q * small**3
    assert test.odd_moment == pytest.approx((cubes[0] - cubes[1]) / sum(cubes))


def test_power():
    """A share .55 of 1000 values: the walk's end alone passes the level with probability .82."""
    n, share, trials = 1000, 0.55, 800
    generator = torch.Generator().manual_seed(2)
    sizes = torch.rand(trials, n, generator=generator, dtype=torch.float64)
    signs = torch.rand(trials, n, generator=generator) < share
    p = [symmetry_test(row).butler_p for row in torch.where(signs, sizes, -sizes)]
    end = NormalDist((2 * share - 1) * math.sqrt(n), math.sqrt(4 * share * (1 - share)))
    least = 1 - end.cdf(CRITICAL[0.05])
    seen = sum(value <= 0.05 for value in p) / trials
    assert seen > least - 4 * math.sqrt(least * (1 - least) / trials)
    assert seen < 0.95  # and a test that always rejects is none


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


@pytest.mark.parametrize("values", [sample(9), torch.tensor([2.0] * 4 + [1.0] * 3 + [9.0, 0.5])])
def test_the_null_is_the_mean_over_all_sign_flips(values):
    flipped = [
        symmetry_test(values * torch.tensor(signs)).w_sym
        for signs in product((1.0, -1.0), repeat=len(values))
    ]
    null = symmetry_test(values).w_sym_null
    assert null == pytest.approx(sum(flipped) / len(flipped), rel=1e-12)
    assert max(flipped) > null > min(flipped)


def test_the_null_is_the_mean_of_simulated_ones():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(5000, 12, generator=generator, dtype=torch.float64).prod(dim=1)
    flips = torch.randint(0, 2, (400, 5000), generator=generator) * 2 - 1
    simulated = torch.tensor([symmetry_test(row).w_sym for row in flips * values])
    error = float(simulated.std()) / math.sqrt(400)
    assert symmetry_test(values).w_sym_null == pytest.approx(float(simulated.mean()), abs=4 * error)
    assert error < 0.005


def test_the_walk_in_the_mean():
    mean = _mean_walk(40)
    for k in range(1, 41):
        exact = sum(abs(k - 2 * j) * math.comb(k, j) for j in range(k + 1)) / 2**k
        assert float(mean[k - 1]) == pytest.approx(exact, rel=1e-13)
    long = _mean_walk(2_000_001)
    assert len(long) == 2_000_001
    # sqrt(2 k / pi) (1 - 1 / (4 k)) for even k
    k = 2_000_000
    assert float(long[k - 1]) == pytest.approx(math.sqrt(2 * k / math.pi) * (1 - 0.25 / k), 1e-11)


@pytest.mark.parametrize(
    ("n", "expected", "scatter", "draws"),
    [(1_000, 0.296, 0.109, 100), (10_000, 0.147, 0.057, 100), (100_000, 0.058, 0.0164, 20)],
)
def test_null_of_products_of_twelve_factors(n, expected, scatter, draws):
    """Means and scatter of the null over many such samples, from 2000, 400 and 600 of them."""
    generator = torch.Generator().manual_seed(1)
    nulls = [
        symmetry_test(
            torch.randn(n, 12, generator=generator, dtype=torch.float64).prod(dim=1)
        ).w_sym_null
        for _ in range(draws)
    ]
    assert sum(nulls) / draws == pytest.approx(expected, abs=4 * scatter / math.sqrt(draws))


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
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        symmetry_test(torch.ones(3), most=0)
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


def test_order_at_most_so_many():
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(30_000, generator=generator) + 0.1
    values[::3] = 0.0
    whole, part = symmetry_test(values), symmetry_test(values, most=5000)
    assert (whole.n, whole.ranked) == (20_000, 20_000)
    assert (part.n, part.ranked) == (20_000, 5000)
    # what needs no order is that of all
    for name in ("sign_balance", "interval", "odd_moment"):
        assert getattr(part, name) == getattr(whole, name)
    assert part.butler == pytest.approx(whole.butler, abs=4 / math.sqrt(5000))
    assert part.butler != whole.butler
    assert part.butler_p == pytest.approx(_brownian_tail(math.sqrt(5000) * part.butler))
    assert part.w_sym == pytest.approx(whole.w_sym, abs=4 * part.w_sym_null)
    # the floor of fewer values is higher
    assert part.w_sym_null == pytest.approx(2 * whole.w_sym_null, rel=0.05)
    for most in (20_000, 10**9):
        assert symmetry_test(values, most=most) == whole


def test_what_is_ordered_is_drawn_evenly():
    for n, most in ((1000, 1), (1000, 37), (1000, 999), (9 * 4096, 4096), (7, 7)):
        chosen = _spread(n, most, seed=0)
        assert len(set(chosen.tolist())) == most
        assert chosen.min() >= 0
        assert chosen.max() < n
        # one of each stretch, so no part is passed over
        assert (chosen.sort().values - torch.arange(most) * n / most).abs().max() <= n / most
    taps = (_spread(9 * 4096, 4096, seed=0) % 9).bincount(minlength=9)
    assert (taps - 4096 / 9).abs().max() < 4 * math.sqrt(4096 * 8 / 81)
    ends = torch.tensor([int(_spread(10, 1, seed)) for seed in range(400)]).bincount(minlength=10)
    assert ends.min() > 15


def test_seeded_and_outside_the_global_generator():
    before = torch.get_rng_state()
    values = sample(500)
    one = symmetry_test(values, seed=1, most=50)
    assert one == symmetry_test(values, seed=1, most=50)
    assert torch.equal(torch.get_rng_state(), before)
    other = symmetry_test(values, seed=2, most=50)
    assert other.w_sym != one.w_sym
    assert other.sign_balance == one.sign_balance


def test_ties_are_those_of_the_sizes_whatever_their_range():
    """1e-300 / 1e300 is 0 in float64: the small ones must not drop out of the walk."""
    test = symmetry_test(torch.tensor([1e300] + [1e-300] * 1000, dtype=torch.float64))
    assert test.sign_balance == test.butler == test.w_sym == 1.0
    mixed = symmetry_test(torch.tensor([1e300, -1e-300, 2e-300], dtype=torch.float64))
    assert mixed.butler == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"most": 2.5}, "most must be a whole number, got 2.5"),
        ({"most": True}, "most must be a whole number, got True"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
    ],
)
def test_numbers_that_are_no_whole_numbers(arguments, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        symmetry_test(torch.ones(5), **arguments)


@pytest.mark.parametrize("test", [symmetry_test, sign_balance])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(3).to_sparse(), "values must be dense, got torch.sparse_coo"),
        (torch.ones(3, dtype=torch.uint16), "torch can compare, got torch.uint16"),
        (torch.ones(0, dtype=torch.uint64), "torch can compare, got torch.uint64"),
    ],
)
def test_tensors_that_cannot_be_ordered(test, values, message):
    with pytest.raises(ValueError, match=message):
        test(values)
