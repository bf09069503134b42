"""What a callback that measures says of itself: arguments, observables, and how it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch_thermo.callbacks._roots import Trainer
from torch_thermo.callbacks.loss import check_loss_arguments
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.reading import Part, check_part
from torch_thermo.callbacks.schedule import Schedule, whole
from torch_thermo.callbacks.session import Session
from torch_thermo.risk import Closure, LossFn


class Member:
    """Measures one observable, or bundles those that do: what `ThermoCallback` runs.

    The arguments are those of `ThermoCallback`.
    """

    observable: str = ""
    #: whether measuring needs the loss
    needs_loss: bool = True
    #: whether measuring runs the model on the probe without its loss
    needs_model: bool = False
    #: whether a run that can't be measured is refused at setup, or only noticed
    refuses: bool = True

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
        super().__init__()
        check_loss_arguments(loss_fn, closure)
        check_part(module)
        if not callable(schedule):
            raise TypeError(f"schedule must be callable, got {type(schedule).__name__}")
        try:
            schedule(0, 0)
        except Exception as error:
            raise TypeError(
                f"schedule must be a callable of (step, epoch), got {schedule!r}: {error}"
            ) from error
        if examples is not None:
            whole("examples", examples, 1)
        whole("seed", seed, 0)
        self.schedule = schedule
        self.examples = examples
        self.seed = seed
        self.module = module
        #: the name of `module`, from a run's start on
        self.part: str | None = None
        self._arguments = (probe, loss_fn, closure)

    def measure(self, moment: Moment) -> Measurement:
        """Measure the observable on the weights as they are."""
        raise NotImplementedError

    def members(self) -> Sequence[Member]:
        """Return the callbacks that measure: this one, or those of a bundle."""
        return (self,)

    def observables(self) -> Sequence[str]:
        """Return the names under which this callback stores measurements."""
        return (self.observable,)

    def check_member(self) -> None:
        """Refuse to be a bundle's with a probe or loss of its own, which would be dropped.

        Raises:
            ValueError: naming the arguments.
        """
        probe, loss_fn, closure = self._arguments
        default = isinstance(probe, int) and probe == EXAMPLES
        own = {"probe": not default, "loss_fn": loss_fn, "closure": closure}
        named = [name for name, given in own.items() if given]
        if named:
            raise ValueError(
                f"{type(self).__name__} has {', '.join(named)} of its own: give them to the "
                "bundle, whose callbacks measure on one probe"
            )

    def watch_gradient(self, session: Session, trainer: Trainer, optimizer: Any) -> None:
        """See the gradients of every step; must not synchronise."""

    def flush(self, session: Session, alone: bool = False) -> None:
        """Hand over what `watch_gradient` has kept; `alone`: other ranks do not come here."""

    def reset(self, sharded: bool) -> None:
        """Forget the last run; `sharded`: the parameters of the next are split over ranks."""

    def memory(self) -> dict[str, Any]:
        """Return what later measurements build on, for a checkpoint: plain values and tensors."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up what `memory` returned."""
