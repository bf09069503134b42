"""The custom-scalars tab: one page of the quantities that belong together.

A layout can set neither a logarithmic axis nor an axis' range. Titles say which charts are to be
read on a logarithmic axis: the middle button below a chart switches it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch_thermo.dashboard.tags import tag

__all__ = ["custom_scalar_layout", "write_layout"]

Layout = dict[str, dict[str, list[Any]]]
Curves = tuple[tuple[str, str], ...]

LOG = "[log axis: button below]"


def _of(observable: str, *quantities: str) -> Curves:
    return tuple((observable, quantity) for quantity in quantities)


_LOSS = "1 Bulk and boundary loss"
_ORDER = "2 Order parameter ||grad R||^2 and loss"
_HESSIAN = "3 Hessian: edges, asymmetry, trace"
_PROPAGATOR = "4 Propagator: how strongly neurons are coupled"
_SYMMETRY = "5 Symmetry, each beside its floor"
_PHASE = "6 Phase, and the theory's assumptions"

# Category, chart, kind, (observable, quantity) pairs. A Multiline chart shows what is there of its
# list; a Margin chart takes value, lower and upper edge and needs all three.
_CHARTS: tuple[tuple[str, str, str, Curves], ...] = (
    (
        _LOSS,
        f"bulk and boundary loss, mean of the examples {LOG}",
        "Multiline",
        _of("bulk_boundary", "boundary", "bulk"),
    ),
    (
        _LOSS,
        f"bulk and boundary loss, median of the examples {LOG}",
        "Multiline",
        _of("bulk_boundary", "boundary_median", "bulk_median"),
    ),
    (
        _LOSS,
        "bulk / boundary (at most 1), and the share of examples that converged",
        "Multiline",
        _of("bulk_boundary", "ratio", "converged"),
    ),
    (
        _ORDER,
        f"order parameter on the probe and of each minibatch, and the risk R {LOG}",
        "Multiline",
        (
            *_of("order_parameter", "value"),
            *_of("order_parameter_minibatch", "value"),
            *_of("order_parameter", "risk"),
        ),
    ),
    (
        _ORDER,
        "order parameter on the probe, its unbiased form and standard error",
        "Multiline",
        _of("order_parameter", "value", "unbiased", "stderr"),
    ),
    (
        _ORDER,
        f"order parameter of each parameter {LOG}",
        "Multiline",
        _of("order_parameter", "layer"),
    ),
    (
        _HESSIAN,
        "spectrum from lambda_min to lambda_max; line: its centre, 0 if symmetric",
        "Margin",
        _of("hessian_extremes", "centre", "lambda_min", "lambda_max"),
    ),
    (
        _HESSIAN,
        "lambda_min and lambda_max",
        "Multiline",
        _of("hessian_extremes", "lambda_min", "lambda_max"),
    ),
    (
        _HESSIAN,
        "asymmetry of the spectrum, sum lambda^3 / sum |lambda|^3 (0 if symmetric)",
        "Multiline",
        (*_of("hessian_density", "odd3"), *_of("functional_density", "odd3")),
    ),
    (
        _HESSIAN,
        "trace of H, and of its functional part",
        "Multiline",
        (*_of("hessian_density", "trace"), *_of("functional_density", "trace")),
    ),
    (
        _HESSIAN,
        "share of Hessian entries with |z_1| < .15, and of the active examples alone",
        "Multiline",
        _of("hessian_entries", "share_below_moving", "share_below_active"),
    ),
    (
        _HESSIAN,
        "share p of active examples, and sqrt(p / (1 - p)), which no |z_1| exceeds",
        "Multiline",
        _of("hessian_entries", "active_share", "bound"),
    ),
    (
        _HESSIAN,
        "mean |r| between Hessian entries of the active examples, and its null",
        "Multiline",
        _of("hessian_entries", "correlation_active", "correlation_active_sign_null"),
    ),
    (
        _PROPAGATOR,
        f"mu2 = Tr (log G)^2 {LOG}",
        "Multiline",
        _of("propagator_spectrum", "mu2"),
    ),
    (
        _PROPAGATOR,
        "mu3 = Tr (log G)^3 (0 without hidden layers)",
        "Multiline",
        _of("propagator_spectrum", "mu3"),
    ),
    (
        _PROPAGATOR,
        "means of log^2 lambda and log^3 lambda, |log lambda| > 0.03",
        "Multiline",
        _of("propagator_spectrum", "mu2_above_0.03", "mu3_above_0.03"),
    ),
    (
        _PROPAGATOR,
        "smallest and largest log lambda",
        "Multiline",
        _of("propagator_spectrum", "min", "max"),
    ),
    (
        _SYMMETRY,
        "asymmetry W_sym of the weights, and its floor",
        "Multiline",
        _of("weight_symmetry", "w_sym", "w_sym_null"),
    ),
    (
        _SYMMETRY,
        "asymmetry W_sym of the gradient, and its floor",
        "Multiline",
        _of("gradient_symmetry", "w_sym", "w_sym_null"),
    ),
    (
        _SYMMETRY,
        "asymmetry W_sym of sampled circuits, and its floor",
        "Multiline",
        _of("circuit_sample", "w_sym", "w_sym_null"),
    ),
    *(
        (
            _SYMMETRY,
            f"asymmetry W_sym of sampled circuits of order {order}, and its floor",
            "Multiline",
            _of(f"circuit_sample_order{order}", "w_sym", "w_sym_null"),
        )
        for order in (1, 2)
    ),
    (
        _SYMMETRY,
        "sign balance of the weights, 95 % interval",
        "Margin",
        _of("weight_symmetry", "sign_balance", "low", "high"),
    ),
    (
        _SYMMETRY,
        "sign balance of the gradient, 95 % interval",
        "Margin",
        _of("gradient_symmetry", "sign_balance", "low", "high"),
    ),
    (
        _SYMMETRY,
        "sign balance of sampled circuits, 95 % interval",
        "Margin",
        _of("circuit_sample", "sign_balance", "low", "high"),
    ),
    (
        _SYMMETRY,
        "all circuits: y T/A, above 0 towards the target",
        "Multiline",
        _of("circuit_symmetry", "mass_asymmetry"),
    ),
    (
        _SYMMETRY,
        "all circuits: sign balance S (0 if symmetric)",
        "Multiline",
        _of("circuit_symmetry", "sign_balance"),
    ),
    (
        _SYMMETRY,
        "share of examples with y T/A > 0, 95 % interval",
        "Margin",
        _of("circuit_symmetry", "positive", "positive_low", "positive_high"),
    ),
    (
        _PHASE,
        "phase: 0 solved, 1 plastic, 2 frustrated, no point: undecided",
        "Multiline",
        _of("phase", "code"),
    ),
    (
        _PHASE,
        f"order parameter, its error, and that of orthogonal gradients {LOG}",
        "Multiline",
        _of("phase", "order_parameter", "order_parameter_stderr", "order_parameter_incoherent"),
    ),
    (
        _PHASE,
        "lambda_min of the Hessian; shares of outputs that are 0 and of dead examples",
        "Multiline",
        _of("phase", "lambda_min", "zero_output_share", "dead_share"),
    ),
    (
        _PHASE,
        "asymmetry odd_3 of the functional part (symmetric below .25)",
        "Multiline",
        (*_of("phase", "odd_3"), *_of("assumptions", "spectrum_odd_3")),
    ),
    (
        _PHASE,
        f"errors of the identities {LOG}",
        "Multiline",
        _of("assumptions", "error_trace", "error_homogeneity", "error_layer_balance"),
    ),
)


def custom_scalar_layout(observables: Collection[str]) -> Layout:
    """The charts of the custom-scalars tab for the observables that are measured.

    TensorBoard (2.21) draws the Multiline charts of a category first, in order, and then its Margin
    charts from the last to the first: they are handed over so that the page reads as the table.
    TensorBoard reads the tags of a Multiline chart as regular expressions matched from the start,
    so they are closed by ``$``, and one open expression shows all parameters; a Margin chart takes
    plain tags.

    Args:
        observables: their names; a chart appears when it has something to show.

    Returns:
        The argument of ``SummaryWriter.add_custom_scalars``: category, chart, [kind, tags].
    """
    layout: Layout = {}
    lines = [chart for chart in _CHARTS if chart[2] != "Margin"]
    margins = [chart for chart in _CHARTS if chart[2] == "Margin"]
    for category, chart, kind, curves in lines + margins[::-1]:
        shown = [(o, q) for o, q in curves if o in observables]
        if kind == "Margin":
            tags = [tag(o, q) for o, q in shown]
        else:
            ends = {"layer": "/.*"}
            tags = [re.escape(tag(o, q)) + ends.get(q, "$") for o, q in shown]
        if tags:
            layout.setdefault(category, {})[chart] = [kind, tags]
    return dict(sorted(layout.items()))  # categories begin with their number


def write_layout(writer: Any, observables: Collection[str]) -> None:
    """Write the layout of the custom-scalars tab; once for a writer.

    Args:
        writer: a TensorBoard writer.
        observables: the names of what is measured; without any nothing is written.
    """
    layout = custom_scalar_layout(observables)
    if layout:
        writer.add_custom_scalars(layout)
