"""What goes to TensorBoard and how it is laid out.

Tags are ``thermo/<observable>/<quantity>[/<layer>]``. The custom-scalars tab shows the quantities
that belong together in one chart; figures and histograms go to the tabs of their own. A writer is
anything with the methods of ``torch.utils.tensorboard.SummaryWriter``, such as the ``experiment``
of Lightning's ``TensorBoardLogger``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from torch_thermo.spectra.spectral_measure import SpectralMeasure

__all__ = [
    "custom_scalar_layout",
    "tag",
    "write_density",
    "write_figure",
    "write_histogram",
    "write_layout",
]

Layout = dict[str, dict[str, list[Any]]]

ROOT = "thermo"
BINS = 64

# Category, chart, kind, (observable, quantity) pairs. A Multiline chart shows what is there of its
# list; a Margin chart takes value, lower and upper edge and needs all three.
_CHARTS: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "order parameter ||grad R||^2",
        "order parameter on the probe and of each minibatch, and the risk R",
        "Multiline",
        (
            ("order_parameter", "value"),
            ("order_parameter_minibatch", "value"),
            ("order_parameter", "risk"),
        ),
    ),
    (
        "order parameter ||grad R||^2",
        "on the probe, its unbiased form and standard error",
        "Multiline",
        (
            ("order_parameter", "value"),
            ("order_parameter", "unbiased"),
            ("order_parameter", "stderr"),
        ),
    ),
    (
        "order parameter ||grad R||^2",
        "per parameter",
        "Multiline",
        (("order_parameter", "layer"),),
    ),
    (
        "Hessian",
        "edges of the spectrum: smallest and largest eigenvalue",
        "Multiline",
        (("hessian_extremes", "lambda_min"), ("hessian_extremes", "lambda_max")),
    ),
    (
        "Hessian",
        "asymmetry of the spectrum: sum lambda^3 / sum |lambda|^3",
        "Multiline",
        (("hessian_density", "odd3"), ("functional_density", "odd3")),
    ),
    (
        "Hessian",
        "trace",
        "Multiline",
        (("hessian_density", "trace"), ("functional_density", "trace")),
    ),
    (
        "symmetry",
        "sign balance of the weights, 95 % interval",
        "Margin",
        (
            ("weight_symmetry", "sign_balance"),
            ("weight_symmetry", "low"),
            ("weight_symmetry", "high"),
        ),
    ),
    (
        "symmetry",
        "sign balance of the gradient, 95 % interval",
        "Margin",
        (
            ("gradient_symmetry", "sign_balance"),
            ("gradient_symmetry", "low"),
            ("gradient_symmetry", "high"),
        ),
    ),
)


_OPERATORS = {
    "hessian_density": "the Hessian",
    "functional_density": "the Hessian's functional part",
    "gauss_newton_density": "the Gauss-Newton matrix",
}


def tag(observable: str, quantity: str, layer: str | None = None) -> str:
    """The name of a curve, ``thermo/<observable>/<quantity>[/<layer>]``.

    Args:
        observable: such as ``order_parameter``.
        quantity: such as ``value``.
        layer: a parameter's name.

    Raises:
        ValueError: a part is empty.

    Example:
        >>> tag("order_parameter", "layer", "net.0.weight")
        'thermo/order_parameter/layer/net.0.weight'
    """
    parts = [observable, quantity] if layer is None else [observable, quantity, layer]
    if not all(parts):
        raise ValueError(f"the parts of a tag must not be empty, got {parts}")
    return "/".join([ROOT, *parts])


def custom_scalar_layout(observables: Collection[str]) -> Layout:
    """The charts of the custom-scalars tab for the observables that are measured.

    TensorBoard reads the tags of a Multiline chart as regular expressions matched from the start,
    so they are closed by ``$``, and one open expression shows all parameters; a Margin chart takes
    plain tags.

    Args:
        observables: their names; a chart appears when it has something to show.

    Returns:
        The argument of ``SummaryWriter.add_custom_scalars``: category, chart, [kind, tags].
    """
    layout: Layout = {}
    for category, chart, kind, curves in _CHARTS:
        shown = [(o, q) for o, q in curves if o in observables]
        if kind == "Margin":
            tags = [tag(o, q) for o, q in shown]
        else:
            ends = {"layer": "/.*"}
            tags = [re.escape(tag(o, q)) + ends.get(q, "$") for o, q in shown]
        if tags:
            layout.setdefault(category, {})[chart] = [kind, tags]
    return layout


def write_layout(writer: Any, observables: Collection[str]) -> None:
    """Write the layout of the custom-scalars tab; once for a writer.

    Args:
        writer: a TensorBoard writer.
        observables: the names of what is measured; without any nothing is written.
    """
    layout = custom_scalar_layout(observables)
    if layout:
        writer.add_custom_scalars(layout)


def write_figure(
    writer: Any, kind: str, observable: str, arrays: Mapping[str, ArrayLike], step: int
) -> None:
    """Draw what an observable measured and write it to the images tab.

    Args:
        writer: a TensorBoard writer.
        kind: ``"density"``: the arrays are ``nodes`` and ``weights`` (k, m) and ``dimension``.
        observable: its name, part of the image's tag.
        arrays: as they are stored.
        step: completed updates.

    Raises:
        ValueError: an unknown kind.
        KeyError: an array is missing.
    """
    if kind != "density":
        raise ValueError(f"kind must be 'density', got {kind!r}")
    write_density(
        writer,
        tag(observable, kind),
        arrays["nodes"],
        arrays["weights"],
        int(np.asarray(arrays["dimension"])),
        step,
        title=f"Spectral density of {_OPERATORS.get(observable, observable)}",
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

    measure = SpectralMeasure(
        torch.from_numpy(np.asarray(nodes, np.float64)),
        torch.from_numpy(np.asarray(weights, np.float64)),
        exact=False,
        dimension=dimension,
    )
    probes, steps = measure.nodes.shape
    figure = density(
        [(f"step {step}", measure)],
        title=title or "Spectral density",
        caption=caption
        or f"n = {dimension} eigenvalues, m = {steps} products, k = {probes} probes",
    )
    writer.add_figure(name, figure, global_step=step)


def write_histogram(writer: Any, name: str, values: ArrayLike, step: int) -> bool:
    """Write a histogram over 64 even bins of our own to the histograms tab.

    ``add_histogram`` fails on an empty array and on a single NaN; here what is not finite is left
    out.

    Args:
        writer: a TensorBoard writer.
        name: tag of the histogram.
        values: of any shape.
        step: completed updates.

    Returns:
        Whether there was a finite value to write.
    """
    array = np.ravel(np.asarray(values, np.float64))
    array = array[np.isfinite(array)]
    if array.size == 0:
        return False
    counts, edges = np.histogram(array, BINS)
    writer.add_histogram_raw(
        name,
        min=float(array.min()),
        max=float(array.max()),
        num=int(array.size),
        sum=float(array.sum()),
        sum_squares=float(array @ array),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )
    return True
