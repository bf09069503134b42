"""The symmetry of the gradient while a network trains."""

from __future__ import annotations

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.order_parameter import often
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.schedule import Schedule
from torch_thermo.callbacks.symmetry import symmetries
from torch_thermo.risk import Closure, LossFn


class GradientSymmetry(ThermoCallback):
    """Is the risk's gradient symmetric about 0, all of it and parameter by parameter?

    Stored as `gradient_symmetry`, with the quantities and histograms of `WeightSymmetry`. Interval
    and p-value are those of independent entries: a gradient's are not, so there they describe and
    do not test. The last layer of a ReLU net is one-sided by construction, for its inputs are not
    negative, and exact zeros (dead units) carry no sign.

    Li, Fig. 4a.

    Args:
        schedule: default 8 a decade of steps, the first 50 epoch ends and the end.
        probe, examples, loss_fn, closure: see `ThermoCallback`.
        seed: of the probe, and of the choice of entries in a large net.
    """

    observable = "gradient_symmetry"

    def __init__(
        self,
        schedule: Schedule | None = None,
        probe: Source = EXAMPLES,
        examples: int | None = None,
        loss_fn: LossFn | None = None,
        closure: Closure | None = None,
        seed: int = 0,
    ) -> None:
        schedule = often() if schedule is None else schedule
        super().__init__(schedule, probe, examples, loss_fn, closure, seed)

    def measure(self, moment: Moment) -> Measurement:
        """Measure the gradient on the probe."""
        risk = moment.risk(self.examples)
        gradient = risk.gradient()
        layers = ((name, gradient[block]) for name, block in risk.blocks.items())
        return symmetries(layers, self.seed)
