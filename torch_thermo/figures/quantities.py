"""Panels of one stored run: quantities over its steps.

A run is what :func:`torch_thermo.load_run` returns. A panel of what was not measured says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from torch_thermo.figures import style
from torch_thermo.figures.panels import Curve, draw_curves, say_empty
from torch_thermo.figures.ridgelines import chosen_steps
from torch_thermo.figures.scale import Floats, set_scale
from torch_thermo.store import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "draw_bulk_boundary",
    "draw_circuits",
    "draw_edges",
    "draw_order_against_risk",
    "draw_order_parameter",
    "draw_positive_share",
    "draw_propagator",
    "draw_sign_balance",
    "draw_w_sym",
]

WIDE = 5.2  # inches of a panel that fills a figure
ERROR = "± standard error"
_SAMPLES = (
    ("weights", "weight_symmetry"),
    ("gradient", "gradient_symmetry"),
    ("sampled circuits", "circuit_sample"),
)


def draw_bulk_boundary(axes: Axes, run: Run, title: str | None = None, width: float = WIDE) -> None:
    """Bulk and boundary loss over steps: means with their standard errors, and medians.

    V. Vanchurin, *Towards a theory of machine learning*, eqs. 2.11 and 3.1, Figs. 2 and 3.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = [
        _curve(run, f"{kind}, mean", f"bulk_boundary/{kind}", f"{kind}_stderr", ERROR)
        for kind in ("boundary", "bulk")
    ]
    curves += [
        _curve(run, f"{kind}, median", f"bulk_boundary/{kind}_median")
        for kind in ("boundary", "bulk")
    ]
    draw_curves(axes, curves, ylabel="loss of an example", title=title, width=width)


def draw_order_parameter(
    axes: Axes, run: Run, title: str | None = None, width: float = WIDE
) -> None:
    """The order parameter on the probe and of each minibatch, and the risk, over steps.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = [
        _curve(run, r"$\|\nabla R\|^2$, probe", "order_parameter/value"),
        _curve(run, "risk $R$, probe", "order_parameter/risk"),
        _curve(run, r"$\|\nabla R_B\|^2$, each minibatch", "order_parameter_minibatch/value"),
    ]
    faint = curves[2]
    curves[2] = Curve(faint.label, faint.x, faint.y, faint=True)
    draw_curves(axes, curves, ylabel=r"$\|\nabla R\|^2$ and $R$", title=title, width=width)


def draw_order_against_risk(
    axes: Axes, run: Run, title: str | None = None, width: float = WIDE
) -> None:
    """The order parameter over the risk: the way the training takes, with its steps.

    S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking*, eq. 15, Fig. 4b.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches, for the legend's rows.
    """
    axes.set_xlabel("risk $R$ on the probe", fontsize=style.TEXT)
    axes.set_ylabel(r"order parameter $\|\nabla R\|^2$", fontsize=style.TEXT)
    steps, values = _series(run, "order_parameter/value")
    at, risk = _series(run, "order_parameter/risk")
    kept = np.isfinite(values) & np.isfinite(risk) if np.array_equal(steps, at) else np.zeros(0)
    if not kept.any():
        say_empty(axes, title, _absence(run, "order_parameter"))
        return
    steps, values, risk = steps[kept], values[kept], risk[kept]
    color = style.OKABE_ITO[0]
    axes.plot(risk, values, color=color, linewidth=1.0, marker="o", markersize=2.5)
    marked = [int(np.argmax(steps == step)) for step in chosen_steps(steps.tolist(), most=5)]
    axes.scatter(
        risk[marked],
        values[marked],
        c=np.log1p(steps[marked]),
        cmap="viridis",
        vmin=0.0,
        s=60,
        edgecolors=style.INK,
        linewidths=0.8,
        zorder=3,
        label="step, as written; colour from early to late",
    )
    for place in marked:
        axes.annotate(
            f"{int(steps[place]):,}",
            (risk[place], values[place]),
            xytext=(7, -3),
            textcoords="offset points",
            fontsize=style.SMALL,
            color=style.INK,
            zorder=4,
        )
    set_scale(axes, "x", "log", risk)
    set_scale(axes, "y", "log", values)
    style.legend(axes, title, width)


def draw_edges(axes: Axes, run: Run, title: str | None = None, width: float = WIDE) -> None:
    """Smallest and largest eigenvalue of the Hessian over steps, with their residual bounds.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = [
        _curve(
            run,
            rf"$\lambda_{{\{end}}}$",
            f"hessian_extremes/lambda_{end}",
            f"residual_{end}",
            "± residual bound",
        )
        for end in ("max", "min")
    ]
    draw_curves(
        axes,
        curves,
        ylabel=r"eigenvalue $\lambda$ of the Hessian",
        yscale="signed log",
        title=title,
        zero_line=True,
        width=width,
    )


def draw_propagator(axes: Axes, run: Run, title: str | None = None, width: float = WIDE) -> None:
    r"""The traces mu2 = Tr (log G)^2 and mu3 = Tr (log G)^3 of the propagator over steps.

    V. Vanchurin, *Towards a theory of machine learning*, eq. 7.7.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = [
        _curve(
            run,
            rf"$\mu_{n} = \mathrm{{Tr}}\,\log^{n} G$",
            f"propagator_spectrum/mu{n}",
            f"mu{n}_stderr",
            ERROR,
        )
        for n in (2, 3)
    ]
    draw_curves(
        axes,
        curves,
        ylabel=r"$\mu_2$ and $\mu_3$ of the propagator",
        yscale="signed log",
        title=title,
        zero_line=True,
        width=width,
    )


def draw_sign_balance(axes: Axes, run: Run, title: str | None = None, width: float = WIDE) -> None:
    """Sign balance of weights, gradient entries and sampled circuits, with their intervals.

    ``(n_+ - n_-) / n``: 0 for a symmetric sample.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = []
    for label, observable in _measured_samples(run):
        steps, values = _series(run, f"{observable}/sign_balance")
        interval = _interval(run, observable, ("low", "high"), steps)
        curves.append(Curve(label, steps, values, *interval))
    draw_curves(
        axes,
        curves,
        ylabel=r"sign balance $(n_+ - n_-)\,/\,n$",
        yscale="linear",
        title=title,
        zero_line=True,
        width=width,
    )


def draw_w_sym(axes: Axes, run: Run, title: str | None = None, width: float = WIDE) -> None:
    """The Wasserstein asymmetry of weights, gradient and sampled circuits, beside its floor.

    ``W1(v, -v) / (2 E|v|)``, 0 for a symmetric sample and 1 for a one-sided one; the floor is its
    mean when the same sizes get random signs.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = []
    for label, observable in _measured_samples(run):
        steps, values = _series(run, f"{observable}/w_sym")
        null = _beside(run, observable, "w_sym_null", steps)
        curves.append(Curve(label, steps, values, null=null))
    ylabel = r"$W_1(v, -v)\,/\,2\,E|v|$"
    draw_curves(axes, curves, ylabel=ylabel, title=title, width=width)


def draw_circuits(axes: Axes, run: Run, title: str | None = None, width: float = WIDE) -> None:
    """Exact sums over all circuits: sign balance S and mass asymmetry y T/A, over steps.

    Means over the examples with their standard errors; 0 for a net whose circuits cancel.
    S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking*, eqs. 10 and 11.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    curves = [
        _curve(run, label, f"circuit_symmetry/{name}", f"{name}_stderr", ERROR)
        for label, name in (
            ("mass asymmetry $y\\,T/A$", "mass_asymmetry"),
            ("sign balance $S$", "sign_balance"),
        )
    ]
    draw_curves(
        axes,
        curves,
        ylabel="$y\\,T/A$ and $S$, mean",
        yscale="signed log",
        title=title,
        zero_line=True,
        width=width,
    )


def draw_positive_share(
    axes: Axes, run: Run, title: str | None = None, width: float = WIDE
) -> None:
    """The share of examples whose circuits together pull to the target, y T/A > 0, over steps.

    One half for a net whose circuits cancel, whatever the sizes of y T/A, which fall with depth.

    Args:
        axes: the panel.
        run: the stored run.
        title: of the panel.
        width: of the panel in inches.
    """
    observable = "circuit_symmetry"
    label = "examples with $y\\,T/A > 0$"
    steps, values = _series(run, f"{observable}/positive")
    low, high, band = _interval(run, observable, ("positive_low", "positive_high"), steps)
    half = np.full(len(steps), 0.5)
    draw_curves(
        axes,
        [Curve(label, steps, values, low, high, band, null=half)],
        ylabel="share of examples",
        yscale="linear",
        title=title,
        width=width,
    )


def _series(run: Run, name: str) -> tuple[Floats, Floats]:
    if name not in run.names:
        return np.zeros(0), np.zeros(0)
    series = run.series(name)
    return series.steps.astype(np.float64), series.values


def _beside(run: Run, observable: str, quantity: str, steps: Floats) -> Floats | None:
    """Another quantity of the same observable, if it was stored at the same steps."""
    at, values = _series(run, f"{observable}/{quantity}")
    return values if len(steps) and np.array_equal(steps, at) else None


def _interval(
    run: Run, observable: str, edges: tuple[str, str], steps: Floats
) -> tuple[Floats, Floats, str] | tuple[None, None, None]:
    """A band's edges and its name; none if it was not stored at the same steps."""
    low, high = (_beside(run, observable, edge, steps) for edge in edges)
    return (None,) * 3 if low is None or high is None else (low, high, "95 % interval")


def _curve(
    run: Run, label: str, name: str, error: str | None = None, band: str | None = None
) -> Curve:
    """A stored series; ``error`` names the quantity of the same observable that is its band."""
    steps, values = _series(run, name)
    size = None if error is None else _beside(run, name.partition("/")[0], error, steps)
    if size is None:
        return Curve(label, steps, values)
    return Curve(label, steps, values, values - size, values + size, band)


def _measured_samples(run: Run) -> list[tuple[str, str]]:
    return [(label, observable) for label, observable in _SAMPLES if observable in run.observables]


def _absence(run: Run, observable: str) -> str:
    return "no finite measurement" if observable in run.observables else "not measured"
