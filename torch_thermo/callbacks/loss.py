"""Where the loss of a LightningModule comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch_thermo.callbacks._roots import LightningModule
from torch_thermo.callbacks.quiet import training_loss
from torch_thermo.callbacks.trees import split
from torch_thermo.risk import Closure, LossFn, Risk, batch_size

_CRITERIA = ("criterion", "loss_fn", "loss")
_AGREEMENT = 1e-5
# float32 sums over a batch and over its halves differ by rounding
_ADDITIVE = 1e-3


@dataclass(frozen=True)
class LossSource:
    """How a batch becomes a loss.

    Attributes:
        description: for the log: what was taken.
        criterion: the name of the module's attribute, or None.
        loss_fn: the user's, or None.
        closure: the user's or `training_step`, or None.
    """

    description: str
    criterion: str | None = None
    loss_fn: LossFn | None = None
    closure: Closure | None = None

    def risk(self, model: Any, batches: Iterable[Any], process_group: Any | None) -> Risk:
        """Build the risk of a (shadow) module over some batches."""
        if self.closure is not None:
            return Risk.from_closure(model, self.closure, batches, process_group=process_group)
        loss_fn = self.loss_fn or getattr(model, str(self.criterion))
        return Risk(model, loss_fn, batches, process_group=process_group)


TRAINING_STEP = LossSource("training_step", closure=training_loss)


def check_loss_arguments(loss_fn: object, closure: object) -> None:
    """Raise if both are given, or one that can't be called."""
    if loss_fn is not None and closure is not None:
        raise ValueError("give loss_fn=(output, target) or closure=(pl_module, batch), not both")
    for name, given in (("loss_fn", loss_fn), ("closure", closure)):
        if given is not None and not callable(given):
            raise TypeError(f"{name} must be callable, got {type(given).__name__}")


def why_unmeasurable(pl_module: LightningModule, given: bool) -> str | None:
    """Return why a module's loss can't be had before a batch is seen; None if it can."""
    if given or pl_module.automatic_optimization:
        return None
    return (
        f"{type(pl_module).__name__} uses manual optimisation: its training_step would take "
        "optimizer steps, so give closure=(pl_module, batch) -> loss, or loss_fn=(output, target)"
    )


def acquire_loss(
    model: Any, batch: Any, loss_fn: LossFn | None, closure: Closure | None
) -> LossSource:
    """Decide where the loss comes from, in the documented order.

    1. the user's `loss_fn` or `closure`;
    2. an attribute `criterion`, `loss_fn` or `loss` that is callable, if the module has a
       `forward` and criterion(forward(x), y) is the loss of 3 on `batch`;
    3. the module's `training_step`.

    Args:
        model: a quiet shadow of the module; what the trial runs do to it is of no consequence.
        batch: one batch of the probe.
        loss_fn: the user's.
        closure: the user's.

    Raises:
        ValueError: manual optimisation without 1.
        Exception: what the loss raised on `batch`.
    """
    source = LossSource("the given loss_fn", loss_fn=loss_fn)
    if closure is not None:
        source = LossSource("the given closure", closure=closure)
    if loss_fn is not None or closure is not None:
        _value(model, batch, source)
        return source
    reason = why_unmeasurable(model, given=False)
    if reason is not None:
        raise ValueError(reason)
    own = _value(model, batch, TRAINING_STEP)
    for name in _CRITERIA if _has_forward(model) else ():
        if callable(getattr(model, name, None)):
            source = LossSource(f"self.{name}(self(x), y), which equals training_step's", name)
            if _agrees(model, batch, source, own):
                return source
    return TRAINING_STEP


def disagreement(model: Any, batch: Any, source: LossSource) -> str | None:
    """Return a notice if a criterion has ceased to be training_step's loss; else None.

    A penalty that is ramped up from zero is not there when the loss is acquired.
    """
    if source.criterion is None:
        return None
    own = _value(model, batch, TRAINING_STEP)
    if math.isnan(own) or _agrees(model, batch, source, own):
        return None  # what is not finite is reported by the measurement
    return (
        f"self.{source.criterion}(self(x), y) was training_step's loss when measuring began and "
        "no longer is: what is measured is the criterion; give loss_fn= or closure= to decide"
    )


def partition(model: Any, batch: Any, source: LossSource) -> str | None:
    """Return a notice if the loss of a batch is not the mean over its halves; else None.

    The risk is a mean over examples, put together from micro-batches.
    """
    halves = split(batch, 2)
    if len(halves) < 2:
        return None
    try:
        whole = _value(model, batch, source)
        parts = source.risk(model, halves, None).value()
    except Exception:  # a loss that needs the whole batch; its measurement says what it needs
        return None
    if math.isclose(whole, parts, rel_tol=_ADDITIVE, abs_tol=1e-6) or math.isnan(whole):
        return None
    return (
        f"the loss of a batch ({whole:.6g}) is not the mean over its halves ({parts:.6g}): it is "
        "a sum, has weighted or ignored targets, compares examples, or is random. What is "
        f"measured depends on the micro-batches ({batch_size(batch)} examples); "
        "give closure=(pl_module, batch) -> (mean, weight)"
    )


def _value(model: Any, batch: Any, source: LossSource) -> float:
    return source.risk(model, [batch], None).value()


def _agrees(model: Any, batch: Any, source: LossSource, own: float) -> bool:
    try:
        value = _value(model, batch, source)
    except Exception:  # a criterion of another signature: it is not the one
        return False
    return math.isclose(value, own, rel_tol=_AGREEMENT, abs_tol=1e-12) or (
        # a loss that is NaN from the start is reported by the measurement, not here
        math.isnan(value) and math.isnan(own)
    )


def _has_forward(model: Any) -> bool:
    for kind in type(model).__mro__:
        if "forward" in vars(kind):
            return not kind.__module__.startswith(
                ("lightning.", "pytorch_lightning.", "torch.nn.modules.module")
            )
    return False
