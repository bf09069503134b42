import math

import pytest
import torch

from torch_thermo.spectra import trace

SPANS = [slice(0, 6), slice(6, 13), slice(13, 17)]


class Blocked:
    def __init__(self, matrix, spans=SPANS):
        self.matrix, self.products, self.widest = matrix, 0, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device
        self.blocks = {str(i): span for i, span in enumerate(spans)}

    def __matmul__(self, vectors):
        self.products += vectors.shape[1]
        self.widest = max(self.widest, vectors.shape[1])
        return self.matrix @ vectors


def random_symmetric(seed=0, n=17, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return (matrix + matrix.T).to(dtype)


def only_between_blocks(matrix):
    matrix = matrix.clone()
    for span in SPANS:
        matrix[span, span] = 0.0
    return matrix


def only_own_blocks(matrix):
    return matrix - only_between_blocks(matrix)


@pytest.mark.parametrize("probes", [2, 5])
def test_diagonal_is_exact(probes):
    result = trace(torch.diag(torch.tensor([1.0, -4.0, 0.5])), probes=probes)
    assert result.value == -2.5
    assert result.stderr == 0.0


@pytest.mark.parametrize("probes", [4, 6, 8, 32])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_zero_own_blocks_give_zero_to_rounding(probes, dtype, tolerance):
    matrix = only_between_blocks(random_symmetric(dtype=dtype))
    size = torch.linalg.eigvalsh(matrix.double()).abs().sum().item()
    result = trace(Blocked(matrix), probes=probes)
    assert abs(result.value) <= tolerance * size
    assert result.stderr <= tolerance * size
    # plain signs see the noise between the blocks
    plain = trace(matrix, probes=probes)
    assert abs(plain.value) > 1e-3 * size
    assert plain.stderr > 1e-3 * size


def test_too_few_probes_for_a_group_are_plain():
    matrix = only_between_blocks(random_symmetric())
    assert trace(Blocked(matrix), probes=3) == trace(matrix, probes=3)


@pytest.mark.parametrize(("probes", "spent"), [(3, 3), (4, 4), (7, 4), (32, 32), (35, 32)])
def test_only_complete_groups_are_spent_a_few_columns_at_a_time(probes, spent):
    op = Blocked(random_symmetric())
    trace(op, probes=probes)
    assert op.products == spent
    assert op.widest <= 8


@pytest.mark.parametrize("blocked", [True, False])
def test_error_over_groups_or_probes_is_calibrated(blocked):
    matrix = random_symmetric()
    true = matrix.trace().item()
    op = Blocked(matrix) if blocked else matrix
    results = [trace(op, probes=40, seed=seed) for seed in range(200)]
    errors = torch.tensor([r.value - true for r in results], dtype=torch.float64)
    claimed = torch.tensor([r.stderr for r in results], dtype=torch.float64)
    # unbiased within four standard errors of 200 seeds; the errors are what is claimed
    assert errors.mean().abs() < 4 * errors.std() / math.sqrt(200)
    ratio = errors.square().mean().sqrt() / claimed.square().mean().sqrt()
    assert 0.85 < ratio.item() < 1.15


@pytest.mark.parametrize("form", [only_own_blocks, lambda matrix: matrix])
def test_error_of_a_single_group_is_never_too_small(form):
    # All probes of a group agree on the own blocks: a spread within the group would read 0 there.
    matrix = form(random_symmetric())
    results = [trace(Blocked(matrix), probes=4, seed=seed) for seed in range(300)]
    errors = torch.tensor([r.value for r in results], dtype=torch.float64) - matrix.trace()
    claimed = torch.tensor([r.stderr for r in results], dtype=torch.float64).square().mean().sqrt()
    own = only_own_blocks(matrix)
    noise = math.sqrt(2) * (own - torch.diag(own.diag())).norm().item()
    assert errors.square().mean().sqrt().item() == pytest.approx(noise, rel=0.15)
    assert claimed.item() == pytest.approx(math.sqrt(2) * own.norm().item(), rel=0.05)


def test_one_plain_probe_has_an_error_too():
    matrix = random_symmetric()
    result = trace(matrix, probes=1)
    assert result.stderr > 0.0
    assert abs(result.value - matrix.trace().item()) < 5 * result.stderr


def test_zero_operator():
    result = trace(torch.zeros(5, 5), probes=3)
    assert (result.value, result.stderr) == (0.0, 0.0)


def test_seeded_and_outside_the_global_generator():
    matrix = random_symmetric()
    before = torch.get_rng_state()
    assert trace(matrix, seed=3) == trace(matrix, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert trace(matrix, seed=3) != trace(matrix, seed=4)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        trace(torch.eye(3), probes=0)
    with pytest.raises(TypeError, match=r"probes must be a whole number, got 2\.5"):
        trace(torch.eye(3), probes=2.5)
    with pytest.raises(ValueError, match="op must be square"):
        trace(torch.ones(3, 2))


def test_not_finite():
    with pytest.raises(FloatingPointError, match="weights or the loss hold NaN"):
        trace(torch.full((3, 3), math.nan))
