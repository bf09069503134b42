"""The base of all callbacks: when to measure, and how a measurement lives inside a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch_thermo.callbacks._roots import Callback, LightningModule, Trainer
from torch_thermo.callbacks.loss import check_loss_arguments, why_unmeasurable
from torch_thermo.callbacks.probe import Probe, Source
from torch_thermo.callbacks.schedule import Schedule
from torch_thermo.callbacks.session import Measurement, Moment, Session, completed_updates
from torch_thermo.isolation import preserved_generators
from torch_thermo.risk import Closure, LossFn
from torch_thermo.store import Run, load_run

_FORMAT = 1


class ThermoCallback(Callback):
    """Measures one observable on a schedule, or bundles callbacks that do.

    A subclass says what is measured (`observable`, `measure`); this class decides when, keeps the
    run undisturbed, and brings the result to store and loggers. Weights, buffers, optimizer
    state, module state, generators and logged metrics of the run are those of a run without it.

    Args:
        schedule: when; a callable of step and completed epochs, see `schedule.py`.
        probe: on what: a number of training examples, "train", "val", a batch, or a loader.
        examples: measure on so many of the probe's examples; None: all.
        loss_fn: `(output, target) -> mean or per-example losses`. Default: the module's own.
        closure: `(pl_module, batch) -> mean or (mean, weight)`, instead of `loss_fn`.
        seed: of the probe and of random vectors. The run's generators are never drawn from.

    Raises:
        ValueError: both `loss_fn` and `closure`, a probe or number of examples below 1.
        TypeError: arguments of another kind.
    """

    observable: str = ""
    #: whether measuring needs the loss
    needs_loss: bool = True
    #: whether a run that can't be measured is refused at setup, or only noticed
    refuses: bool = True

    def __init__(
        self,
        schedule: Schedule,
        probe: Source = 512,
        examples: int | None = None,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_loss_arguments(loss_fn, closure)
        if not callable(schedule):
            raise TypeError(f"schedule must be callable, got {type(schedule).__name__}")
        if examples is not None and examples < 1:
            raise ValueError(f"examples must be at least 1, got {examples}")
        self.schedule = schedule
        self.examples = examples
        self.seed = seed
        self._arguments = (probe, loss_fn, closure)
        self._restored: dict[str, Any] | None = None
        self._last: dict[str, int] = {}
        self._skipped: dict[str, str] = {}
        self._began = False
        self._key = ""
        self.session = self._new_session()

    # -- for subclasses ----------------------------------------------------------------------

    def measure(self, moment: Moment) -> Measurement:
        """Measure the observable on the weights as they are."""
        raise NotImplementedError

    def members(self) -> Sequence[ThermoCallback]:
        """Return the callbacks that measure: this one, or those of a bundle."""
        return (self,)

    def observables(self) -> Sequence[str]:
        """Return the names under which this callback stores measurements."""
        return (self.observable,)

    def affordable(
        self, trainer: Trainer, due: Sequence[ThermoCallback]
    ) -> Sequence[ThermoCallback]:
        """Return those of the due measurements to make; every rank asks at the same steps."""
        return due

    def watch_gradient(self, session: Session, trainer: Trainer, optimizer: Any) -> None:
        """See the gradients of every step; must not synchronise."""

    def flush(self, session: Session) -> None:
        """Hand over what `watch_gradient` has kept."""

    # -- what a user reads -------------------------------------------------------------------

    @property
    def history(self) -> dict[str, list[dict[str, float]]]:
        """{observable: rows of scalars with "step" and "epoch"}, as measured in this process.

        What is recorded at every step is in the store alone: here it would grow without end.
        """
        return self.session.history

    def stored(self) -> Run:
        """Return the stored run.

        Raises:
            RuntimeError: nothing was stored.
        """
        if self.session.store is None:
            raise RuntimeError("this callback has stored nothing yet")
        return load_run(self.session.store.path)

    # -- Lightning's hooks -------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run that can't be measured (a bundle only says so)."""
        if stage != "fit":
            return
        reason = self._why_not(trainer, pl_module)
        if reason is not None and self.refuses:
            raise ValueError(f"{type(self).__name__}: {reason}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a run."""
        restored, self._restored = self._restored, None
        self.session = self._new_session()
        self._last, self._skipped, self._began = {}, {}, False
        if restored is not None:
            self.session.probe.load_state_dict(restored["probe"])
            self._last = dict(restored["last"])
            self._restore_plan(restored)
        names = [name for member in self.members() for name in member.observables()]
        self.session.begin(trainer, names, restored)
        reason = self._why_not(trainer, pl_module)
        if reason is not None:
            skipped = [m for m in self.members() if m.needs_loss]
            for member in skipped:
                self._skipped[member.observable] = reason
            self.session.notice(
                f"skipped: {', '.join(m.observable for m in skipped)}, because {reason}"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure the initial weights, after every hook that may have changed them."""
        if not self._began:
            self._began = True
            self.session.prepare_probe(trainer, pl_module)
            self.session.probe.offer(batch)
            self._tick(trainer, pl_module, trainer.current_epoch if batch_idx == 0 else None)
        else:
            self.session.probe.offer(batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Let the members see the step's gradients: unclipped, unscaled, accumulated."""
        for member in self.members():
            member.watch_gradient(self.session, trainer, optimizer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure after an update."""
        self._tick(trainer, pl_module, None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the end of an epoch."""
        self.session.probe.close_collection()
        self._tick(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure once more and close the run."""
        self._tick(trainer, pl_module, None, end=True)
        self._flush()
        self.session.end(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what was measured."""
        if self._began:
            self._flush()
            self.session.end(trainer)

    # -- state -------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Distinct for two callbacks of one class; Lightning asks for it around every hook."""
        if not self._key:
            self._key = self._generate_state_key(
                observables="+".join(self.observables()), seed=self.seed, examples=self.examples
            )
        return self._key

    def state_dict(self) -> dict[str, Any]:
        """Return probe, last steps, store and plan: plain values and tensors only."""
        self._flush()
        session = self.session
        return {
            "format": _FORMAT,
            "probe": session.probe.state_dict(self._world),
            "last": dict(self._last),
            "run_id": session.run_id,
            "store": str(session.store.path) if session.store else "",
            **self._plan_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        self._restored = state_dict

    def _plan_state(self) -> dict[str, Any]:
        return {}

    def _restore_plan(self, state: Mapping[str, Any]) -> None:
        return None

    # -- inside ------------------------------------------------------------------------------

    _world = 1

    def _new_session(self) -> Session:
        probe, loss_fn, closure = self._arguments
        return Session(Probe(probe, self.seed), loss_fn, closure, self.seed)

    def _why_not(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        self._world = trainer.world_size
        if not any(member.needs_loss for member in self.members()):
            return None
        _, loss_fn, closure = self._arguments
        reason = why_unmeasurable(pl_module, loss_fn is not None or closure is not None)
        strategy = type(trainer.strategy).__name__
        if reason is None and strategy.startswith(("FSDP", "ModelParallel", "DeepSpeed")):
            reason = f"{strategy} shards the parameters, and autograd gives no gradient for a shard"
        return reason

    def _tick(
        self, trainer: Trainer, pl_module: LightningModule, epoch: int | None, end: bool = False
    ) -> None:
        """Make the measurements that are due, each once a step."""
        step = completed_updates(trainer)
        due: Sequence[ThermoCallback] = [
            member
            for member in self.members()
            if member.observable not in self._skipped
            and self._last.get(member.observable) != step
            and (member.schedule(step, epoch) or (end and getattr(member.schedule, "end", False)))
        ]
        if not due:
            return
        for member in due:
            # considered once: with accumulation several batches end at one step
            self._last[member.observable] = step
        due = self.affordable(trainer, due)
        if not due:
            return
        session = self.session
        with session.timed("preparation"), preserved_generators():
            moment = session.moment(trainer, pl_module)
        if moment is None:
            return
        completed = trainer.current_epoch if epoch is None else epoch
        with moment.isolated():
            for member in due:
                self._measure(member, moment, completed)

    def _measure(self, member: ThermoCallback, moment: Moment, epoch: int) -> None:
        name, session = member.observable, self.session
        try:
            with session.timed(name):
                measured = member.measure(moment)
                session.record(name, moment.step, epoch, measured)
        except (TypeError, NotImplementedError, MemoryError) as error:
            # it is the model or the size, which do not change; all ranks find the same
            self._skipped[name] = str(error)
            session.notice(f"{name} is skipped from step {moment.step} on: {error}")
        except Exception as error:
            # whatever it was, it is no reason to end somebody's training
            session.notice(f"{name} failed at step {moment.step}: {error}", key=f"{name} failed")

    def _flush(self) -> None:
        for member in self.members():
            member.flush(self.session)
