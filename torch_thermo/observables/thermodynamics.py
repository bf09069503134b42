"""The first and the second law along the course of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_thermo.observables.canonical_ensemble import CanonicalEnsemble

__all__ = ["FirstLaw", "ThermodynamicCourse", "first_law", "thermodynamic_course"]


@dataclass(frozen=True)
class FirstLaw:
    r"""The change of energy between two moments, $dU = T dS + \frac12 \sum_i d\lambda_i / d_i$.

    Attributes:
        energy_change: $U_2 - U_1$ of the ensembles.
        heat: $\int T dS$.
        work: $\frac12 \int \sum_i d\lambda_i / d_i$, done by the change of the spectrum.
    """

    energy_change: float
    heat: float
    work: float

    @property
    def residual(self) -> float:
        """What heat and work leave of the change: rounding."""
        return self.energy_change - self.heat - self.work


@dataclass(frozen=True)
class ThermodynamicCourse:
    r"""The laws of secs. 7 and 10 along a training of n moments, each law beside its exact form.

    Tensors are float64 on the CPU; (n,) at the moments, (n - 1,) between them.

    Attributes:
        energies: (n,) U as measured.
        betas: (n,) the beta at which the ensemble has that energy.
        entropies: (n,) S at that beta.
        fixed_beta: the beta of the next.
        entropies_fixed: (n,) S at `fixed_beta`.
        heat: (n - 1,) $\int T dS$, see `first_law`.
        work: (n - 1,) $\frac12 \int \sum_i d\lambda_i / d_i$: with the heat it is dU.
        count: $N_>$, the same at all moments.
        complexities: (n,) $C_{N_>}$ (eq. 10.5).
        printed_heat: (n - 1,) $\int T dS_0$ with $S_0 = -\frac{N_>}{2} \log\beta$ (10.3) and
            $\beta = N_> / (2U)$ (10.1). It is dU whatever the network did, so that eq. 7.11,
            $dU = T dS_0 + T dC$, says nothing unless C stays as it is.
        printed_complexity: (n - 1,) $\int T dC$ at that beta: what eq. 7.11 is off by. Both are NaN
            where an energy is not above 0, as m > 0 allows, or $N_>$ is 0.
    """

    energies: Tensor
    betas: Tensor
    entropies: Tensor
    fixed_beta: float
    entropies_fixed: Tensor
    heat: Tensor
    work: Tensor
    count: int
    complexities: Tensor
    printed_heat: Tensor
    printed_complexity: Tensor

    @property
    def energy_changes(self) -> Tensor:
        """(n - 1,) dU as measured."""
        return self.energies.diff()

    @property
    def residuals(self) -> Tensor:
        """(n - 1,) dU - heat - work: rounding."""
        return self.energy_changes - self.heat - self.work

    @property
    def printed_residuals(self) -> Tensor:
        """(n - 1,) dU - T dS_0 - T dC of eq. 7.11."""
        return self.energy_changes - self.printed_heat - self.printed_complexity

    @property
    def second_law(self) -> float:
        """Share of the intervals with dS <= 0 at the beta of the energy.

        S is steep in beta there, which rises as U falls: that it holds says that the loss fell.
        NaN of one moment.
        """
        return _falling(self.entropies)

    @property
    def second_law_fixed(self) -> float:
        """Share of the intervals with dS <= 0 at `fixed_beta`; NaN of one moment."""
        return _falling(self.entropies_fixed)


def first_law(
    before: CanonicalEnsemble, after: CanonicalEnsemble, beta_before: float, beta_after: float
) -> FirstLaw:
    r"""Heat and work between two moments.

    Both depend on the way between them, of which only the ends are known. Taken is the mean of two
    ways: the spectrum changes at the first temperature and then the temperature, or the other way
    round. At constant T the work is the change of F and the heat $T \Delta S$; where the spectrum
    rests there is no work and the heat is the change of U. Both are exact for those ways, and
    right to second order in the step for any smooth one. The eigenvalues of both are paired in
    their order.

    Args:
        before: the ensemble at the first moment.
        after: at the second.
        beta_before: beta of the first.
        beta_after: beta of the second.

    Raises:
        ValueError: ensembles of different sizes or m; a beta that one of the two refuses: for
            m > 0 neither may reach the other's `beta_limit`.
    """
    if (before.neurons, before.m) != (after.neurons, after.m):
        raise ValueError(
            "the ensembles must have the same N and m, got "
            f"{(before.neurons, before.m)} and {(after.neurons, after.m)}"
        )
    betas = _tensor([beta_before, beta_after])
    energy = [ensemble.energy(betas) for ensemble in (before, after)]
    work = (after.free_energy(betas) - before.free_energy(betas)).mean()
    exchanged = (after.entropy(betas) - before.entropy(betas)) / betas
    warmed = [u[1] - u[0] for u in energy]
    return FirstLaw(
        energy_change=float(energy[1][1] - energy[0][0]),
        heat=float(0.5 * (exchanged.sum() + warmed[0] + warmed[1])),
        work=float(work),
    )


def thermodynamic_course(
    ensembles: Sequence[CanonicalEnsemble],
    energies: Sequence[float],
    fixed_beta: float,
    count: int | None = None,
) -> ThermodynamicCourse:
    r"""Both laws along a training.

    Args:
        ensembles: at n moments, of exact spectra.
        energies: (n,) the energy U measured at each: the mean bulk loss.
        fixed_beta: beta at which the second law is also read.
        count: $N_>$; None counts the eigenvalues above $1/\beta$ at the first moment, beta from U.

    Raises:
        ValueError: no moments, sequences of different lengths, an energy outside its ensemble's
            range, and what `first_law` refuses.
    """
    if not ensembles or len(ensembles) != len(energies):
        raise ValueError(
            "ensembles and energies must have one entry a moment, at least one, got "
            f"{len(ensembles)} and {len(energies)}"
        )
    measured = _tensor(float(u) for u in energies)
    betas = [e.beta_from_energy(u) for e, u in zip(ensembles, measured.tolist(), strict=True)]
    if count is None:
        count = round(ensembles[0].printed(betas[0]).count)
    complexities = _tensor(ensemble.complexity(count) for ensemble in ensembles)
    laws = [
        first_law(ensembles[i], ensembles[i + 1], betas[i], betas[i + 1])
        for i in range(len(ensembles) - 1)
    ]
    # what eqs. 10.1 and 10.3 need: S_0 = N_>/2 log T
    defined = (measured > 0.0) & (count > 0)
    temperatures = (2.0 * measured / max(count, 1)).where(defined, torch.nan)
    return ThermodynamicCourse(
        energies=measured,
        betas=_tensor(betas),
        entropies=_entropies(ensembles, betas),
        fixed_beta=float(fixed_beta),
        entropies_fixed=_entropies(ensembles, [fixed_beta] * len(ensembles)),
        heat=_tensor(law.heat for law in laws),
        work=_tensor(law.work for law in laws),
        count=count,
        complexities=complexities,
        # T dS_0 = T N_>/2 dT/T, along any way
        printed_heat=0.5 * count * temperatures.diff(),
        printed_complexity=0.5 * (temperatures[1:] + temperatures[:-1]) * complexities.diff(),
    )


def _tensor(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _entropies(ensembles: Sequence[CanonicalEnsemble], betas: Sequence[float]) -> Tensor:
    return _tensor(float(e.entropy(b)) for e, b in zip(ensembles, betas, strict=True))


def _falling(entropies: Tensor) -> float:
    return float((entropies.diff() <= 0.0).double().mean()) if len(entropies) > 1 else math.nan
