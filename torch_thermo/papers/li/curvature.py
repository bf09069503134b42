"""What the paper states of the Hessian's spectrum, and what we measure beside it.

S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking* (arXiv:2201.07934), Fig. 8a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torch_thermo.figures.spectral import stored_measure
from torch_thermo.papers import verdicts
from torch_thermo.papers.courses import Course, Floats, course, judged, median
from torch_thermo.papers.li.claims import CURVATURE, while_active
from torch_thermo.papers.li.entries import NOTHING, between, ends, too_soon, unless
from torch_thermo.papers.verdicts import Claim, Row, Rule
from torch_thermo.store import Run

__all__ = [
    "ODD",
    "beside",
    "edge_ratio",
    "functional_rows",
    "loosest_end",
    "spectrum_rows",
    "within",
]

ODD = 0.25
"""|odd_3| up to which a spectrum counts as symmetric: deep nets have a small one, .00 to .19."""


def edge_ratio(runs: Sequence[Run], observable: str = "hessian_extremes") -> Course:
    """|lambda_min| / lambda_max; NaN where the Hessian is 0."""
    low, high = (course(runs, f"{observable}/{name}") for name in ("lambda_min", "lambda_max"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(high.values > 0, -low.values / high.values, np.nan)
    return Course(low.epochs, ratio)


def loosest_end(runs: Sequence[Run]) -> float:
    """The largest residual bound of an end of the spectrum, over the larger |lambda| there."""
    low, high, first, last = (
        course(runs, f"hessian_extremes/{name}").values
        for name in ("lambda_min", "lambda_max", "residual_min", "residual_max")
    )
    sizes = np.maximum(np.abs(low), np.abs(high))
    bounds = np.maximum(first, last)[sizes > 0] / sizes[sizes > 0]
    return float(bounds.max()) if len(bounds) else math.nan


def within(error: float, holds: Rule = verdicts.at_most) -> Rule:
    """A bound on a number that is an estimate: judged only beyond its standard error.

    Args:
        error: one standard error.
        holds: the bound's rule.

    Returns:
        A rule that gives what `holds` says of the number with its error added and taken away.
        Not measured where the two differ, and where the error is not known or exceeds half of the
        bound.
    """

    def rule(paper: float, ours: float, tolerance: float, spread: float) -> str:
        if not error <= 0.5 * abs(paper):
            return verdicts.NOT_MEASURED
        low, high = (holds(paper, ours + sign * error, tolerance, spread) for sign in (-1.0, 1.0))
        return low if low == high else verdicts.NOT_MEASURED

    return rule


def beside(control: float, holds: Rule = verdicts.at_most) -> Rule:
    """A law that must hold on a control too.

    Args:
        control: our number once what arithmetic makes of it is taken out.
        holds: the law's own rule.

    Returns:
        A rule that judges as `holds` does; no content where the control does not pass.
    """

    def rule(paper: float, ours: float, tolerance: float, spread: float) -> str:
        verdict = holds(paper, ours, tolerance, spread)
        if verdict == verdicts.REPRODUCED and holds(paper, control, tolerance, math.nan) != verdict:
            return verdicts.NO_CONTENT
        return verdict

    return rule


def spectrum_rows(runs: Sequence[Run]) -> list[Row]:
    """The spectrum of H is symmetric and shrinks."""
    ratio = edge_ratio(runs)
    off = while_active(runs, Course(ratio.epochs, np.abs(ratio.values - 1.0)), CURVATURE)
    finite = ratio.values[np.isfinite(ratio.values)]
    claim = Claim(
        "| |lambda_min| / lambda_max - 1 |, median",
        "Fig. 8a",
        "symmetric",
        ODD,
        0.0,
        "a quarter",
        verdicts.at_most,
    )
    note = "lambda_max is 0 at all measurements"
    if len(finite):
        note = (
            f"over the epochs with R > 0; the ratio lies between {finite.min():.2f} and "
            f"{finite.max():.2f}; the control, a net with another loss, is in li/functional"
        )
    rows = [judged(claim, off, note)]
    odd, error = (course(runs, f"hessian_density/{name}") for name in ("odd3", "odd3_stderr"))
    sizes, errors = (
        while_active(runs, Course(odd.epochs, values), CURVATURE)
        for values in (np.abs(odd.values), error.values)
    )
    claim = Claim(
        "|odd_3| of the spectrum, median",
        "Fig. 8a",
        "symmetric",
        ODD,
        0.0,
        "deep nets have a small one, up to .19",
        within(float(errors.max())),
    )
    note = (
        f"sum of lambda^3 over sum of |lambda|^3, median over the epochs with R > 0; "
        f"{_error(errors)}; odd_1 = 0 by identity, tr H = 0, and says nothing"
    )
    rows.append(judged(claim, sizes, note))
    return [*rows, _shrinking(runs)]


def _error(errors: Floats) -> str:
    """For notes: the standard errors that a bound is judged beyond, and their limit."""
    return f"standard error {errors.max():.2g}, judged beyond it and not measured above {ODD / 2:g}"


def _shrinking(runs: Sequence[Run]) -> Row:
    found = ends(runs, "active_share")
    claim = Claim(
        "lambda_max over that before training, " + ("late" if found is None else found[1].when),
        "Fig. 8a",
        "shrinks",
        0.5,
        0.0,
        "half",
        verdicts.at_most,
    )
    if found is None:
        return claim.judge(math.nan, note=NOTHING)
    first, last = (_largest(runs, one.steps) for one in found)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(first > 0, last / first, np.nan)
    given = ratio * found[0].of("active_share") / found[1].of("active_share")
    claim = replace(claim, rule=beside(float(given.max())))
    at = found[1]
    note = (
        f"at the last epoch measured with active examples, {at.epoch}, "
        f"{between(at.active, '{:.0f}')} of them; the control: lambda_max over the active share, "
        f"of the mean Hessian of the active examples alone, goes to {between(given, '{:.2g}')} "
        "times its start; unless it shrinks too, all that shrinks is the active share"
    )
    reason = too_soon(found)
    return judged(claim, unless(reason, ratio), note + reason)


def _largest(runs: Sequence[Run], steps: Sequence[int]) -> Floats:
    """(S,): lambda_max at the last measurement up to a step."""
    found = [run.series("hessian_extremes/lambda_max") for run in runs]
    pairs = zip(found, steps, strict=True)
    return np.array([float(one.values[one.steps <= step][-1]) for one, step in pairs])


def functional_rows(nets: Mapping[str, Sequence[Run]]) -> list[Row]:
    """Of other losses and nets the functional part alone is symmetric.

    No content where the whole Hessian, the control, is as symmetric: then odd_3 does not tell the
    two apart.
    """
    rows = []
    for net, runs in nets.items():
        part, whole = (_last_half(runs, f"{name}_density") for name in ("functional", "hessian"))
        claim = Claim(
            f"|odd_3| of the functional part F, {net}, second half",
            "sec. on the Hessian",
            "symmetric",
            ODD,
            0.0,
            "as of Fig. 8a",
            verdicts.content(float(whole.size.min()), within(float(part.error.max()))),
        )
        note = (
            f"median over the measurements of the second half, {_error(part.error)}; |lambda_min| "
            f"/ lambda_max {part.ratio.mean():.2f}, tr F over the sum of |lambda| "
            f"{_trace_share(runs, 'functional')}; the control, the whole Hessian H, of which "
            f"nothing is stated: |odd_3| {between(whole.size, '{:.2g}')}, |lambda_min| / "
            f"lambda_max {whole.ratio.mean():.2f}, tr H over the sum of |lambda| "
            f"{_trace_share(runs, 'hessian')}"
        )
        rows.append(judged(claim, part.size, note))
    return rows


@dataclass(frozen=True)
class _Half:
    """Medians of each seed over the second half of the training, (S,)."""

    size: Floats  # |odd_3|
    error: Floats  # its standard error
    ratio: Floats  # |lambda_min| / lambda_max


def _last_half(runs: Sequence[Run], observable: str) -> _Half:
    odd, error = (course(runs, f"{observable}/{name}") for name in ("odd3", "odd3_stderr"))
    # of signed values the median could lie where none is
    size = Course(odd.epochs, np.abs(odd.values))
    medians = []
    for found in (size, error, edge_ratio(runs, observable)):
        late = found.since(0.5 * float(runs[0].meta["epochs"]))
        medians.append(np.array([median(row) for row in late.values]))
    return _Half(*medians)


def _trace_share(runs: Sequence[Run], name: str) -> str:
    """The trace over the sum of |lambda| at the last measurement, of each seed with its error."""
    found = []
    for run in runs:
        step = run.array_steps(f"{name}_density")[-1]
        share = stored_measure(run.arrays(f"{name}_density", step)).odd_moment(1)
        known = math.isfinite(share.value) and math.isfinite(share.stderr)
        found.append(f"{share.value:.2g} ± {share.stderr:.1g}" if known else "not measured")
    return ", ".join(found)
