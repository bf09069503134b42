"""What the paper states of the Hessian's entries, and what we measure beside it.

S. W. M. Li, *Complexity from Adaptive-Symmetries Breaking* (arXiv:2201.07934), Figs. 6 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from torch_thermo.papers import verdicts
from torch_thermo.papers.courses import Floats, epochs_of, judged
from torch_thermo.papers.verdicts import Claim, Row
from torch_thermo.store import Run

__all__ = [
    "CORRELATED",
    "CORRELATION",
    "EARLY",
    "LATE",
    "LEAST",
    "NOTHING",
    "SIGN_NULL",
    "THRESHOLD",
    "Moments",
    "between",
    "chance_below",
    "correlation_rows",
    "ends",
    "excess_squares",
    "mean_rows",
    "seen_from",
    "share_if",
    "share_rows",
    "three_steps",
    "too_soon",
    "unless",
]

THRESHOLD = 0.15
"""|z_1| below which the paper calls a normalised mean 0."""

EARLY, LATE = 0.95, 0.98
"""The shares of entries below it that the paper states."""

SPARSE = 0.25
CORRELATION = 0.2  # what a test that finds few pairs must be able to find

# z of values of one sign, with the sizes of a Gaussian's: sqrt(2 / pi) / sqrt(1 - 2 / pi)
ONE_SIGN = math.sqrt(2.0 / (math.pi - 2.0))

LEAST = 241  # active examples: of fewer chance alone puts less than LATE below THRESHOLD
CORRELATED = 100  # active examples of which correlations are compared over training
SIGN_NULL = "correlation_active_sign_null"  # mean |r| of random signs
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
        return between(self.of("epoch"), "{:g}")

    @property
    def progress(self) -> Floats:
        """(S,): the epoch over those of the whole training."""
        whole = [max(float(run.meta["epochs"]), 1.0) for run in self.runs]
        progress: Floats = self.of("epoch") / np.array(whole)
        return progress

    @property
    def when(self) -> str:
        """For quantities: "late" from half of the training on, else the epoch."""
        return "late" if bool((self.progress >= 0.5).all()) else f"at epoch {self.epoch}"

    def has(self, name: str) -> bool:
        """Whether all runs stored it: older ones lack some."""
        return all(f"hessian_entries/{name}" in run.names for run in self.runs)

    def sample(self, array: str) -> list[Floats]:
        """Of each seed the finite values of a stored array, (n,)."""
        found = [
            np.asarray(run.arrays("hessian_entries", step)[array], np.float64).ravel()
            for run, step in zip(self.runs, self.steps, strict=True)
        ]
        return [values[np.isfinite(values)] for values in found]


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


def too_soon(found: tuple[Moments, Moments]) -> str:
    """Why the first and the last measurement say nothing of what training did; empty if they do."""
    first, last = found
    if any(one == other for one, other in zip(first.steps, last.steps, strict=True)):
        return f"; not measured: no second measurement of a seed, after epoch {last.epoch}"
    if bool((last.progress < 0.1).any()):
        return f"; not measured: epoch {last.epoch} is in the first tenth of the training"
    if not _untrained(first):
        return f"; not measured: the first measurement is at epoch {first.epoch}"
    return ""


def _untrained(at: Moments) -> bool:
    return bool((at.progress < 0.1).all())


def unless(reason: str, values: Floats) -> Floats:
    """(S,): NaN where there is a reason."""
    return np.full_like(values, np.nan) if reason else values


def chance_below(examples: ArrayLike) -> Floats:
    """The share of entries with |z| < .15 in a sample of n whose true means are all 0.

    `2 Phi(.15 sqrt(n)) - 1`: a mean over n examples has the standard error sd / sqrt(n).
    """
    sizes = THRESHOLD * np.sqrt(np.asarray(examples, np.float64) / 2.0)
    return np.array([math.erf(size) for size in np.atleast_1d(sizes)])


def share_if(given: ArrayLike, active: float) -> float:
    """The share of entries with |z_1| < .15 that have some z given active, at an active share p.

    `z_1^2 = p z_a^2 / (1 + (1 - p) z_a^2)`: as examples are learned z_1 falls, whatever z_a is.

    Args:
        given: z_a, of any shape; not empty.
        active: p.
    """
    squares = np.square(np.asarray(given, np.float64))
    means = active * squares / (1.0 + (1.0 - active) * squares)
    return float((means < THRESHOLD**2).mean())


def share_rows(runs: Sequence[Run]) -> list[Row]:
    """How many of the normalised means lie below .15, and what of it the active share makes.

    Without content is a share that needs no training but for fewer active examples: before
    training, one that entries of one sign would have too; late, one that the z given active from
    before training would have at the late active share. One seed of that kind is enough: its share
    would lift the mean of all.
    """
    name = "share_below_moving"
    found = ends(runs, name, LEAST)
    rows = []
    for place, least in enumerate((EARLY, LATE)):
        at = None if found is None else found[place]
        when = "late" if at is None else at.when
        what = f"share of entries with |z_1| < {THRESHOLD}, {when if place else 'before training'}"
        null, missing = math.nan, ""
        if found is not None:
            null, missing = _without_training(found, place)
        claim = Claim(
            what,
            "Fig. 6",
            f">= {100 * least:g} %",
            least,
            0.005,
            "half of the last digit printed",
            verdicts.content(null, verdicts.at_least),
        )
        if at is None:
            rows.append(claim.judge(math.nan, note=NOTHING))
            continue
        note = (
            f"at epoch {at.epoch}, {between(at.active, '{:.0f}')} active examples, B = 1, of the "
            f"entries that are not 0 in all examples: {at.of(name).mean():.3f}; counting those, "
            f"{100 * at.of('silent_share').mean():.0f} % of all, {at.of('share_below').mean():.3f};"
            f" the active share p is {between(at.of('active_share'), '{:.2g}')}, and the control, "
            + ("the z given active of before training" if place else "values of one sign")
            + f" at this p, has {null:.3f}{missing}"
        )
        rows.append(judged(claim, unless(missing, at.of(name)), note))
    return rows


def _without_training(found: tuple[Moments, Moments], place: int) -> tuple[float, str]:
    """The largest share of a seed that fewer active examples alone make, and why there is none."""
    first, at = found[0], found[place]
    shares = at.of("active_share")
    if place:
        given = first.sample("z_active")
        missing = too_soon(found)
    else:
        given = [np.array([ONE_SIGN])] * len(shares)
        missing = "" if _untrained(at) else "; not measured before training"
    return max(share_if(z, p) for z, p in zip(given, shares, strict=True)), missing


def mean_rows(runs: Sequence[Run]) -> list[Row]:
    """The control: the same of the active examples alone."""
    found = ends(runs, "share_below_active", LEAST)
    name = "share_below_active"
    when = "late" if found is None else found[1].when
    claims = (
        Claim(
            f"share of entries with |z| < {THRESHOLD} given active, {when}",
            "control of Fig. 6",
            f">= {100 * LATE:g} %",
            LATE,
            0.005,
            "half of the last digit printed",
            verdicts.at_least,
        ),
        Claim(
            f"rise of the share given active, {when}",
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
    values, reason = (last.of(name), last.of(name) - first.of(name)), too_soon(found)
    return [
        judged(claim, unless(reason, value), note + reason)
        for claim, value, note in zip(claims, values, notes, strict=True)
    ]


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


def seen_from(correlation: float) -> int:
    """Active examples from which the test finds a correlation in 19 of 20 pairs that have it.

    If a quarter of the pairs have it, Benjamini and Hochberg's procedure at a rate of .05 compares
    them with a level of `.05 / 4`, two-sided: |r| > 2.50 / sqrt(n), which the r measured, of
    standard deviation 1 / sqrt(n), exceeds in 19 of 20 pairs if the true one is 1.64 of these
    above.
    """
    normal = NormalDist()
    level, found = normal.inv_cdf(1.0 - 0.05 * SPARSE / 2.0), normal.inv_cdf(0.95)
    return math.ceil(((level + found) / correlation) ** 2)


def excess_squares(matrix: ArrayLike, active: float, scale: float = 1.0) -> float:
    """Mean r^2 of the pairs above chance's: of permuted examples it is `1 / (n - 1)` exactly.

    Of any n the mean of r^2 has the same excess up to a factor 1 - 2 / n, unlike the mean |r|,
    which compares with nothing at another n.

    Args:
        matrix: (K, K) correlations; what is not finite is left out.
        active: n, the examples that they are over.
        scale: of another null's |r| over that of permuted examples: chance's r^2 goes as its
            square.

    Returns:
        NaN without a pair.
    """
    found = np.asarray(matrix, np.float64)
    pairs = found[np.triu_indices(len(found), 1)]
    pairs = pairs[np.isfinite(pairs)]
    if not len(pairs):
        return math.nan
    return float(np.square(pairs).mean() - scale**2 / (active - 1.0))


def correlation_rows(runs: Sequence[Run]) -> list[Row]:
    """Correlations of entries are sparse, and grow with training."""
    sparse = Claim(
        "share of correlated pairs of entries given active, before training",
        "Fig. 7",
        "sparse",
        SPARSE,
        0.0,
        "a quarter of the pairs is the most that may be called sparse",
        verdicts.at_most,
    )
    found = ends(runs, "correlation_active", seen_from(CORRELATION))
    if found is None:
        rows = [sparse.judge(math.nan, note=NOTHING)]
    else:
        first, _ = found
        reason = "" if _untrained(first) else "; not measured before training"
        size, null = "correlation_active", "correlation_active_null"
        note = (
            f"at epoch {first.epoch}, false-discovery rate .05 against "
            f"{'random signs' if first.has(SIGN_NULL) else 'permuted examples'}; "
            f"{between(first.active, '{:.0f}')} active examples, with {seen_from(CORRELATION)} "
            f"correlations of {CORRELATION:g} are found; mean |r| {first.of(size).mean():.3f}, of "
            f"the permuted {first.of(null).mean():.3f}; over all examples, where to be active "
            f"together correlates too, {first.of('correlated_share').mean():.2f}"
        )
        shares = unless(reason, first.of("correlated_share_active"))
        rows = [judged(sparse, shares, note + reason)]
    return [*rows, _growing(runs)]


def _growing(runs: Sequence[Run]) -> Row:
    found = ends(runs, "correlation_active", CORRELATED)
    grow = Claim(
        "growth of the correlations given active beyond chance, "
        + ("late" if found is None else found[1].when),
        "Fig. 7",
        "grow after training",
        0.05,
        0.0,
        "a twentieth of the largest, 1",
        verdicts.at_least,
    )
    if found is None:
        return grow.judge(math.nan, note=NOTHING)
    first, last = (_beyond_chance(at) for at in found)
    given = found[1]
    note = (
        "root mean square of r beyond chance, 1 / (n - 1) of n active examples"
        + (", and with the magnitudes that entries share" if given.has(SIGN_NULL) else "")
        + ": from "
        f"{first.mean():.3f} at epoch {found[0].epoch} to {last.mean():.3f} at epoch {given.epoch},"
        f" the last with {CORRELATED}; the control: n falls from "
        f"{between(found[0].active, '{:.0f}')} to {between(given.active, '{:.0f}')}, and the mean"
        f" |r| of permuted examples goes from {found[0].of('correlation_active_null').mean():.3f} "
        f"to {given.of('correlation_active_null').mean():.3f}; of the pairs "
        f"{given.of('correlated_share_active').mean():.2f} are correlated then"
    )
    reason = too_soon(found)
    return judged(grow, unless(reason, last - first), note + reason)


def _beyond_chance(at: Moments) -> Floats:
    """(S,): the correlation whose square is the excess; negative where that is."""
    found = [
        run.arrays("hessian_entries", step)["correlation_active"]
        for run, step in zip(at.runs, at.steps, strict=True)
    ]
    scales = np.ones(len(found))
    if at.has(SIGN_NULL):  # magnitudes that entries share are no correlation: random signs have it
        scales = at.of(SIGN_NULL) / at.of("correlation_active_null")
    excess = np.array([excess_squares(*one) for one in zip(found, at.active, scales, strict=True)])
    signed: Floats = np.sign(excess) * np.sqrt(np.abs(excess))
    return signed


def between(values: Floats, form: str) -> str:
    """One number, or the least and the largest of several seeds."""
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"
