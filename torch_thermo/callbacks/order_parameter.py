"""The plasticity order parameter while a network trains."""

from __future__ import annotations

from typing import Any

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
        self._kept: list[tuple[int, int, int, Tensor, list[tuple[int, float]]]] = []
        self._every = 50
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
        norms: list[Tensor] = []
        groups: list[tuple[int, float]] = []
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                norms.extend(self._norms(gradients))
                groups.append((len(gradients), _rate(group)))
        if not norms:
            return
        which = 0 if len(trainer.optimizers) == 1 else 1 + _index(trainer.optimizers, optimizer)
        self._kept.append(
            (completed_updates(trainer), trainer.current_epoch, which, torch.stack(norms), groups)
        )
        self._every = max(1, trainer.log_every_n_steps)
        if len(self._kept) >= self._every:
            self.flush(session)

    def flush(self, session: Session) -> None:
        """Bring what was kept to the store, and the last of it to the loggers."""
        kept, self._kept = self._kept, []
        if not kept:
            return
        with session.timed(MINIBATCH):
            rows = []
            squares = [k[3].double().square() for k in kept]
            if self._sharded:
                # each rank holds its shards' norms: one sum for the whole block of steps
                lengths = [len(s) for s in squares]
                joined = torch.cat(squares)
                torch.distributed.all_reduce(joined)
                squares = list(joined.split(lengths))
            for (step, epoch, which, _, groups), square in zip(kept, squares, strict=True):
                values = square.cpu().numpy()
                ends = np.cumsum([count for count, _ in groups])
                shares = [float(part.sum()) for part in np.split(values, ends[:-1])]
                suffix = f"_optimizer{which - 1}" if which else ""
                rows.append(
                    (
                        step,
                        epoch,
                        {
                            f"value{suffix}": sum(shares),
                            f"scaled{suffix}": sum(
                                share * rate
                                for share, (_, rate) in zip(shares, groups, strict=True)
                            ),
                        },
                    )
                )
            session.record_rows(MINIBATCH, rows)
            step, _, scalars = rows[-1]
            session.log(MINIBATCH, step, scalars)

    def _norms(self, gradients: list[Tensor]) -> list[Tensor]:
        if any(hasattr(g, "to_local") for g in gradients):
            self._sharded = True
            gradients = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
        gradients = [g if g.layout is torch.strided else g.coalesce().values() for g in gradients]
        if any(g.dtype in (torch.float16, torch.bfloat16) for g in gradients):
            return list(torch._foreach_norm(gradients, 2, torch.float32))
        return list(torch._foreach_norm(gradients))


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
