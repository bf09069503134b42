"""The phase of a net on its examples: solved, plastic or frustrated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torch_thermo.observables.hessian_spectrum import HessianSpectrumResult, hessian_spectrum
from torch_thermo.observables.order_parameter import plasticity_order_parameter
from torch_thermo.operators.base import linearised
from torch_thermo.risk import Risk, batch_size
from torch_thermo.spectra.arguments import require_whole

PhaseName = Literal["solved", "plastic", "frustrated", "undecided"]

#: an order parameter is 0 within so many standard errors of it ...
STANDARD_ERRORS = 3.0
#: ... where it is at most this share of what orthogonal gradients of the micro-batches would give
CANCELLED = 0.1
#: a spectrum is symmetric while |odd_3| stays below: deep nets have a small one, up to .19 ...
LARGEST_ODD = 0.25
#: ... by so many of its standard errors: of 4 probes it is inside two in 86 cases of 100
ODD_ERRORS = 2.0
# of the largest |eigenvalue|: with a larger residual bound the smallest one has not been found
_CONVERGED = 0.01
_NAN = math.nan
_CODES: dict[str, float] = {"solved": 0.0, "plastic": 1.0, "frustrated": 2.0}
_SPECTRUM = (
    "lambda_min",
    "lambda_min_residual",
    "lambda_min_bound",
    "lambda_max",
    "odd_3",
    "odd_3_stderr",
)
_LATER = (*_SPECTRUM, "zero_output_share", "dead_share")


@dataclass(frozen=True)
class Phase:
    """The phase of a net, with what it was decided by.

    Attributes:
        name: "solved", "plastic", "frustrated" or "undecided".
        reason: how it was decided, or why it could not be.
        evidence: `risk`, `tolerance`; `order_parameter`, `order_parameter_stderr`,
            `order_parameter_unbiased`, `order_parameter_incoherent` (see `OrderParameter`); of the
            Hessian H `lambda_min`, `lambda_min_residual` (the residual bound), `lambda_min_bound`
            (with the rounding of the products) and `lambda_max`; of its functional part `odd_3`,
            `odd_3_stderr`; `zero_output_share`, the share of examples whose output is exactly 0;
            `dead_share`, of those whose output does not change with the input (its gradient in the
            input is 0). NaN where a number is not defined.
    """

    name: PhaseName
    reason: str
    evidence: Mapping[str, float] = field(repr=False)

    @property
    def code(self) -> float:
        """0 solved, 1 plastic, 2 frustrated, NaN undecided: for a curve."""
        return _CODES.get(self.name, _NAN)


def phase(
    risk: Risk,
    tolerance: float = 0.0,
    steps: int = 20,
    probes: int = 4,
    groups: int = 8,
    seed: int = 0,
) -> Phase:
    """Decide which phase a net is in (Li, sec. on the plasticity phase, Figs. 4b and 8).

    On the risk R as it is given, its examples, and the weights as they are:

    - solved: R within `tolerance` of 0;
    - frustrated: R above it and the order parameter `||grad R||^2` 0: within 3 standard errors of
      0, and below a tenth of what it would be were the gradients of the micro-batches orthogonal.
      `reason` says whether H is positive semidefinite then (a minimum) or not (a saddle), and on
      which share of the examples the output is exactly 0 or does not depend on the input (all
      units of a layer are dead);
    - plastic: R above it, the order parameter not 0, the smallest eigenvalue of H below 0 by more
      than its residual bound, and the spectrum of the functional part F symmetric:
      `|odd_3| + 2 stderr < .25`, with `odd_3 = sum lambda^3 / sum |lambda|^3`, see `odd_moment`;
    - everything else: undecided.

    An order parameter within its standard error is not 0 for that alone, as it would be by a
    literal reading: of a net that learns well, on 128 images of two classes, it is .8 to 2.8
    standard errors through twelve epochs. The error is over micro-batches and says how well the
    value is known of the set that they were drawn from; of R it is exact. A gradient that vanishes
    is a sum of gradients that cancel, which these do not (1 to 4 times what orthogonal ones would
    give). So a net whose gradient is no more than the noise of its micro-batches is plastic here,
    and would be frustrated by the literal reading (0 within 3 standard errors, whatever cancels):
    "plastic" says of such a net that these examples still push its weights, not that more examples
    of the kind would. Where its unbiased value can't be told from 0, `reason` says so.

    Where the loss has no second derivative in the output (hinge), H = F and one Lanczos run serves
    both; else lambda_min takes `steps` products with H beside `steps * probes` with F.

    Args:
        risk: R, in 3 batches or more, for a standard error. Of an opaque one F is not known: it
            may be solved or frustrated, but not plastic.
        tolerance: R up to it counts as 0. 0 is right for a hinge loss; cross entropy reaches 0
            nowhere, so give the floor that counts as solved.
        steps: Lanczos steps a probe.
        probes: start vectors of the spectrum of F; the standard error of odd_3 is over them.
        groups: micro-batches of the standard error.
        seed: of the start vectors.

    Raises:
        ValueError: a tolerance below 0 or not finite, steps, probes or groups below 1, a loss
            without a gradient.
        TypeError: `risk` is not a Risk, the tolerance no number, groups, steps or probes no whole
            number.
        MemoryError: the Lanczos basis would not fit; names settings that do.
    """
    if not isinstance(risk, Risk):
        raise TypeError(f"risk must be a Risk, got {type(risk).__name__}")
    check_tolerance(tolerance)
    for name, number in (("steps", steps), ("probes", probes), ("groups", groups)):
        require_whole(name, number)
    order = plasticity_order_parameter(risk, groups=groups)
    evidence = {
        "risk": order.risk_value,
        "tolerance": float(tolerance),
        "order_parameter": order.value,
        "order_parameter_stderr": order.stderr,
        "order_parameter_unbiased": order.unbiased,
        "order_parameter_incoherent": order.incoherent,
    }
    notes = {"order_parameter_stderr": order.reason}
    if not math.isfinite(order.value + order.risk_value):
        return Phase("undecided", order.reason, evidence | dict.fromkeys(_LATER, _NAN))
    outputs = _outputs(risk)
    curvature, more = _curvature(risk, outputs.piecewise, steps, probes, seed)
    evidence |= {**curvature, "zero_output_share": outputs.zero, "dead_share": outputs.dead}
    moving = [name for name, share in order.per_layer.items() if share]
    if len(moving) == 1:
        notes["moving"] = moving[0]
    return Phase(*decide(evidence, notes | more), evidence)


def check_tolerance(tolerance: object) -> None:
    """Raise if a risk's tolerance is no number of at least 0.

    Raises:
        TypeError: no number.
        ValueError: below 0, or not finite.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"tolerance must be a number, got {tolerance!r}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be finite and at least 0, got {tolerance}")


def decide(evidence: Mapping[str, float], notes: Mapping[str, str]) -> tuple[PhaseName, str]:
    """Return the phase that the evidence speaks for, and the reason.

    Args:
        evidence: of `Phase`.
        notes: {name of a number: why it is NaN}, and under "moving" the parameter that alone has a
            gradient, if there is one.
    """
    r, tolerance = evidence["risk"], evidence["tolerance"]
    if r < -tolerance:
        return "undecided", f"the risk is {r:.3g}: below 0, which is then not its least value"
    if r <= tolerance:
        return "solved", f"the risk {r:.3g} is within {tolerance:.3g} of 0"
    order, stderr = evidence["order_parameter"], evidence["order_parameter_stderr"]
    # a gradient that is exactly 0 needs no error to be compared with
    if order and math.isnan(stderr):
        why = notes.get("order_parameter_stderr") or "it has no standard error"
        return "undecided", f"the order parameter {order:.3g} can't be told from 0: {why}"
    known = f"{order:.3g}, {order / stderr:.3g} standard errors" if stderr else f"{order:.3g}"
    incoherent = evidence["order_parameter_incoherent"]
    if not order or order <= min(STANDARD_ERRORS * stderr, CANCELLED * incoherent):
        return "frustrated", f"the order parameter ({known}) is 0, {_stuck(evidence, notes)}"
    plastic, why = _is_symmetric_saddle(evidence, notes)
    unbiased = evidence["order_parameter_unbiased"]
    if plastic and unbiased <= STANDARD_ERRORS * stderr:
        why += (
            "; of these examples: in the set that they were drawn from the order parameter may be "
            f"0 ({unbiased:.3g} +- {stderr:.3g})"
        )
    why += _dead(evidence, notes)
    return "plastic" if plastic else "undecided", f"the order parameter is {known}, {why}"


def _is_symmetric_saddle(
    evidence: Mapping[str, float], notes: Mapping[str, str]
) -> tuple[bool, str]:
    """Return whether lambda_min is negative and F's spectrum symmetric, and the reason."""
    for name in ("lambda_min", "odd_3", "odd_3_stderr"):
        if math.isnan(evidence[name]):
            return False, f"but {name} is not known: {notes.get(name) or 'it is not defined'}"
    low, bound = evidence["lambda_min"], evidence["lambda_min_bound"]
    if low >= -bound:
        return False, f"but no eigenvalue is negative: lambda_min {low:.3g} +- {bound:.3g}"
    odd, error = evidence["odd_3"], evidence["odd_3_stderr"]
    asymmetry = f"odd_3 {odd:.2g} +- {error:.2g}, limit {LARGEST_ODD}"
    found = f"lambda_min {low:.3g} +- {bound:.3g}"
    error *= ODD_ERRORS
    if abs(odd) + error < LARGEST_ODD:
        return True, f"{found}, and the spectrum is symmetric: {asymmetry}"
    if abs(odd) - error >= LARGEST_ODD:
        return False, f"{found}, but the functional part's spectrum is not symmetric: {asymmetry}"
    return False, (
        f"{found}, but whether the functional part's spectrum is symmetric is open: {asymmetry}; "
        "more probes would tell"
    )


def _stuck(evidence: Mapping[str, float], notes: Mapping[str, str]) -> str:
    """Return what kind of point a net is stuck at, in words."""
    low, bound = evidence["lambda_min"], evidence["lambda_min_bound"]
    largest = max(abs(low), abs(evidence["lambda_max"]))
    residual = evidence["lambda_min_residual"]
    if math.isnan(low):
        kind = f"no Hessian: {notes.get('lambda_min') or 'it is not defined'}"
    elif low < -bound:
        kind = f"a saddle: lambda_min {low:.3g} is below 0 by more than its bound {bound:.3g}"
    elif residual > _CONVERGED * largest:
        kind = f"lambda_min {low:.3g} has not converged ({residual:.3g}): take more steps"
    else:
        kind = f"the Hessian positive semidefinite to within {bound:.3g}"
    share = evidence["zero_output_share"]
    if not share > 0:
        return kind + _dead(evidence, notes)
    dead = f": all units of a layer are dead{_moving(notes)}" if share == 1 else ""
    return f"{kind}; the output is 0 on {share:.1%} of the examples{dead}"


def _dead(evidence: Mapping[str, float], notes: Mapping[str, str]) -> str:
    """Return on how many examples the output is a constant, in words."""
    share = evidence["dead_share"]
    if not share > 0:
        return ""
    dead = f": all units of a layer are dead{_moving(notes)}" if share == 1 else ""
    return f"; on {share:.1%} of the examples the output does not depend on the input{dead}"


def _moving(notes: Mapping[str, str]) -> str:
    return f", and only {notes['moving']} has a gradient" if "moving" in notes else ""


class _Outputs(NamedTuple):
    """What the outputs say: shares of examples, and whether the loss is piecewise linear in them.

    The shares are NaN and `piecewise` None where there is no structure, or no tensor as output;
    `dead` is NaN also where the input is no tensor of real numbers.
    """

    zero: float
    dead: float
    piecewise: bool | None


def _outputs(risk: Risk) -> _Outputs:
    """Return what the outputs of all ranks' examples say."""
    if not risk.structured:
        return _Outputs(_NAN, _NAN, None)

    def local() -> tuple[Tensor, float]:
        # zeros, constants, and batches: curved, not tensors, without a gradient in the input
        counts = torch.zeros(5, dtype=torch.float64)
        examples = 0
        with risk.measuring():
            for batch in risk.batches():
                size = batch_size(batch)
                if not size:
                    continue
                examples += size
                part = linearised(risk, batch)
                if part is None:
                    counts[3] += 1
                    continue
                counts[2] += not part.complete
                with torch.no_grad():
                    output = risk.forward(batch)[0]
                counts[0] += _zeros(output, size)
                slope = _input_gradient(risk, batch)
                if slope is None:
                    counts[4] += 1
                else:
                    counts[1] += _zeros(slope, size)
        return counts, float(examples)

    zero, dead, curved, unknown, closed = risk.average(local).tolist()
    if unknown:
        return _Outputs(_NAN, _NAN, None)
    return _Outputs(zero, _NAN if closed else dead, not curved)


def _zeros(values: Tensor, size: int) -> int:
    """Return of how many of `size` examples all values are 0."""
    if values.shape[:1] == (size,):
        return int((values.reshape(size, -1) == 0).all(1).sum())
    return size * bool((values == 0).all())


def _input_gradient(risk: Risk, batch: Any) -> Tensor | None:
    """Return the gradient of a random sum of the outputs in the input; None if it has none."""
    inputs = batch[0]
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        return None
    with risk.rehearsal():
        leaf = inputs.detach().clone().requires_grad_()
        # a copy: a model may write on its input
        output = risk.forward((leaf.clone(), *batch[1:]))[0]
        if not output.requires_grad:
            return torch.zeros_like(leaf)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        (gradient,) = torch.autograd.grad(output, leaf, probe, materialize_grads=True)
    return gradient


def _curvature(
    risk: Risk, piecewise: bool | None, steps: int, probes: int, seed: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the edges of H and the odd moment of F, and why a number is NaN."""
    numbers, notes = dict.fromkeys(_SPECTRUM, _NAN), {}
    try:
        # H is F for a loss that is piecewise linear in the output: one run for both
        count = probes if piecewise else 1
        whole = hessian_spectrum(risk, steps=steps, probes=count, seed=seed)
    except (RuntimeError, FloatingPointError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        notes["lambda_min"] = f"the model has no second derivatives ({error})"
        return numbers, notes
    numbers |= _edges(whole)
    if piecewise is None:
        notes["odd_3"] = (
            "the functional part needs the loss as loss_fn(output, target) of one output tensor"
        )
        return numbers, notes
    try:
        part = (
            whole
            if piecewise
            else hessian_spectrum(risk, "functional", steps=steps, probes=probes, seed=seed)
        )
    except TypeError as error:  # the loss reaches parameters past the output
        notes["odd_3"] = str(error)
        return numbers, notes
    odd = part.odd_moments[3]
    numbers |= {"odd_3": odd.value, "odd_3_stderr": odd.stderr}
    if math.isnan(odd.value):
        notes["odd_3"] = (
            "the functional part is zero: no example is active, or the output is linear in the "
            "weights"
        )
    elif math.isnan(odd.stderr):
        notes["odd_3_stderr"] = f"a standard error needs 2 probes or more, got {probes}"
    return numbers, notes


def _edges(spectrum: HessianSpectrumResult) -> dict[str, float]:
    """Return the extremes with the error of the lower one."""
    ends = spectrum.extremes
    largest = max(abs(ends.min.value), abs(ends.max.value))
    residual = spectrum.residuals[0]
    return {
        "lambda_min": ends.min.value,
        "lambda_min_residual": residual,
        # what rounds a zero eigenvalue to one side is no sign
        "lambda_min_bound": residual + spectrum.measure.resolution * largest,
        "lambda_max": ends.max.value,
    }
