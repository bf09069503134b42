"""What is drawn from stored arrays: densities, histograms, ridgelines over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from torch_thermo.dashboard.histograms import write_counted
from torch_thermo.dashboard.tags import tag
from torch_thermo.spectra.spectral_measure import SpectralMeasure

__all__ = ["write_density", "write_figure", "write_ridgeline"]

_QUADRATURE = ("nodes", "weights")
_NAMES = {
    "hessian_density": "the Hessian",
    "functional_density": "the Hessian's functional part",
    "gauss_newton_density": "the Gauss-Newton matrix",
    "weight_symmetry": "Weights",
    "gradient_symmetry": "Gradient entries",
    "circuit_sample": "Sampled circuits",
}


def write_figure(
    writer: Any, kind: str, observable: str, arrays: Mapping[str, ArrayLike], step: int
) -> None:
    """Show the arrays of one measurement.

    Args:
        writer: a TensorBoard writer.
        kind: ``"density"``: an image, of ``nodes`` and ``weights`` (k, m) and ``dimension``.
            ``"histogram"``: of :func:`histogram_arrays`, and one a layer of
            :func:`layer_histograms`, to the histograms tab.
        observable: its name, part of the tag.
        arrays: as they are stored.
        step: completed updates.

    Raises:
        ValueError: an unknown kind.
        KeyError: an array is missing.
    """
    if kind == "histogram":
        write_counted(writer, tag(observable, kind), arrays, step)
        return
    if kind != "density":
        raise ValueError(f"kind must be 'density' or 'histogram', got {kind!r}")
    write_density(
        writer,
        tag(observable, kind),
        arrays["nodes"],
        arrays["weights"],
        int(np.asarray(arrays["dimension"])),
        step,
        title=f"Spectral density of {_NAMES.get(observable, observable)}",
    )


def write_density(
    writer: Any,
    name: str,
    nodes: ArrayLike,
    weights: ArrayLike,
    dimension: int,
    step: int,
    *,
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Draw a spectral density and write it to the images tab.

    Args:
        writer: a TensorBoard writer.
        name: tag of the image.
        nodes: ``(k, m)``, NaN where a probe stopped early.
        weights: ``(k, m)``, 0 where a probe stopped early.
        dimension: of the operator.
        step: completed updates.
        title: of the panel; names the step by default.
        caption: data, net, m, k, probe; m and k by default.

    Raises:
        ValueError: the arrays are not those of a spectral measure.
    """
    from torch_thermo.figures import density

    measure = _measure({"nodes": nodes, "weights": weights, "dimension": dimension})
    probes, steps = measure.nodes.shape
    figure = density(
        [(f"step {step}", measure)],
        title=title or "Spectral density",
        caption=caption
        or f"n = {dimension} eigenvalues, m = {steps} products, k = {probes} probes",
    )
    writer.add_figure(name, figure, global_step=step)


def write_ridgeline(
    writer: Any,
    observable: str,
    history: Sequence[tuple[int, Mapping[str, ArrayLike]]],
) -> bool:
    """Draw how a stored distribution changed over the steps, a row a step, to the images tab.

    S. W. M. Li, Fig. 3a, of weights.

    Args:
        writer: a TensorBoard writer.
        observable: its name, part of the tag.
        history: step and stored arrays, ascending: those of a histogram (``counts``, ``edges``)
            or of a density (``nodes``, ``weights``, ``dimension``). A step without them is left
            out.

    Returns:
        Whether there were two steps to draw; the image is at the last of them.
    """
    from torch_thermo import figures

    spectral = any("nodes" in arrays for _, arrays in history)
    drawn = [(step, a) for step, a in history if ("nodes" if spectral else "counts") in a]
    if len(drawn) < 2:
        return False
    name = _NAMES.get(observable, observable)
    caption = f"Step {drawn[0][0]:,} at the top, step {drawn[-1][0]:,} at the bottom."
    if spectral:
        measures = [(f"{step:,}", _measure(arrays)) for step, arrays in drawn]
        figure = figures.density_ridgeline(
            measures, title=f"Spectral density of {name} over the training", caption=caption
        )
    else:
        rows, options = figures.histogram_rows(drawn)
        figure = figures.ridgeline(
            rows,
            title=f"{name} over the training",
            caption=f"{caption} All parameters together.",
            **options,
        )
    writer.add_figure(tag(observable, "ridgeline"), figure, global_step=drawn[-1][0])
    return True


def _measure(arrays: Mapping[str, ArrayLike]) -> SpectralMeasure:
    nodes, weights = (torch.from_numpy(np.asarray(arrays[key], np.float64)) for key in _QUADRATURE)
    dimension = int(np.asarray(arrays["dimension"]))
    return SpectralMeasure(nodes, weights, exact=False, dimension=dimension)
