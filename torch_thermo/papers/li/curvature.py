"""What the paper states of the Hessian, and what we measure beside it: entries and spectra.

S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking* (arXiv:2201.07934), Figs. 6, 7, 8a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from torch_thermo.figures.spectral import stored_measure
from torch_thermo.papers import verdicts
from torch_thermo.papers.courses import Course, Floats, course, epochs_of, judged, median
from torch_thermo.papers.li.claims import CURVATURE, while_active
from torch_thermo.papers.verdicts import Claim, Row
from torch_thermo.store import Run

__all__ = [
    "CORRELATED",
    "EARLY",
    "LATE",
    "LEAST",
    "ODD",
    "THRESHOLD",
    "Moments",
    "chance_below",
    "correlation_rows",
    "edge_ratio",
    "ends",
    "forced_below",
    "functional_rows",
    "loosest_end",
    "mean_rows",
    "share_rows",
    "spectrum_rows",
    "three_steps",
]

THRESHOLD = 0.15
"""|z_1| below which the paper calls a normalised mean 0."""

EARLY, LATE = 0.95, 0.98
"""The shares of entries below it that the paper states."""

ODD = 0.25
"""|odd_3| up to which a spectrum counts as symmetric: deep nets have a small one, .00 to .19."""

SPARSE = 0.25

LEAST = 241  # active examples: of fewer chance alone puts less than LATE below THRESHOLD
CORRELATED = 100  # active examples of which correlations are compared over training
NOTHING = "too few active examples at any measurement"


@dataclass(frozen=True)
class Moments:
    """A measurement of the entries in each run, at which something is known.

    Attributes:
        runs: one a seed.
        steps: of each run.
    """

    runs: Sequence[Run]
    steps: tuple[int, ...]

    def of(self, name: str) -> Floats:
        """(S,): a number of the entries, or "epoch"."""
        pairs = list(zip(self.runs, self.steps, strict=True))
        if name == "epoch":
            return np.array([epochs_of(run, [step])[0] for run, step in pairs])
        series = [run.series(f"hessian_entries/{name}") for run in self.runs]
        found = zip(series, self.steps, strict=True)
        return np.array([one.values[one.steps == step][-1] for one, step in found])

    @property
    def active(self) -> Floats:
        """(S,): how many examples are active."""
        return self.of("samples") * self.of("active_share")

    @property
    def epoch(self) -> str:
        """For notes: of all seeds."""
        return _between(self.of("epoch"), "{:g}")


def ends(runs: Sequence[Run], name: str, least: float = 1.0) -> tuple[Moments, Moments] | None:
    """The first and the last measurement of each run that knows a number.

    Args:
        runs: one a seed.
        name: of the number.
        least: active examples that there must be.

    Returns:
        None if a run has no such measurement.
    """
    found = []
    for run in runs:
        values, share, samples = (
            run.series(f"hessian_entries/{one}") for one in (name, "active_share", "samples")
        )
        known = np.isfinite(values.values) & (samples.values * share.values >= least - 0.5)
        found.append(values.steps[known])
    if not all(len(steps) for steps in found):
        return None
    first, last = (tuple(int(steps[place]) for steps in found) for place in (0, -1))
    return Moments(runs, first), Moments(runs, last)


def chance_below(examples: ArrayLike) -> Floats:
    """The share of entries with |z| < .15 in a sample of n whose true means are all 0.

    `2 Phi(.15 sqrt(n)) - 1`: a mean over n examples has the standard error sd / sqrt(n).
    """
    sizes = THRESHOLD * np.sqrt(np.asarray(examples, np.float64) / 2.0)
    return np.array([math.erf(size) for size in np.atleast_1d(sizes)])


def forced_below(bound: ArrayLike) -> Floats:
    """The share of entries that arithmetic alone puts below .15: all where the bound is, or none.

    `|z_1| <= sqrt(p / (1 - p))` with p the share of active examples.
    """
    return (np.asarray(bound, np.float64) < THRESHOLD).astype(np.float64)


def share_rows(runs: Sequence[Run]) -> list[Row]:
    """How many of the normalised means lie below .15, and what of it the active share makes."""
    rows = []
    found = ends(runs, "share_below_moving")
    for when, place, least in (("before training", 0, EARLY), ("at the end", 1, LATE)):
        at = None if found is None else found[place]
        forced = math.nan if at is None else float(forced_below(at.of("bound")).mean())
        claim = Claim(
            f"share of entries with |z_1| < {THRESHOLD}, {when}",
            "Fig. 6",
            f">= {100 * least:g} %",
            least,
            0.005,
            "half of the last digit printed",
            verdicts.content(forced, verdicts.at_least),
        )
        if at is None:
            rows.append(claim.judge(math.nan, note=NOTHING))
            continue
        note = (
            f"at epoch {at.epoch}, B = 1, of the entries that are not 0 in all examples; counting "
            f"those, {100 * at.of('silent_share').mean():.0f} % of all, it is "
            f"{at.of('share_below').mean():.3f}; the active share p is "
            f"{_between(at.of('active_share'), '{:.2g}')}, and no |z_1| exceeds sqrt(p / (1 - p)) "
            f"= {_between(at.of('bound'), '{:.2g}')}, whatever the entries are"
        )
        rows.append(judged(claim, at.of("share_below_moving"), note))
    return rows


def mean_rows(runs: Sequence[Run]) -> list[Row]:
    """The control: the same of the active examples alone."""
    found = ends(runs, "share_below_active", LEAST)
    name = "share_below_active"
    claims = (
        Claim(
            f"share of entries with |z| < {THRESHOLD} given active, late",
            "control of Fig. 6",
            f">= {100 * LATE:g} %",
            LATE,
            0.005,
            "half of the last digit printed",
            verdicts.at_least,
        ),
        Claim(
            "rise of the share given active",
            "control of Fig. 6",
            f"{100 * EARLY:g} % to {100 * LATE:g} %",
            LATE - EARLY,
            0.01,
            "the last digit of each of the two",
            verdicts.at_least,
        ),
    )
    if found is None:
        return [claim.judge(math.nan, note=NOTHING) for claim in claims]
    first, last = found
    chance = chance_below(last.active).mean()
    notes = (
        f"at epoch {last.epoch}, the last with {LEAST} active examples, of fewer chance alone "
        f"would put less than {100 * LATE:g} % below; of entries with mean 0 it would be "
        f"{chance:.3f}; before training {first.of(name).mean():.3f}",
        f"from epoch {first.epoch} to {last.epoch}; over all examples, inactive ones too, it is "
        f"{(last.of('share_below_moving') - first.of('share_below_moving')).mean():.3f}: what the "
        "two differ by is the active share's",
    )
    values = last.of(name), last.of(name) - first.of(name)
    return [judged(*one) for one in zip(claims, values, notes, strict=True)]


def three_steps(run: Run) -> list[int]:
    """The steps of a first, a middle and a last measurement with correlations; at most three.

    The middle one is that at which the active share is nearest to the geometric mean of the other
    two: late in training too few examples are active.
    """
    known = run.series("hessian_entries/correlation_active")
    share = run.series("hessian_entries/active_share")
    kept = np.isfinite(known.values) & (share.values > 0)
    steps, logs = share.steps[kept], np.log(share.values[kept])
    if not len(steps):
        return []
    middle = int(np.abs(logs - 0.5 * (logs[0] + logs[-1])).argmin())
    return sorted({int(steps[0]), int(steps[middle]), int(steps[-1])})


def correlation_rows(runs: Sequence[Run]) -> list[Row]:
    """Correlations of entries are sparse, and grow with training."""
    found = ends(runs, "correlation_active", CORRELATED)
    sparse = Claim(
        "share of correlated pairs of entries given active, before training",
        "Fig. 7",
        "sparse",
        SPARSE,
        0.0,
        "a quarter of the pairs is the most that may be called sparse",
        verdicts.at_most,
    )
    grow = Claim(
        "growth of mean |r| above its permutation null, given active",
        "Fig. 7",
        "grow after training",
        0.05,
        0.0,
        "a twentieth of the largest, 1; above the null, which grows as examples get fewer",
        verdicts.at_least,
    )
    if found is None:
        return [claim.judge(math.nan, note=NOTHING) for claim in (sparse, grow)]
    first, last = found
    size, null = "correlation_active", "correlation_active_null"
    note = (
        f"false-discovery rate .05 against permuted examples; {_between(first.active, '{:.0f}')} "
        f"active examples; mean |r| {first.of(size).mean():.3f}, of the permuted "
        f"{first.of(null).mean():.3f}; over all examples, where to be active together correlates "
        f"too, {first.of('correlated_share').mean():.2f}"
    )
    rows = [judged(sparse, first.of("correlated_share_active"), note)]
    grown = (last.of(size) - last.of(null)) - (first.of(size) - first.of(null))
    note = (
        f"from epoch {first.epoch} to {last.epoch}, the last with {CORRELATED} active examples; "
        f"the control: the null's own mean |r| goes from {first.of(null).mean():.3f} to "
        f"{last.of(null).mean():.3f}; of the pairs {last.of('correlated_share_active').mean():.2f} "
        "are correlated then"
    )
    return [*rows, judged(grow, grown, note)]


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


def spectrum_rows(runs: Sequence[Run]) -> list[Row]:
    """The spectrum of H is symmetric and shrinks."""
    ratio = edge_ratio(runs)
    odd, error = (course(runs, f"hessian_density/{name}") for name in ("odd3", "odd3_stderr"))
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
    note = (
        f"over the epochs with R > 0; the ratio lies between {finite.min():.2f} and "
        f"{finite.max():.2f}; the control, a net with another loss, is in li/functional"
    )
    rows = [judged(claim, off, note)]
    claim = Claim(
        "|odd_3| of the spectrum, median",
        "Fig. 8a",
        "symmetric",
        ODD,
        0.0,
        "deep nets have a small one, up to .19",
        verdicts.at_most,
    )
    note = (
        f"sum of lambda^3 over sum of |lambda|^3, standard error {median(error.values):.2f} in "
        "the median; odd_1 = 0 by identity, tr H = 0, and says nothing"
    )
    sizes = while_active(runs, Course(odd.epochs, np.abs(odd.values)), CURVATURE)
    rows.append(judged(claim, sizes, note))
    return [*rows, _shrinking(runs)]


def _shrinking(runs: Sequence[Run]) -> Row:
    claim = Claim(
        "lambda_max late over that before training",
        "Fig. 8a",
        "shrinks",
        0.5,
        0.0,
        "half",
        verdicts.at_most,
    )
    found = ends(runs, "active_share")
    if found is None:
        return claim.judge(math.nan, note=NOTHING)
    first, last = ([_largest(run, step) for run, step in zip(runs, one.steps, strict=True)]
                   for one in found)  # fmt: skip
    ratio = np.array(last) / np.array(first)
    given = ratio * found[0].of("active_share") / found[1].of("active_share")
    note = (
        f"at the last epoch measured with active examples, {found[1].epoch}; the control: "
        "lambda_max over the active share, of the mean Hessian of the active examples alone, goes "
        f"to {given.mean():.2g} times its start"
    )
    return judged(claim, ratio, note)


def _largest(run: Run, step: int) -> float:
    """lambda_max at the last measurement up to a step."""
    found = run.series("hessian_extremes/lambda_max")
    return float(found.values[found.steps <= step][-1])


def functional_rows(nets: Mapping[str, Sequence[Run]]) -> list[Row]:
    """Of other losses and nets the functional part alone is symmetric."""
    rows = []
    for net, runs in nets.items():
        found = {name: course(runs, f"{name}_density/odd3") for name in ("functional", "hessian")}
        late = {name: _last_half(one) for name, one in found.items()}
        ratio = {name: _last_half(edge_ratio(runs, f"{name}_density")) for name in found}
        for name, what, limit, rule, printed in (
            ("functional", "the functional part F", ODD, verdicts.at_most, "symmetric"),
            ("hessian", "the whole Hessian H", ODD, verdicts.at_least, "(not stated)"),
        ):
            claim = Claim(
                f"|odd_3| of {what}, {net}, second half",
                "sec. on the Hessian" if name == "functional" else "control",
                printed,
                limit,
                0.0,
                "as of Fig. 8a"
                if name == "functional"
                else "the statistic must tell the two parts apart",
                rule,
            )
            note = (
                f"median over the measurements of the second half; |lambda_min| / lambda_max is "
                f"{np.mean(ratio[name]):.2f}"
            )
            if name == "functional":
                note += f"; tr F over the sum of |lambda| is {_trace_share(runs, name):.2g}"
            else:
                note += f"; tr H over the sum of |lambda| is {_trace_share(runs, name):.2g}"
            rows.append(judged(claim, np.abs(late[name]), note))
    return rows


def _last_half(found: Course) -> Floats:
    """(S,): the median of each seed over the second half of the training."""
    late = found.since(0.5 * float(found.epochs[-1]))
    return np.array([median(row) for row in late.values])


def _trace_share(runs: Sequence[Run], name: str) -> float:
    """The trace over the sum of |lambda| at the end, mean over the seeds."""
    found = []
    for run in runs:
        step = run.array_steps(f"{name}_density")[-1]
        measure = stored_measure(run.arrays(f"{name}_density", step))
        size = float((measure.weights * measure.nodes.abs()).sum(1).mean()) * measure.dimension
        trace = float((measure.weights * measure.nodes).sum(1).mean()) * measure.dimension
        found.append(trace / size if size else float("nan"))
    return float(np.mean(found))


def _between(values: Floats, form: str) -> str:
    """One number, or the least and the largest of several seeds."""
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"
