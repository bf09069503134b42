"""What the callbacks of one run share: the shadow, the loss, the probe, the store, the loggers."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch_thermo.callbacks import ranks
from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.callbacks.loss import (
    TRAINING_STEP,
    LossSource,
    acquire_loss,
    disagrees,
    partition,
    refuted,
)
from torch_thermo.callbacks.moment import Measurement, Moment, completed_updates
from torch_thermo.callbacks.outlet import Outlet, Rows
from torch_thermo.callbacks.probe import Probe
from torch_thermo.callbacks.quiet import quiet_shadow
from torch_thermo.risk import Closure, LossFn
from torch_thermo.store import Store

T = TypeVar("T")

_log = logging.getLogger("torch_thermo")


# iterators that can't be copied: to call what draws from them changes the run
_DRAWN = ("generator", "Iter")


class ThermoWarning(UserWarning):
    """Something could not be measured, or not as asked; the training goes on."""


class Session:
    """One run's measuring, from the first batch to the end.

    Attributes:
        owner: the name of the callback's class.
        probe: what is measured on.
        source: where the loss comes from, once it is known.
        outlet: where measurements go.
        measuring_seconds: {observable: seconds spent on it}, and "preparation".
        measurements: {observable: how many were made}.
    """

    def __init__(
        self,
        probe: Probe,
        loss_fn: LossFn | None,
        closure: Closure | None,
        seed: int,
        owner: str,
    ) -> None:
        self.owner = owner
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

    def moment(
        self, trainer: Trainer, pl_module: LightningModule, model: bool, loss: bool
    ) -> Moment:
        """Prepare measuring at this step, with the model on the probe and its loss if needed.

        Every rank learns whether all are ready before any enters a collective: if one is not, the
        moment has no model, or no loss, on all of them, and its notice says why.
        """
        moment = Moment(self, trainer, pl_module)
        if model:
            moment.model = self._on_all_ranks(
                trainer, "nothing can be measured", lambda: self._ready(trainer, pl_module)
            )
        if loss and moment.model is not None:
            shadow = moment.model
            source = self._on_all_ranks(
                trainer, "the loss can't be measured", lambda: self._checked_source(shadow)
            )
            if source is not None:
                self._take(trainer, source, moment.step)
                moment.source = self.source
        return moment

    def _on_all_ranks(
        self, trainer: Trainer, otherwise: str, prepare: Callable[[], T | None]
    ) -> T | None:
        """Return what `prepare` gives, if it gives something on all ranks; tell why it fails."""
        prepared: T | None = None
        state = ranks.WAITING
        try:
            prepared = prepare()
            state = ranks.WAITING if prepared is None else ranks.READY
        except Exception as error:
            self.notice(f"{otherwise}: {error}")
            state = ranks.FAILED
        worst = ranks.worst(trainer, state)
        if worst == ranks.FAILED != state:
            self.notice(f"{otherwise}: it failed on another rank, whose log says why")
        return prepared if worst == ranks.READY else None

    def _ready(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return the shadow to measure; None while the probe waits for data."""
        if self.probe.waits:
            self.prepare_probe(trainer, pl_module)
        return self._shadow(trainer, pl_module, runs=True) if self.probe.complete else None

    def _checked_source(self, model: Any) -> LossSource:
        """Return the source as this rank sees it: training_step in place of a refuted guess."""
        batch = self.probe.batches[0]
        if self.source is not None:
            return TRAINING_STEP if disagrees(model, batch, self.source) else self.source
        source = acquire_loss(model, batch, self.loss_fn, self.closure)
        told = partition(model, batch, source)
        if told:
            self.remark(told)
        return source

    def _take(self, trainer: Trainer, source: LossSource, step: int) -> None:
        """Agree on the source, at first and as long as it is a guess; all ranks enter."""
        if self.source is None:
            self.source = self._agreed(trainer, source)
            _log.info("the loss is %s", self.source.description)
        elif self.source.guess and self._agreed(trainer, source) is not self.source:
            told = self.source.guess
            self.source, notice = refuted(self.source, step)
            self.remark(notice, key=f"{told} is refuted")

    def _agreed(self, trainer: Trainer, source: LossSource) -> LossSource:
        """Return a source that is the same on all ranks, for they reduce alike."""
        first, last = -ranks.worst(trainer, -source.place), ranks.worst(trainer, source.place)
        return source if first == last else TRAINING_STEP

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

    def end(self, trainer: Trainer, skipped: Mapping[str, str]) -> None:
        """Write the summary of the run; warn of what was never measured.

        Args:
            trainer: the run's.
            skipped: {observable: why it is not measured, or no longer}.
        """
        if not self._rank_zero:
            return
        self.outlet.summarise(
            self.measurements,
            self.measuring_seconds,
            time.perf_counter() - self._started,
            skipped,
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
        """Warn loudly of a run without a measurement; another callback may have made some."""
        if self._rank_zero:
            _warn(f"torch-thermo: {self.owner} measured NOTHING in this run: {reason}")

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
