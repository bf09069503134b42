"""One point of a run, and what is measured there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from torch_thermo.callbacks import ranks
from torch_thermo.callbacks._roots import LightningModule, Trainer
from torch_thermo.callbacks.loss import LossSource
from torch_thermo.callbacks.quiet import training_loss
from torch_thermo.callbacks.reading import Reading, choose_part, examples_of, read_part
from torch_thermo.network import Network
from torch_thermo.risk import Risk, second_order

if TYPE_CHECKING:
    from torch_thermo.callbacks.session import Session

T = TypeVar("T")


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


class Moment:
    """One point of the run: the weights as they are, ready to be measured.

    Attributes:
        session: the run's.
        step: completed updates.
        trainer: the run's trainer, to read from.
        pl_module: the run's module, to read parameters from.
        model: its quiet shadow; None if it was not asked for or can't be had.
        source: where the loss comes from; None likewise.
    """

    def __init__(self, session: Session, trainer: Trainer, pl_module: LightningModule) -> None:
        self.session = session
        self.trainer = trainer
        self.pl_module = pl_module
        self.model: Any = None
        self.source: LossSource | None = None
        self.step = completed_updates(trainer)
        self._risks: dict[int | None, Risk] = {}
        self._networks: dict[str, Network] = {}
        self._readings: dict[tuple[str | None, int | None], Reading] = {}
        self._found: dict[Hashable, Any] = {}
        self._scope = ExitStack()

    def allows(self, needs_model: bool, needs_loss: bool) -> bool:
        """Return whether there is what a measurement needs."""
        return not ((needs_loss and self.source is None) or (needs_model and self.model is None))

    def risk(self, examples: int | None) -> Risk:
        """Return the risk over the first `examples` of the probe; all ranks' together.

        Raises:
            RuntimeError: the moment has no loss.
        """
        if self.source is None:
            raise RuntimeError("this moment was prepared without the loss")
        if examples not in self._risks:
            risk = self.source.risk(
                self.model, self._batches(examples), ranks.process_group(self.trainer)
            )
            self._scope.enter_context(risk.frozen())
            self._risks[examples] = risk
        return self._risks[examples]

    def reading(self, part: str | None, examples: int | None) -> Reading:
        """Return a part of the model, and this rank's share of the probe's first `examples`.

        To be called inside `exactly`, but what was read before. The network is read once.

        Args:
            part: its name, see `ThermoCallback`.
            examples: how many on all ranks together; None: all.

        Raises:
            RuntimeError: the moment has no model.
            ValueError: this rank has no example.
            UnreadableNetworkError: it is no network that can be read.
            TypeError: the part is not called once with one tensor.
            FloatingPointError: its output is not finite.
        """
        if self.model is None:
            raise RuntimeError("this moment was prepared without the model")
        key = (part, examples)
        if key not in self._readings:
            self._readings[key] = self._read(part, examples)
        return self._readings[key]

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """Return what `find` gives, called at most once a moment for a key; again if it raised."""
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found

    def table(self, rows: Callable[[], Tensor], examples: int | None) -> Tensor:
        """Return the rows that the ranks have for their examples, in the order of one process.

        Args:
            rows: returns this rank's (n, k), one for each of its examples; called inside `exactly`.
            examples: how many on all ranks together; None: all.

        Returns:
            (N, k), float64 on the CPU, the same on all ranks.

        Raises:
            RuntimeError: another rank failed (this rank's own error is raised unchanged).
        """

        def local() -> Tensor:
            with self.exactly():
                return rows().detach()

        return ranks.gathered(self.trainer, local)[:examples]

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Run the model as exact measurements do: in eval mode, full precision, repeatably."""
        with second_order(self.model, self.trainer.strategy.root_device):
            yield

    def _read(self, part: str | None, examples: int | None) -> Reading:
        batches = self._batches(examples)
        if not batches:
            raise ValueError("this rank has no example of the probe")
        name = choose_part(self.model) if part is None else part
        closure = self.session.closure
        # its own step where a loss_fn is given may draw from what can't be copied
        if closure is None and self.session.loss_fn is None and self.model.automatic_optimization:
            closure = training_loss
        name, inputs, targets, last = examples_of(self.model, name, batches, closure)
        # a loss_fn that is given beside a part is one of the part's output
        last = last or (part is not None and self.session.loss_fn is not None)
        if name not in self._networks:
            self._networks[name] = read_part(self.model, name, inputs)
        return Reading(self._networks[name], inputs, targets, last)

    def _batches(self, examples: int | None) -> list[Any]:
        share = None if examples is None else -(-examples // self.trainer.world_size)
        return self.session.probe.part(share)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Measure with gradients on, each computed once; inside `quiet.undisturbed`."""
        with torch.inference_mode(False), torch.enable_grad():
            with ExitStack() as self._scope:
                yield
