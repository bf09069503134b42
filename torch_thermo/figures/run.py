"""The figures of one stored run, and the overview of several.

A run is what :func:`torch_thermo.load_run` returns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch_thermo.figures import distributions, quantities, style
from torch_thermo.figures.panels import say_empty
from torch_thermo.store import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["overview", "run_figures"]

Draw = Callable[..., Any]

# name: title, panel, the observables it needs one of, height in inches
_FIGURES: Mapping[str, tuple[str, Draw, tuple[str, ...], float]] = {
    "bulk_boundary": (
        "Bulk and boundary loss",
        quantities.draw_bulk_boundary,
        ("bulk_boundary",),
        4.0,
    ),
    "propagator": (
        "Traces of the propagator",
        quantities.draw_propagator,
        ("propagator_spectrum",),
        4.0,
    ),
    "propagator_density": (
        "Spectrum of the propagator",
        partial(distributions.draw_densities, observable="propagator_spectrum"),
        ("propagator_spectrum",),
        4.0,
    ),
    "propagator_ridgeline": (
        "Spectrum of the propagator over the training",
        partial(distributions.draw_spectral_ridgeline, observable="propagator_spectrum"),
        ("propagator_spectrum",),
        4.8,
    ),
    "order_parameter": (
        "Order parameter and risk",
        quantities.draw_order_parameter,
        ("order_parameter", "order_parameter_minibatch"),
        4.0,
    ),
    "order_against_risk": (
        "Order parameter over the risk",
        quantities.draw_order_against_risk,
        ("order_parameter",),
        4.0,
    ),
    "hessian_edges": (
        "Edges of the Hessian's spectrum",
        quantities.draw_edges,
        ("hessian_extremes",),
        4.0,
    ),
    "hessian_density": (
        "Spectral density of the Hessian",
        distributions.draw_densities,
        ("hessian_density",),
        4.0,
    ),
    "hessian_ridgeline": (
        "Spectral density of the Hessian over the training",
        distributions.draw_spectral_ridgeline,
        ("hessian_density",),
        4.8,
    ),
    "sign_balance": (
        "Sign balance",
        quantities.draw_sign_balance,
        ("weight_symmetry", "gradient_symmetry", "circuit_sample"),
        4.0,
    ),
    "w_sym": (
        "Asymmetry W_sym, beside its floor",
        quantities.draw_w_sym,
        ("weight_symmetry", "gradient_symmetry", "circuit_sample"),
        4.0,
    ),
    "weight_ridgeline": (
        "Weights over the training",
        distributions.draw_histogram_ridgeline,
        ("weight_symmetry",),
        4.8,
    ),
    "gradient_ridgeline": (
        "Gradient entries over the training",
        partial(distributions.draw_histogram_ridgeline, observable="gradient_symmetry"),
        ("gradient_symmetry",),
        4.8,
    ),
    "circuits": (
        "Asymmetry of all circuits",
        quantities.draw_circuits,
        ("circuit_symmetry",),
        4.0,
    ),
    "positive_share": (
        "Examples whose circuits pull to the target",
        quantities.draw_positive_share,
        ("circuit_symmetry",),
        4.0,
    ),
    "circuit_sample": (
        "Sampled circuits",
        distributions.draw_circuit_sample,
        ("circuit_sample",),
        4.0,
    ),
}

# the rows of the overview: what a column is called below its run, and how tall
_OVERVIEW: tuple[tuple[str, Draw, tuple[str, ...], float], ...] = (
    ("bulk and boundary loss", quantities.draw_bulk_boundary, ("bulk_boundary",), 3.1),
    (
        "spectrum of the propagator",
        partial(distributions.draw_spectral_ridgeline, observable="propagator_spectrum"),
        ("propagator_spectrum",),
        3.6,
    ),
    ("order parameter", quantities.draw_order_parameter, ("order_parameter",), 3.1),
    (
        "density of the Hessian",
        distributions.draw_spectral_ridgeline,
        ("hessian_density",),
        3.6,
    ),
    (
        "asymmetry $W_{sym}$",
        quantities.draw_w_sym,
        ("weight_symmetry", "gradient_symmetry", "circuit_sample"),
        3.1,
    ),
    ("all circuits", quantities.draw_positive_share, ("circuit_symmetry",), 3.0),
)


def run_figures(
    run: Run, caption: str | None = None, notes: Mapping[str, str] | None = None
) -> dict[str, Figure]:
    """The figures of a run, each of one panel; none of what it has not measured.

    Args:
        run: the stored run.
        caption: data and net; written below each.
        notes: added to the caption of the figure of that name: probe, m, k.

    Returns:
        Of ``bulk_boundary``, ``propagator``, ``propagator_density``, ``propagator_ridgeline``,
        ``order_parameter``, ``order_against_risk``, ``hessian_edges``,
        ``hessian_density``, ``hessian_ridgeline``, ``sign_balance``, ``w_sym``,
        ``weight_ridgeline``, ``gradient_ridgeline``, ``circuits``, ``positive_share`` and
        ``circuit_sample`` those whose observable the run holds.
    """
    figures = {}
    for name, (title, draw, observables, height) in _FIGURES.items():
        if not set(observables) & set(run.observables):
            continue
        figure, (axes,) = style.new_figure(height=height)
        draw(axes, run, title=title)
        parts = [caption, (notes or {}).get(name)]
        style.caption(figure, " ".join(part for part in parts if part))
        figures[name] = figure
    return figures


def overview(runs: Sequence[tuple[str, Run]], caption: str | None = None) -> Figure:
    """Several runs side by side, one column a run, from the loss down to the circuits.

    Rows: bulk and boundary loss, spectrum of the propagator over the steps, order parameter and
    risk, density of the Hessian over the steps, asymmetry of weights, gradient and sampled
    circuits with its floor, and the share of examples whose circuits pull to the target.
    A row that no run has measured is left out; where only some have, a panel says so.

    Args:
        runs: label and stored run of each.
        caption: written below.

    Returns:
        The figure, four inches a run.

    Raises:
        ValueError: no runs, or none has measured any of it.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    measured = {observable for _, run in runs for observable in run.observables}
    rows = [row for row in _OVERVIEW if measured & set(row[2])]
    if not rows:
        raise ValueError(f"runs hold nothing that the overview shows, only {sorted(measured)}")
    columns = len(runs)
    heights = [height for *_, height in rows]
    figure, panels = style.new_figure(
        4.2 * columns, sum(heights) + 0.4, len(rows), columns, heights=heights
    )
    for place, (what, draw, observables, _) in enumerate(rows):
        for (label, run), axes in zip(runs, panels[place * columns :], strict=False):
            title = f"{label}: {what}"
            if set(observables) & set(run.observables):
                draw(axes, run, title=title, width=3.5)
            else:
                say_empty(axes, title, _why_absent(run, observables))
    style.caption(figure, caption)
    return figure


def _why_absent(run: Run, observables: Sequence[str]) -> str:
    """What an empty panel says: that nothing was measured, and why where the run tells."""
    skipped = run.meta.get("skipped", {})
    reasons = list(dict.fromkeys(skipped[name] for name in observables if name in skipped))
    if not reasons:
        return "not measured"
    return "\n".join(textwrap.wrap(f"not measured: {'; '.join(reasons)}", 44))
