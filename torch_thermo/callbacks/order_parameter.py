"""The plasticity order parameter while a network trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_thermo.callbacks._roots import Trainer
from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.probe import Source
from torch_thermo.callbacks.schedule import At, Log, Schedule
from torch_thermo.callbacks.session import Measurement, Moment, Session, completed_updates
from torch_thermo.observables.order_parameter import plasticity_order_parameter
from torch_thermo.risk import Closure, LossFn

MINIBATCH = "order_parameter_minibatch"
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
        probe: Source = 512,
        examples: int | None = None,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(schedule or often(), probe, examples, loss_fn, closure, seed)
        self.minibatch = minibatch
        self._kept: list[_Step] = []
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
        """Keep the norms of the step's gradients, on their device."""
        if not self.minibatch:
            return
        gradients: list[Tensor] = []
        counts: list[int] = []
        rates: list[float] = []
        for group in optimizer.param_groups:
            before = len(gradients)
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.numel() > _PIECE and _on_cpu_strided(gradient):
                    gradients += gradient.reshape(-1).split(_PIECE)
                else:
                    gradients.append(gradient)
            counts.append(len(gradients) - before)
            rates.append(_rate(group))
        if not gradients:
            return
        several = len(trainer.optimizers) > 1
        self._kept.append(
            _Step(
                completed_updates(trainer),
                trainer.current_epoch,
                f"_optimizer{_index(trainer.optimizers, optimizer)}" if several else "",
                self._norms(gradients),
                tuple(counts),
                rates,
            )
        )
        if len(self._kept) >= max(1, trainer.log_every_n_steps):
            self.flush(session)

    def reset(self, sharded: bool) -> None:
        """Forget the last run's gradients."""
        self._kept = []
        self._sharded = sharded

    def flush(self, session: Session, alone: bool = False) -> None:
        """Bring what was kept to the store, and the last of it to the loggers."""
        kept, self._kept = self._kept, []
        if not kept or (self._sharded and alone):
            return  # the sum over ranks would wait for those that are not here
        with session.timed(MINIBATCH):
            squares = torch.stack([norm for step in kept for norm in step.norms]).double().square()
            if self._sharded:
                # each rank holds its shards' norms: one sum for the whole block of steps
                torch.distributed.all_reduce(squares)
            values = squares.cpu().numpy()
            rows: list[tuple[int, int, dict[str, float]]] = []
            start = 0
            for alike, steps in _runs(kept):
                # one table for steps of the same optimizer and parameters: all but a few are
                width, suffix = sum(alike.counts), alike.suffix
                table = values[start : start + width * len(steps)].reshape(len(steps), width)
                start += table.size
                ends = np.cumsum(alike.counts)
                shares = np.stack(
                    [part.sum(1) for part in np.split(table, ends[:-1], axis=1)], axis=1
                )
                scaled = (shares * np.array([step.rates for step in steps])).sum(1)
                rows += [
                    (step.step, step.epoch, {f"value{suffix}": value, f"scaled{suffix}": drop})
                    for step, value, drop in zip(
                        steps, shares.sum(1).tolist(), scaled.tolist(), strict=True
                    )
                ]
            session.record_rows(MINIBATCH, rows)

    def _norms(self, gradients: list[Tensor]) -> Sequence[Tensor]:
        if all(type(g) is Tensor and g.dtype in _EXACT and not g.is_sparse for g in gradients):
            return torch._foreach_norm(gradients)
        if any(hasattr(g, "to_local") for g in gradients):
            self._sharded = True  # sharded by the module itself
            gradients = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
        gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        # a sum of squares in half precision overflows at 65504
        return torch._foreach_norm(gradients, 2, torch.float32)


class _Step(NamedTuple):
    """What one step leaves until it is handed over."""

    step: int
    epoch: int
    suffix: str  # names the optimizer where there are several
    norms: Sequence[Tensor]
    counts: tuple[int, ...]  # gradients in each parameter group
    rates: list[float]  # effective learning rate of each group


def _on_cpu_strided(gradient: Tensor) -> bool:
    return (
        type(gradient) is Tensor
        and gradient.device.type == "cpu"
        and gradient.layout is torch.strided
    )


def _runs(kept: Sequence[_Step]) -> Iterator[tuple[_Step, list[_Step]]]:
    for _, run in groupby(kept, key=lambda step: (step.suffix, step.counts)):
        steps = list(run)
        yield steps[0], steps


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
