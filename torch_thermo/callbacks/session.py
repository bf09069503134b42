"""What the callbacks of one run share: the shadow, the loss, the probe, the store, the loggers."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_thermo import dashboard
from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.callbacks.loss import LossSource, acquire_loss
from torch_thermo.callbacks.probe import Probe, transfer_hooks
from torch_thermo.callbacks.quiet import quiet_shadow
from torch_thermo.isolation import preserved_generators
from torch_thermo.risk import Closure, LossFn, Risk
from torch_thermo.store import Store, default_directory, new_run_id

_log = logging.getLogger("torch_thermo")
# TensorBoard becomes unusable with thousands of tags; the store keeps every layer
_MOST_LAYERS = 64


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
    """One run's measuring, from the first batch to the end."""

    def __init__(
        self, probe: Probe, loss_fn: LossFn | None, closure: Closure | None, seed: int
    ) -> None:
        self.probe = probe
        self.loss_fn = loss_fn
        self.closure = closure
        self.seed = seed
        self.source: LossSource | None = None
        self.history: dict[str, list[dict[str, float]]] = {}
        self.run_id = ""
        self.store: Store | None = None
        self.measuring_seconds: dict[str, float] = {}
        self.measurements: dict[str, int] = {}
        self._told: set[str] = set()
        self._reasons: list[str] = []
        self._loggers: list[Any] = []
        self._rank_zero = True
        self._started = 0.0

    # -- the life of a run -------------------------------------------------------------------

    def begin(
        self, trainer: Trainer, observables: Sequence[str], resumed: Mapping[str, Any] | None
    ) -> None:
        """Open the store and the dashboard; ranks enter together."""
        self._rank_zero = trainer.is_global_zero
        self._started = time.perf_counter()
        self._loggers = [
            logger for logger in trainer.loggers if type(logger).__name__ != "DummyLogger"
        ]
        log_dir = trainer.log_dir  # hides a broadcast: asked for on all ranks
        if not self._rank_zero:
            return
        self._open_store(trainer, log_dir, resumed)
        if not self._loggers:
            self.notice(
                "this run has no logger (logger=False, barebones or fast_dev_run): measurements "
                f"go to {self.store.path if self.store else 'memory'} only"
            )
        for writer in self._writers():
            self._draw(lambda w=writer: dashboard.write_layout(w, observables))

    def _open_store(
        self, trainer: Trainer, log_dir: str | None, resumed: Mapping[str, Any] | None
    ) -> None:
        step = completed_updates(trainer)
        old_id = str(resumed["run_id"]) if resumed and resumed.get("run_id") else None
        old_path = Path(str(resumed["store"])) if resumed and resumed.get("store") else None
        self.run_id = old_id or new_run_id()
        if trainer.fast_dev_run or not self._loggers or log_dir is None:
            path = default_directory(self.run_id)
        else:
            path = _logger_directory(self._loggers[0], log_dir) / "thermo"
        continues = None
        if old_path is not None and old_path.exists() and old_path.resolve() != path.resolve():
            # a resumed run of a new logger version: a store of its own that links to the old
            continues, self.run_id = old_path, new_run_id()
        try:
            self.store = Store.open(
                path,
                run_id=self.run_id,
                resume_after=step if step or continues else None,
                continues=continues,
            )
        except (OSError, ValueError) as error:
            self.notice(f"the measurements can't be stored ({error}); they are kept in memory")

    def prepare_probe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the probe through the module's own hooks, or begin to collect it."""
        try:
            model = self._shadow(trainer, pl_module)
            notice = self.probe.draw(trainer, transfer_hooks(trainer, model))
            if notice:
                self.notice(notice)
        except Exception as error:
            self.notice(f"nothing can be measured: no probe: {error}")

    def moment(self, trainer: Trainer, pl_module: LightningModule) -> Moment | None:
        """Prepare measuring at this step; None, with a notice, if it can't be done on some rank.

        Every rank learns whether all are ready before any enters a collective.
        """
        moment: Moment | None = None
        try:
            if self.probe.complete:
                model = self._shadow(trainer, pl_module)
                if self.source is None:
                    self.source = acquire_loss(
                        model, self.probe.batches[0], self.loss_fn, self.closure
                    )
                    _log.info("the loss is %s", self.source.description)
                moment = Moment(self, trainer, pl_module, model, self.source)
        except Exception as error:
            self.notice(f"nothing can be measured: {error}")
        return moment if _all_ranks(trainer, moment is not None) else None

    def _shadow(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        model, uncopied = quiet_shadow(trainer, pl_module)
        if uncopied:
            self.notice(f"shared with the run, since they can't be copied: {', '.join(uncopied)}")
        return model

    def end(self, trainer: Trainer) -> None:
        """Write the summary of the run; warn if nothing was measured."""
        if not self._rank_zero:
            return
        if self.store is not None:
            measuring = sum(self.measuring_seconds.values())
            total = time.perf_counter() - self._started
            self.store.write_meta(
                {
                    **self.store.meta,
                    "seconds": {
                        "training": total - measuring,
                        "measuring": dict(self.measuring_seconds),
                    },
                    "measurements": dict(self.measurements),
                    "steps": completed_updates(trainer),
                    "loss": self.source.description if self.source else "",
                }
            )
        if not any(self.measurements.values()):
            why = "; ".join(dict.fromkeys(self._reasons)) or (
                "no measurement was due (the run was shorter than the schedules' intervals)"
            )
            warnings.warn(
                f"torch-thermo measured NOTHING in this run: {why}", ThermoWarning, stacklevel=2
            )

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
        """Keep a measurement: in memory, in the store, at every logger. Rank zero only."""
        self.record_rows(observable, [(step, epoch, measured.scalars)])
        if not self._rank_zero:
            return
        self.history.setdefault(observable, []).append(
            {"step": step, "epoch": epoch, **measured.scalars}
        )
        self.log(observable, step, measured.scalars)
        if measured.arrays:
            if self.store is not None:
                self.store.save_arrays(observable, step, measured.arrays)
            for writer in self._writers():
                for figure in measured.figures:
                    self._draw(
                        lambda w=writer, f=figure: dashboard.write_figure(
                            w, f, observable, measured.arrays, step
                        )
                    )

    def record_rows(
        self, observable: str, rows: Sequence[tuple[int, int, Mapping[str, float]]]
    ) -> None:
        """Keep the scalars of some steps in the store, with one write."""
        self.measurements[observable] = self.measurements.get(observable, 0) + len(rows)
        if not self._rank_zero:
            return
        if self.store is not None:
            self.store.append_many(observable, rows)
        for step, _, scalars in rows:
            broken = [name for name, value in scalars.items() if np.isinf(value)]
            if broken:
                self.notice(
                    f"{observable} overflowed at step {step}: {', '.join(broken[:3])}",
                    key=f"{observable} overflow",
                )

    def log(self, observable: str, step: int, scalars: Mapping[str, float]) -> None:
        """Send scalars to every logger, at our own step. Rank zero only."""
        if not self._rank_zero:
            return
        layers = [name for name in scalars if name.startswith("layer/")]
        hidden = set(layers[_MOST_LAYERS:])
        metrics = {
            dashboard.tag(observable, name): float(value)
            for name, value in scalars.items()
            if name not in hidden
        }
        for logger in self._loggers:
            logger.log_metrics(metrics, step=step)

    def notice(self, text: str, key: str = "") -> None:
        """Warn once (for each `key`, default the text); the training goes on."""
        self._reasons.append(text)
        if (key or text) in self._told or not self._rank_zero:
            return
        self._told.add(key or text)
        warnings.warn(f"torch-thermo: {text}", ThermoWarning, stacklevel=2)

    def _writers(self) -> Iterator[Any]:
        for logger in self._loggers:
            writer = getattr(logger, "experiment", None)
            if hasattr(writer, "add_custom_scalars") and hasattr(writer, "add_figure"):
                yield writer

    def _draw(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # a picture is no reason to stop a training
            self.notice(f"a figure could not be drawn: {error}")


class Moment:
    """One point of the run: the weights as they are, ready to be measured.

    Attributes:
        session: the run's.
        step: completed updates.
        trainer: the run's trainer, to read from.
        pl_module: the run's module, to read parameters from.
        model: its quiet shadow.
    """

    def __init__(
        self,
        session: Session,
        trainer: Trainer,
        pl_module: LightningModule,
        model: Any,
        source: LossSource,
    ) -> None:
        self.session = session
        self.trainer = trainer
        self.pl_module = pl_module
        self.model = model
        self.step = completed_updates(trainer)
        self._source = source
        self._risks: dict[int | None, Risk] = {}
        self._scope = ExitStack()

    @property
    def structured(self) -> bool:
        """Whether the loss is known as a function of the output."""
        return self._source.closure is None

    @property
    def loss(self) -> str:
        """Where the loss comes from, in words."""
        return self._source.description

    def risk(self, examples: int | None) -> Risk:
        """Return the risk over the first `examples` of the probe; all ranks' together."""
        if examples not in self._risks:
            share = None if examples is None else -(-examples // self.trainer.world_size)
            risk = self._source.risk(
                self.model, self.session.probe.part(share), _process_group(self.trainer)
            )
            self._scope.enter_context(risk.frozen())
            self._risks[examples] = risk
        return self._risks[examples]

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Measure with the run's generators put back, and each gradient computed once."""
        with preserved_generators(), torch.inference_mode(False), torch.enable_grad():
            with ExitStack() as self._scope:
                yield


def _process_group(trainer: Trainer) -> Any | None:
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return None
    return torch.distributed.group.WORLD


def _all_ranks(trainer: Trainer, mine: bool) -> bool:
    """Return whether all ranks say yes."""
    if _process_group(trainer) is None:
        return mine
    refusals = torch.tensor([0.0 if mine else 1.0], device=trainer.strategy.root_device)
    torch.distributed.all_reduce(refusals)
    return not bool(refusals.item())


def _logger_directory(logger: Any, log_dir: str) -> Path:
    """Return a directory of the run's own; loggers with only a `save_dir` share it among runs."""
    if getattr(logger, "log_dir", None) == log_dir:
        return Path(log_dir)
    parts = [str(part) for part in (logger.name, logger.version) if part not in (None, "")]
    return Path(log_dir).joinpath(*parts)
