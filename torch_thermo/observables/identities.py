"""The identities of bias-free piecewise-linear nets, each measured on a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_thermo.operators import (
    FunctionalHessianOperator,
    HessianOperator,
    RiskOperator,
)
from torch_thermo.operators.base import linearised
from torch_thermo.operators.hessian import _gradient_graph
from torch_thermo.risk import Risk, batch_size
from torch_thermo.spectra import SpectralMeasure
from torch_thermo.spectra.probes import rademacher

_NAN = math.nan
#: the whole spectrum is taken of so many parameters at most
DENSE = 1024

_HINGE = "bias-free piecewise-linear nets without tied weights, loss piecewise linear in the output"
_MULTILINEAR = (
    "piecewise-linear nets without tied weights (with biases, BatchNorm in eval mode and skip "
    "connections too)"
)
_HOMOGENEOUS = "bias-free piecewise-linear chains"
_ANY = "any model"
_ZERO = (
    "the matrix is 0: no example has a slope, the output is linear in the weights, or all units "
    "rest"
)


class _Law(NamedTuple):
    statement: str
    expected_for: str
    double: float  # tolerance of the relative error in float64
    single: float  # in float32


#: {name: what is said, of which nets and losses, and to what error}
LAWS: dict[str, _Law] = {
    "own_blocks": _Law(
        "each parameter's own block of H is 0", f"{_MULTILINEAR}, piecewise-linear loss", 0.0, 0.0
    ),
    "trace": _Law("tr H = 0", f"{_MULTILINEAR}, piecewise-linear loss", 1e-12, 1e-5),
    "homogeneity": _Law(
        "H theta = (L - 1) grad R",
        f"{_HOMOGENEOUS} (tied weights count as often as they are applied), piecewise-linear loss",
        1e-10,
        1e-4,
    ),
    "layer_balance": _Law(
        "theta_l . grad_l R = mean of l'_n T_n for every parameter l",
        f"{_HOMOGENEOUS} without tied weights, any loss",
        1e-10,
        1e-3,
    ),
    "mirror_spectrum": _Law("L = 2: the spectrum of H is +-sigma", _HINGE, 1e-12, 1e-5),
    "functional_blocks": _Law(
        "each parameter's own block of F is 0", f"{_MULTILINEAR}, any loss", 0.0, 0.0
    ),
    "functional_trace": _Law("tr F = 0", f"{_MULTILINEAR}, any loss", 1e-12, 1e-5),
    "functional_homogeneity": _Law(
        "F theta = (L - 1) grad R", f"{_HOMOGENEOUS}, any loss", 1e-10, 1e-4
    ),
    "active_examples": _Law(
        "examples without a slope add nothing to F: the product over the others is the whole",
        _ANY,
        1e-14,
        1e-6,
    ),
}


@dataclass(frozen=True)
class Identity:
    """One identity on one model.

    Attributes:
        name: short, see `LAWS`.
        statement: what it says.
        holds: whether `error` is within `tolerance`; None where it can't be measured.
        error: by how much it is missed, relative to the size of what is compared; NaN likewise.
        tolerance: what counts as rounding in the parameters' precision.
        expected_for: nets and losses of which it is a theorem.
        reason: why it is not measured; else empty.
    """

    name: str
    statement: str
    holds: bool | None
    error: float
    tolerance: float
    expected_for: str
    reason: str = ""


def measure_identities(
    risk: Risk, layers: int | None, seed: int
) -> tuple[dict[str, Identity], float, float]:
    """Measure all identities; return them by name, L, and the share of active examples.

    Args:
        risk: R.
        layers: L, or None to measure it.
        seed: of the random vectors.

    Returns:
        The identities; L, NaN where it can't be measured; the share of examples with a slope, NaN
        of an opaque risk.

    Raises:
        ValueError: the loss has no gradient.
        RuntimeError: the model has no second derivatives.
    """
    found = _Found(risk.dtype)
    with risk.frozen():
        gradient = risk.gradient().double().cpu()
    theta = risk.flatten(risk.parameters.values())
    structure = _structure(risk)
    whole = _sweep(HessianOperator(risk), theta, seed)
    part: _Sweep | None = whole
    why = ""
    if structure is None:
        why = "F needs the loss as loss_fn(output, target) of one output tensor"
        part = None
    elif not structure.piecewise:
        part = _sweep(FunctionalHessianOperator(risk), theta, seed)
    degree = _degree(part or whole, gradient) if layers is None else float(layers)
    found.blocks("own_blocks", "trace", whole)
    found.homogeneity("homogeneity", whole, gradient, degree)
    # parameters that the output does not use are no layers of it
    used = [
        name
        for name, block in risk.blocks.items()
        if bool((gradient[block] != 0).any() or ((part or whole).product[block] != 0).any())
    ]
    found.add("layer_balance", *_balance(risk, used, theta.double().cpu(), gradient, structure))
    found.add("mirror_spectrum", *_mirror(risk, used))
    if part is None or structure is None:
        for name in ("functional_blocks", "functional_trace", "functional_homogeneity"):
            found.add(name, _NAN, why)
        found.add("active_examples", _NAN, why)
        return found.rows, degree, _NAN
    found.blocks("functional_blocks", "functional_trace", part)
    found.homogeneity("functional_homogeneity", part, gradient, degree)
    found.add("active_examples", *_selection(risk, part, structure))
    return found.rows, degree, structure.active


class _Structure(NamedTuple):
    """What outputs and slopes say, over all ranks."""

    piecewise: bool  # H = F
    contraction: float  # (1/n) sum l'_n T_n
    active: float  # share of examples with a slope


class _Sweep(NamedTuple):
    """Products of a second derivative with one random vector a block, and with theta."""

    own: float  # largest |entry| of (A z_l)_l
    trace: float  # sum_l z_l . A z_l
    largest: float  # |entry| of A z_l
    norm: float  # Frobenius, estimated
    signs: Tensor  # sum_l z_l
    product: Tensor  # A of it, float64 on the CPU
    theta: Tensor  # A theta, likewise


class _Found:
    """The identities as they are measured."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.rows: dict[str, Identity] = {}
        self._double = dtype == torch.float64

    def add(self, name: str, error: float, reason: str = "") -> None:
        law = LAWS[name]
        tolerance = law.double if self._double else law.single
        holds = None if math.isnan(error) else error <= tolerance
        self.rows[name] = Identity(
            name, law.statement, holds, error, tolerance, law.expected_for, reason
        )

    def blocks(self, own: str, trace: str, sweep: _Sweep) -> None:
        reason = "" if sweep.norm else _ZERO
        self.add(own, _ratio(sweep.own, sweep.largest), reason)
        self.add(trace, _ratio(abs(sweep.trace), sweep.norm), reason)

    def homogeneity(self, name: str, sweep: _Sweep, gradient: Tensor, degree: float) -> None:
        if math.isnan(degree):
            self.add(name, _NAN, "the gradient is 0: no example has a slope, or all units rest")
            return
        expected = (degree - 1) * gradient
        scale = float(expected.norm()) or float(gradient.norm())
        self.add(name, _ratio(float((sweep.theta - expected).norm()), scale))


def _ratio(error: float, scale: float) -> float:
    return error / scale if scale else _NAN


def _structure(risk: Risk) -> _Structure | None:
    """Return what outputs and slopes say; None where they are not known."""
    if not risk.structured:
        return None

    def local() -> tuple[Tensor, float]:
        # unreadable and curved batches, l' T, active examples, all examples
        sums = torch.zeros(5, dtype=torch.float64)
        weights = 0.0
        with risk.measuring():
            for batch in risk.batches():
                part = linearised(risk, batch)
                size = batch_size(batch)
                sums[4] += size
                if part is None or part.direct:
                    sums[0] += 1
                    weights += size
                    continue
                weights += part.weight
                sums[1] += not part.complete
                if part.slope is None or part.output is None:
                    continue
                sums[2] += part.weight * float((part.slope.double() * part.output.double()).sum())
                slopes = part.slope != 0
                rows = slopes.reshape(size, -1) if slopes.shape[:1] == (size,) else slopes[None]
                sums[3] += int(rows.any(-1).sum()) if len(rows) == size else size
        return sums, weights

    unreadable, curved, contraction, active, examples = risk.average(local).tolist()
    return None if unreadable else _Structure(not curved, contraction, active / examples)


def _sweep(operator: RiskOperator, theta: Tensor, seed: int) -> _Sweep:
    """Multiply by random signs on one block after the other: L + 1 products."""
    signs = rademacher(operator.shape[0], 1, seed)[:, 0].to(operator.device, operator.dtype)
    own = trace = largest = squares = 0.0
    total = torch.zeros_like(signs)
    for block in operator.blocks.values():
        vector = torch.zeros_like(signs)
        vector[block] = signs[block]
        product = operator @ vector
        total += product
        inside = product[block].double()
        own = max(own, float(inside.abs().max()))
        trace += float(inside @ signs[block].double())
        largest = max(largest, float(product.abs().max()))
        squares += float(product.double().square().sum())
    product = (operator @ theta).double().cpu()
    return _Sweep(own, trace, largest, math.sqrt(squares), signs, total.double().cpu(), product)


def _degree(sweep: _Sweep, gradient: Tensor) -> float:
    """Return L, the degree of the output in the weights, by Euler: F theta = (L - 1) grad R."""
    squares = float(gradient.square().sum())
    return float(round(1 + float(sweep.theta @ gradient) / squares)) if squares else _NAN


def _balance(
    risk: Risk, used: list[str], theta: Tensor, gradient: Tensor, structure: _Structure | None
) -> tuple[float, str]:
    """Return by how much the theta_l . grad_l R differ, relative to the largest."""
    blocks = [risk.blocks[name] for name in used]
    sums = [float(theta[block] @ gradient[block]) for block in blocks]
    if structure is not None:
        sums.append(structure.contraction)
    largest = max((abs(value) for value in sums), default=0.0)
    if largest and len(sums) < 2:
        return _NAN, "the model has one parameter: there is nothing to compare"
    if not largest:
        return _NAN, "all are 0: no example has a slope, or all units rest"
    return (max(sums) - min(sums)) / largest, ""


def _mirror(risk: Risk, used: list[str]) -> tuple[float, str]:
    """Return by how much the spectrum of H is not its own mirror image."""
    if not used:
        return _NAN, _ZERO
    weights = sum(risk.parameters[name].dim() > 1 for name in used)
    if weights != 2:
        return _NAN, f"it is of nets with 2 weight layers, got {weights}"
    if risk.numel > DENSE:
        return _NAN, f"the whole spectrum is taken of {DENSE} parameters at most, got {risk.numel}"
    dense = HessianOperator(risk).dense().double().cpu()
    values = SpectralMeasure.from_eigenvalues(torch.linalg.eigvalsh((dense + dense.T) / 2)).nodes[0]
    largest = float(values.abs().max())
    if not largest:
        return _NAN, _ZERO
    return float((values + values.flip(0)).abs().max()) / largest, ""


class _Unselected(FunctionalHessianOperator):
    """F over all examples, those without a slope too."""

    def _graph(self, batch: Any) -> tuple[Any, float]:
        part = linearised(self.risk, batch)
        if part is None or part.slope is None:
            return None, 0.0 if part is None else part.weight
        output: Tensor = self.risk.forward(batch)[0]
        return _gradient_graph(self, (part.slope * output).sum()), part.weight


def _selection(risk: Risk, sweep: _Sweep, structure: _Structure) -> tuple[float, str]:
    """Return by how much leaving out the examples without a slope changes a product."""
    if structure.active == 1:
        return _NAN, "every example has a slope: none is left out"
    whole = (_Unselected(risk) @ sweep.signs).double().cpu()
    scale = float(whole.norm())
    if not scale:
        return _NAN, _ZERO
    return float((whole - sweep.product).norm()) / scale, ""
