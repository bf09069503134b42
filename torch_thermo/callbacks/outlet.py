"""Where measurements go: the store, the loggers, TensorBoard's figures. Rank zero only."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch_thermo import dashboard
from torch_thermo.callbacks._roots import Trainer
from torch_thermo.figures import chosen_steps
from torch_thermo.store import Store, default_directory, load_run, new_run_id

_log = logging.getLogger("torch_thermo")

Rows = Sequence[tuple[int, int, Mapping[str, float]]]


class Outlet:
    """The outlet of one callback; those of one trainer share a store.

    Args:
        notice: how to tell the user, `(text, key)`.

    Attributes:
        store: None if it could not be opened.
        run_id: of the run.
        history: {observable: rows}, of what is measured on a schedule; what is recorded at every
            step would grow without end, and is here only if there is no store.
    """

    def __init__(self, notice: Callable[..., object]) -> None:
        self.store: Store | None = None
        self.run_id = ""
        self.history: dict[str, list[dict[str, float]]] = {}
        self.observables: Sequence[str] = ()
        self._notice = notice
        self._loggers: list[Any] = []
        self._resumed_at = -1
        self._known: set[str] = set()
        # seconds: of earlier parts of the run, and in this one those of each callback, by its place
        self._earlier: Mapping[str, Any] = {}
        self._spent: list[Mapping[str, float]] = [{}]
        self._place = 0
        # {observable: last step its ridgeline was drawn at}, {observable: last step with arrays}
        self._drawn: dict[str, int] = {}
        self._undrawn: dict[str, int] = {}
        self._abridged: set[str] = set()

    def open(
        self,
        trainer: Trainer,
        log_dir: str | None,
        step: int,
        observables: Sequence[str],
        resumed: Mapping[str, Any] | None,
        siblings: Sequence[Outlet],
        planned: Sequence[str],
    ) -> None:
        """Open the store, or go on in that of the trainer's other callbacks.

        Args:
            trainer: the run's.
            log_dir: of its first logger.
            step: completed updates.
            observables: what will be recorded here.
            resumed: what a checkpoint says of the store.
            siblings: outlets of the same run that are open already.
            planned: the observables of all callbacks of the trainer, for TensorBoard's layout.
        """
        self.observables = tuple(observables)
        self._loggers = [
            logger for logger in trainer.loggers if type(logger).__name__ != "DummyLogger"
        ]
        taken = {name for sibling in siblings for name in sibling.observables}
        if siblings and not taken & set(observables):
            self.store, self.run_id = siblings[0].store, siblings[0].run_id
            self._resumed_at, self._known = siblings[0]._resumed_at, siblings[0]._known
            self._earlier, self._spent = siblings[0]._earlier, siblings[0]._spent
            self._place = len(self._spent)
            self._spent.append({})
            return
        logged = bool(self._loggers) and not trainer.fast_dev_run and log_dir is not None
        folder = _logger_directory(self._loggers[0], str(log_dir)) if logged else None
        root = str(trainer.default_root_dir)
        # the store is files on a disk: a bucket's address is no folder
        runs = Path("" if "://" in root else root) / "thermo_runs"
        self._open_store(folder, runs, len(siblings), step, resumed)
        where = self.store.path if self.store else "memory"
        if siblings:
            # one tag with two values at a step would show neither
            self._loggers = []
            twice = sorted(taken & set(observables))
            are = "is" if len(twice) == 1 else "are"
            self._notice(
                f"{', '.join(twice)} {are} measured by two callbacks of this run: the measurements "
                f"of the second go to {where} and to no logger"
            )
            return
        if not self._loggers:
            self._notice(
                "this run has no logger (logger=False, barebones or fast_dev_run): measurements "
                f"go to {where} only"
            )
        described = self.store.observables if self.store else ()
        for writer in self._writers():
            self._draw(dashboard.write_layout, writer, planned)
            # a resumed run of the same store has its cards
            new = [name for name in planned if name not in described]
            self._draw(dashboard.write_cards, writer, new)
            if step:
                self._draw(_supersede, writer, step)

    def record(
        self,
        observable: str,
        step: int,
        epoch: int,
        scalars: Mapping[str, float],
        arrays: Mapping[str, Any],
        figures: Sequence[str],
    ) -> None:
        """Keep one measurement: in memory, in the store, at every logger."""
        self.history.setdefault(observable, []).append({"step": step, "epoch": epoch, **scalars})
        self._store(lambda store: store.append(observable, step, epoch, scalars))
        if arrays:
            self._store(lambda store: store.save_arrays(observable, step, arrays))
        self.log(observable, step, scalars)
        if "ridgeline" in figures:
            self._undrawn[observable] = step
            # a picture takes as long as a cheap measurement: seven of them in 50,000 steps
            if step >= 4 * self._drawn.setdefault(observable, max(step, 2)):
                self._draw_ridgeline(observable)
        for figure in figures:
            if figure != "ridgeline":
                for writer in self._writers():
                    self._draw(dashboard.write_figure, writer, figure, observable, arrays, step)

    def record_rows(self, observable: str, rows: Rows) -> None:
        """Keep the scalars of some steps in the store, with one write."""
        if not self._store(lambda store: store.append_many(observable, rows)):
            self.history.setdefault(observable, []).extend(
                {"step": step, "epoch": epoch, **scalars} for step, epoch, scalars in rows
            )
        for step, _, scalars in rows:
            broken = [name for name, value in scalars.items() if not math.isfinite(value)]
            if broken:
                self._notice(
                    f"{observable} is not finite at step {step}: {', '.join(broken[:3])}",
                    key=f"{observable} broken",
                )

    def log(self, observable: str, step: int, scalars: Mapping[str, float]) -> None:
        """Send scalars to every logger, at our own step."""
        if step == self._resumed_at and observable in self._known:
            return  # they have this point from before
        shown = self._shown(observable, scalars)
        metrics = {dashboard.tag(observable, name): float(scalars[name]) for name in shown}
        for logger in self._loggers:
            try:
                logger.log_metrics(metrics, step=step)
            except Exception as error:
                name = type(logger).__name__
                self._notice(f"{name} refused the measurements: {error}", key=f"{name} refused")

    def summarise(
        self,
        measurements: Mapping[str, int],
        measuring: Mapping[str, float],
        total: float,
        skipped: Mapping[str, str],
        facts: Mapping[str, Any],
    ) -> None:
        """Write what the run says of itself, beside what callbacks of the same run have said.

        Measurements are counted where they are, in the store; seconds are those of the earlier
        parts of a resumed run and of all callbacks of this one. To say it again changes nothing.
        Ridgelines are drawn up to the last measurement.
        """
        for observable in list(self._undrawn):
            self._draw_ridgeline(observable)

        def write(store: Store) -> None:
            known = store.meta
            counted = _counted(store, measurements)
            self._spent[self._place] = dict(measuring)
            here = total - sum(sum(spent.values()) for spent in self._spent)
            training = float(self._earlier.get("training", 0.0)) + here
            seconds = Counter(self._earlier.get("measuring", {}))
            for spent in self._spent:
                seconds.update(spent)
            store.write_meta(
                {
                    **facts,
                    "measurements": {**known.get("measurements", {}), **counted},
                    "skipped": {**known.get("skipped", {}), **skipped},
                    "seconds": {"training": training, "measuring": dict(seconds)},
                }
            )

        self._store(write)

    def _open_store(
        self,
        folder: Path | None,
        runs: Path,
        place: int,
        step: int,
        resumed: Mapping[str, Any] | None,
    ) -> None:
        old_id = str(resumed["run_id"]) if resumed and resumed.get("run_id") else None
        old = Path(str(resumed["store"])) if resumed and resumed.get("store") else None
        fresh = new_run_id()
        path = default_directory(fresh, runs) if folder is None else folder / "thermo"
        if place:
            path = path.with_name(f"{path.name}-{place + 1}")
        continues = None
        run_id: str | None = old_id or fresh
        if old is not None and old.exists() and old.resolve() != path.resolve():
            # a resumed run of a new logger version: a store of its own that links to the old
            continues, run_id = old, fresh
        elif old is None and step:
            # fitted on, or resumed from a checkpoint that knows nothing of us: the logger's
            # directory says which run it is
            run_id = None
        try:
            self.store = Store.open(
                path,
                run_id=run_id,
                resume_after=step if step or continues else None,
                continues=continues,
            )
            self.run_id = self.store.id
            self._earlier = _seconds(continues or self.store.path)
            if continues is None and step:
                self._resumed_at, self._known = step, _observed(self.store, step)
        except (OSError, ValueError) as error:
            self._notice(f"the measurements can't be stored ({error}); they are kept in memory")

    def _store(self, action: Callable[[Store], Any]) -> bool:
        if self.store is None:
            return False
        try:
            action(self.store)
        except OSError as error:  # a full disk is no reason to stop a training
            self._notice(f"a measurement can't be stored: {error}", key="can't be stored")
            return False
        return True

    def _shown(self, observable: str, scalars: Mapping[str, float]) -> list[str]:
        """Return which scalars loggers get: of a net of very many layers not every layer's."""
        layers: dict[str, list[str]] = {}
        for name in scalars:
            quantity, layer = dashboard.layer_of(name)
            if layer:
                layers.setdefault(quantity, []).append(name)
        hidden = {name for names in layers.values() for name in names} - {
            name for names in layers.values() for name in dashboard.shown_layers(names)
        }
        if hidden and observable not in self._abridged:
            self._abridged.add(observable)
            most = max(layers.values(), key=len)
            shown, total = len(dashboard.shown_layers(most)), len(most)
            _log.info(
                "%s: loggers get %d of %d layers, spread evenly over the depth; the store has all",
                observable,
                shown,
                total,
            )
            for writer in self._writers():
                self._draw(dashboard.write_layer_note, writer, observable, shown, total)
        return [name for name in scalars if name not in hidden]

    def _draw_ridgeline(self, observable: str) -> None:
        """Draw what is stored of some steps, those of earlier parts of the run too."""
        step = self._undrawn.pop(observable, None)
        writers = list(self._writers())
        if self.store is None or step is None or not writers:
            return
        self._drawn[observable] = step

        def draw(store: Store) -> None:
            run = load_run(store.path)
            steps = chosen_steps(run.array_steps(observable))
            history = [(at, run.arrays(observable, at)) for at in steps]
            for writer in writers:
                dashboard.write_ridgeline(writer, observable, history)

        self._draw(draw, self.store)

    def _writers(self) -> Iterator[Any]:
        for logger in self._loggers:
            writer = getattr(logger, "experiment", None)
            if hasattr(writer, "add_custom_scalars") and hasattr(writer, "add_figure"):
                yield writer

    def _draw(self, action: Callable[..., Any], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # a picture is no reason to stop a training
            self._notice(f"a figure could not be drawn: {error}")


def _logger_directory(logger: Any, log_dir: str) -> Path:
    """Return a directory of the run's own; loggers with only a `save_dir` share it among runs."""
    if getattr(logger, "log_dir", None) == log_dir:
        return Path(log_dir)
    parts = [str(part) for part in (logger.name, logger.version) if part not in (None, "")]
    return Path(log_dir).joinpath(*parts)


def _observed(store: Store, step: int) -> set[str]:
    """Return the observables that are stored at a step."""
    run = load_run(store.path)
    series = {name: run.series(name).steps for name in run.names}
    return {name.partition("/")[0] for name, steps in series.items() if step in steps}


def _counted(store: Store, observables: Iterable[str]) -> dict[str, int]:
    """Return at how many steps each is stored, in the earlier parts of the run too."""
    steps: dict[str, set[int]] = {name: set() for name in observables}
    run = load_run(store.path)
    for name in run.names if steps else ():
        observable = name.partition("/")[0]
        if observable in steps:
            steps[observable].update(run.series(name).steps.tolist())
    return {name: len(found) for name, found in steps.items()}


def _seconds(path: Path) -> Mapping[str, Any]:
    """Return what a run has said of the seconds it took so far."""
    seconds = load_run(path).meta.get("seconds", {})
    return seconds if isinstance(seconds, dict) else {}


def _supersede(writer: Any, step: int) -> None:
    """Make TensorBoard forget what an earlier process wrote of the steps after this one.

    What `SummaryWriter(purge_step=)` does, when the writer is there already.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer.file_writer.add_event(
        Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
    )
