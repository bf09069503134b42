import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_thermo.symmetry import sign_balance, symmetry_test

# few distinct sizes, so that ties and zeros are common
samples = st.lists(st.integers(-4, 4) | st.floats(-5, 5, allow_subnormal=False), max_size=30).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
quick = settings(deadline=None, max_examples=80)


@quick
@given(samples)
def test_every_number_is_in_its_range(values):
    test = symmetry_test(values)
    if test.n == 0:
        return
    assert 0.0 <= test.butler <= 1.0
    assert 0.0 <= test.butler_p <= 1.0
    assert -1 - 1e-12 <= test.odd_moment <= 1 + 1e-12
    assert -1e-12 <= test.w_sym <= 1 + 1e-12
    assert -1.0 <= test.interval[0] <= test.sign_balance <= test.interval[1] <= 1.0
    assert test.butler >= abs(test.sign_balance)  # the walk's last value


@quick
@given(samples)
def test_mirroring_changes_signs_alone(values):
    one, other = symmetry_test(values), symmetry_test(-values)
    if one.n == 0:
        assert other.n == 0
        return
    assert other.sign_balance == -one.sign_balance
    assert other.butler == one.butler
    assert other.butler_p == one.butler_p
    assert abs(other.odd_moment + one.odd_moment) < 1e-12
    assert abs(other.w_sym - one.w_sym) < 1e-12
    assert other.w_sym_null == one.w_sym_null


@quick
@given(samples, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    one, other = symmetry_test(values), symmetry_test(values[order])
    assert (one.n, one.reason) == (other.n, other.reason)
    if one.n:
        assert (one.butler, one.w_sym_null) == (other.butler, other.w_sym_null)
        assert abs(one.w_sym - other.w_sym) < 1e-12


@quick
@given(samples)
def test_w_sym_is_the_distance_of_the_sorted_samples(values):
    test = symmetry_test(values)
    if test.n == 0:
        return
    ordered = values.sort().values
    direct = (ordered + ordered.flip(0)).abs().sum() / (2 * values.abs().sum())
    assert abs(test.w_sym - direct.item()) < 1e-12


@quick
@given(samples)
def test_the_cheap_balance_is_the_same(values):
    balance, test = sign_balance(values), symmetry_test(values)
    assert balance.n == test.n
    if test.n:
        assert (balance.value, balance.interval) == (test.sign_balance, test.interval)
