"""Where the loss of a LightningModule comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_thermo.callbacks._roots import LightningModule
from torch_thermo.callbacks.quiet import children_with_parameters, has_forward, training_loss
from torch_thermo.callbacks.trees import split
from torch_thermo.risk import Closure, LossFn, Risk, batch_size, rebuilt

_CRITERIA = ("criterion", "loss_fn", "loss")
_AGREEMENT = 1e-5
# batches of other targets that a guess is tried on: enough for 1000 classes in batches of 64
_MOST_TARGETS = 16
# float32 sums over a batch and over its halves differ by rounding
_ADDITIVE = 1e-3


def _of_one_shape(loss: LossFn, output: Tensor, target: Tensor) -> Tensor:
    """Compare output and target entry by entry, as after the squeeze or cast of most steps."""
    return loss(output, target.to(output.dtype).reshape(output.shape))


# what most training steps call. The likelihood comes before cross entropy: of a forward that ends
# in log_softmax both are the loss, and the former says what its output is
_STANDARD: tuple[tuple[str, LossFn], ...] = (
    ("F.nll_loss", nn.NLLLoss()),
    ("F.cross_entropy", nn.CrossEntropyLoss()),
    (
        "F.binary_cross_entropy_with_logits",
        partial(_of_one_shape, F.binary_cross_entropy_with_logits),
    ),
    ("F.mse_loss", partial(_of_one_shape, F.mse_loss)),
    ("F.l1_loss", partial(_of_one_shape, F.l1_loss)),
    # the same as huber_loss while its threshold is 1, the default of both
    ("F.smooth_l1_loss", partial(_of_one_shape, F.smooth_l1_loss)),
)


@dataclass(frozen=True)
class LossSource:
    """How a batch becomes a loss.

    Attributes:
        description: for the log: what was taken.
        criterion: the name of the module's attribute, or None.
        loss_fn: the user's or a standard one, or None.
        closure: the user's or `training_step`, or None.
        guess: the loss in words, where it is taken because it equals `training_step`'s; else "".
        place: of a guess in the order of trials, from 1; else 0. Ranks compare it.
    """

    description: str
    criterion: str | None = None
    loss_fn: LossFn | None = None
    closure: Closure | None = None
    guess: str = ""
    place: int = 0

    def risk(self, model: Any, batches: Iterable[Any], process_group: Any | None) -> Risk:
        """Build the risk of a (shadow) module over some batches."""
        if self.closure is not None:
            return Risk.from_closure(model, self.closure, batches, process_group=process_group)
        loss_fn = self.function(model, "a structured risk")
        return Risk(model, loss_fn, batches, process_group=process_group)

    def function(self, model: Any, what: str) -> LossFn:
        """Return `(output, target) -> loss` of a (shadow) module; `what` needs it.

        Raises:
            TypeError: the loss is only known as a closure. Lasting, and on all ranks alike, for
                they agree on the source.
        """
        if self.closure is not None:
            raise TypeError(
                f"{what} needs the loss as a function of the output: give "
                "Thermometer(loss_fn=...), or make the loss of training_step "
                "self.criterion(self(x), y) or a plain loss of torch as "
                "F.cross_entropy(self(x), y)"
            )
        loss_fn: LossFn = self.loss_fn or getattr(model, str(self.criterion))
        return loss_fn


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
    2. an attribute `criterion`, `loss_fn` or `loss` that is callable, or else one of torch's
       standard losses (nll_loss, cross_entropy, binary_cross_entropy_with_logits, mse_loss,
       l1_loss, smooth_l1_loss, each with its defaults), if the module has a `forward` (or only one
       child with parameters) and criterion(forward(x), y) is the loss of 3 on `batch`: its value
       and its gradient in the parameters, and its value with forward's outputs or the targets
       altered (an attribute stays where that can't be told: a step that does not call forward, or
       raises);
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
    for source in _guesses(model, batch, own):
        if (
            _agrees(model, batch, source, own)
            and _same_gradient(model, batch, source, own)
            and _same_function(model, batch, source, own)
        ):
            return source
    return TRAINING_STEP


def disagrees(model: Any, batch: Any, source: LossSource) -> bool:
    """Return whether a guess has ceased to be training_step's loss.

    A penalty that is ramped up from zero is not there when the loss is acquired.
    """
    if not source.guess:
        return False
    own = _value(model, batch, TRAINING_STEP)
    # what is not finite is reported by the measurement
    return not (math.isnan(own) or _agrees(model, batch, source, own))


def refuted(source: LossSource, step: int) -> tuple[LossSource, str]:
    """Return what is measured once a guess is no longer training_step's loss, and the notice.

    The module's own criterion stays: it is what its author calls the loss. A standard loss does
    not, for nothing but its agreement with training_step spoke for it.
    """
    told = f"{source.guess} was training_step's loss when measuring began and no longer is: "
    if source.criterion is not None:
        return source, (
            f"{told}what is measured is the criterion; give loss_fn= or closure= to decide"
        )
    description = f"training_step from step {step} on, before {source.guess}"
    return replace(TRAINING_STEP, description=description), (
        f"{told}from step {step} on training_step is measured; give loss_fn= or closure= to decide"
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


def _guesses(model: Any, batch: Any, own: float) -> Iterator[LossSource]:
    """Return what may be the loss as a function of output and target, the likeliest first."""
    called = _called(model)
    if not called:
        return
    for place, name in enumerate(_CRITERIA, 1):
        if callable(getattr(model, name, None)):
            yield _guess(f"self.{name}({called}, y)", place, criterion=name)
    # one forward pass for all of them; those that remain are tried as every other
    pair = _output_and_target(model, batch)
    for place, (name, loss) in enumerate(_STANDARD, 1 + len(_CRITERIA)):
        if pair is not None and _is_close(loss, *pair, own):
            yield _guess(f"{name}({called}, y)", place, loss_fn=loss)


def _guess(words: str, place: int, **how: Any) -> LossSource:
    return LossSource(f"{words}, which equals training_step's", guess=words, place=place, **how)


def _called(model: Any) -> str:
    """Return how the model is called, in words; nothing if it can't be."""
    if has_forward(model):
        return "self(x)"
    return f"self.{children_with_parameters(model)[0]}(x)" if "forward" in vars(model) else ""


def _output_and_target(model: Any, batch: Any) -> tuple[Any, Any] | None:
    risk = Risk(model, nn.CrossEntropyLoss(), [batch])
    try:
        with risk.measuring(), torch.no_grad():
            return next(risk.forward(moved) for moved in risk.batches())
    except Exception:  # no pair, or no input of the forward
        return None


def _is_close(loss: LossFn, output: Any, target: Any, own: float) -> bool:
    try:
        return math.isclose(float(loss(output, target)), own, rel_tol=_AGREEMENT, abs_tol=1e-12)
    except Exception:  # a loss of targets of another kind
        return False


def _same_gradient(model: Any, batch: Any, source: LossSource, own: float) -> bool:
    """Return whether the parameters feel the same loss: equal values may be detached in part."""
    if math.isnan(own):
        return True
    try:
        mine, theirs = (s.risk(model, [batch], None).gradient() for s in (source, TRAINING_STEP))
    except Exception:  # that there is none is the measurement's to say
        return False
    return bool((mine - theirs).norm() <= _AGREEMENT * theirs.norm() + 1e-12)


def _same_function(model: Any, batch: Any, source: LossSource, own: float) -> bool:
    """Return whether a loss is training_step's at other outputs and other targets too.

    At one point losses may be equal with their gradients: while no output exceeds 1, the hinge
    max(0, 1 - y T) of labels +-1 is |T - y|; half a squared error is smooth_l1 for residuals
    below 1; the weight of a class, or that it is ignored, shows only where it occurs.
    """
    attribute = source.criterion is not None
    shows = False
    agree = True
    for change, other in (
        *((change, batch) for change in _CHANGES),
        *((_as_it_is, other) for other in _with_other_targets(model, batch)),
    ):
        with _altered(model, change):
            try:
                altered = _value(model, other, TRAINING_STEP)
            except Exception:  # outputs that the loss can't take: no evidence for a guess
                agree = agree and attribute
                continue
            shows = shows or (other is batch and altered != own)
            agree = agree and _agrees(model, other, source, altered)
    # a step that does not call forward says nothing of the function
    return agree if shows else attribute


def _with_other_targets(model: Any, batch: Any) -> Iterator[Any]:
    """Return batches of the same inputs in which every class occurs; noise on other targets."""
    pair = _output_and_target(model, batch)
    if pair is None or not all(isinstance(part, Tensor) for part in pair):
        return
    output, target = pair
    if target.dtype == torch.bool:
        return
    places = torch.arange(target.numel(), device=target.device).reshape(target.shape)
    if target.is_floating_point():
        found = set(target.detach().unique().tolist()) if target.numel() else set()
        low = 0.0 if found <= {0.0, 1.0} else -1.0 if found <= {-1.0, 1.0} else None
        others = [_with_noise(target, 1.0) if low is None else torch.where(places % 2 == 0, 1, low)]
    else:
        # one class after the other: a weight common to all examples would cancel in the mean
        classes = max(2, output.shape[1] if output.dim() > 1 else 2)
        firsts = range(0, classes, max(1, target.numel()))[:_MOST_TARGETS]
        others = [(places + first) % classes for first in firsts]
    for other in others:
        yield _with_entries(batch, (batch[0], other.to(target), *batch[2:]))


def _with_entries(batch: Any, entries: Iterable[Any]) -> Any:
    """Return a tuple or list of the batch's own kind."""
    waiting = iter(entries)
    return rebuilt(lambda _: next(waiting), batch)


def _as_it_is(output: Tensor) -> Tensor:
    return output


@contextmanager
def _altered(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let what the forward returns pass through `change`, whoever calls it."""
    own = vars(model).get("forward")
    # of a shadow without a forward its only child
    called = own if isinstance(own, nn.Module) else model
    before = vars(called).get("forward")
    forward = called.forward
    vars(called)["forward"] = lambda *args, **kwargs: change(forward(*args, **kwargs))
    try:
        yield
    finally:
        if before is None:
            del vars(called)["forward"]
        else:
            vars(called)["forward"] = before


def _with_noise(output: Tensor, size: float | None) -> Tensor:
    """Add the same normal noise at each call, of some size or of the output's own."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(output.shape, generator=generator).to(output)
    return output + noise * (output.detach().square().mean().sqrt() if size is None else size)


_CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda output: 10.0 * output,
    lambda output: -10.0 * output,
    lambda output: 0.1 * output,
    *(partial(_with_noise, size=size) for size in (None, 1.0, 10.0)),
)
