"""The laws and temperatures that the paper states, and what our runs say of them.

V. Vanchurin, *Towards a theory of machine learning*, sections 7 to 10. A law that also holds on
random spectra with random losses says nothing of training: the rule `content` asks for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from torch_thermo.observables.canonical_ensemble import CanonicalEnsemble
from torch_thermo.observables.thermodynamics import ThermodynamicCourse
from torch_thermo.papers import verdicts
from torch_thermo.papers.courses import Floats, spread
from torch_thermo.papers.vanchurin.claims import BETA
from torch_thermo.papers.vanchurin.stored import Moments, ensemble, moments
from torch_thermo.papers.verdicts import Claim, Row
from torch_thermo.store import Run

__all__ = ["hard_count", "thermodynamic_rows"]


def hard_count(last: CanonicalEnsemble) -> int:
    """N_> at the paper's beta, of eq. 10.1."""
    return round(last.printed(BETA).count)


def thermodynamic_rows(runs: Sequence[Run]) -> list[Row]:
    """Temperatures, the two laws, and eqs. 7.1 and 10.1, deep net."""
    found = [moments(run) for run in runs]
    courses = [one.laws(BETA) for one in found]
    last = [one.ensembles[-1] for one in found]
    return [
        _temperature_row(courses),
        *_first_law_rows(found, courses),
        *_second_law_rows(found[0], courses),
        _count_row(last),
        _entropy_row(last[0]),
    ]


def _temperature_row(courses: Sequence[ThermodynamicCourse]) -> Row:
    betas = np.array([one.betas[-1] for one in courses])
    first = np.array([one.betas[0] for one in courses])
    claim = Claim(
        "beta from U, at the end",
        "eq. 10.1, sec. 10",
        "about 1.5",
        BETA,
        0.3,
        "decades: a factor of two",
        verdicts.decades,
    )
    note = (
        f"from {first.mean():.3g} before training; U = N_eff / (2 beta) is about N / (2 beta) "
        "here, whatever the spectrum"
    )
    return claim.judge(float(betas.mean()), spread(np.log10(betas)), note)


def _first_law_rows(found: Sequence[Moments], courses: Sequence[ThermodynamicCourse]) -> list[Row]:
    neurons = found[0].ensembles[0].neurons
    null = _made_up(len(found[0].epochs), neurons).laws(BETA)
    residual = max(_printed_residual(one) for one in courses)
    reason = "relative to |dU|, both summed over the run: the quadrature's error"
    claim = Claim(
        "first law (7.11) with N_> from U",
        "eqs. 7.11, 10.1, 10.3",
        "dU = T dS_0 + T dC",
        0.0,
        1e-6,
        reason,
        verdicts.content(_printed_residual(null)),
    )
    exact = max(_relative(one.residuals, one.energy_changes) for one in courses)
    note = (
        f"N_> = {courses[0].count} of {neurons}: C is a constant, T dS_0 is dU by "
        f"its definition, and random spectra with random U hold it too; the exact law "
        f"dU = T dS + 1/2 sum d lambda / (1 + beta lambda) holds to {exact:.1e}"
    )
    rows = [claim.judge(residual, note=note)]
    off, mixed, later, first = [], [], [], []
    for one in found:
        count = hard_count(one.ensembles[-1])
        run = one.laws(BETA, count)
        off.append(_printed_residual(run))
        changes = np.abs(np.asarray(run.energy_changes))
        first.append(changes[0] / changes.sum())
        since = one.epochs[:-1] >= 1.0
        left = np.asarray(run.printed_residuals)[since]
        later.append(_relative(left, changes[since]) if since.any() else math.nan)
        mixed.append(_printed_residual(_shuffled(one).laws(BETA, count)))
    claim = Claim(
        f"first law (7.11) with N_> at beta = {BETA}",
        "eqs. 7.11, 10.1, 10.3",
        "dU = T dS_0 + T dC",
        0.0,
        0.05,
        "relative to |dU|, both summed over the run: 5 %, as the paper checks it by eye",
        verdicts.content(float(np.mean(mixed))),
    )
    note = (
        f"N_> = {hard_count(found[0].ensembles[-1])}: T dS_0 is dU again and T dC is left over; "
        f"with the run's spectra in random order it is {np.mean(mixed):.2g}; the first interval "
        f"carries {np.mean(first):.0%} of |dU|, from epoch 1 on it is {np.mean(later):.2g}"
    )
    rows.append(claim.judge(float(np.mean(off)), spread(off), note))
    return rows


def _second_law_rows(found: Moments, courses: Sequence[ThermodynamicCourse]) -> list[Row]:
    # where U is the lowest so far; the null is its course with spectra that no training produced
    falls = np.flatnonzero(np.minimum.accumulate(found.energies) == found.energies)
    real = [found.ensembles[i] for i in falls]
    fake = _random_ensembles(len(falls), real[0].neurons)
    lowest, null = (
        Moments(found.epochs[falls], found.energies[falls], some).laws(BETA)
        for some in (real, fake)
    )
    claim = Claim(
        "second law, beta from U: share of dS > 0 where U falls",
        "sec. 7",
        "dS <= 0",
        0.0,
        0.0,
        "a law has no exceptions",
        verdicts.content(1.0 - null.second_law),
    )
    note = "S follows log U here: random spectra with the measured U hold it as well"
    rows = [claim.judge(1.0 - lowest.second_law, note=note)]
    broken = np.array([1.0 - one.second_law_fixed for one in courses])
    rises = np.flatnonzero(np.diff(courses[0].entropies_fixed) > 0)
    where = (
        f"in the first seed S rises first between epochs {found.epochs[rises[0]]:g} and "
        f"{found.epochs[rises[0] + 1]:g}, last up to {found.epochs[rises[-1] + 1]:g}"
        if len(rises)
        else ""
    )
    claim = Claim(
        f"second law, beta = {BETA} fixed: share of dS > 0",
        "sec. 7",
        "dS <= 0",
        0.0,
        0.0,
        "a law has no exceptions",
        verdicts.law,
    )
    rows.append(claim.judge(float(broken.mean()), spread(broken), where))
    return rows


def _count_row(last: Sequence[CanonicalEnsemble]) -> Row:
    ratios = [one.printed(BETA).energy / float(one.energy(BETA)) for one in last]
    claim = Claim(
        f"N_> / N_eff at beta = {BETA}",
        "eq. 10.1",
        "U = N_> / (2 beta)",
        1.0,
        0.1,
        "10 %: U = N_>/(2 beta) is used as an equality in 10.3 and 7.11",
    )
    note = (
        f"N_> = {last[0].printed(BETA).count:g}, N_eff = {float(last[0].n_effective(BETA)):.1f}: "
        "the trivial eigenvalues stand at 1, near 1/beta; U = N_eff / (2 beta) is exact"
    )
    return claim.judge(float(np.mean(ratios)), spread(ratios), note)


def _entropy_row(last: CanonicalEnsemble) -> Row:
    beta = torch.tensor(BETA, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(last.free_energy(beta), beta)
    exact = float(BETA**2 * slope)  # -dF/dT
    printed = last.printed(BETA).entropy_7_1 / exact - 1.0
    corrected = float(last.entropy(BETA)) / exact - 1.0
    claim = Claim(
        "S against -dF/dT, relative",
        "eq. 7.1",
        "S = beta U + Z",
        0.0,
        1e-9,
        "an identity, to rounding",
        verdicts.formula(corrected),
    )
    return claim.judge(printed, note=f"with log Z for Z it holds to {abs(corrected):.0e}")


def _printed_residual(one: ThermodynamicCourse) -> float:
    return _relative(one.printed_residuals, one.energy_changes)


def _relative(residuals: Tensor | Floats, changes: Tensor | Floats) -> float:
    """What is left of the changes: sums of absolute values over all intervals."""
    return float(np.abs(np.asarray(residuals)).sum() / np.abs(np.asarray(changes)).sum())


def _made_up(count: int, neurons: int) -> Moments:
    """Random spectra with det G = 1 and random U: nothing was trained."""
    energies = np.exp(np.random.default_rng(0).normal(-3.0, 1.0, count))
    return Moments(np.arange(float(count)), energies, _random_ensembles(count, neurons))


def _shuffled(found: Moments) -> Moments:
    """The run's own spectra in random order, with the losses where they were."""
    order = np.random.default_rng(0).permutation(len(found.ensembles))
    return replace(found, ensembles=[found.ensembles[i] for i in order])


def _random_ensembles(count: int, neurons: int) -> list[CanonicalEnsemble]:
    logs = np.random.default_rng(1).normal(0.0, 1.0, (count, neurons))
    return [ensemble(row) for row in logs - logs.mean(1, keepdims=True)]
