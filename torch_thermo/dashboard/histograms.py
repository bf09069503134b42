"""Histograms of many numbers as a few arrays: counted once, stored, and written to TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torch_thermo.dashboard.tags import shown_layers

__all__ = [
    "BINS",
    "decade_floor",
    "histogram_arrays",
    "layer_histograms",
    "signed_log",
    "write_counted",
    "write_histogram",
]

BINS = 65
"""Odd: the middle bin of a sample of both signs has 0 in its middle, and a symmetric sample looks
symmetric, also one with many exact zeros."""

FINE = 2**14 + 1
"""Even bins that are counted, before they are put together to bins that widen with the distance
from 0."""

CHUNK = 2**20
"""Numbers that are turned to float64 at a time."""

Arrays = dict[str, np.ndarray[Any, Any]]


def histogram_arrays(values: Tensor, prefix: str = "", floor: float | None = None) -> Arrays:
    """Count the finite values over 65 bins.

    Where both signs occur the bins lie symmetric about 0 and widen away from it, evenly in
    ``asinh(v / E|v|)``, so that a few large entries leave the many small ones in more than one
    bin. Values of one sign are counted over even bins from the smallest to the largest.

    The values stay on their device and in their dtype; float64 is only ever a part of them, so
    that ten million entries need no second copy and no count is rounded.

    Args:
        values: real tensor of any shape; NaN and infinity are left out.
        prefix: of the names.
        floor: of a signed logarithm, see :func:`signed_log`: stored beside the counts, for the
            axis to be read.

    Returns:
        ``counts`` (65,) int64, ``edges`` (66,) float64, ``stats`` (5,) float64: min, max, number,
        sum, sum of squares; ``floor`` () float64 if given. Empty if no value is finite.

    Raises:
        TypeError: ``values`` is no tensor, or complex.

    Example:
        >>> histogram_arrays(torch.tensor([1.0, 2.0, 2.0]))["stats"]
        array([1., 2., 3., 5., 9.])
    """
    if not isinstance(values, Tensor) or values.is_complex():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"values must be a real tensor, got {kind}")
    flat = values.detach().reshape(-1)
    low, high = _ends(flat)
    if not (math.isfinite(low) and math.isfinite(high)):
        flat = flat[torch.isfinite(flat)]
        low, high = _ends(flat)
    if flat.numel() == 0:
        return {}
    # counted in units of the largest size, or the width of the range could overflow
    unit = max(abs(low), abs(high)) or 1.0
    signed = low < 0 < high
    bins = FINE if signed else BINS
    start, end = (-1.0, 1.0) if signed else (low / unit, high / unit)
    if start == end:
        start, end = _around(start)
    found = torch.zeros(bins, dtype=torch.int64, device=flat.device)
    sums = torch.zeros(3, dtype=torch.float64, device=flat.device)
    for chunk in flat.split(CHUNK):
        part = chunk.double()
        scaled = part / unit
        sums += torch.stack([part.sum(), part @ part, scaled.abs().sum()])
        found += torch.histc(scaled, bins, start, end).long()
    total, squares, sizes = sums.tolist()
    counts, edges = found.cpu().numpy(), np.linspace(start, end, bins + 1)
    if signed:
        bounds = _bounds(sizes / flat.numel())
        counts, edges = np.add.reduceat(counts, bounds[:-1]), edges[bounds]
    arrays: Arrays = {
        f"{prefix}counts": counts,
        f"{prefix}edges": unit * edges,
        f"{prefix}stats": np.array([low, high, flat.numel(), total, squares]),
    }
    if floor is not None:
        arrays[f"{prefix}floor"] = np.asarray(floor, np.float64)
    return arrays


def layer_histograms(layers: Mapping[str, Tensor]) -> Arrays:
    """The histogram of each layer that is shown, as arrays to store.

    Args:
        layers: ``{name: values}`` in the order of depth.

    Returns:
        ``layer_names`` (L,) of strings, ``layer_counts`` (L, 65), ``layer_edges`` (L, 66),
        ``layer_stats`` (L, 5), rows as in :func:`histogram_arrays`. Of more than 64 layers those
        of :func:`~torch_thermo.dashboard.tags.shown_layers`; one without a finite value is left
        out. Empty if none is left.

    Raises:
        TypeError: a layer is no tensor, or complex.
    """
    found = {name: histogram_arrays(layers[name]) for name in shown_layers(layers)}
    found = {name: arrays for name, arrays in found.items() if arrays}
    if not found:
        return {}
    rows: Arrays = {
        f"layer_{key}": np.stack([arrays[key] for arrays in found.values()])
        for key in ("counts", "edges", "stats")
    }
    return {"layer_names": np.array(list(found)), **rows}


def signed_log(sign: Tensor, log_abs: Tensor, floor: float) -> Tensor:
    r"""The signed logarithm of numbers over many decades, ``t = sign (log10|v| - floor)``.

    0 stands for the floor: 3 is three decades above it, -3 the same size of the other sign. A
    size below the floor is drawn at 0. Products of many factors span so many decades that a plain
    histogram of them is one bar.

    Args:
        sign: any shape: -1, 0 or 1.
        log_abs: same shape, the natural logarithm of the size; ``-inf`` for 0.
        floor: log10 of the size drawn at 0: of one run keep one, from :func:`decade_floor`, or
            its histograms can't be compared.

    Returns:
        float64, of the same shape; NaN where the size is.

    Raises:
        ValueError: ``floor`` is not finite, or the shapes differ.

    Example:
        >>> signed_log(torch.tensor([1, -1]), torch.tensor([1e-3, 0.1]).log(), -5.0).round()
        tensor([ 2., -4.], dtype=torch.float64)
    """
    if not math.isfinite(floor):
        raise ValueError(f"floor must be finite, got {floor}")
    if sign.shape != log_abs.shape:
        shapes = (tuple(sign.shape), tuple(log_abs.shape))
        raise ValueError(f"sign and log_abs must have one shape, got {shapes}")
    above = log_abs.double() / math.log(10.0) - floor
    # where the sign is 0 the size is -inf, and 0 * inf would be NaN
    return sign.double() * above.clamp_min(0.0)


def decade_floor(log_abs: Tensor) -> float:
    """A floor for :func:`signed_log`: a power of ten, one to two decades below the smallest size.

    Args:
        log_abs: natural logarithms of sizes; those that are not finite are left out.

    Returns:
        The exponent; NaN if no size is finite.

    Example:
        >>> decade_floor(torch.tensor([2e-3, 0.1]).log())
        -4.0
    """
    finite = log_abs[torch.isfinite(log_abs)]
    if finite.numel() == 0:
        return math.nan
    return math.floor(float(finite.min()) / math.log(10.0)) - 1.0


def write_counted(writer: Any, name: str, arrays: Mapping[str, ArrayLike], step: int) -> None:
    """Write counted histograms to the histograms tab: the whole, and one for each layer.

    ``add_histogram`` would count anew, and fails on an empty array and on a single NaN.

    Args:
        writer: a TensorBoard writer.
        name: tag of the histogram; a layer's is ``<name>/<layer>``.
        arrays: of :func:`histogram_arrays`, without prefix, and of :func:`layer_histograms`;
            either may be missing.
        step: completed updates.

    Raises:
        KeyError: of the counts, edges and stats one is missing.
    """
    if "counts" in arrays:
        _write(writer, name, arrays["counts"], arrays["edges"], arrays["stats"], step)
    if "layer_names" in arrays:
        rows = (np.asarray(arrays[f"layer_{key}"]) for key in ("names", "counts", "edges", "stats"))
        for layer, counts, edges, stats in zip(*rows, strict=True):
            _write(writer, f"{name}/{layer}", counts, edges, stats, step)


def write_histogram(writer: Any, name: str, values: Tensor | ArrayLike, step: int) -> bool:
    """Count values and write their histogram to the histograms tab.

    Args:
        writer: a TensorBoard writer.
        name: tag of the histogram.
        values: of any shape; what is not finite is left out.
        step: completed updates.

    Returns:
        Whether there was a finite value to write.
    """
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    arrays = histogram_arrays(tensor)
    write_counted(writer, name, arrays, step)
    return bool(arrays)


def _write(
    writer: Any, name: str, counts: ArrayLike, edges: ArrayLike, stats: ArrayLike, step: int
) -> None:
    low, high, number, total, squares = (float(value) for value in np.asarray(stats))
    counts, edges = np.asarray(counts), np.asarray(edges)
    # TensorBoard takes the first bin to begin at the smallest value
    full = np.flatnonzero(counts)
    counts, limits = (a[full[0] : full[-1] + 1] for a in (counts, edges[1:]))
    writer.add_histogram_raw(
        name,
        min=low,
        max=high,
        num=int(number),
        sum=total,
        sum_squares=squares,
        bucket_limits=limits.tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )


def _ends(flat: Tensor) -> tuple[float, float]:
    if flat.numel() == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(flat)
    return float(low), float(high)


def _bounds(size: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where the fine bins over [-1, 1] are put together: 66 of their edges, symmetric about 0.

    Args:
        size: the mean of the values' sizes.
    """
    side = BINS // 2 + 1
    reach = math.asinh(1.0 / size)
    away = size * np.sinh(reach * (2 * np.arange(side) + 1) / BINS)
    # whole fine bins beyond the one in the middle, each at least one more than the last
    whole = np.rint(away * FINE / 2 - 0.5).astype(np.int64) - np.arange(side)
    whole = np.maximum.accumulate(np.maximum(whole, 0)) + np.arange(side)
    middle = FINE // 2
    return np.concatenate([middle - whole[::-1], middle + whole + 1])


def _around(value: float) -> tuple[float, float]:
    """A range with one value in it."""
    half = abs(value) / 2 or 0.5
    return value - half, value + half
