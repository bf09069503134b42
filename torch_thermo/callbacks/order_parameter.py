"""The plasticity order parameter while a network trains."""

from __future__ import annotations

from itertools import islice
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_thermo.callbacks._roots import Trainer
from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment, completed_updates
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.schedule import At, Log, Schedule
from torch_thermo.callbacks.session import Session
from torch_thermo.observables.order_parameter import plasticity_order_parameter
from torch_thermo.risk import Closure, LossFn

MINIBATCH = "order_parameter_minibatch"
Squares = list[float] | Tensor
_EXACT = (torch.float32, torch.float64)
# the CPU's norm adds float32 numbers one after the other: 1e-4 off at a million of them, and
# 1e-6 in pieces of this size
_PIECE = 2**17


def often() -> Schedule:
    """Return 8 a decade of steps, the first 50 epoch ends, and the end."""
    return Log(per_decade=8) | At(epochs=range(1, 51))


class PlasticityOrderParameter(ThermoCallback):
    """`||grad R||^2` on the probe, and the minibatch gradient's squared norm at every step.

    Stored as `order_parameter`: value (exact for the probe), unbiased with stderr (for the set
    the probe was drawn from), risk, scaled (`sum_g eta_g ||grad_g R||^2`, with momentum b each
    divided by 1 - b; adaptive optimizers are scaled by their eta alone), layer/<parameter>; and
    as `order_parameter_minibatch` at every step: value and scaled, of the gradient that is there:
    unclipped, unscaled, accumulated, regularised as the training regularises it. A minibatch of B
    overestimates by tr(Sigma)/B.

    Li, *Complexity from Adaptive-Symmetries Breaking*, eq. 15 and Fig. 4b.

    Args:
        schedule: of the measurement on the probe; default 8 a decade of steps, the first 50 epoch
            ends and the end.
        minibatch: record the minibatch's value at every step: one fused norm, no synchronisation.
            Loggers get it at the trainer's `log_every_n_steps`, the store at every step.
        probe, examples, loss_fn, closure, seed: see `ThermoCallback`.
    """

    observable = "order_parameter"

    def __init__(
        self,
        schedule: Schedule | None = None,
        minibatch: bool = True,
        probe: Source = EXAMPLES,
        examples: int | None = None,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
    ) -> None:
        schedule = often() if schedule is None else schedule
        super().__init__(schedule, probe, examples, loss_fn, closure, seed)
        self.minibatch = minibatch
        self._kept: list[_Step] = []
        self._suffixes: dict[int, str] = {}
        self._plain: dict[int, bool] = {}
        self._sharded = False

    def observables(self) -> list[str]:
        """Return both names."""
        return [self.observable, MINIBATCH] if self.minibatch else [self.observable]

    def measure(self, moment: Moment) -> Measurement:
        """Measure on the probe."""
        population = moment.session.probe.population
        risk = moment.risk(self.examples)
        result = plasticity_order_parameter(risk, population)
        if result.reason and result.risk_value != result.risk_value:
            raise FloatingPointError(result.reason)
        rates = _rates(moment)
        scalars = {
            "value": result.value,
            "unbiased": result.unbiased,
            "stderr": result.stderr,
            "risk": result.risk_value,
        }
        if set(rates) >= set(result.per_layer):
            scalars["scaled"] = result.scaled(rates)
        scalars |= {f"layer/{name}": share for name, share in result.per_layer.items()}
        return Measurement(scalars)

    def watch_gradient(self, session: Session, trainer: Trainer, optimizer: Any) -> None:
        """Keep the squared norms of the step's gradients; on a GPU without synchronising."""
        if not self.minibatch:
            return
        gradients: list[Tensor] = []
        counts: list[int] = []
        rates: list[float] = []
        large = False
        for group in optimizer.param_groups:
            before = len(gradients)
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None:
                    gradients.append(gradient)
                    large = large or gradient.numel() > _PIECE
            counts.append(len(gradients) - before)
            rates.append(_rate(group))
        if not gradients:
            return
        key = id(optimizer)
        if key not in self._suffixes:
            self._suffixes[key] = _suffix(trainer.optimizers, optimizer)
            self._plain[key] = all(
                type(g) is Tensor and g.device.type == "cpu" and g.dtype in _EXACT
                for g in gradients
            ) and not any(g.is_sparse for g in gradients)
        if self._plain[key]:
            # floats at once: small tensors kept among the step's own scatter its memory
            squares: Squares = _squares(gradients, counts, large)
        else:
            squares = self._norms(gradients)
        self._kept.append(
            _Step(
                completed_updates(trainer),
                trainer.current_epoch,
                self._suffixes[key],
                squares,
                counts,
                rates,
            )
        )
        if len(self._kept) >= max(1, trainer.log_every_n_steps):
            self.flush(session)

    def reset(self, sharded: bool) -> None:
        """Forget the last run's gradients."""
        self._kept = []
        self._suffixes, self._plain = {}, {}
        self._sharded = sharded

    def flush(self, session: Session, alone: bool = False) -> None:
        """Bring what was kept to the store, and the last of it to the loggers."""
        kept, self._kept = self._kept, []
        if not kept or (self._sharded and alone):
            return  # the sum over ranks would wait for those that are not here
        with session.timed(MINIBATCH):
            self._fetch(kept)
            session.record_rows(
                MINIBATCH,
                [
                    (
                        step.step,
                        step.epoch,
                        {
                            f"value{step.suffix}": sum(step.squares),
                            f"scaled{step.suffix}": sum(map(mul, step.squares, step.rates)),
                        },
                    )
                    for step in kept
                ],
            )

    def _fetch(self, kept: list[_Step]) -> None:
        """Bring norms that are still on the device, or in shards, to numbers a group."""
        waiting = {i: s.squares for i, s in enumerate(kept) if isinstance(s.squares, Tensor)}
        if not waiting:
            return
        squares = torch.cat(list(waiting.values())).double().square()
        if self._sharded:
            # each rank holds its shards' norms: one sum for the whole block of steps
            torch.distributed.all_reduce(squares)
        values = iter(squares.tolist())
        for i in waiting:
            sums = [sum(islice(values, count)) for count in kept[i].counts]
            kept[i] = kept[i]._replace(squares=sums)

    def _norms(self, gradients: list[Tensor]) -> Tensor:
        if self._sharded:
            gradients = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
        gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        if all(g.dtype in _EXACT for g in gradients):
            return torch.stack(torch._foreach_norm(gradients))
        # a sum of squares in half precision overflows at 65504
        return torch.stack(torch._foreach_norm(gradients, 2, torch.float32))


class _Step(NamedTuple):
    """What one step leaves until it is handed over."""

    step: int
    epoch: int
    suffix: str  # names the optimizer where there are several
    squares: Squares  # a number for each group, or a tensor with each gradient's norm
    counts: list[int]  # gradients in each parameter group
    rates: list[float]  # effective learning rate of each group


def _squares(gradients: list[Tensor], counts: list[int], large: bool) -> list[float]:
    """Return the squared norm of each group's gradients, on the CPU."""
    if not large:
        norms = iter(torch._foreach_norm(gradients))
        return [sum([norm.item() ** 2 for norm in islice(norms, count)]) for count in counts]
    each = iter(gradients)
    return [
        sum(
            norm.item() ** 2
            for gradient in islice(each, count)
            for norm in torch._foreach_norm(gradient.reshape(-1).split(_PIECE))
        )
        for count in counts
    ]


def _suffix(optimizers: list[Any], optimizer: Any) -> str:
    """Return what tells an optimizer's values from another's; nothing if it is the only one."""
    return f"_optimizer{_index(optimizers, optimizer)}" if len(optimizers) > 1 else ""


def _rate(group: dict[str, Any]) -> float:
    """Return eta / (1 - beta) of a group: its long-run step in the direction of the gradient."""
    momentum = float(group.get("momentum") or 0.0)
    damping = 1.0 - float(group.get("dampening") or 0.0)
    gain = damping / (1.0 - momentum) if 0.0 < momentum < 1.0 else 1.0
    return float(group["lr"]) * gain


def _rates(moment: Moment) -> dict[str, float]:
    """Return {parameter name: effective learning rate} of the run's optimizers."""
    by_id = {
        id(p): _rate(group)
        for optimizer in moment.trainer.optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    named = moment.pl_module.named_parameters()
    return {name: by_id[id(p)] for name, p in named if id(p) in by_id}


def _index(optimizers: list[Any], optimizer: Any) -> int:
    """Return an optimizer's place; Lightning wraps it under manual optimisation."""
    inner = getattr(optimizer, "optimizer", optimizer)
    for index, candidate in enumerate(optimizers):
        if candidate is optimizer or getattr(candidate, "optimizer", candidate) is inner:
            return index
    return 0
