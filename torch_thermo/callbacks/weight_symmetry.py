"""The symmetry of the weights while a network trains."""

from __future__ import annotations

from torch_thermo.callbacks.base import ThermoCallback
from torch_thermo.callbacks.moment import Measurement, Moment
from torch_thermo.callbacks.order_parameter import often
from torch_thermo.callbacks.schedule import Schedule
from torch_thermo.callbacks.symmetry import symmetries


class WeightSymmetry(ThermoCallback):
    """Are the trainable weights symmetric about 0, all together and parameter by parameter?

    Stored as `weight_symmetry`, all from `symmetry_test`: n (nonzero entries), sign_balance with
    its 95 % Wilson interval low, high, butler with butler_p, odd_moment, w_sym beside its null
    w_sym_null; and layer/<parameter> (sign balance), w_sym/<parameter>, w_sym_null/<parameter>.
    Histograms of all entries and of each parameter as arrays. Frozen parameters are left out, for
    training does not move them; the function `weight_symmetry` tests them too. Interval and p-value
    are those of independent entries: trained weights are not, so there they describe and do not
    test. Butler's test and w_sym order at most 100,000 entries by size, chosen by `seed`; the rest
    counts all.

    Li, Fig. 3a.

    Args:
        schedule: default 8 a decade of steps, the first 50 epoch ends and the end.
        seed: of the choice of entries in a large net.
    """

    observable = "weight_symmetry"
    needs_loss = False

    def __init__(self, schedule: Schedule | None = None, seed: int = 0) -> None:
        super().__init__(often() if schedule is None else schedule, seed=seed)

    def measure(self, moment: Moment) -> Measurement:
        """Measure the weights as they are."""
        return symmetries(
            (
                (name, p)
                for name, p in moment.pl_module.named_parameters()
                if p.requires_grad and p.is_floating_point() and p.numel()
            ),
            self.seed,
        )
