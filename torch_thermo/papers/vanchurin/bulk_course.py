"""What training on the bulk loss gives beside the boundary loss: panels, and lines of the table.

The paper expects fewer flat directions of the bulk loss. How many there are changes while a network
learns, and the two losses do not learn at one speed: so they are compared after the same number of
epochs, at the same boundary risk, and at the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from torch_thermo.figures.paper import Panel, Trace
from torch_thermo.figures.scale import Scale
from torch_thermo.papers.courses import Course, Floats, course, spread
from torch_thermo.papers.vanchurin.bulk_training import FLAT
from torch_thermo.papers.verdicts import (
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    WITHIN_SPREAD,
    Claim,
    Row,
)
from torch_thermo.store import Run

__all__ = ["bulk_training_caption", "bulk_training_panels", "bulk_training_rows", "more"]

Runs: TypeAlias = Mapping[str, Sequence[Run]]

_TRAINED = {"boundary": "trained on boundary loss", "bulk": "trained on bulk loss"}
_EPOCH = "epoch"
_RISK = "bulk_exact/boundary"
_COUNTS = {
    "directions": ("curved directions", rf"number of $|\lambda| > {FLAT:g}\,|\lambda|_{{\max}}$"),
    "participation": ("participation ratio", r"$(\mathrm{tr}\,H)^2 / \mathrm{tr}\,H^2$"),
}
_REASON = "a ratio of 1 is no difference, and the counts are known to about a tenth"


def more(paper: float, ours: float, tolerance: float, spread: float) -> str:
    """A stated excess without a number: reproduced if ours lies above ``paper`` by the tolerance.

    Within twice the spread over seeds of ``paper`` it is within the spread, on either side. A rule
    of `torch_thermo.papers.verdicts`.
    """
    if not math.isfinite(ours):
        return NOT_MEASURED
    excess = ours - paper
    if abs(excess) <= 2.0 * spread:
        return WITHIN_SPREAD
    return REPRODUCED if excess > tolerance else NOT_REPRODUCED


def bulk_training_panels(runs: Runs) -> list[Panel]:
    """Both risks and the accuracy over epochs; how many directions are curved, three times.

    Args:
        runs: {loss: its runs}, as `bulk_training` gives them.
    """
    return [
        _course_panel(runs, "boundary", "boundary risk", _RISK, "log"),
        _course_panel(runs, "bulk", "bulk risk", "bulk_exact/bulk", "log"),
        _course_panel(runs, "accuracy", "accuracy on held-out digits", "accuracy/test", "linear"),
        *(_hessian_panel(runs, quantity) for quantity in _COUNTS),
        _equal_risk_panel(runs, "directions"),
    ]


def bulk_training_caption(runs: Runs) -> str:
    """What was trained and measured, for below the figure."""
    meta = runs["bulk"][0].meta
    epochs, seeds = int(course(runs["bulk"], _RISK).epochs[-1]), len(runs["bulk"])
    return (
        f"{meta['data']}, {meta['samples']:,} digits; tanh net {meta['net']}; SGD, batch "
        f"{meta['batch']}, rate {meta['lr']:g}, {epochs} epochs, "
        f"{seeds} {'seeds' if seeds > 1 else 'seed'}; both "
        "losses begin at the same weights and take the same batches. Risks (bulk: exact, the best "
        f"of 6 starts) and Hessians H of {meta['examples']} training digits, H in all weights: "
        "Lanczos, 60 steps x 4 probes. The choice of panels is ours."
    )


def bulk_training_rows(runs: Runs) -> list[Row]:
    """Curved directions of the bulk loss over those of the boundary loss, seed by seed.

    Args:
        runs: {loss: its runs}, as `bulk_training` gives them.
    """
    rows = []
    for quantity, (name, _) in _COUNTS.items():
        own = {loss: course(runs[loss], f"{loss}_hessian/{quantity}") for loss in runs}
        other = course(runs["boundary"], f"bulk_hessian/{quantity}")
        last = int(own["bulk"].epochs[-1])
        found = {
            f"after {last} epochs": own["bulk"].values[:, -1] / own["boundary"].values[:, -1],
            "at the same boundary risk": _at_equal_risk(runs, own),
            f"at the weights trained on the boundary loss, {last} epochs": (
                other.values[:, -1] / own["boundary"].values[:, -1]
            ),
        }
        for where, ratios in found.items():
            claim = Claim(
                quantity=f"{name} of the bulk loss over the boundary loss's, {where}",
                where="sec. 3",
                printed="more (fewer flat ones)",
                value=1.0,
                tolerance=0.1,
                reason=_REASON,
                rule=more,
            )
            rows.append(claim.judge(float(ratios.mean()), spread(ratios)))
    return rows


def _course_panel(runs: Runs, name: str, title: str, series: str, scale: Scale) -> Panel:
    traces = tuple(course(found, series).trace(_TRAINED[loss]) for loss, found in runs.items())
    return Panel(name, title, _EPOCH, title, traces, yscale=scale)


def _hessian_panel(runs: Runs, quantity: str) -> Panel:
    """Of the loss that is trained on, and of the bulk loss at the other's weights."""
    title, label = _COUNTS[quantity]
    traces = [
        course(found, f"{loss}_hessian/{quantity}").trace(f"{loss} loss, {_TRAINED[loss]}")
        for loss, found in runs.items()
    ]
    crossed = course(runs["boundary"], f"bulk_hessian/{quantity}")
    traces.append(crossed.trace(f"bulk loss, {_TRAINED['boundary']}"))
    return Panel(
        quantity, f"{title} of the Hessian", _EPOCH, label, tuple(traces), xscale="signed log"
    )


def _equal_risk_panel(runs: Runs, quantity: str) -> Panel:
    title, label = _COUNTS[quantity]
    traces = []
    for loss, found in runs.items():
        counts, risks = _with_risk(found, course(found, f"{loss}_hessian/{quantity}"))
        trace = counts.trace(f"{loss} loss, {_TRAINED[loss]}")
        x = np.exp(np.log(risks).mean(0))
        traces.append(Trace(trace.label, x, trace.y, trace.low, trace.high, trace.band))
    return Panel(
        f"{quantity}_at_risk",
        f"{title} at one boundary risk",
        "boundary risk",
        label,
        tuple(traces),
        xscale="log",
    )


def _with_risk(found: Sequence[Run], counts: Course) -> tuple[Course, Floats]:
    """The counts, and the boundary risks (S, E) where they were made."""
    risk = course(found, _RISK)
    return counts, risk.values[:, np.isin(risk.epochs, counts.epochs)]


def _at_equal_risk(runs: Runs, own: Mapping[str, Course]) -> Floats:
    """Bulk over boundary (S,) at the lowest boundary risk that both have reached.

    The logarithm of the count is interpolated over that of the risk.
    """
    points = {loss: _with_risk(runs[loss], own[loss]) for loss in runs}
    ratios = []
    for seed in range(len(own["bulk"].values)):
        lowest = max(float(risks[seed].min()) for _, risks in points.values())
        at: dict[str, float] = {}
        for loss, (counts, risks) in points.items():
            order = np.argsort(risks[seed])
            x, y = np.log(risks[seed][order]), np.log(counts.values[seed][order])
            at[loss] = math.exp(float(np.interp(math.log(lowest), x, y)))
        ratios.append(at["bulk"] / at["boundary"])
    return np.array(ratios)
