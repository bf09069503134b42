"""The symmetry of the weights while a network trains."""

from __future__ import annotations

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.order_parameter import often
from torch_thermo.callbacks.schedule import Schedule
from torch_thermo.callbacks.session import Measurement, Moment
from torch_thermo.callbacks.symmetry import balances


class WeightSymmetry(ThermoCallback):
    """Sign balance (n+ - n-)/(n+ + n-) of the trainable weights, pooled and by parameter.

    Stored as `weight_symmetry`: sign_balance with its 95 % Wilson interval low, high (of
    independent entries: descriptive, for trained weights are not), layer/<parameter>.

    Li, Fig. 3a.

    Args:
        schedule: default 8 a decade of steps, the first 50 epoch ends and the end.
        seed: kept for the interface of `ThermoCallback`; nothing is drawn.
    """

    observable = "weight_symmetry"
    needs_loss = False

    def __init__(self, schedule: Schedule | None = None, seed: int = 0) -> None:
        super().__init__(often() if schedule is None else schedule, seed=seed)

    def measure(self, moment: Moment) -> Measurement:
        """Measure the weights as they are."""
        return balances(
            (name, p)
            for name, p in moment.pl_module.named_parameters()
            if p.requires_grad and p.numel()
        )
