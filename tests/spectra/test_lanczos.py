import gc
import math

import numpy as np
import pytest
import torch
from torch.nn.parameter import UninitializedTensorMixin

from torch_thermo.spectra import lanczos, lanczos_memory, rademacher


def symmetric(eigenvalues, seed=0, dtype=torch.float64):
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(square).Q
    matrix = q @ torch.diag(values) @ q.T
    return ((matrix + matrix.T) / 2).to(dtype)


def bulk_with_outliers(n=200):
    bulk = torch.linspace(-0.5, 1.0, n - 2, dtype=torch.float64)
    return torch.cat([bulk, torch.tensor([-2.0, 5.0], dtype=torch.float64)])


def reference_lanczos(matrix, start, steps):
    """Rayleigh-Ritz on the Krylov space, one vector at a time: Ritz values and weights."""
    a = matrix.double().numpy()
    basis = [start.double().numpy() / np.linalg.norm(start.double().numpy())]
    for _ in range(steps - 1):
        w = a @ basis[-1]
        for _ in range(3):
            for q in basis:
                w = w - (q @ w) * q
        basis.append(w / np.linalg.norm(w))
    q = np.array(basis)
    ritz, vectors = np.linalg.eigh(q @ a @ q.T)
    return torch.from_numpy(ritz), torch.from_numpy(vectors[0] ** 2)


class Counting:
    """A matrix that counts its columns and can look around at every product."""

    def __init__(self, matrix, look=None):
        self.matrix, self.look, self.columns = matrix, look, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        self.columns += 1 if vectors.ndim == 1 else vectors.shape[1]
        if self.look is not None:
            self.look(vectors)
        return self.matrix @ vectors


def test_two_by_two_closed_form():
    run = lanczos(
        torch.tensor([[2.0, 1.0], [1.0, 0.0]], dtype=torch.float64),
        steps=2,
        start=torch.tensor([3.0, 0.0], dtype=torch.float64),
    )
    expected = torch.tensor([1 - math.sqrt(2), 1 + math.sqrt(2)], dtype=torch.float64)
    torch.testing.assert_close(run.ritz[0], expected)
    torch.testing.assert_close(run.alphas[0], torch.tensor([2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(run.betas[0], torch.tensor([1.0], dtype=torch.float64))
    # e_1 in the eigenvectors (x, 1) / norm with x = lambda
    torch.testing.assert_close(run.weights[0], expected**2 / (expected**2 + 1))
    assert run.steps.tolist() == [2]
    assert run.products == 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_full_run_gives_all_eigenvalues(dtype, tolerance):
    matrix = symmetric(torch.linspace(-1, 2, 25), dtype=dtype)
    run = lanczos(matrix, steps=25)
    expected = torch.linalg.eigvalsh(matrix.double())
    torch.testing.assert_close(run.ritz[0], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("basis", ["full", "none"])
def test_agrees_with_the_reference_on_the_same_start(dtype, tolerance, basis):
    matrix = symmetric(bulk_with_outliers(), dtype=dtype)
    start = rademacher(200, 1, seed=7)[:, 0]
    run = lanczos(matrix, steps=12, basis=basis, start=start)
    ritz, weights = reference_lanczos(matrix, start, 12)
    scale = 5.0
    torch.testing.assert_close(run.ritz[0, [0, -1]], ritz[[0, -1]], rtol=0, atol=scale * tolerance)
    if basis == "full":
        torch.testing.assert_close(run.ritz[0], ritz, rtol=0, atol=scale * tolerance)
        torch.testing.assert_close(run.weights[0], weights, rtol=0, atol=20 * tolerance)


def test_extremes_converge_to_the_spectrum_s_ends():
    run = lanczos(symmetric(bulk_with_outliers()), steps=30)
    ends = torch.tensor([-2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(run.ritz[0, [0, -1]], ends, rtol=0, atol=1e-10)
    assert run.residuals[0, [0, -1]].max() < 1e-6


@pytest.mark.parametrize("steps", [3, 8, 20])
def test_residual_bounds_hold_and_are_the_vectors_residuals(steps):
    eigenvalues = bulk_with_outliers()
    matrix = symmetric(eigenvalues)
    run = lanczos(matrix, steps=steps)
    distance = (run.ritz[0][:, None] - eigenvalues).abs().amin(dim=1)
    assert (distance <= run.residuals[0] + 1e-12).all()
    vectors = run.extreme_vectors
    residual = (matrix @ vectors - vectors * run.ritz[0, [0, -1]]).norm(dim=0)
    torch.testing.assert_close(residual, run.residuals[0, [0, -1]], rtol=1e-6, atol=1e-12)


def test_extreme_vectors_are_unit_eigenvectors():
    matrix = symmetric(bulk_with_outliers(), dtype=torch.float32)
    vectors = lanczos(matrix, steps=30).extreme_vectors
    assert vectors.shape == (200, 2)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        matrix @ vectors, vectors * torch.tensor([-2.0, 5.0]), rtol=0, atol=2e-5
    )


def test_one_step_gives_the_same_vector_twice():
    vectors = lanczos(symmetric([1.0, 2.0, 4.0]), steps=1).extreme_vectors
    assert torch.equal(vectors[:, 0], vectors[:, 1])


def test_no_basis_no_vectors():
    run = lanczos(symmetric([1.0, 2.0]), steps=2, basis="none")
    with pytest.raises(ValueError, match="basis"):
        _ = run.extreme_vectors


def test_ghosts_come_without_reorthogonalisation_only():
    eigenvalues = torch.cat([torch.linspace(0, 1, 299, dtype=torch.float64), torch.tensor([10.0])])
    matrix = symmetric(eigenvalues)
    copies = {}
    for basis in ("full", "none"):
        ritz = lanczos(matrix, steps=100, basis=basis).ritz[0]
        copies[basis] = int(((ritz - 10.0).abs() < 1e-6).sum())
        assert ritz[-1] == pytest.approx(10.0, abs=1e-10)
        assert ritz[0] == pytest.approx(0.0, abs=1e-4)
    assert copies["full"] == 1
    assert copies["none"] >= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_operator(dtype):
    run = lanczos(torch.zeros(6, 6, dtype=dtype), steps=4, probes=2)
    assert run.steps.tolist() == [1, 1]
    assert run.products == 2
    assert run.ritz[:, 0].tolist() == [0.0, 0.0]
    assert run.residuals[:, 0].tolist() == [0.0, 0.0]
    assert run.weights.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2
    for padded in (run.ritz[:, 1:], run.residuals[:, 1:], run.alphas[:, 1:], run.betas):
        assert padded.isnan().all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_identity_ends_after_one_step_at_any_scale(scale):
    run = lanczos(scale * torch.eye(50), steps=10)
    assert run.steps.tolist() == [1]
    assert run.ritz[0, 0].item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_one_ends_after_two_steps_exactly(dtype):
    u = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, -2.0], dtype=dtype)
    run = lanczos(torch.outer(u, u), steps=6)
    assert run.steps.tolist() == [2]
    start = rademacher(6, 1)[:, 0].to(dtype)
    norm = (u @ u).item()
    expected = torch.tensor([0.0, norm], dtype=torch.float64)
    close = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(run.ritz[0, :2], expected, rtol=0, atol=close * norm)
    cosine2 = (u @ start).item() ** 2 / (norm * 6)
    assert run.weights[0, 1].item() == pytest.approx(cosine2, rel=100 * close)


def test_tiny_float32_operators_keep_their_norm():
    # squares of these entries are 0 in float32
    matrix = symmetric(torch.linspace(-1, 2, 20), dtype=torch.float32) * 1e-25
    run = lanczos(matrix, steps=20)
    expected = torch.linalg.eigvalsh(matrix.double())
    torch.testing.assert_close(run.ritz[0], expected, rtol=0, atol=1e-30)


def test_a_probe_that_stops_leaves_the_others_alone_and_is_not_counted():
    matrix = symmetric(bulk_with_outliers(60))
    eigenvector = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    other = rademacher(60, 2, seed=3).double()
    start = torch.stack([other[:, 0], eigenvector, other[:, 1]], dim=1)
    op = Counting(matrix)
    run = lanczos(op, steps=10, start=start)
    assert run.steps.tolist() == [10, 1, 10]
    assert run.products == op.columns == 21
    assert run.ritz[1, 0].item() == pytest.approx(5.0, abs=1e-10)
    for probe in (0, 2):
        alone = lanczos(matrix, steps=10, start=start[:, probe])
        torch.testing.assert_close(run.ritz[probe], alone.ritz[0], rtol=0, atol=1e-11)
        torch.testing.assert_close(run.weights[probe], alone.weights[0], rtol=0, atol=1e-11)


def test_steps_are_cut_to_n():
    run = lanczos(symmetric([1.0, 2.0, 4.0]), steps=50, probes=2)
    assert run.ritz.shape == (2, 3)
    assert run.betas.shape == (2, 2)


def test_a_single_coordinate():
    run = lanczos(torch.tensor([[-3.0]]), steps=5)
    assert run.ritz.tolist() == [[-3.0]]
    assert run.betas.shape == (1, 0)


def test_tol_stops_by_the_residual_bound():
    matrix = symmetric(bulk_with_outliers())
    op = Counting(matrix)
    run = lanczos(op, steps=100, probes=3, tol=1e-4)
    assert int(run.steps.max()) < 40
    assert run.products == op.columns == int(run.steps.sum())
    for probe, size in enumerate(run.steps.tolist()):
        ends = [0, size - 1]
        bound = 1e-4 * run.ritz[probe, ends].abs().max()
        assert (run.residuals[probe, ends] <= bound).all()
        assert run.ritz[probe, 0].item() == pytest.approx(-2.0, abs=5e-4)
        assert run.ritz[probe, size - 1].item() == pytest.approx(5.0, abs=5e-4)
        # one step earlier the bound did not hold
        before = lanczos(matrix, steps=size - 1, probes=3)
        assert (before.residuals[probe, [0, -1]] > 1e-4 * before.ritz[probe].abs().max()).any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_tol_waits_for_both_ends(sign):
    # one end is an outlier and converges at once, the other is the edge of a dense bulk
    eigenvalues = torch.cat([torch.linspace(-1, 1, 199).double(), torch.tensor([100.0]).double()])
    run = lanczos(symmetric(sign * eigenvalues), steps=100, tol=1e-4)
    size = int(run.steps[0])
    assert size > 8
    bulk_end = run.ritz[0, 0 if sign > 0 else size - 1].item()
    assert bulk_end == pytest.approx(-sign, abs=0.01)


def test_warm_start_saves_products():
    old = symmetric(bulk_with_outliers())
    noise = torch.randn(200, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    new = old + 1e-4 * (noise + noise.T)
    cold = lanczos(new, steps=100, tol=1e-3)
    warm_start = lanczos(old, steps=30).extreme_vectors.sum(dim=1)
    warm = lanczos(new, steps=100, tol=1e-3, start=warm_start)
    assert warm.products <= cold.products / 2
    torch.testing.assert_close(
        warm.ritz[0, [0, warm.steps[0] - 1]],
        torch.linalg.eigvalsh(new)[[0, -1]],
        rtol=0,
        atol=5e-3,
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite_names_the_step(bad):
    def poison(vectors):
        if op.columns == 3:
            matrix[0, 0] = bad

    matrix = symmetric(torch.linspace(1, 2, 10))
    op = Counting(matrix, poison)
    with pytest.raises(FloatingPointError, match=r"step 2 .*weights or the loss"):
        lanczos(op, steps=8)


def test_an_operator_that_returns_its_argument_is_not_overwritten():
    class Same(Counting):
        def __matmul__(self, vectors):
            return vectors

    run = lanczos(Same(torch.eye(8)), steps=4)
    assert run.ritz[0, 0].item() == pytest.approx(1.0, abs=1e-6)
    assert run.steps.tolist() == [1]


def test_gradients_are_not_recorded():
    matrix = symmetric([1.0, 2.0, 5.0]).requires_grad_()
    run = lanczos(matrix, steps=3)
    assert not run.ritz.requires_grad
    assert not run.extreme_vectors.requires_grad


@pytest.mark.parametrize("basis", ["full", "none"])
@pytest.mark.parametrize("probes", [1, 3])
def test_memory_is_what_it_says(basis, probes):
    n, steps, seen = 4000, 4, []

    def storages():
        return {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            # parameters of lazy modules, left by other tests, have no size
            if issubclass(type(t), torch.Tensor)
            and not isinstance(t, UninitializedTensorMixin)
            and t.numel() >= n
        }

    def look(vectors):
        # what other tests left behind is not this run's
        seen.append(sum(size for place, size in storages().items() if place not in before))

    diagonal = torch.linspace(-1, 1, n)[:, None]
    gc.collect()
    before = storages()

    class Diagonal(Counting):
        def __matmul__(self, vectors):
            look(vectors)
            return diagonal * vectors

    op = Diagonal(torch.zeros(1, 1))
    op.shape = (n, n)
    lanczos(op, steps, probes=probes, basis=basis)
    limit = lanczos_memory(n, steps, probes, basis, torch.float32)
    assert max(seen) <= limit
    floor = (steps if basis == "full" else 0) + 2
    assert max(seen) >= floor * probes * n * 4
    assert limit <= (floor + 4) * probes * n * 4


def test_memory_is_cut_at_n_and_checked():
    assert lanczos_memory(10, 1000, dtype=torch.float64) == lanczos_memory(
        10, 10, dtype=torch.float64
    )
    assert lanczos_memory(10, 5, 2, "none") == lanczos_memory(10, 50, 2, "none")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        lanczos_memory(10, 0)


def test_seeded_and_outside_the_global_generator():
    matrix = symmetric(bulk_with_outliers(), dtype=torch.float32)
    before = torch.get_rng_state()
    one, two = (lanczos(matrix, steps=10, probes=2, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.ritz, two.ritz)
    assert torch.equal(one.weights, two.weights)
    assert not torch.equal(one.ritz, lanczos(matrix, steps=10, probes=2, seed=6).ritz)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"basis": "some"}, "basis must be .* got 'some'"),
        ({"tol": -1.0}, "tol must be at least 0, got -1.0"),
        ({"tol": math.nan}, "tol must be at least 0, got nan"),
        ({"start": torch.ones(3)}, r"start must be \(4,\) or \(4, k\), got \(3,\)"),
        ({"start": torch.ones(4, 0)}, "start must be"),
        ({"start": torch.ones(4, 2), "probes": 3}, "probes must be start's 2 columns, got 3"),
        ({"start": torch.zeros(4)}, "start must not be zero"),
        ({"start": torch.tensor([1.0, math.nan, 0.0, 0.0])}, "start must be finite"),
        ({"op": torch.ones(4, 3)}, r"op must be square .* got shape \(4, 3\)"),
        ({"op": torch.ones(0, 0)}, "op must be square"),
        ({"op": torch.eye(4, dtype=torch.bfloat16)}, "float32 or float64, got torch.bfloat16"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        lanczos(**{"op": torch.eye(4), "steps": 3, **arguments})


@pytest.mark.parametrize("name", ["steps", "probes"])
@pytest.mark.parametrize("value", [2.5, True, "3", None])
def test_numbers_must_be_whole(name, value):
    message = f"{name} must be a whole number, got {value!r}"
    arguments = {"steps": 3, name: value}
    with pytest.raises(TypeError, match=message):
        lanczos(torch.eye(4), **arguments)
    with pytest.raises(TypeError, match=message):
        lanczos_memory(4, **arguments)


def test_a_product_of_another_shape_is_refused():
    class Wrong(Counting):
        def __matmul__(self, vectors):
            return vectors[:, 0]

    with pytest.raises(ValueError, match="must have v's shape"):
        lanczos(Wrong(torch.eye(4)), steps=2)
