"""The base of all callbacks: when to measure, and how a measurement lives inside a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch_thermo.callbacks import ranks
from torch_thermo.callbacks._roots import Callback, LightningModule, Trainer
from torch_thermo.callbacks.loss import why_unmeasurable
from torch_thermo.callbacks.member import Member
from torch_thermo.callbacks.moment import Measurement, Moment, completed_updates
from torch_thermo.callbacks.probe import EXAMPLES, Probe, Source
from torch_thermo.callbacks.quiet import undisturbed
from torch_thermo.callbacks.reading import Part, find_part
from torch_thermo.callbacks.schedule import AnyOf, Schedule
from torch_thermo.callbacks.session import Session
from torch_thermo.risk import Closure, LossFn
from torch_thermo.store import Run, load_run

_FORMAT = 1
_SHARDED = ("FSDP", "ModelParallel", "DeepSpeed")
# it is the model or the size, which do not change
_LASTING = (TypeError, NotImplementedError, MemoryError)


class ThermoCallback(Member, Callback):
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
        module: the part to read, where measuring reads a `Network`: its name below the module, or
            itself. Default: the whole forward, else the only child with parameters.

    Raises:
        ValueError: both `loss_fn` and `closure`, a probe or number of examples below 1; when the
            run starts, a `module` that is no part of the run's.
        TypeError: arguments of another kind.
    """

    def __init__(
        self,
        schedule: Schedule,
        probe: Source = EXAMPLES,
        examples: int | None = None,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
        module: Part = None,
    ) -> None:
        super().__init__(schedule, probe, examples, loss_fn, closure, seed, module)
        self._restored: dict[str, Any] | None = None
        self._last: dict[str, int] = {}
        self._skipped: dict[str, str] = {}
        self._blind: set[str] = set()
        self._failed: set[str] = set()
        # no member is due before this step but at an epoch's end
        self._idle_until = 0.0
        self._started = self._running = self._began = False
        self._key = ""
        self.session = self._new_session()

    def members(self) -> Sequence[ThermoCallback]:
        """Return the callbacks that measure: this one, or those of a bundle."""
        return (self,)

    def affordable(
        self, trainer: Trainer, due: Sequence[ThermoCallback]
    ) -> Sequence[ThermoCallback]:
        """Return those of the due measurements to make; every rank asks at the same steps."""
        return due

    # -- what a user reads -------------------------------------------------------------------

    @property
    def history(self) -> dict[str, list[dict[str, float]]]:
        """{observable: rows of scalars with "step" and "epoch"}, as measured in this process.

        What is recorded at every step is in the store alone: here it would grow without end.
        """
        return self.session.outlet.history

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
        self._started = self._running = self._began = False
        for reason in self._refusals(trainer, pl_module).values():
            if self.refuses:
                raise ValueError(f"{type(self).__name__}: {reason}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the parts to read: at setup, modules that build themselves there have none yet."""
        for member in self.members():
            own = member.module is not None
            member.part = find_part(pl_module, member.module if own else self.module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a run."""
        others = [
            callback
            for callback in trainer.callbacks
            if isinstance(callback, ThermoCallback) and callback is not self
        ]
        # the store is the trainer's: a callback that is new in a resumed run goes on in it too
        known = [c._restored for c in (self, *others) if c._restored is not None]
        restored, self._restored = self._restored, None
        self.session = self._new_session()
        self._last, self._skipped, self._began = {}, {}, False
        self._blind, self._failed = set(), set()
        self._idle_until = 0.0
        for member in self.members():
            member.reset(sharded=_is_sharded(trainer))
        if restored is not None:
            self._resume(restored)
        self.session.begin(
            trainer,
            self.observables(),
            known[0] if known else None,
            [callback.session.outlet for callback in others if callback._running],
            [name for callback in (self, *others) for name in callback.observables()],
        )
        self._started = self._running = True
        self._skipped = self._refusals(trainer, pl_module)
        for reason in dict.fromkeys(self._skipped.values()):
            names = [name for name, why in self._skipped.items() if why == reason]
            self.session.notice(f"skipped: {', '.join(names)}, because {reason}")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure the initial weights, after every hook that may have changed them."""
        if not self._began:
            self._began = True
            if any(member.needs_loss or member.needs_model for member in self._measured()):
                self.session.prepare_probe(trainer, pl_module)
            self.session.offer(batch)
            self._tick(trainer, pl_module, trainer.current_epoch if batch_idx == 0 else None)
        else:
            self.session.offer(batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Let the members see the step's gradients: unclipped, unscaled, accumulated."""
        for member in self.members():
            if member.observable not in self._blind:
                try:
                    member.watch_gradient(self.session, trainer, optimizer)
                except Exception as error:
                    self._blind.add(member.observable)
                    self.session.notice(f"the gradients of the steps can't be read: {error}")

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
        self._close(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that nothing was measured when there was no training."""
        if not self._started:
            self.session.warn_of_nothing("no training step was made")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what was measured."""
        if self._running:
            self._flush(alone=True)
            self._close(trainer)

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
            "members": {member.observable: member.memory() for member in self.members()},
            "run_id": session.outlet.run_id,
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
        owner = type(self).__name__
        return Session(Probe(probe, self.seed), loss_fn, closure, self.seed, owner)

    def _resume(self, state: Mapping[str, Any]) -> None:
        self.session.probe.load_state_dict(state["probe"])
        self._last = dict(state["last"])
        for member in self.members():
            member.recall(state.get("members", {}).get(member.observable, {}))
        self._restore_plan(state)

    def _refusals(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        """Return {observable: why it can't be measured in this run}."""
        self._world = trainer.world_size
        if _is_sharded(trainer):
            reason = (
                f"{type(trainer.strategy).__name__} shards the parameters, and a shard has neither "
                "a gradient by autograd nor the whole of a layer"
            )
            return {member.observable: reason for member in self.members()}
        _, loss_fn, closure = self._arguments
        why = why_unmeasurable(pl_module, loss_fn is not None or closure is not None)
        if why is None:
            return {}
        return {member.observable: why for member in self.members() if member.needs_loss}

    def _measured(self) -> list[ThermoCallback]:
        return [member for member in self.members() if member.observable not in self._skipped]

    def _tick(
        self, trainer: Trainer, pl_module: LightningModule, epoch: int | None, end: bool = False
    ) -> None:
        """Make the measurements that are due, each once a step."""
        step = completed_updates(trainer)
        if epoch is None and not end and step < self._idle_until:
            return
        self._idle_until = min(_next_due(member.schedule, step) for member in self.members())
        due: Sequence[ThermoCallback] = [
            member
            for member in self._measured()
            if self._last.get(member.observable) != step and self._is_due(member, step, epoch, end)
        ]
        if not due:
            return
        for member in due:
            # considered once: with accumulation several batches end at one step
            self._last[member.observable] = step
        due = self.affordable(trainer, due)
        if not due:
            return
        loss = any(member.needs_loss for member in due)
        model = loss or any(member.needs_model for member in due)
        completed = trainer.current_epoch if epoch is None else epoch
        with ExitStack() as stack:
            written = stack.enter_context(undisturbed(trainer, pl_module)) if model else []
            with self.session.timed("preparation"):
                moment = self.session.moment(trainer, pl_module, model, loss)
            with moment.isolated():
                failures: dict[_Failure, list[str]] = {}
                for member in due:
                    if moment.allows(member.needs_model, member.needs_loss):
                        failure = self._measure(member, moment, completed)
                        if failure is not None:
                            failures.setdefault(failure, []).append(member.observable)
                    else:
                        del self._last[member.observable]
            self._tell(failures, step)
        if written:
            self.session.remark(
                f"training_step or forward writes to {', '.join(written[:3])}: each measurement "
                "writes too and is put back after, so the run is as it was, but what is measured "
                "is not of one point; give loss_fn= or closure= that does not write",
                key="weights written",
            )

    def _is_due(self, member: ThermoCallback, step: int, epoch: int | None, end: bool) -> bool:
        try:
            return bool(member.schedule(step, epoch)) or (
                end and bool(getattr(member.schedule, "end", False))
            )
        except Exception as error:  # a schedule of the user's
            self._skipped[member.observable] = f"its schedule raised {error!r}"
            self.session.notice(
                f"{member.observable} is skipped from step {step} on: its schedule raised {error!r}"
            )
            return False

    def _measure(self, member: ThermoCallback, moment: Moment, epoch: int) -> _Failure | None:
        """Measure and record, or return what is to be told of why not."""
        name, session = member.observable, self.session
        measured: Measurement | None = None
        failure: Exception | None = None
        outcome = ranks.DONE
        with session.timed(name):
            try:
                measured = member.measure(moment)
            except Exception as error:  # whatever it was, it is no reason to end a training
                failure = error
                outcome = ranks.LASTING if isinstance(error, _LASTING) else ranks.RAISED
            outcome = ranks.settle(moment.trainer, outcome)
            if measured is not None:
                session.record(name, moment.step, epoch, measured)
        if outcome != ranks.DONE:
            member.recall({})  # ranks must not build on different results
        if outcome == ranks.LASTING:
            self._skipped[name] = str(failure or "it failed on another rank")
            return _Failure(self._skipped[name], lasting=True)
        if failure is None:
            return None
        return _Failure(str(failure), broken=isinstance(failure, FloatingPointError))

    def _tell(self, failures: Mapping[_Failure, Sequence[str]], step: int) -> None:
        """Give one notice of all that failed for one reason."""
        for (reason, lasting, broken), names in failures.items():
            if lasting:
                are = "are" if len(names) > 1 else "is"
                text = f"{', '.join(names)} {are} skipped from step {step} on: {reason}"
                self.session.notice(text)
                continue
            new = [name for name in names if name not in self._failed]
            self._failed.update(new)
            if new:
                text = f"{', '.join(new)} failed at step {step}: {reason}"
                # weights or loss that are not finite concern every observable, and are told once
                self.session.notice(text, key="not finite" if broken else text)

    def _flush(self, alone: bool = False) -> None:
        for member in self.members():
            member.flush(self.session, alone)

    def _close(self, trainer: Trainer) -> None:
        self._running = False
        self.session.end(trainer, self._skipped)


class _Failure(NamedTuple):
    """Why a measurement failed, and whether for good, or since something was not finite."""

    reason: str
    lasting: bool = False
    broken: bool = False


def _next_due(schedule: Any, step: int) -> float:
    """Return the next step that may be due without an epoch's end; any, for a user's callable."""
    if isinstance(schedule, AnyOf):
        return min(_next_due(part, step) for part in schedule.schedules)
    following = schedule.next_due(step) if isinstance(schedule, Schedule) else step + 1
    return math.inf if following is None else following


def _is_sharded(trainer: Trainer) -> bool:
    return type(trainer.strategy).__name__.startswith(_SHARDED)
