"""The Hessian's spectrum while a network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.probe import EXAMPLES, SMALL, Source
from torch_thermo.callbacks.schedule import Log, Schedule, whole
from torch_thermo.observables.hessian_spectrum import OperatorName, hessian_spectrum
from torch_thermo.operators.functional_hessian import is_whole_hessian
from torch_thermo.risk import Closure, LossFn, Risk
from torch_thermo.spectra import rademacher

# what they are called in errors
_OPERATORS: dict[OperatorName, str] = {
    "hessian": "the Hessian",
    "functional": "the functional part of the Hessian",
    "gauss_newton": "the Gauss-Newton matrix",
}


class _Extremes(ThermoCallback):
    """lambda_min and lambda_max of the Hessian, started from the last ones' vectors."""

    observable = "hessian_extremes"

    def __init__(self, schedule: Schedule, steps: int, examples: int | None, seed: int) -> None:
        super().__init__(schedule, examples=examples, seed=seed)
        self.steps = steps
        self._vectors: Tensor | None = None

    def reset(self, sharded: bool) -> None:
        """Forget the vectors of the last run."""
        self._vectors = None

    def memory(self) -> dict[str, Any]:
        """Return the vectors that the next measurement starts from, if they are small."""
        vectors = self._vectors
        if vectors is None or vectors.numel() * vectors.element_size() > SMALL:
            return {}
        return {"vectors": vectors.cpu()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Start from a checkpoint's vectors."""
        self._vectors = memory.get("vectors")

    def measure(self, moment: Moment) -> Measurement:
        """Measure both ends with their residual bounds, and the middle between them."""
        risk = moment.risk(self.examples)
        start = _warm_start(self._vectors, risk, self.seed)
        result = hessian_spectrum(risk, steps=self.steps, probes=1, seed=self.seed, start=start)
        self._vectors = result.run.extreme_vectors.detach()
        ends = result.extremes
        return Measurement(
            {
                "lambda_min": ends.min.value,
                "lambda_max": ends.max.value,
                # 0 for a symmetric spectrum; a margin chart needs a line between its edges
                "centre": (ends.min.value + ends.max.value) / 2,
                "residual_min": result.residuals[0],
                "residual_max": result.residuals[1],
            }
        )


class _Density(ThermoCallback):
    """The spectral density of one operator."""

    def __init__(
        self,
        operator: OperatorName,
        schedule: Schedule,
        steps: int,
        probes: int,
        examples: int | None,
        seed: int,
    ) -> None:
        super().__init__(schedule, examples=examples, seed=seed)
        self.operator = operator
        self.steps = steps
        self.probes = probes
        self.observable = f"{operator}_density"

    def measure(self, moment: Moment) -> Measurement:
        """Measure nodes and weights, trace, odd moment and the negative mass.

        Raises:
            TypeError: the operator needs the loss as a function of the output.
        """
        if self.operator != "hessian" and moment.source:
            moment.source.function(moment.model, _OPERATORS[self.operator])
        risk = moment.risk(self.examples)
        operator = self.operator
        if operator == "functional" and is_whole_hessian(risk):
            operator = "hessian"
        result = moment.once(
            ("density", operator, self.steps, self.probes, self.examples, self.seed),
            lambda: hessian_spectrum(risk, operator, self.steps, self.probes, self.seed),
        )
        measure = result.measure
        third = result.odd_moments[3]
        return Measurement(
            {
                "trace": result.trace.value,
                "trace_stderr": result.trace.stderr,
                "odd3": third.value,
                "odd3_stderr": third.stderr,
                "negative_mass": measure.negative_mass.value,
                "negative_mass_stderr": measure.negative_mass.stderr,
                "lambda_min": result.extremes.min.value,
                "lambda_max": result.extremes.max.value,
            },
            arrays={
                "nodes": measure.nodes.numpy(),
                "weights": measure.weights.numpy(),
                "alphas": result.run.alphas.numpy(),
                "betas": result.run.betas.numpy(),
                "dimension": np.int64(measure.dimension),
            },
            figures=("density", "ridgeline"),
        )


class HessianSpectrum(ThermoCallback):
    """Extremes and spectral density of the Hessian and of its functional part.

    Stored as `hessian_extremes` (lambda_min, lambda_max, the centre between them, and residual
    bounds: an eigenvalue lies within that distance), `hessian_density` and `functional_density`
    (trace, odd moment of order 3, share of negative eigenvalues, and the quadrature as arrays).
    The functional part needs a loss of the form criterion(output, target); on another it is
    skipped with one notice. Where the loss is piecewise linear in the output (hinge) it is the
    Hessian, and measured once for both.
    The curvature is that of the loss in the parameters' own precision, whatever the autocast.

    Li, Figs. 6 and 8a.

    Args:
        schedule: of the extremes; default 4 a decade of steps and the end.
        density: schedule of the densities; default 1 a decade and the end.
        steps: Lanczos steps of the extremes.
        density_steps: Lanczos steps of the densities.
        density_probes: start vectors of the densities.
        operators: whose density: of "hessian", "functional", "gauss_newton", each once; of none,
            `()`: the extremes only.
        examples: measure on so many of the probe's examples.
        probe, loss_fn, closure, seed: see `ThermoCallback`.

    Raises:
        ValueError: steps or probes below 1, an operator that is unknown or named twice, and see
            `ThermoCallback`.
        TypeError: arguments of another kind.
    """

    observable = "hessian_spectrum"

    def __init__(
        self,
        schedule: Schedule | None = None,
        density: Schedule | None = None,
        steps: int = 20,
        density_steps: int = 30,
        density_probes: int = 2,
        operators: Sequence[OperatorName] = ("hessian", "functional"),
        examples: int | None = 128,
        probe: Source = EXAMPLES,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("steps", steps),
            ("density_steps", density_steps),
            ("density_probes", density_probes),
        ):
            whole(name, value, 1)
        _check_operators(operators)
        schedule = Log(per_decade=4) if schedule is None else schedule
        density = Log(per_decade=1) if density is None else density
        if not callable(density):
            raise TypeError(f"density must be callable, got {type(density).__name__}")
        super().__init__(schedule, probe, examples, loss_fn, closure, seed)
        self._members: tuple[ThermoCallback, ...] = (
            _Extremes(schedule, steps, examples, seed),
            *(
                _Density(operator, density, density_steps, density_probes, examples, seed)
                for operator in operators
            ),
        )

    def members(self) -> Sequence[ThermoCallback]:
        """Return the extremes and the densities."""
        return self._members

    def observables(self) -> Sequence[str]:
        """Return all names."""
        return [name for member in self._members for name in member.observables()]


def _check_operators(operators: Sequence[OperatorName]) -> None:
    if isinstance(operators, str) or not isinstance(operators, Sequence):
        raise TypeError(f'operators must be a list of names, as ["hessian"], got {operators!r}')
    for operator in operators:
        if operator not in _OPERATORS:
            raise ValueError(f"operators must be of {sorted(_OPERATORS)}, got {operator!r}")
        if operators.count(operator) > 1:
            raise ValueError(f"operators must be named once each, got {operator!r} twice")


def _warm_start(vectors: Tensor | None, risk: Risk, seed: int) -> Tensor | None:
    """Return the sum of the last extremes' vectors and a random one; None without them.

    The random part keeps the start out of the old eigenvectors' span, where Lanczos would stop
    and a new extreme would never be found.
    """
    n = risk.numel
    if vectors is None or vectors.shape[0] != n or not bool(torch.isfinite(vectors).all()):
        return None
    noise = rademacher(n, 1, seed=seed).reshape(n).to(risk.device, risk.dtype)
    start: Tensor = vectors.to(risk.device, risk.dtype).sum(1) + 0.5 * noise / noise.norm()
    return start.div_(start.norm())
