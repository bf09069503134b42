"""What is drawn from stored arrays: densities, histograms, ridgelines over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from torch_thermo.dashboard.histograms import write_counted
from torch_thermo.dashboard.tags import tag
from torch_thermo.spectra.spectral_measure import SpectralMeasure

__all__ = ["write_density", "write_figure", "write_ridgeline"]

_NAMES = {
    "hessian_density": "the Hessian",
    "functional_density": "the Hessian's functional part",
    "gauss_newton_density": "the Gauss-Newton matrix",
    "propagator_spectrum": "the propagator's log G",
    "weight_symmetry": "Weights",
    "gradient_symmetry": "Gradient entries",
    "circuit_sample": "Sampled circuits",
    "circuit_sample_order1": "Sampled circuits of order 1",
    "circuit_sample_order2": "Sampled circuits of order 2",
}


def write_figure(
    writer: Any, kind: str, observable: str, arrays: Mapping[str, ArrayLike], step: int
) -> None:
    """Show the arrays of one measurement.

    Args:
        writer: a TensorBoard writer.
        kind: ``"density"``: an image, of ``nodes`` and ``weights`` (k, m), ``dimension`` and, if
            there, ``exact``.
            ``"histogram"``: of :func:`histogram_arrays`, and one a layer of
            :func:`layer_histograms`, to the histograms tab.
            ``"text"``: the string ``text``, in Markdown, to the text tab.
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
    if kind == "text":
        writer.add_text(tag(observable, kind), str(arrays["text"]), global_step=step)
        return
    if kind != "density":
        raise ValueError(f"kind must be 'density', 'histogram' or 'text', got {kind!r}")
    write_density(
        writer,
        tag(observable, kind),
        arrays,
        step,
        observable=observable,
        title=f"Spectral density of {_NAMES.get(observable, observable)}",
    )


def write_density(
    writer: Any,
    name: str,
    arrays: Mapping[str, ArrayLike],
    step: int,
    *,
    observable: str = "",
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Draw a spectral density and write it to the images tab.

    Args:
        writer: a TensorBoard writer.
        name: tag of the image.
        arrays: ``nodes`` ``(k, m)``, NaN where a probe stopped early; ``weights`` ``(k, m)``, 0
            there; ``dimension`` of the operator; ``exact``, if there: whether the nodes are all
            eigenvalues.
        step: completed updates.
        observable: its name, for the axis.
        title: of the panel; names the step by default.
        caption: data, net, m, k, probe; m and k by default.

    Raises:
        ValueError: the arrays are not those of a spectral measure.
        KeyError: one is missing.
    """
    from torch_thermo import figures

    measure = figures.stored_measure(arrays)
    figure = figures.density(
        [(f"step {step}", measure)],
        title=title or "Spectral density",
        caption=caption or _how(measure),
        **figures.spectral_axis(observable),
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
        measures = [(f"{step:,}", figures.stored_measure(arrays)) for step, arrays in drawn]
        figure = figures.density_ridgeline(
            measures,
            title=f"Spectral density of {name} over the training",
            caption=caption,
            **figures.spectral_axis(observable),
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


def _how(measure: SpectralMeasure) -> str:
    """How a spectrum is known, for its caption."""
    spectra, nodes = measure.nodes.shape
    if measure.exact:
        return f"All n = {measure.dimension} eigenvalues."
    if nodes == measure.dimension:
        return f"All n = {measure.dimension} eigenvalues of {spectra} spectra."
    return f"n = {measure.dimension} eigenvalues, m = {nodes} nodes, k = {spectra} probes"
