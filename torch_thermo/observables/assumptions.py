"""Which of the paper's identities and assumptions hold on a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.observables.circuits import sample_circuits
from torch_thermo.observables.circuits.arguments import whole
from torch_thermo.observables.hessian_entries import hessian_entries
from torch_thermo.observables.hessian_spectrum import hessian_spectrum
from torch_thermo.observables.identities import LAWS, Identity, measure_identities
from torch_thermo.risk import Risk
from torch_thermo.symmetry import symmetry_test

_NAN = math.nan
# ordered by size of each sample: what costs, see `symmetry_test`
_RANKED = 100_000
# examples that circuits are drawn of
_EXAMPLES = 8
_TESTED = ("sign_balance", "odd_moment", "w_sym", "w_sym_null")
_ENTRIES = (
    "share_below",
    "share_below_active",
    "bound",
    "correlation",
    "correlation_null",
    "correlation_sign_null",
    "correlated_share",
    "coupling_set_size",
)


@dataclass(frozen=True)
class Assumptions:
    """The identities and assumptions of Li's theory on one model.

    Attributes:
        identities: {name: Identity}, those of `identities.LAWS`.
        layers: L, the degree of the output in the weights; NaN where it has none. It is measured
            on R, of which `F theta = (L-1) grad R` can hold by accident: of a net of 2 layers with
            biases it does while the slopes dloss/doutput of the examples sum to 0.
        active: share of the examples with a slope dloss/doutput; NaN of an opaque risk.
        assembly: how symmetric weights, gradient, circuits and the spectrum of F are:
            {weights, gradient, circuits}_{sign_balance, odd_moment, w_sym, w_sym_null}, and
            spectrum_odd_3, spectrum_odd_3_stderr. NaN where not measured.
        diversity: of the Hessian entries, entries_{share_below, share_below_active, bound,
            correlation, correlation_null, correlation_sign_null, correlated_share,
            coupling_set_size}, see `HessianEntries.summary`. NaN where not measured.
        reasons: {what is NaN: why}.
    """

    identities: Mapping[str, Identity]
    layers: float
    active: float
    assembly: Mapping[str, float]
    diversity: Mapping[str, float]
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> list[str]:
        """The names of the identities that do not hold."""
        return [name for name, row in self.identities.items() if row.holds is False]

    def summary(self) -> dict[str, float]:
        """Return all numbers by name: of an identity `error_<name>` and `holds_<name>` (1 or 0)."""
        found = {"layers": self.layers, "active_share": self.active}
        for name, row in self.identities.items():
            found[f"error_{name}"] = row.error
            found[f"holds_{name}"] = _NAN if row.holds is None else float(row.holds)
        return {**found, **self.assembly, **self.diversity}

    def markdown(self) -> str:
        """Return the identities as a table, a row each."""
        lines = ["| identity | holds | error | tolerance | expected for |", "| --- " * 5 + "|"]
        for row in self.identities.values():
            holds = {True: "yes", False: "no", None: row.reason}[row.holds]
            error = "" if math.isnan(row.error) else f"{row.error:.1e}"
            cells = (row.statement, holds, error, f"{row.tolerance:.0e}", row.expected_for)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def check_assumptions(
    risk: Risk,
    layers: int | None = None,
    seed: int = 0,
    *,
    steps: int = 20,
    probes: int = 2,
    paths: int = 2000,
    columns: int = 8,
    rows: int = 64,
) -> Assumptions:
    """Measure which identities and which assumptions of Li's theory hold on a model.

    The identities are theorems of bias-free piecewise-linear nets (S. W. M. Li, and section 4 of
    the project's definitions); each row says for which nets and losses. Own blocks and traces are
    had from one product a parameter with random signs on it, which also give the trace without the
    noise that lies between blocks; a block that is not 0 gives a product of 0 with probability 0.

    The assumptions are two, as we read them from his Figs. 3, 4, 6, 7 and 8a:

    - *assembly symmetry*: circuits, and what is put together of them (weights, gradient, the
      spectrum of the functional part F), are as often positive as negative. Measured as the sign
      balance, the signed odd moment and W_sym beside its null of the same size (an asymmetry is
      what exceeds the null), and the odd moment odd_3 of the spectrum with its standard error.
    - *diversity*: the entries of the Hessian vary from example to example much more than their
      means are, and each is correlated with few others. Measured as the share of normalised means
      `|z_1| < .15` (beside its bound `sqrt(p/(1-p))`, which alone makes it rise with training, and
      the share given active), and the correlations beside their nulls: random signs, which decide
      which are significant, and shuffled examples, see `correlation_test`.

    They are statements of degree: numbers are given and no verdict.

    Args:
        risk: R; of an opaque one what needs the output is NaN.
        layers: L, how many weights a path passes; default: measured by `F theta = (L-1) grad R`.
        seed: of all random vectors, circuits and entries.
        steps: Lanczos steps of the spectrum of F.
        probes: its start vectors.
        paths: circuits drawn, of 8 examples; 0: none.
        columns: of Hessian entries, one product an active example each; 0: none.
        rows: entries kept of each column.

    Raises:
        TypeError: `risk` is not a Risk; numbers that are not whole.
        ValueError: layers below 1, a number below 0, a loss without a gradient.
        FloatingPointError: the gradient is not finite.
        MemoryError: the Lanczos basis or the entries would not fit.
    """
    if not isinstance(risk, Risk):
        raise TypeError(f"risk must be a Risk, got {type(risk).__name__}")
    numbers = {"paths": (paths, 0), "columns": (columns, 0), "rows": (rows, 0)}
    if layers is not None:
        numbers["layers"] = (layers, 1)
    for name, (number, least) in numbers.items():
        whole(name, number, least)
    with risk.frozen():
        gradient = risk.gradient()
        if not bool(torch.isfinite(gradient).all()):
            raise FloatingPointError("the gradient is not finite: weights or loss hold NaN")
        identities, degree, active = _identities(risk, layers, seed)
    reasons: dict[str, str] = {}
    weights = risk.flatten(risk.parameters.values())
    assembly = _symmetry("weights", weights, seed, reasons)
    assembly |= _symmetry("gradient", gradient, seed, reasons)
    assembly |= _circuits(risk, paths, seed, reasons)
    assembly |= _spectrum(risk, steps, probes, seed, reasons)
    diversity = _diversity(risk, columns, rows, seed, reasons)
    reasons |= {f"error_{name}": row.reason for name, row in identities.items() if row.reason}
    homogeneous = identities["functional_homogeneity"].holds or identities["homogeneity"].holds
    if layers is None and not homogeneous:
        degree = _NAN
        reasons["layers"] = (
            identities["homogeneity"].reason or "the output is not homogeneous in the weights"
        )
    return Assumptions(identities, degree, active, assembly, diversity, reasons)


def _identities(
    risk: Risk, layers: int | None, seed: int
) -> tuple[dict[str, Identity], float, float]:
    """Return `measure_identities`, all NaN with a reason without second derivatives."""
    try:
        return measure_identities(risk, layers, seed)
    except RuntimeError as error:
        reason = _no_second(error)
    single = risk.dtype != torch.float64
    rows = {
        name: Identity(
            name,
            law.statement,
            None,
            _NAN,
            law.single if single else law.double,
            law.expected_for,
            reason,
        )
        for name, law in LAWS.items()
    }
    return rows, _NAN if layers is None else float(layers), _NAN


def _no_second(error: RuntimeError) -> str:
    """Return that there are no second derivatives as a reason; raise where memory is why."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    text = str(error).splitlines()[0]
    known = "no second derivatives" in text  # as `hessian_entries` says it
    return text if known else f"the model or loss has no second derivatives ({text})"


def _symmetry(what: str, values: Tensor, seed: int, reasons: dict[str, str]) -> dict[str, float]:
    test = symmetry_test(values, seed, _RANKED)
    if test.reason:
        reasons[what] = test.reason
    return {f"{what}_{name}": getattr(test, name) for name in _TESTED}


def _circuits(risk: Risk, paths: int, seed: int, reasons: dict[str, str]) -> dict[str, float]:
    """Return the symmetry of x psi of circuits drawn from the first examples."""
    if not paths:
        return {}
    try:
        values = _drawn(risk, paths, seed)
    except (UnreadableNetworkError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reasons["circuits"] = str(error)
        return dict.fromkeys((f"circuits_{name}" for name in _TESTED), _NAN)
    return _symmetry("circuits", values, seed, reasons)


def _drawn(risk: Risk, paths: int, seed: int) -> Tensor:
    with risk.measuring():
        batch = next(risk.batches())
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        inputs, targets = batch if pair else (batch, None)
        if not isinstance(inputs, Tensor):
            raise TypeError(f"the model's input must be a tensor, got {type(inputs).__name__}")
        examples = inputs[:_EXAMPLES]
        network = Network.from_module(risk.model, examples)
        single = math.prod(network.output_shape) == 1
        labels = targets[:_EXAMPLES] if isinstance(targets, Tensor) and not single else None
        drawn = sample_circuits(network, examples, paths, seed=seed, targets=labels)
    if not len(drawn.sign):
        raise ValueError(drawn.reason or "there is no alive path")
    sign, log_abs = drawn.weighted()
    return sign * (log_abs - log_abs.max()).exp()  # their squares would vanish


def _spectrum(
    risk: Risk, steps: int, probes: int, seed: int, reasons: dict[str, str]
) -> dict[str, float]:
    try:
        odd = hessian_spectrum(risk, "functional", steps, probes, seed).odd_moments[3]
    except (TypeError, RuntimeError) as error:
        reasons["spectrum"] = _no_second(error) if isinstance(error, RuntimeError) else str(error)
        return {"spectrum_odd_3": _NAN, "spectrum_odd_3_stderr": _NAN}
    if math.isnan(odd.value):
        reasons["spectrum"] = (
            "F is 0: no example has a slope, the output is linear in the weights, or all units rest"
        )
    return {"spectrum_odd_3": odd.value, "spectrum_odd_3_stderr": odd.stderr}


def _diversity(
    risk: Risk, columns: int, rows: int, seed: int, reasons: dict[str, str]
) -> dict[str, float]:
    if not (columns and rows):
        return {}
    n = risk.numel
    try:
        entries = hessian_entries(risk, min(columns, n), min(rows, n), seed=seed)
    except (TypeError, RuntimeError) as error:
        reasons["entries"] = _no_second(error) if isinstance(error, RuntimeError) else str(error)
        return dict.fromkeys((f"entries_{name}" for name in _ENTRIES), _NAN)
    if entries.reason:
        reasons["entries"] = entries.reason
    every = entries.correlations(seed=seed)
    if every.test.reason:
        named = [name for name in _ENTRIES if name.startswith("correlat")]
        reasons |= {f"entries_{name}": every.test.reason for name in named}
    summary = entries.summary(seed, every)
    if math.isnan(summary["share_below_active"]) and not entries.reason:
        reasons["entries_share_below_active"] = "one active example has no spread"
    if math.isnan(summary["coupling_set_size"]):
        reasons["entries_coupling_set_size"] = entries.coupling_set_size(seed=seed).reason
    return {f"entries_{name}": summary[name] for name in _ENTRIES}
