"""The bundle: one callback that measures all that the model allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.bulk_boundary import BulkBoundaryLoss
from torch_thermo.callbacks.circuit_symmetry import CircuitSymmetry
from torch_thermo.callbacks.gradient_symmetry import GradientSymmetry
from torch_thermo.callbacks.hessian_spectrum import HessianSpectrum
from torch_thermo.callbacks.order_parameter import PlasticityOrderParameter
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.propagator_spectrum import PropagatorSpectrum
from torch_thermo.callbacks.reading import Part
from torch_thermo.callbacks.schedule import Every
from torch_thermo.callbacks.session import Session
from torch_thermo.callbacks.weight_symmetry import WeightSymmetry
from torch_thermo.risk import Closure, LossFn


class Thermometer(ThermoCallback):
    """Measures the statistical mechanics of a network while it trains.

    `Thermometer()` is useful on any model. Its plan is deterministic:

    * the minibatch order parameter at every step;
    * order parameter, risk, gradient and weight symmetry on the probe, bulk and boundary loss and
      the exact sums over circuits on 128 of it: 8 a decade of steps, the first 50 epoch ends, the
      end;
    * Hessian extremes on 128 of the probe: 4 a decade, the end;
    * spectral densities and the propagator's spectrum on 128 of the probe, 20,000 circuits of 8:
      1 a decade, the end.

    What a model does not allow is skipped with one notice that says why; the training goes on.

    Args:
        probe: on what: a number of training examples, "train", "val", a batch, or a loader.
        loss_fn: `(output, target) -> mean or per-example losses`. Default: the module's own.
        closure: `(pl_module, batch) -> mean or (mean, weight)`, instead of `loss_fn`.
        budget: thin the plan so that measuring takes at most this share of the training time.
            Which measurements are left out then depends on the clock. None: the plan as it is.
        callbacks: measure these instead of the plan; probe and loss are this bundle's.
        seed: of the probe and of random vectors.
        module: the part that bulk loss, circuits and propagator read, by its name below the module
            or itself; a callback's own comes first. Default: the whole forward, else the only
            child with parameters.

    Raises:
        ValueError: a budget outside (0, 1], no callbacks, two of one observable, or one with a
            probe or loss of its own; and see `ThermoCallback`.
        TypeError: arguments of another kind.

    Example:
        >>> from torch_thermo.callbacks import Thermometer
        >>> thermometer = Thermometer()        # Trainer(callbacks=[thermometer]).fit(model)
        >>> list(thermometer.observables())[:2]
        ['order_parameter', 'order_parameter_minibatch']
    """

    observable = "thermometer"
    refuses = False

    def __init__(
        self,
        probe: Source = EXAMPLES,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        budget: float | None = None,
        callbacks: Iterable[ThermoCallback] | None = None,
        seed: int = 0,
        module: Part = None,
    ) -> None:
        if budget is not None:
            _check_budget(budget)
        super().__init__(Every(steps=1), probe, None, loss_fn, closure, seed, module)
        self.budget = budget
        chosen = default_plan(seed) if callbacks is None else _checked(callbacks)
        for callback in chosen:
            callback.check_member()
        self._members = tuple(member for callback in chosen for member in callback.members())
        names = list(self.observables())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"callbacks measure the same twice: {', '.join(twice)}")
        self._thinned: dict[str, int] = {}

    def members(self) -> Sequence[ThermoCallback]:
        """Return the callbacks that measure."""
        return self._members

    def observables(self) -> Sequence[str]:
        """Return the names under which measurements are stored."""
        return [name for member in self._members for name in member.observables()]

    @property
    def plan(self) -> str:
        """When what is measured, a line each."""
        lines = [f"{member.observable}: {member.schedule}" for member in self._members]
        if self.budget is not None:
            lines.append(
                f"at most {self.budget:.0%} of the training time; left out so far: "
                f"{self._thinned or 'nothing'}"
            )
        return "\n".join(lines)

    def affordable(
        self, trainer: Trainer, due: Sequence[ThermoCallback]
    ) -> Sequence[ThermoCallback]:
        """Leave out what the budget does not allow; rank zero decides for all."""
        if self.budget is None:
            return due
        allowed = self._within_budget(self.session, due)
        names = trainer.strategy.broadcast([member.observable for member in allowed])
        for member in due:
            if member.observable not in names:
                count = self._thinned.get(member.observable, 0)
                self._thinned[member.observable] = count + 1
        return [member for member in due if member.observable in names]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure once more, and say what the budget left out."""
        super().on_train_end(trainer, pl_module)
        if self.budget is not None:
            _say(f"torch-thermo's plan:\n{self.plan}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a run, and print the plan if it is thinned."""
        self._thinned = {}
        super().on_train_start(trainer, pl_module)
        if self.budget is not None:
            _say(f"torch-thermo's plan:\n{self.plan}")

    def _within_budget(
        self, session: Session, due: Sequence[ThermoCallback]
    ) -> list[ThermoCallback]:
        assert self.budget is not None
        left = self.budget * session.training_seconds - sum(session.measuring_seconds.values())
        allowed = []
        for member in due:
            name = member.observable
            made = session.measurements.get(name, 0)
            # what was never measured has no price yet: it may try when anything is left
            price = session.measuring_seconds.get(name, 0.0) / made if made else 0.0
            if left > price:
                allowed.append(member)
                left -= price
        return allowed

    def _plan_state(self) -> dict[str, Any]:
        return {"thinned": dict(self._thinned), "plan": self.plan}

    def _restore_plan(self, state: Mapping[str, Any]) -> None:
        self._thinned = dict(state.get("thinned", {}))


def default_plan(seed: int = 0) -> list[ThermoCallback]:
    """Return the callbacks of `Thermometer()`."""
    return [
        PlasticityOrderParameter(seed=seed),
        GradientSymmetry(seed=seed),
        WeightSymmetry(seed=seed),
        HessianSpectrum(seed=seed),
        BulkBoundaryLoss(seed=seed),
        CircuitSymmetry(seed=seed),
        PropagatorSpectrum(seed=seed),
    ]


def _check_budget(budget: object) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(f"budget must be a number, got {budget!r}")
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be a share in (0, 1], got {budget}")


def _checked(callbacks: object) -> list[ThermoCallback]:
    if not isinstance(callbacks, Iterable):
        raise TypeError(
            f"callbacks must be a list of torch-thermo's callbacks, got {type(callbacks).__name__}"
        )
    chosen: list[ThermoCallback] = []
    for callback in callbacks:
        if not isinstance(callback, ThermoCallback):
            raise TypeError(
                f"callbacks must be objects of torch-thermo's classes, got {callback!r}"
            )
        chosen.append(callback)
    if not chosen:
        raise ValueError("callbacks is empty: a thermometer measures at least one observable")
    return chosen


def _say(text: str) -> None:
    """Print through Lightning's own logger, which users see; rank zero only."""
    try:
        from pytorch_lightning.utilities import rank_zero_info
    except ModuleNotFoundError:
        from lightning.pytorch.utilities import rank_zero_info
    rank_zero_info(text)


__all__ = ["Thermometer", "default_plan"]
