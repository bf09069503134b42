import pytest
import torch

from torch_thermo.spectra import hadamard_order, probe_blocks, rademacher

THREE = {"a": slice(0, 5), "b": slice(5, 6), "c": slice(6, 11)}


def gather(dimension, count, **options):
    return torch.cat(list(probe_blocks(dimension, count, **options)), dim=1)


def test_signs_are_fair_and_independent():
    signs = rademacher(20_000, 3, seed=1)
    assert signs.dtype == torch.int8
    assert signs.shape == (20_000, 3)
    assert set(signs.unique().tolist()) == {-1, 1}
    gram = signs.double().T @ signs.double() / 20_000
    # four standard deviations, 4 / sqrt(20000)
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.03)
    assert signs.double().mean(dim=0).abs().max() < 0.03


def test_first_probes_do_not_depend_on_the_count_or_the_chunk():
    five = rademacher(40, 5, seed=2)
    assert torch.equal(rademacher(40, 2, seed=2), five[:, :2])
    assert torch.equal(gather(40, 5, seed=2, chunk=2), five)
    assert not torch.equal(rademacher(40, 5, seed=3), five)


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    rademacher(10, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("blocks", "probes", "order"),
    [
        (None, 32, 1),
        ({}, 32, 1),
        ({"all": slice(0, 11)}, 32, 1),
        ({"half": slice(0, 5)}, 32, 2),
        (THREE, 3, 1),
        (THREE, 4, 4),
        (THREE, 32, 4),
        ({f"{i}": slice(i, i + 1) for i in range(11)}, 32, 16),
        ({"a": slice(0, 6), "empty": slice(6, 6), "b": slice(6, 11)}, 32, 2),
    ],
)
def test_order_of_the_hadamard_groups(blocks, probes, order):
    assert hadamard_order(11, probes, blocks) == order


@pytest.mark.parametrize("order", [4, 8])
def test_complete_groups_cancel_between_blocks_and_nowhere_else(order):
    signs = gather(11, 2 * order, order=order, blocks=THREE, seed=4, chunk=3).double()
    for group in signs.split(order, dim=1):
        gram = group @ group.T / order
        for name, span in THREE.items():
            for other, across in THREE.items():
                expected = 0.0 if name != other else 1.0
                assert (gram[span, across].abs() == expected).all()
    assert not torch.equal(signs[:, 0], signs[:, order])


def test_as_many_blocks_as_probes():
    blocks = {str(i): slice(2 * i, 2 * i + 2) for i in range(8)}
    signs = gather(16, 8, order=8, blocks=blocks, seed=4).double()
    within = torch.block_diag(*[torch.ones(2, 2, dtype=torch.float64)] * 8)
    assert torch.equal((signs @ signs.T / 8).abs(), within)


def test_coordinates_outside_the_blocks_are_one_more_block():
    blocks = {"a": slice(2, 4), "b": slice(6, 9)}
    signs = gather(11, 4, order=4, blocks=blocks, seed=0).double()
    gram = signs @ signs.T / 4
    rest = [0, 1, 4, 5, 9, 10]
    assert (gram[rest][:, rest].abs() == 1.0).all()
    assert (gram[rest][:, [2, 3, 6, 7, 8]] == 0.0).all()


@pytest.mark.parametrize(
    "blocks",
    [
        {"a": slice(0, 5), "b": slice(4, 11)},
        {"a": slice(0, 12)},
        {"a": slice(0, 11, 2)},
    ],
)
def test_blocks_must_be_disjoint_slices_inside(blocks):
    with pytest.raises(ValueError, match="blocks must be disjoint slices of 11 coordinates"):
        hadamard_order(11, 8, blocks)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="dimension must be at least 1, got 0"):
        rademacher(0, 1)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        rademacher(1, 0)
    with pytest.raises(TypeError, match=r"dimension must be a whole number, got 2\.5"):
        rademacher(2.5, 1)
    with pytest.raises(TypeError, match="count must be a whole number, got True"):
        rademacher(1, True)
