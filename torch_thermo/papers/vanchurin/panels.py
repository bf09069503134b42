"""The panels of the paper's figures, from stored runs.

The choice of panels is ours: each figure shows what the paper's text says of it, with its numbers
marked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from torch_thermo.figures.paper import Arrow, Bracket, Level, Panel, Trace
from torch_thermo.observables.canonical_ensemble import CanonicalEnsemble
from torch_thermo.observables.thermodynamics import ThermodynamicCourse
from torch_thermo.observables.two_level import (
    TwoLevelFreeEnergy,
    beta_from_gap,
    unstable_log_eigenvalue,
)
from torch_thermo.papers.courses import Course, Floats, course
from torch_thermo.papers.vanchurin.claims import (
    BETA,
    FIT_EPOCHS,
    FITS,
    GAPS,
    MOMENTS,
    THRESHOLD,
    fit,
    lower_gaps,
    mean_course,
    three_times,
)
from torch_thermo.papers.vanchurin.laws import hard_count
from torch_thermo.papers.vanchurin.stored import Moments, moments, spectra
from torch_thermo.store import Run

__all__ = [
    "complexity_panels",
    "free_energy_panels",
    "gap_panels",
    "loss_panels",
    "spectrum_panels",
    "thermodynamic_panels",
]

EPOCH = "epoch"
LOG_LAMBDA = r"$\log\lambda$"
BESIDE = 3.5  # ranks between an eigenvalue and the bracket of the gap above it
LOWEST = 70  # eigenvalues drawn in Fig. 5: more are trivial


def free_energy_panels() -> list[Panel]:
    """Eq. 9.3 over log lambda, and the extremum of eq. 9.4 with the paper's three pairs."""
    x = np.linspace(-20.0, 20.0, 161)

    def curve(label: str, beta: float, gamma: float) -> Trace:
        energy = TwoLevelFreeEnergy(beta, gamma)(torch.as_tensor(x)).numpy()
        return Trace(label, x, energy, look="line")

    def plateaus(pairs: Sequence[tuple[float, float]]) -> Trace:
        ends = [TwoLevelFreeEnergy(*pair) for pair in pairs]
        heights = [height for one in ends for height in (one.low, one.high)]
        return Trace("plateaus", [x[0], x[-1]] * len(ends), heights, look="points")

    shares = [("1/5", 0.2), ("1/3", 1 / 3), ("1/2", 0.5), ("2/3", 2 / 3)]
    betas = [0.3, 1.0, BETA, 5.0]
    top = unstable_log_eigenvalue(BETA, 0.2)
    maximum = Arrow(top, float(TwoLevelFreeEnergy(BETA, 0.2)(top)), "maximum", (-70, 14))
    height = r"$-\Delta F / N$"
    gaps = np.linspace(-3.5, 0.0, 71)
    axis = np.geomspace(0.05, 20.0, 61)
    return [
        Panel(
            "gamma",
            rf"eq. 9.3, $\beta$ = {BETA}",
            LOG_LAMBDA,
            height,
            (
                *(curve(rf"$\gamma$ = {name}", BETA, share) for name, share in shares),
                plateaus([(BETA, share) for _, share in shares]),
            ),
            arrows=(maximum,),
        ),
        Panel(
            "beta",
            r"eq. 9.3, $\gamma$ = 1/3",
            LOG_LAMBDA,
            height,
            (
                *(curve(rf"$\beta$ = {beta:g}", beta, 1 / 3) for beta in betas),
                plateaus([(beta, 1 / 3) for beta in betas]),
            ),
        ),
        Panel(
            "gap",
            r"$\beta$ of a gap, eq. 9.4 and beyond",
            rf"{LOG_LAMBDA} of the gap",
            r"$\beta$",
            (
                *(
                    Trace(label, gaps, [beta_from_gap(g, gamma) for g in gaps], look="line")
                    for label, gamma in (
                        (r"$\gamma \to 0$ (9.4)", 0.0),
                        (r"$\gamma$ = 0.05", 0.05),
                        (r"$\gamma$ = 0.15", 0.15),
                    )
                ),
                Trace("as the paper prints them", list(GAPS), list(GAPS.values()), look="points"),
            ),
        ),
        Panel(
            "extremum",
            "where eq. 9.3 is stationary beside 1",
            r"$\beta$",
            LOG_LAMBDA,
            tuple(
                Trace(
                    rf"$\gamma$ = {name}",
                    axis[axis < limit],
                    [unstable_log_eigenvalue(b, gamma) for b in axis[axis < limit]],
                    look="line",
                )
                for name, gamma, limit in (
                    ("0", 0.0, math.inf),
                    ("0.1", 0.1, math.inf),
                    ("0.2", 0.2, math.inf),
                    ("1/3", 1 / 3, 0.99),
                )
            ),
            xscale="log",
        ),
    ]


def loss_panels(runs: Sequence[Run]) -> list[Panel]:
    """Bulk and boundary loss over epochs; medians; their ratio; which samples carry the bulk."""
    mean = {name: course(runs, f"bulk_boundary/{name}") for name in ("boundary", "bulk")}
    median = {name: course(runs, f"bulk_boundary/{name}_median") for name in ("boundary", "bulk")}
    ratio = [course(runs, "bulk_boundary/ratio").trace("logit")]
    exact = [run for run in runs if "bulk_exact" in run.observables]
    losses = [mean["boundary"].trace("boundary"), mean["bulk"].trace("bulk")]
    if exact:
        subset = course(exact, "bulk_exact/bulk")
        part = course(exact, "bulk_exact/ratio")
        epochs, bulk, boundary, count = _on_the_same(exact[0])
        losses += [
            Trace(f"bulk, exact, first {count}", subset.epochs, subset.mean, look="points"),
            Trace(f"bulk, logit, first {count}", epochs, bulk, look="line"),
        ]
        ratio += [
            Trace(f"exact, first {count}", part.epochs, part.mean, look="points"),
            Trace(f"logit, first {count}", epochs, bulk / boundary, look="line"),
        ]
    return [
        Panel("mean", "mean over samples", EPOCH, "loss a sample", tuple(losses),
              "signed log", "log"),
        Panel("median", "median over samples", EPOCH, "loss a sample",
              tuple(one.trace(name) for name, one in median.items()), "signed log", "log"),
        Panel("ratio", "bulk / boundary", EPOCH, r"$U / U_{boundary}$", tuple(ratio),
              "signed log", "log", levels=(Level("one order", 0.1),),
              ylimits=(0.06, 1.3)),
        _carried(runs[0]),
    ]  # fmt: skip


def _on_the_same(run: Run) -> tuple[Floats, Floats, Floats, int]:
    """The logit losses of the samples that the exact method was used on, the first.

    So that what lies between the two is the method's and not the samples'.

    Returns:
        Epochs (E,), mean bulk and mean boundary loss (E,), and how many samples.
    """
    steps = sorted({*run.array_steps("bulk_exact")} & {*run.array_steps("bulk_boundary")})
    count = len(run.arrays("bulk_exact", steps[0])["bulk"])
    stored = [run.arrays("bulk_boundary", step) for step in steps]
    bulk, boundary = (
        np.array([float(arrays[name][:count].mean()) for arrays in stored])
        for name in ("bulk", "boundary")
    )
    return np.array(steps) / int(run.meta["steps_per_epoch"]), bulk, boundary, count


def _times(epochs: Floats) -> list[int]:
    """Those of the three times that differ: a short training has fewer."""
    return list(dict.fromkeys(three_times(epochs)))


def _carried(run: Run) -> Panel:
    """The share of the whole bulk loss that the samples of the largest carry."""
    steps = run.array_steps("bulk_boundary")
    per_epoch = int(run.meta["steps_per_epoch"])
    epochs = np.array(steps) / per_epoch
    traces = []
    for place in _times(epochs):
        bulk = np.sort(run.arrays("bulk_boundary", steps[place])["bulk"])[::-1]
        ranks = np.unique(np.geomspace(1, len(bulk), 80).astype(int))
        carried = np.cumsum(bulk)[ranks - 1] / bulk.sum()
        traces.append(Trace(f"epoch {epochs[place]:g}", ranks / len(bulk), carried, look="line"))
    return Panel(
        "carried",
        "what the worst samples carry",
        "share of the samples, largest bulk loss first",
        "share of the bulk loss",
        tuple(traces),
        "log",
    )


def spectrum_panels(nets: Mapping[str, Sequence[Run]]) -> list[Panel]:
    """Distribution of the dynamical eigenvalues of log G, and the means mu2, mu3 over epochs."""
    panels = [_distribution(net, runs) for net, runs in nets.items()]
    for power, sign in ((2, 1), (3, -1)):
        traces, levels = [], []
        for net, runs in nets.items():
            mean = mean_course(runs, power)
            traces.append(Course(mean.epochs, sign * mean.values).trace(net))
            printed = float(MOMENTS[net, power])
            if abs(printed) > 1e-3:
                levels.append(Level(f"paper, {net}", sign * printed))
        minus = "-" if sign < 0 else ""
        panels.append(
            Panel(
                f"mu{power}",
                rf"{minus}$\mu_{power}$, mean over $|\log\lambda| > {THRESHOLD}$",
                EPOCH,
                rf"{minus}$\langle (\log\lambda)^{power} \rangle$",
                tuple(traces),
                "signed log",
                "linear" if sign > 0 else "log",
                levels=tuple(levels),
            )
        )
    return panels


def _distribution(net: str, runs: Sequence[Run]) -> Panel:
    found = [spectra(run) for run in runs]
    times = _times(found[0][0])
    pooled = [np.concatenate([logs[place] for _, logs in found]) for place in times]
    pooled = [values[np.abs(values) > THRESHOLD] for values in pooled]
    reach = max(float(np.abs(values).max()) for values in pooled)
    edges = np.linspace(-1.02 * reach, 1.02 * reach, 36)
    traces = []
    for place, values in zip(times, pooled, strict=True):
        density = np.histogram(values, edges, density=True)[0]
        label = f"epoch {found[0][0][place]:g}: {len(values) / len(runs):.0f} of "
        label += f"{found[0][1].shape[1]}"
        traces.append(Trace(label, 0.5 * (edges[1:] + edges[:-1]), density, look="steps"))
    title = f"{net} net, dynamical eigenvalues"
    return Panel(f"density_{net}", title, LOG_LAMBDA, "probability density", tuple(traces))


def gap_panels(nets: Mapping[str, Sequence[Run]]) -> list[Panel]:
    """The lowest eigenvalues of the first seed at three times, with all candidates for the gap."""
    epochs, logs = spectra(nets["deep"][0])
    views = [("deep", epochs[place], logs[place]) for place in _times(epochs)]
    epochs, logs = spectra(nets["shallow"][0])
    views.append(("shallow", epochs[-1], logs[-1]))
    return [_ladder(net, float(epoch), row, net == "deep") for net, epoch, row in views]


def _ladder(net: str, epoch: float, logs: Floats, paper: bool) -> Panel:
    lowest = np.sort(logs)[:LOWEST]
    ranks = np.arange(1.0, len(lowest) + 1.0)
    brackets = tuple(
        Bracket(gap.count_below + BESIDE, gap.below, gap.above, str(gap.count_below))
        for gap in lower_gaps(logs)
    )
    levels = tuple(Level("the paper's gaps", gap) for gap in GAPS) if paper else ()
    return Panel(
        f"{net}_{epoch:g}",
        f"{net} net, epoch {epoch:g}",
        "rank from the lowest",
        LOG_LAMBDA,
        (Trace("eigenvalues", ranks, lowest, look="points"),),
        levels=levels,
        brackets=brackets,
    )


def complexity_panels(runs: Sequence[Run]) -> list[Panel]:
    """C_20 and C_834 against log U, our fits and the paper's under both labels."""
    panels = []
    for count, other in ((20, 834), (834, 20)):
        fits = np.array([fit(run, count) for run in runs])
        found = [moments(run).between(*FIT_EPOCHS) for run in runs]
        losses = np.concatenate([one.energies for one in found])
        measured = [each.complexity(count) for one in found for each in one.ensembles]
        logs = np.log(losses)
        ends = np.array([logs.min(), logs.max()])
        intercept, slope = fits.mean(0)
        traces = [
            Trace("measured", logs, measured, look="points"),
            Trace(f"ours: {intercept:.1f} + {slope:.2f} log U", ends,
                  intercept + slope * ends, look="line"),
        ]  # fmt: skip
        for label, (a, b) in (
            (f"the paper's $C_{{{count}}}$: ", FITS[count]),
            (f"its $C_{{{other}}}$: ", FITS[other]),
        ):
            name = f"{label}{a:g} + {b:g} log U"
            traces.append(Trace(name, ends, a + b * ends, look="line"))
        panels.append(
            Panel(
                f"C_{count}",
                rf"$C_{{{count}}}$, deep net",
                "log U, natural logarithm of the bulk loss",
                rf"$C_{{{count}}}$",
                tuple(traces),
            )
        )
    return panels


def thermodynamic_panels(runs: Sequence[Run]) -> list[Panel]:
    """Both betas; the second law; the first law; N_> beside N_eff. Deep net."""
    found = [moments(run) for run in runs]
    courses = [(one.epochs, one.laws(BETA)) for one in found]
    betas = _over(courses, "betas").trace(r"from U, $U(\beta) = U$")
    return [
        Panel(
            "beta",
            "two temperatures",
            EPOCH,
            r"$\beta$",
            (betas, _gap_betas(runs)),
            "signed log",
            "log",
            levels=(Level(rf"the paper's, about {BETA}", BETA),),
        ),
        Panel(
            "second_law",
            "second law: S since epoch 0",
            EPOCH,
            "$S - S(0)$",
            (
                _since_start(courses, "entropies").trace(r"$\beta$ from U"),
                _since_start(courses, "entropies_fixed").trace(rf"$\beta$ = {BETA} fixed"),
            ),
            "signed log",
            "signed log",
        ),
        _first_law(found[0]),
        _counts(found[0].ensembles[-1]),
    ]


def _over(courses: Sequence[tuple[Floats, ThermodynamicCourse]], name: str) -> Course:
    common = sorted(set.intersection(*(set(epochs.tolist()) for epochs, _ in courses)))
    rows = [np.asarray(getattr(laws, name))[np.isin(epochs, common)] for epochs, laws in courses]
    return Course(np.array(common), np.array(rows))


def _since_start(courses: Sequence[tuple[Floats, ThermodynamicCourse]], name: str) -> Course:
    found = _over(courses, name)
    return Course(found.epochs, found.values - found.values[:, :1])


def _gap_betas(runs: Sequence[Run]) -> Trace:
    """Eq. 9.4 at every candidate, of the first seed."""
    epochs, logs = spectra(runs[0])
    pairs = [
        (epoch, beta_from_gap(gap.middle))
        for epoch, row in zip(epochs, logs, strict=True)
        for gap in lower_gaps(row)
    ]
    x, y = np.array(pairs).T
    return Trace("from the gaps, eq. 9.4, all candidates", x, y, look="faint")


def _first_law(found: Moments) -> Panel:
    laws = found.laws(BETA)
    hard = found.laws(BETA, hard_count(found.ensembles[-1]))
    sizes = {
        "|work of the spectrum|": laws.work,
        rf"the paper's $|T\,dC|$, $N_>$ = {hard.count}": hard.printed_complexity,
    }
    # dU and T dS agree to the eye: a line, and markers on it
    traces = [
        Trace("$|dU|$", found.epochs[1:], np.abs(np.asarray(laws.energy_changes)), look="line"),
        Trace(r"$|T\,dS|$", found.epochs[1:], np.abs(np.asarray(laws.heat)), look="points"),
        *(Trace(k, found.epochs[1:], np.abs(np.asarray(v))) for k, v in sizes.items()),
    ]
    return Panel(
        "first_law",
        "first law: its terms, seed 0",
        EPOCH,
        "energy",
        tuple(traces),
        "log",
        "log",
    )


def _counts(last: CanonicalEnsemble) -> Panel:
    betas = np.geomspace(0.03, 3e4, 121)
    soft = last.n_effective(torch.as_tensor(betas)).numpy()
    hard = [last.printed(float(beta)).count for beta in betas]
    return Panel(
        "counts",
        r"eigenvalues above $1/\beta$, at the end",
        r"$\beta$",
        "number",
        (
            Trace(r"$N_{eff} = 2 \beta U$", betas, soft, look="line"),
            Trace(r"$N_>$: $\lambda > 1/\beta$", betas, hard, look="line"),
        ),
        "log",
        levels=(Level(rf"$\beta$ = {BETA}", BETA, "x"),),
    )
