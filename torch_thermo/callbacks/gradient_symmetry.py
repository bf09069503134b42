"""The symmetry of the gradient while a network trains."""

from __future__ import annotations

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.order_parameter import often
from torch_thermo.callbacks.probe import EXAMPLES, Source
from torch_thermo.callbacks.schedule import Schedule
from torch_thermo.callbacks.session import Measurement, Moment
from torch_thermo.callbacks.symmetry import balances
from torch_thermo.risk import Closure, LossFn


class GradientSymmetry(ThermoCallback):
    """Sign balance (n+ - n-)/(n+ + n-) of the risk's gradient, pooled and by parameter.

    Stored as `gradient_symmetry`: sign_balance with its 95 % Wilson interval low, high (of
    independent entries: descriptive), layer/<parameter>. The last layer of a ReLU net is
    one-sided by construction, and exact zeros (dead units) carry no sign.

    Li, Fig. 4a.

    Args:
        schedule: default 8 a decade of steps, the first 50 epoch ends and the end.
        probe, examples, loss_fn, closure, seed: see `ThermoCallback`.
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
        return balances((name, gradient[block]) for name, block in risk.blocks.items())
