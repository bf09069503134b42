"""What the callbacks of one run share: the shadow, the loss, the probe, the store, the loggers."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_thermo.callbacks import ranks
from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.callbacks.loss import (
    TRAINING_STEP,
    LossSource,
    acquire_loss,
    disagreement,
    partition,
)
from torch_thermo.callbacks.outlet import Outlet, Rows
from torch_thermo.callbacks.probe import Probe
from torch_thermo.callbacks.quiet import quiet_shadow
from torch_thermo.risk import Closure, LossFn, Risk
from torch_thermo.store import Store

_log = logging.getLogger("torch_thermo")


# iterators that can't be copied: to call what draws from them changes the run
_DRAWN = ("generator", "Iter")


class ThermoWarning(UserWarning):
    """Something could not be measured, or not as asked; the training goes on."""


@dataclass(frozen=True)
class Measurement:
    """What one observable gave at one step.

    Attributes:
        scalars: {quantity: value}, "layer/<name>" for layers.
        arrays: {name: array} for the store.
        figures: what the dashboard draws from the arrays: a name known to `dashboard`.
    """

    scalars: Mapping[str, float]
    arrays: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[str] = ()


def completed_updates(trainer: Trainer) -> int:
    """Return the step: how many optimizer updates the measured weights have had.

    0 for the initial weights and 1 after the first update, in every hook, with accumulation; with
    several optimizers every update of any of them counts. Lightning's own axis for `self.log`
    counts batches and is raised only after `on_train_batch_end`; this counter is not.
    """
    return int(trainer.global_step)


class Session:
    """One run's measuring, from the first batch to the end.

    Attributes:
        probe: what is measured on.
        source: where the loss comes from, once it is known.
        outlet: where measurements go.
        measuring_seconds: {observable: seconds spent on it}, and "preparation".
        measurements: {observable: how many were made}.
    """

    def __init__(
        self, probe: Probe, loss_fn: LossFn | None, closure: Closure | None, seed: int
    ) -> None:
        self.probe = probe
        self.loss_fn = loss_fn
        self.closure = closure
        self.seed = seed
        self.source: LossSource | None = None
        self.outlet = Outlet(self.remark)
        self.observables: Sequence[str] = ()
        self.measuring_seconds: dict[str, float] = {}
        self.measurements: dict[str, int] = {}
        self._told: set[str] = set()
        self._reasons: list[str] = []
        self._rank_zero = True
        self._started = 0.0

    # -- the life of a run -------------------------------------------------------------------

    def begin(
        self,
        trainer: Trainer,
        observables: Sequence[str],
        resumed: Mapping[str, Any] | None,
        siblings: Sequence[Outlet] = (),
        planned: Sequence[str] = (),
    ) -> None:
        """Open the outlet; ranks enter together. The arguments are those of `Outlet.open`."""
        self._rank_zero = trainer.is_global_zero
        self._started = time.perf_counter()
        self.observables = tuple(observables)
        log_dir = trainer.log_dir  # hides a broadcast: asked for on all ranks
        if not self._rank_zero:
            return
        step = completed_updates(trainer)
        try:
            self.outlet.open(trainer, log_dir, step, observables, resumed, siblings, planned)
        except Exception as error:
            self.remark(f"the measurements are kept in memory only: {error}")

    def prepare_probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the probe through the module's own hooks, or begin to collect it."""
        try:
            notice = self.probe.draw(trainer, self._shadow(trainer, pl_module))
            if notice:
                self.notice(notice)
        except Exception as error:
            self.notice(f"nothing can be measured: no probe: {error}")

    def offer(self, batch: Any) -> None:
        """Let the probe take a training batch that passes, if it is collected that way."""
        try:
            self.probe.offer(batch)
        except Exception as error:
            self.probe.give_up()
            self.notice(f"nothing can be measured: no probe: {error}")

    def moment(self, trainer: Trainer, pl_module: LightningModule, loss: bool) -> Moment:
        """Prepare measuring at this step, with the loss if that is needed.

        Every rank learns whether all are ready before any enters a collective: if one is not, the
        moment has no loss on all of them, and its notice says why.
        """
        bare = Moment(self, trainer, pl_module)
        if not loss:
            return bare
        ready: Moment | None = None
        state = ranks.WAITING
        try:
            if self.probe.waits:
                self.prepare_probe(trainer, pl_module)
            if self.probe.complete:
                model = self._shadow(trainer, pl_module, runs=True)
                source = self.source or acquire_loss(
                    model, self.probe.batches[0], self.loss_fn, self.closure
                )
                check = partition if self.source is None else disagreement
                changed = check(model, self.probe.batches[0], source)
                if changed:
                    self.remark(changed)
                ready, state = Moment(self, trainer, pl_module, model, source), ranks.READY
        except Exception as error:
            self.notice(f"nothing can be measured: {error}")
            state = ranks.FAILED
        worst = ranks.worst(trainer, state)
        if worst != ranks.READY or ready is None:
            if worst == ranks.FAILED != state:
                self.notice(
                    "nothing can be measured: it failed on another rank, whose log says why"
                )
            return bare
        if self.source is None:
            self.source = ready.source = self._agreed(trainer, ready.source)
            _log.info("the loss is %s", self.source.description)
        return ready

    def _agreed(self, trainer: Trainer, source: LossSource | None) -> LossSource:
        """Return a source that is of one kind on all ranks, for they reduce alike."""
        assert source is not None
        given = self.loss_fn is not None or self.closure is not None
        if given or ranks.worst(trainer, int(source.criterion is None)) == ranks.READY:
            return source
        return TRAINING_STEP

    def _shadow(self, trainer: Trainer, pl_module: LightningModule, runs: bool = False) -> Any:
        model, uncopied = quiet_shadow(trainer, pl_module)
        drawn = [name for name in uncopied if name.endswith(_DRAWN)]
        if runs and drawn and self.loss_fn is None and self.closure is None:
            raise TypeError(
                f"{type(pl_module).__name__} holds {', '.join(drawn)}, which can't be copied, and "
                "a measured training_step would take examples from it that the run then misses: "
                "give loss_fn=(output, target) or closure=(pl_module, batch)"
            )
        if runs and uncopied:
            self.remark(f"shared with the run, since they can't be copied: {', '.join(uncopied)}")
        return model

    def end(self, trainer: Trainer) -> None:
        """Write the summary of the run; warn of what was never measured."""
        if not self._rank_zero:
            return
        self.outlet.summarise(
            self.measurements,
            self.measuring_seconds,
            time.perf_counter() - self._started,
            {
                "steps": completed_updates(trainer),
                "loss": self.source.description if self.source else "",
            },
        )
        told = "; ".join(self._reasons)
        short = "no measurement was due (the run was shorter than the schedules' intervals)"
        if not any(self.measurements.values()):
            self.warn_of_nothing(told or short)
            return
        never = [name for name in self.observables if not self.measurements.get(name)]
        untold = [name for name in never if name not in told]
        if untold:
            _warn(f"torch-thermo never measured {', '.join(untold)}: {told or short}")

    def warn_of_nothing(self, reason: str) -> None:
        """Warn loudly of a run without a measurement."""
        if self._rank_zero:
            _warn(f"torch-thermo measured NOTHING in this run: {reason}")

    @property
    def store(self) -> Store | None:
        """Where the measurements are stored."""
        return self.outlet.store

    @property
    def training_seconds(self) -> float:
        """Seconds since the first batch that were not spent measuring."""
        return time.perf_counter() - self._started - sum(self.measuring_seconds.values())

    # -- what was measured -------------------------------------------------------------------

    @contextmanager
    def timed(self, observable: str) -> Iterator[None]:
        """Count the seconds spent on an observable."""
        before = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - before
            self.measuring_seconds[observable] = self.measuring_seconds.get(observable, 0.0) + spent

    def record(self, observable: str, step: int, epoch: int, measured: Measurement) -> None:
        """Keep a measurement: in memory, in the store, at every logger."""
        self.measurements[observable] = self.measurements.get(observable, 0) + 1
        if not self._rank_zero:
            return
        try:
            self.outlet.record(
                observable, step, epoch, measured.scalars, measured.arrays, measured.figures
            )
        except Exception as error:
            self.remark(f"{observable} can't be kept: {error}", key=f"{observable} can't be kept")

    def record_rows(self, observable: str, rows: Rows) -> None:
        """Keep the scalars of some steps in the store, and log the last of each kind."""
        self.measurements[observable] = self.measurements.get(observable, 0) + len(rows)
        if not self._rank_zero:
            return
        self.outlet.record_rows(observable, rows)
        # with several optimizers each has quantities of its own
        last = {tuple(scalars): (step, scalars) for step, _, scalars in rows}
        for step, scalars in last.values():
            self.outlet.log(observable, step, scalars)

    def notice(self, text: str, key: str = "") -> None:
        """Warn once, for each `key` (default: the text), of what keeps something from measuring."""
        if self.remark(text, key):
            self._reasons.append(text)

    def remark(self, text: str, key: str = "") -> bool:
        """Warn once of what keeps nothing from being measured; return whether it was new."""
        if (key or text) in self._told:
            return False
        self._told.add(key or text)
        if self._rank_zero:
            _warn(f"torch-thermo: {text}")
        else:
            _log.warning("%s", text)
        return True


def _warn(text: str) -> None:
    warnings.warn(text, ThermoWarning, stacklevel=3)


class Moment:
    """One point of the run: the weights as they are, ready to be measured.

    Attributes:
        session: the run's.
        step: completed updates.
        trainer: the run's trainer, to read from.
        pl_module: the run's module, to read parameters from.
        model: its quiet shadow; None without the loss.
        source: where the loss comes from; None if it was not asked for or can't be had.
    """

    def __init__(
        self,
        session: Session,
        trainer: Trainer,
        pl_module: LightningModule,
        model: Any = None,
        source: LossSource | None = None,
    ) -> None:
        self.session = session
        self.trainer = trainer
        self.pl_module = pl_module
        self.model = model
        self.source = source
        self.step = completed_updates(trainer)
        self._risks: dict[int | None, Risk] = {}
        self._scope = ExitStack()

    @property
    def has_loss(self) -> bool:
        """Whether there is a risk to measure."""
        return self.source is not None

    def risk(self, examples: int | None) -> Risk:
        """Return the risk over the first `examples` of the probe; all ranks' together.

        Raises:
            RuntimeError: the moment has no loss.
        """
        if self.source is None:
            raise RuntimeError("this moment was prepared without the loss")
        if examples not in self._risks:
            share = None if examples is None else -(-examples // self.trainer.world_size)
            risk = self.source.risk(
                self.model, self.session.probe.part(share), ranks.process_group(self.trainer)
            )
            self._scope.enter_context(risk.frozen())
            self._risks[examples] = risk
        return self._risks[examples]

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Measure with gradients on, each computed once; inside `quiet.undisturbed`."""
        with torch.inference_mode(False), torch.enable_grad():
            with ExitStack() as self._scope:
                yield
