"""Extremes, density, trace and symmetry of the Hessian's spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from torch_thermo.observables.odd_moment import odd_moment
from torch_thermo.operators import (
    FunctionalHessianOperator,
    GaussNewtonOperator,
    HessianOperator,
    RiskOperator,
)
from torch_thermo.operators.memory import available_bytes, gib
from torch_thermo.risk import Risk
from torch_thermo.spectra import (
    Estimate,
    Extremes,
    LanczosRun,
    SpectralMeasure,
    lanczos,
    lanczos_memory,
)

OperatorName = Literal["hessian", "functional", "gauss_newton"]

_OPERATORS: dict[str, type[RiskOperator]] = {
    "hessian": HessianOperator,
    "functional": FunctionalHessianOperator,
    "gauss_newton": GaussNewtonOperator,
}
# of what is free, the part that a basis may take: the graphs need the rest
_BASIS_SHARE = 0.5


@dataclass(frozen=True)
class HessianSpectrumResult:
    """A spectrum known by Lanczos quadrature.

    Attributes:
        measure: nodes and weights, one row a probe.
        extremes: `.min` and `.max`, the outermost Ritz values (inner bounds of the eigenvalues).
        residuals: bounds |beta_m s_mi| at those two: an eigenvalue lies within that distance.
        trace: n times the first moment, with the standard error of random signs,
            sqrt(2 ||A||_F^2 / k) at most, from n times the second moment (the spread of two
            probes says too little); NaN where a start vector was given.
        odd_moments: {p: sum lambda^p / sum |lambda|^p} for p = 1, 3, 5; 0 for a spectrum
            symmetric about 0. Of p = 3 and 5, which few eigenvalues carry, those that Lanczos has
            found count once each (see `odd_moment`), unless a start vector or no basis was given.
        products: how many operator-vector products were made.
        run: the Lanczos run, with its tridiagonal matrices.
    """

    measure: SpectralMeasure
    extremes: Extremes
    residuals: tuple[float, float]
    trace: Estimate
    odd_moments: Mapping[int, Estimate]
    products: int
    run: LanczosRun = field(repr=False)


def hessian_spectrum(
    risk: Risk,
    operator: OperatorName | RiskOperator = "hessian",
    steps: int = 30,
    probes: int = 2,
    seed: int = 0,
    start: Tensor | None = None,
    tol: float | None = None,
    basis: Literal["full", "none"] = "full",
) -> HessianSpectrumResult:
    """Measure the spectrum of a second derivative of the risk (Li, Figs. 6 and 8a).

    Lanczos with two-pass full reorthogonalisation in the operator's precision, the tridiagonal
    matrix in float64.

    Args:
        risk: R.
        operator: "hessian", "functional" (of a structured risk), "gauss_newton", or an operator.
        steps: m, products a probe. Extremes need 20-30, a figure's density 80.
        probes: k start vectors, drawn from `seed`. The k x m basis is held in memory.
        seed: of the probes.
        start: a start vector (n,) or (n, k) in place of the probes, for extremes (a warm start);
            measure, trace and odd moments are then those of that vector, not of the spectrum.
        tol: stop when both extremes' residual bounds are below tol x max |Ritz value|.
        basis: "none" keeps no basis (memory of three vectors a probe): copies of the top
            eigenvalue appear, so use it for densities only.

    Raises:
        ValueError: steps or probes below 1, an unknown operator.
        MemoryError: the basis would not fit; names settings that do.
        FloatingPointError: a product is not finite: weights or loss hold NaN or infinity.
        TypeError: `risk` is not a Risk, or is opaque where the operator needs its structure; steps
            or probes that are not whole numbers.
    """
    if not isinstance(risk, Risk):
        raise TypeError(f"risk must be a Risk, got {type(risk).__name__}")
    if isinstance(operator, str):
        if operator not in _OPERATORS:
            raise ValueError(f"operator must be one of {sorted(_OPERATORS)}, got {operator!r}")
        chosen = _OPERATORS[operator](risk)
    else:
        chosen = operator
    if start is not None:
        probes = start.shape[1] if start.dim() == 2 else 1
    ensure_fits(chosen, steps, probes, basis)
    run = lanczos(chosen, steps, probes=probes, basis=basis, start=start, tol=tol, seed=seed)
    measure = SpectralMeasure.from_run(chosen, run)
    return HessianSpectrumResult(
        measure=measure,
        extremes=measure.extremes,
        residuals=_residuals(run),
        trace=_trace(measure) if start is None else Estimate(math.nan, math.nan),
        # a given start need not contain an eigenvector at all; copies would count again
        odd_moments={
            p: odd_moment(run, chosen.shape[0], p)
            if p > 1 and start is None and basis == "full"
            else measure.odd_moment(p)
            for p in (1, 3, 5)
        },
        products=run.products,
        run=run,
    )


def ensure_fits(
    operator: RiskOperator, steps: int, probes: int, basis: Literal["full", "none"] = "full"
) -> None:
    """Refuse a spectrum whose basis would not fit in half of the free memory.

    Raises:
        MemoryError: with what it would need, what is there, and settings that fit.
        TypeError, ValueError: an argument `lanczos` would refuse.
    """
    n = operator.shape[0]

    def needs(steps: int, probes: int, basis: Literal["full", "none"]) -> int:
        return lanczos_memory(n, steps, probes, basis, operator.dtype)

    needed = needs(steps, probes, basis)
    free = int(_BASIS_SHARE * operator.risk.least_over_ranks(available_bytes(operator.device)))
    if needed <= free:
        return
    fewer = [f"probes={p}" for p in range(probes - 1, 0, -1) if needs(steps, p, basis) <= free]
    short = [f"probes=1, steps={m}" for m in range(steps, 9, -1) if needs(m, 1, basis) <= free]
    smaller = [f"use {setting}" for setting in (fewer or short)[:1]]
    if basis == "full" and needs(steps, probes, "none") <= free:
        smaller.append('basis="none" for a density')
    raise MemoryError(
        f"a spectrum of {n} parameters with steps={steps}, probes={probes} "
        f"({steps * probes} products) needs {gib(needed)} for its basis and {gib(free)} may be "
        f"used: {', or '.join(smaller) or 'measure fewer parameters'}"
    )


def _trace(measure: SpectralMeasure) -> Estimate:
    n, probes = measure.dimension, len(measure.nodes)
    squared_norm = n * measure.moment(2).value
    return Estimate(n * measure.moment(1).value, math.sqrt(2 * squared_norm / probes))


def _residuals(run: LanczosRun) -> tuple[float, float]:
    """Return the residual bounds at the smallest and the largest Ritz value of all probes."""
    ritz = run.ritz
    low = torch.where(ritz.isnan(), torch.inf, ritz).argmin()
    high = torch.where(ritz.isnan(), -torch.inf, ritz).argmax()
    flat = run.residuals.reshape(-1)
    return float(flat[low]), float(flat[high])
