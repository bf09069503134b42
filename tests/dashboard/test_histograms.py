from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from tests.dashboard.support import events
from torch_thermo import dashboard
from torch_thermo.dashboard.histograms import CHUNK


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    "values",
    [
        normal(5000),
        normal(5000) ** 9,  # a few entries a million times as large as most
        normal(5000).abs() + 1.0,
        -(normal(300) ** 2),
        torch.arange(-7, 20),
        normal(400).bfloat16(),
        normal(CHUNK + 10_000),
        torch.cat([torch.zeros(1000), normal(10)]),
    ],
    ids=["normal", "heavy", "positive", "negative", "whole", "bfloat16", "long", "zeros"],
)
def test_every_value_is_in_its_bin(values):
    before = values.clone()
    arrays = dashboard.histogram_arrays(values)
    counts, edges = arrays["counts"], arrays["edges"]
    exact = values.double().numpy()
    assert counts.shape == (65,)
    assert edges.shape == (66,)
    assert (np.diff(edges) > 0).all()
    # NumPy's own count over the same edges; a value on an edge may fall to either side
    expected, _ = np.histogram(exact, edges)
    on_an_edge = np.isclose(exact[:, None], edges, rtol=1e-9).sum() if len(exact) < CHUNK else 40
    assert np.abs(counts - expected).sum() <= 2 * on_an_edge
    assert counts.sum() == len(exact)
    assert arrays["stats"][:3].tolist() == [exact.min(), exact.max(), len(exact)]
    np.testing.assert_allclose(arrays["stats"][3:], [exact.sum(), exact @ exact], rtol=1e-9)
    assert torch.equal(values, before)


def test_float64_values_are_not_written_to():
    values = normal(100, dtype=torch.float64)
    before = values.clone()
    dashboard.histogram_arrays(values)
    assert torch.equal(values, before)


def test_a_symmetric_sample_has_symmetric_counts():
    half = normal(4000).abs() ** 3
    arrays = dashboard.histogram_arrays(torch.cat([half, -half, torch.zeros(777)]))
    counts, edges = arrays["counts"], arrays["edges"]
    np.testing.assert_allclose(edges, -edges[::-1], rtol=1e-12)
    # a rounding apart at the fine bins' edges
    assert np.abs(counts - counts[::-1]).sum() <= 4
    assert counts[32] >= 777  # the zeros are on neither side


def test_the_many_small_entries_are_resolved_beside_a_large_one():
    values = torch.cat([normal(10_000), torch.tensor([300.0])])
    counts = dashboard.histogram_arrays(values)["counts"]
    assert (counts > 100).sum() >= 15
    assert counts[-1] == 1


def test_counts_are_exact_beyond_what_float32_counts():
    """A float32 counter stands still at 2^24."""
    values = torch.cat([torch.zeros(2**24 + 5, dtype=torch.bfloat16), torch.ones(3).bfloat16()])
    counts = dashboard.histogram_arrays(values)["counts"]
    assert [int(counts[0]), int(counts[-1])] == [2**24 + 5, 3]


def test_what_is_not_finite_is_left_out():
    values = normal(20, 30)
    values[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    arrays = dashboard.histogram_arrays(values)
    assert arrays["counts"].sum() == 597
    finite = values[values.isfinite()].double()
    np.testing.assert_allclose(arrays["stats"][:2], [float(finite.min()), float(finite.max())])


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]])
def test_nothing_finite_gives_no_arrays(values, tmp_path):
    assert dashboard.histogram_arrays(torch.tensor(values)) == {}
    assert dashboard.layer_histograms({"a": torch.tensor(values)}) == {}
    with SummaryWriter(tmp_path) as writer:
        assert not dashboard.write_histogram(writer, "weights", values, 0)
    assert events(tmp_path).Tags()["histograms"] == []


@pytest.mark.parametrize("value", [2.0, -2.0, 0.0, 1e-30, 1e30])
def test_a_constant_is_in_one_bin(value, tmp_path):
    arrays = dashboard.histogram_arrays(torch.full((9,), value))
    (full,) = np.flatnonzero(arrays["counts"])
    assert (np.diff(arrays["edges"]) > 0).all()
    constant = np.float32(value)
    assert arrays["edges"][full] <= constant <= arrays["edges"][full + 1]
    with SummaryWriter(tmp_path) as writer:
        assert dashboard.write_histogram(writer, "weights", np.full(9, value), 0)
    (event,) = events(tmp_path).Histograms("weights")
    assert sum(event.histogram_value.bucket) == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_numbers_are_counted(dtype):
    top = torch.finfo(dtype).max
    arrays = dashboard.histogram_arrays(torch.tensor([-top, 0.0, top / 2, top], dtype=dtype))
    assert arrays["counts"].sum() == 4
    assert arrays["counts"][[0, 32, -1]].tolist() == [1, 1, 1]
    assert np.isfinite(arrays["edges"]).all()


def test_names_and_floor():
    arrays = dashboard.histogram_arrays(normal(5), prefix="x_", floor=-12.0)
    assert set(arrays) == {"x_counts", "x_edges", "x_stats", "x_floor"}
    assert arrays["x_floor"] == -12.0


@pytest.mark.parametrize("values", [[1.0, 2.0], torch.tensor([1j])])
def test_only_real_tensors_are_counted(values):
    with pytest.raises(TypeError, match="values must be a real tensor, got"):
        dashboard.histogram_arrays(values)


def test_layers_are_stacked_in_order_without_empty_ones():
    layers = {"a": normal(50), "broken": torch.tensor([math.nan]), "b": normal(70, seed=1)}
    arrays = dashboard.layer_histograms(layers)
    assert arrays["layer_names"].tolist() == ["a", "b"]
    for row, name in enumerate(("a", "b")):
        alone = dashboard.histogram_arrays(layers[name])
        for key in ("counts", "edges", "stats"):
            np.testing.assert_array_equal(arrays[f"layer_{key}"][row], alone[key])
    assert all(not array.dtype.hasobject for array in arrays.values())  # a store takes them


def test_layers_are_those_that_are_shown():
    names = [f"layer{i}" for i in range(200)]
    arrays = dashboard.layer_histograms({name: normal(3) for name in names})
    assert arrays["layer_names"].tolist() == dashboard.shown_layers(names)
    assert arrays["layer_counts"].shape == (64, 65)


def test_signed_log_keeps_sign_and_size():
    sign = torch.tensor([1, -1, 0, 1], dtype=torch.int8)
    size = torch.tensor([1e-3, 10.0, 0.0, 1e-9], dtype=torch.float64)
    read = dashboard.signed_log(sign, size.log(), -5.0)
    np.testing.assert_allclose(read.numpy(), [2.0, -6.0, 0.0, 0.0], atol=1e-12)
    assert read.dtype == torch.float64


def test_signed_log_leaves_nan_to_be_left_out():
    read = dashboard.signed_log(torch.tensor([1]), torch.tensor([math.nan]), -5.0)
    assert read.isnan().all()


@pytest.mark.parametrize(
    ("sign", "floor", "message"), [([1], math.nan, "floor must be finite"), ([1, 1], 0.0, "shape")]
)
def test_signed_log_refuses(sign, floor, message):
    with pytest.raises(ValueError, match=message):
        dashboard.signed_log(torch.tensor(sign), torch.zeros(1), floor)


@pytest.mark.parametrize(("smallest", "floor"), [(2e-3, -4.0), (1.5, -1.0), (9e-20, -21.0)])
def test_the_floor_is_a_decade_below_the_smallest(smallest, floor):
    sizes = torch.tensor([7.0, smallest, 0.0], dtype=torch.float64).log()
    assert dashboard.decade_floor(sizes) == floor
    assert math.isnan(dashboard.decade_floor(torch.tensor([-math.inf])))


def test_tensorboard_reads_every_number_back(tmp_path):
    values = normal(600)
    with SummaryWriter(tmp_path) as writer:
        assert dashboard.write_histogram(writer, "weights", values, 5)
    (event,) = events(tmp_path).Histograms("weights")
    read = event.histogram_value
    assert event.step == 5
    assert (read.min, read.max, read.num) == (float(values.min()), float(values.max()), 600)
    assert read.sum == pytest.approx(float(values.double().sum()))
    assert read.sum_squares == pytest.approx(float(values.double().square().sum()))
    # it takes the first bin from the smallest value on: none may end before
    assert sum(read.bucket) == 600
    assert read.min < read.bucket_limit[0]
    assert read.bucket_limit[-1] == pytest.approx(float(values.abs().max()))
    below = sum(n for n, end in zip(read.bucket, read.bucket_limit, strict=True) if end < 0)
    middle = read.bucket[np.searchsorted(read.bucket_limit, 0.0)]
    assert below <= int((values < 0).sum()) <= below + middle


def test_a_stored_measurement_becomes_a_histogram_and_one_a_layer(tmp_path):
    layers = {"net.0.weight": normal(50), "net.0.bias": normal(5, seed=1)}
    together = torch.cat(list(layers.values()))
    arrays = {**dashboard.histogram_arrays(together), **dashboard.layer_histograms(layers)}
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_figure(writer, "histogram", "weight_symmetry", arrays, 7)
    read = events(tmp_path)
    name = "thermo/weight_symmetry/histogram"
    sizes = {f"{name}/{layer}": values.numel() for layer, values in layers.items()} | {name: 55}
    assert set(read.Tags()["histograms"]) == set(sizes)
    for tag, size in sizes.items():
        (event,) = read.Histograms(tag)
        assert event.step == 7
        assert sum(event.histogram_value.bucket) == size


def test_a_measurement_without_anything_finite_has_no_histogram(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_figure(writer, "histogram", "weight_symmetry", {}, 7)
    assert events(tmp_path).Tags()["histograms"] == []
